"""What lies in run folders, told from their small files alone: how far each has come, and how well it does."""

from __future__ import annotations

import json
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medisent.errors import UsageError
from medisent.files import in_use

State = Literal["running", "stopped", "done", "damaged"]
_MODEL, _METRICS, _EVALUATION, _MANIFEST = "model.safetensors", "metrics.jsonl", "evaluation.json", "manifest.json"
_CHECKPOINTS = "checkpoint*.safetensors"
_HEADER_LIMIT = 16 << 20


@dataclass(frozen=True)
class Run:
    """A run, as far as its folder tells.

    Attributes:
        name: Of the folder.
        folder: The folder.
        state: ``running`` in some process, ``stopped`` before its end, ``done``, or ``damaged``: a file is not whole.
        steps: Taken so far.
        seconds: They took.
        when: Something was last written into it, in seconds since 1970.
        about: What its study says of the cohort.
        split: On which the figures were measured: that of its evaluation, else ``validation``; empty without figures.
        scans: On how many.
        readout: By factor, R2 and mean absolute error.
        leak: The largest R2 with which a block tells a factor that is not its own; None where it was not measured.
    """

    name: str
    folder: Path
    state: State
    steps: int
    seconds: float
    when: float
    about: str = ""
    split: str = ""
    scans: int = 0
    readout: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    leak: float | None = None


def runs_in(folder: Path) -> list[Run]:
    """The runs in a folder, the newest first; a folder that is a run itself is the only one.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder. Name the folder that holds runs, or a run.")
    if _is_run(folder):
        return [run_of(folder)]
    found = [run_of(path) for path in folder.iterdir() if path.is_dir() and _is_run(path)]
    return sorted(found, key=lambda run: (-run.when, run.name))


def run_of(folder: Path) -> Run:
    """What a run's folder tells."""
    busy, faults = in_use(folder), _faults(folder)
    done = (folder / _MODEL).is_file() and not busy
    manifest = _json(folder / _MANIFEST) if done else {}
    last = _last_record(folder / _METRICS, b'"step"')
    evaluation = _json(folder / _EVALUATION) if done else {}
    record = {} if evaluation else _last_record(folder / _METRICS, b'"validation"')
    figures = evaluation or _mapping(record.get("validation"))
    state: State = "running" if busy else "damaged" if faults else "done" if done else "stopped"
    return Run(
        name=folder.resolve().name,
        folder=folder,
        state=state,
        steps=int(_number(manifest.get("steps", last.get("step"))) or 0),
        seconds=_number(manifest.get("seconds", last.get("seconds"))) or 0.0,
        when=max((path.stat().st_mtime for path in folder.iterdir() if path.is_file()), default=0.0),
        about=_about(folder / "study.toml"),
        split=str(evaluation.get("split", "test")) if evaluation else "validation" if figures else "",
        scans=int(_number(figures.get("n", figures.get("scans"))) or 0),
        readout={
            str(name): {key: _number(_mapping(row).get(key)) for key in ("r2", "mae")}
            for name, row in _mapping(figures.get("readout")).items()
        },
        leak=_largest_leak(_mapping(figures.get("leakage"))),
    )


def _is_run(folder: Path) -> bool:
    """Whether training has written here; the folder of a cohort may hold a study too."""
    names = (_MODEL, _METRICS)
    return any((folder / name).is_file() for name in names) or any(folder.glob(_CHECKPOINTS)) or in_use(folder)


def _faults(folder: Path) -> list[Path]:
    """The files that are not whole."""
    tensors = [path for path in (folder / _MODEL, *folder.glob(_CHECKPOINTS)) if path.is_file()]
    return [
        *(path for path in tensors if not _whole(path)),
        *(path for path in (folder / _EVALUATION, folder / _MANIFEST) if path.is_file() and not _json(path)),
    ]


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > _HEADER_LIMIT:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(path.stat().st_size == 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error, RecursionError):
        return False


def _json(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds; nothing where it is not there or is none."""
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}


def _last_record(path: Path, mark: bytes) -> Mapping[str, Any]:
    """The last line of a file of JSON lines that holds these bytes."""
    try:
        raw = path.read_bytes()
        at = raw.rindex(mark)
        end = raw.find(b"\n", at)
        return _mapping(json.loads(raw[raw.rfind(b"\n", 0, at) + 1 : end if end >= 0 else None]))
    except (OSError, ValueError, RecursionError):
        return {}


def _about(path: Path) -> str:
    """What a study file says of its cohort."""
    try:
        study = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return " ".join(str(_mapping(study.get("cohort")).get("about", "")).split())


def _largest_leak(leakage: Mapping[str, Any]) -> float | None:
    """The largest R2 of a factor from a block that is not its own."""
    found = (_number(r2) for block, row in leakage.items() for name, r2 in _mapping(row).items() if name != block)
    return max((r2 for r2 in found if r2 is not None), default=None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
