"""Commands that look and change nothing: ``info`` at a model, ``check`` at the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisent import __version__
from medisent.cli.options import Debug, Json, Quiet
from medisent.cli.output import Output, end_after_result, table
from medisent.errors import MachineError
from medisent.words import listed, metric, number, percent, words

if TYPE_CHECKING:
    from medisent.checkpoints import Trained

_NEEDED_GB = 4.0
_NEEDED_DISK_GB = 2.0


def check(as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Look at the machine.

    Lists the installed parts and says what will be slow.
    """
    import platform
    import shutil

    parts, absent = _parts()
    memory, disk, device = memory_gb(), shutil.disk_usage(Path.cwd()).free / 2**30, _device()
    advice = []
    if device == "cpu":
        advice.append("There is no CUDA device: training on large grids will be slow; explaining a scan takes seconds.")
    if memory is not None and memory < _NEEDED_GB:
        advice.append(f"{memory:.1f} GB of memory are free; training may need {_NEEDED_GB:.0f} GB.")
    if disk < _NEEDED_DISK_GB:
        advice.append(f"{disk:.1f} GB of disk are free here; a run may need {_NEEDED_DISK_GB:.0f} GB.")
    found = {
        "medisent": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_free_gb": None if memory is None else round(memory, 1),
        "disk_free_gb": round(disk, 1),
        "device": device,
        **_cache(),
    }
    Output(as_json, quiet).result(
        {"schema": 1, "ok": not absent, **found, "parts": parts, "missing": absent, "advice": advice},
        [
            *table([("what", "found"), *((_label(k), str(v)) for k, v in found.items())]),
            "",
            *table([("part", "version"), *parts.items()]),
            "",
            *(advice or ["Nothing here will be slow."]),
        ],
    )
    if absent:
        names = ", ".join(absent)
        end_after_result(MachineError(f"These parts are missing: {names}. Install them with: pip install medisent"))


def info(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A run's folder or a model file; else the newest in ./runs.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print a model's card.

    What it was trained on, its factors and their ranges, how well it does, where its limits are.
    """
    from medisent.checkpoints import PACKAGED_MODEL, find_model, load_model

    path = find_model(model)
    trained = load_model(path)
    card = {**_card_of(trained), "limits": _limits(trained, rendered=path == PACKAGED_MODEL), "sha256": trained.digest}
    Output(as_json, quiet).result({"schema": 1, "model": path, **card}, [f"Model: {path}", *_told(card)])


def _told(card: Mapping[str, Any]) -> list[str]:
    """A card for people: its factors as a table, the rest a fact a line."""
    heads = ("factor", "role", "kind", "unit", "least", "most", "calibrated on")
    rows = [
        (
            *(factor[key] for key in ("name", "role", "kind", "unit")),
            *(number(factor.get(key)) for key in ("low", "high", "calibrated_on_subjects")),
        )
        for factor in card["factors"]
    ]
    before = {key: card[key] for key in ("trained_on", "grid")}
    after = {
        "intervals": percent(card["interval_level"]),
        "validation": {metric(k): v for k, v in card["validation"].items()},
    }
    rest = {key: card[key] for key in ("limits", "sha256")}
    return [*_card_lines(before), "", *table([heads, *rows]), "", *_card_lines({**after, **rest})]


def _label(key: str) -> str:
    """A key in words; a unit at its end stands behind a comma."""
    text = words(key)
    for unit in ("gb", "mm"):
        if text.endswith(f" {unit}"):
            return f"{text.removesuffix(f' {unit}')}, {unit.upper() if unit == 'gb' else unit}"
    return text


def _card_of(trained: Trained) -> dict[str, Any]:
    """What is known of a model, as plain values."""
    from medisent.checkpoints import study_factors

    study, card = trained.study, trained.card
    factors = []
    for factor in study_factors(study):
        said: dict[str, Any] = {"name": factor.name, "role": factor.role, "kind": factor.kind, "unit": factor.unit}
        seen = card.factors.get(factor.name)
        if seen is not None:
            said |= {"low": seen.low, "high": seen.high, "calibrated_on_subjects": seen.calibrated}
        factors.append(said)
    return {
        "trained_on": {
            **({"about": study.cohort.about} if study.cohort.about else {}),
            "scans": card.scans,
            "subjects": card.subjects,
            "steps": card.steps,
            "seed": study.training.seed,
        },
        "grid": {"spacing_mm": study.grid.spacing_mm, "shape": list(study.grid.shape)},
        "factors": factors,
        "interval_level": card.level,
        "validation": dict(card.figures),
    }


def _limits(trained: Trained, *, rendered: bool) -> list[str]:
    """What not to expect of a model, in sentences.

    Args:
        trained: The model.
        rendered: Whether it learned from rendered heads.
    """
    factors, card, spacing = trained.network.factors, trained.card, trained.study.grid.spacing_mm
    limits = ["It learned from rendered heads and knows no real scan."] if rendered else []
    limits.append("Readouts and their intervals hold for scans like those it was trained on, and for no others.")
    loose = [name for name, seen in card.factors.items() if not seen.calibrated]
    if loose:
        limits.append(f"Nothing calibrated the intervals of {listed(loose)}: too few validation scans had labels.")
    drawn = [name for name in factors if name not in (*trained.network.shaped, *trained.network.scanner_names)]
    if drawn:
        limits.append(f"Edits of {listed(drawn)} pass through the decoder, which is coarse.")
    limits.append(f"Structures smaller than a cell of {spacing:g} mm are not seen.")
    limits.append("For research only; not a medical device.")
    return limits


def _parts() -> tuple[dict[str, str], list[str]]:
    """The versions of what medisent needs, and what of it is missing."""
    from importlib.metadata import PackageNotFoundError, requires, version

    names = sorted(
        {r.split(";")[0].split(">")[0].split("=")[0].strip() for r in requires("medisent") or [] if "extra ==" not in r}
    )
    parts, absent = {}, []
    for name in names:
        try:
            parts[name] = version(name)
        except PackageNotFoundError:
            absent.append(name)
    return parts, absent


def _cache() -> dict[str, object]:
    """Where scans on the grid are kept between trainings, and what they take of the disk."""
    try:
        from medisent.stores import store_bytes, store_folder
    except ImportError:  # of a part that is missing; that is said elsewhere
        return {}
    folder = store_folder()
    return {"cache": "off"} if folder is None else {"cache": folder, "cache_gb": round(store_bytes(folder) / 2**30, 2)}


def memory_gb() -> float | None:
    """Memory that is free, in GB, where the system tells."""
    if sys.platform != "linux":
        return None
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return None


def gpu_gb() -> float:
    """Memory that is free on the first CUDA device, in GB; 0 where there is none."""
    import torch

    return float(torch.cuda.mem_get_info(0)[0]) / 2**30 if torch.cuda.is_available() else 0.0


def _device() -> str:
    """What ``--device auto`` means here."""
    try:
        import torch
    except ImportError:
        return "none: torch is missing"
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda, {torch.cuda.get_device_name(0)}"


def _card_lines(card: Mapping[str, Any], indent: str = "") -> list[str]:
    """A card as lines, one a fact, what belongs together indented."""
    lines = []
    for name, value in card.items():
        label = f"{indent}{_label(str(name))}:"
        if isinstance(value, Mapping):
            lines += [label, *_card_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            lines.append(label)
            for item in value:
                first, *rest = _card_lines(item, indent + "    ")
                lines += [f"{indent}  - {first.strip()}", *rest]
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            lines += [label, *(f"{indent}  - {item}" for item in value)]
        else:
            shown = ", ".join(map(_fact, value)) if isinstance(value, list) else _fact(value)
            lines.append(f"{label} {shown}".rstrip())
    return lines


def _fact(value: object) -> str:
    """The value as text, a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
