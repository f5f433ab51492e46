"""Commands about runs: ``train`` makes one, ``evaluate`` measures it, ``runs`` lists them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisent.cli.options import Debug, Device, Json, MaxVoxels, Quiet, Seed, chosen_device
from medisent.cli.output import Output, end_after_result, table
from medisent.cli.pace import duration
from medisent.errors import GateError
from medisent.plurals import several
from medisent.words import MISSING, edit, fixed, metric, number, percent, small, words

if TYPE_CHECKING:
    from medisent.config import Gate, Study
    from medisent.runs import Run

Leakage = Mapping[str, Mapping[str, float]]
"""Block, factor, R2."""


def train(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study: cohort, factors, settings.")],
    run: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="RUN", help="The run's folder; else in runs/, named after the study."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what training would take, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew where a run could be resumed.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write RUN/tensorboard too; needs pip install medisent[tensorboard].")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the study's seed.")] = None,
    max_voxels: MaxVoxels = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the model of a study.

    The same command again resumes where the last one stopped.
    """
    from medisent.config import load_study

    first = os.environ.get("RANK", "0") == "0"  # of several processes; it speaks for all
    output = Output(as_json, quiet or not first)
    study = load_study(study_file)  # before the slow imports: a refusal should be quick
    from medisent.evaluation import evaluate as evaluate_model
    from medisent.formats import reading_at_most
    from medisent.training import Board, joined, own_device, study_cohort
    from medisent.training import dry_run as forecast
    from medisent.training import train as train_model

    if seed is not None:
        study = replace(study, training=replace(study.training, seed=seed))
    if dry_run:
        with reading_at_most(max_voxels):
            found = vars(forecast(study, chosen_device(device)))
        output.result({"schema": 1, **found}, _forecast_lines(found))
        return
    folder, place = run or Path("runs") / _name_of(study_file), chosen_device(device)
    board = Board(folder) if tensorboard and first else None
    with joined(own_device(place)), reading_at_most(max_voxels), output.warning(), output.progress() as progress:
        watching = [board] if board else []
        trained = train_model(study, folder, device=place, fresh=fresh, progress=progress, observers=watching)
        if board:
            board.close()
        if not first:
            return
        rows = study_cohort(study).rows
        split = next((s for s in ("test", "validation") if any(row.split == s for row in rows)), None)
        if split is not None:
            evaluate_model(trained, None, split=split, seed=study.training.seed, progress=progress).save(folder)
    scores: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) if split else {}
    output.result(
        {
            "schema": 1,
            "run": folder,
            "model": folder / "model.safetensors",
            "split": split,
            "evaluation": scores or None,
        },
        [
            *(summary(scores, study.gate) if scores else []),
            f"Run:  {folder}",
            f"Page: {folder / 'training.html'}",
            f"Next: medisent explain SCAN --model {folder}",
        ],
    )
    _hold_gate(study, scores)


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or a model file.")],
    cohort: Annotated[
        Path | None, typer.Option("--cohort", metavar="COHORT.tsv", help="Another table than the study's own.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where the evaluation goes; else into the run.")
    ] = None,
    seed: Seed = 0,
    max_voxels: MaxVoxels = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure how well a model does.

    Readout, leakage, separation and counterfactuals, each beside what doing nothing scores.
    """
    from medisent.checkpoints import find_model, load_model
    from medisent.evaluation import evaluate as evaluate_model
    from medisent.formats import reading_at_most

    output = Output(as_json, quiet)
    model_file = find_model(run)
    model = load_model(model_file, chosen_device(device))
    folder = out or model_file.parent
    with reading_at_most(max_voxels), output.progress() as progress:
        evaluation = evaluate_model(model, cohort, split=split, seed=seed, progress=progress)
    evaluation.save(folder)
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    output.result(found, [*summary(found, model.study.gate), f"Report: {folder / 'evaluation.html'}"])
    _hold_gate(model.study, found)


def runs(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="A folder that holds runs, or a run; else ./runs.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List runs, the newest first.

    Whether each is done, running, stopped or damaged, how far it has come, how well factors are read, what leaks most.
    """
    from medisent.runs import runs_in

    usual = Path("runs")
    found = runs_in(folder or usual) if folder or usual.is_dir() else []
    listed = [{**vars(run), "when": _moment(run.when, "%Y-%m-%dT%H:%M:%S%z")} for run in found]
    none = [f"There is no run in {folder or usual}. Make one with: medisent train STUDY.toml"]
    Output(as_json, quiet).result({"schema": 1, "runs": listed}, runs_table(found) if found else none)


def runs_table(found: Sequence[Run]) -> list[str]:
    """Runs as a table, one line each; what their studies say of the cohort stands last, where any of them does."""
    heads = ("run", "state", "steps", "time", "worst readout, R²", "largest leak, R²", "on", "written", "cohort")
    rows = [
        (
            run.name,
            run.state,
            f"{run.steps:,}",
            duration(run.seconds),
            _worst(run),
            _share(run.leak),
            f"{run.scans} {run.split}" if run.split and (run.readout or run.leak is not None) else MISSING,
            _moment(run.when, "%Y-%m-%d %H:%M"),
            run.about or MISSING,
        )
        for run in found
    ]
    shown = slice(None) if any(run.about for run in found) else slice(-1)
    return table([heads[shown], *(row[shown] for row in rows)])


def _worst(run: Run) -> str:
    """The factor that is read least well, and how well."""
    known = {name: r2 for name, row in run.readout.items() if (r2 := row.get("r2")) is not None}
    name = min(known, key=lambda name: known[name], default=None)
    return MISSING if name is None else f"{fixed(known[name], 2)} {words(name)}"


def _moment(seconds: float, form: str) -> str:
    return time.strftime(form, time.localtime(seconds))


def summary(evaluation: Mapping[str, Any], gate: Gate | None = None) -> list[str]:
    """The tables of an ``evaluation.json`` as lines: readout, counterfactuals, maps, leakage, separation."""
    named = {wish: edit(wish, s.get("unit") or "") for wish, s in evaluation["counterfactual"].items()}
    readout = [
        (words(name), _share(s["r2"]), f"{number(s['mae'], 2)} {s.get('unit', '')}".rstrip(), percent(s["coverage90"]))
        for name, s in evaluation["readout"].items()
    ]
    edits = [
        (
            named[wish],
            *(small(s[key], 3) for key in ("rce", "rce_noop")),
            percent(s["effect_error"], 1),
            small(s["off_target"], 3),
        )
        for wish, s in evaluation["counterfactual"].items()
    ]
    scores = [
        (
            metric(name),
            _share(s["value"]),
            f"{_share(s['low'])} to {_share(s['high'])}",
            _share(s["floor"]),
        )
        for name, s in evaluation["disentanglement"].items()
    ]
    aside = [
        (f"{named.get(wish, words(wish))}: {words(name)}", small(found["ml"], 2), small(found["most_ml"], 2))
        for wish, others in evaluation.get("off_target_ml", {}).items()
        for name, found in others.items()
    ]
    maps = [
        (words(name), *(_share(found[kind]) for kind in ("ncc", "ncc_edit", "integrated_gradients", "occlusion")))
        for name, found in evaluation.get("maps", {}).items()
    ]
    tables = [
        table([("readout", "R²", "mean error", "in 90 % interval"), *readout]) if readout else [],
        table([("edit", "RCE", "RCE of no edit", "effect error", "off target"), *edits]) if edits else [],
        table([("off target", "mL, median", "mL, most"), *aside]) if aside else [],
        table(
            [("map, correlation with the truth", "ours", "the whole edit", "integrated gradients", "occlusion"), *maps]
        )
        if maps
        else [],
        leakage_lines(evaluation["leakage"], evaluation.get("leakage_floor", {}), gate),
        table([("separation", "score", "95 % interval", "by chance"), *scores]) if scores else [],
    ]
    lines = [line for part in tables if part for line in [*part, ""]]
    return [several(evaluation["n"], "scan"), "", *lines]


def leakage_lines(leakage: Leakage, floor: Leakage, gate: Gate | None = None) -> list[str]:
    """How well each block tells each factor, as a table: own blocks in brackets, what a gate forbids with a mark."""
    names = list(dict.fromkeys(name for row in leakage.values() for name in row))
    if not names:
        return []
    most = 1.0 if gate is None else gate.leakage

    def cell(block: str, name: str) -> str:
        r2 = leakage[block].get(name)
        if r2 is None:
            return MISSING
        return f"[{fixed(r2, 2)}]" if block == name else f"{fixed(r2, 2)} !" if r2 > most else fixed(r2, 2)

    chance = [max((row[name] for row in floor.values() if name in row), default=None) for name in names]
    rows = [(words(block), *(cell(block, name) for name in names)) for block in leakage]
    allowed = "" if gate is None else f"; !: above the gate of {gate.leakage:g}"
    return [
        *table([("leakage, R²", *map(words, names)), *rows, ("by chance, most", *(_share(c) for c in chance))]),
        f"[ ]: a block's own factor{allowed}",
    ]


def _hold_gate(study: Study, scores: Mapping[str, Any]) -> None:
    """End with the gate's exit code where it is not met; the result has been printed."""
    from medisent.evaluation import check_gate

    wanted = [factor.name for factor in study.factors if factor.column or factor.mask]
    try:
        check_gate(study.gate, scores.get("leakage", {}), scores.get("leakage_by_labels"), wanted)
    except GateError as error:
        end_after_result(error)


def _name_of(study_file: Path) -> str:
    """What a run of the study is called: as the file, or as its folder where every study file is called so."""
    return study_file.resolve().parent.name if study_file.stem == "study" else study_file.stem


def _forecast_lines(found: Mapping[str, Any]) -> list[str]:
    """What training would take, as a table, and what to do if it is too much."""
    rows = [(words(name), "-" if value is None else str(value)) for name, value in found.items()]
    files = [(name, "-" if size is None else f"{size:g}") for name, size in found["files"].items()]
    lines = [*table([("what", "how much"), *rows[:-1]]), "", *table([("file", "MB"), *files])]
    if found["seconds_a_step"] is None:
        lines += ["", "Memory does not suffice. Take a smaller batch and accumulate, or a coarser grid."]
    return lines


def _share(value: float | None) -> str:
    return MISSING if value is None else fixed(value, 2)
