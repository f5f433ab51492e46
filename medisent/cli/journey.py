"""The whole journey in one command, ``demo``: render a cohort, train, evaluate, explain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisent.cli.options import Debug, Device, Json, Quiet, Seed, chosen_device
from medisent.cli.output import Output
from medisent.cli.runs import summary

if TYPE_CHECKING:
    from medisent.progress import Progress


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything.")] = Path("demo"),
    subjects: Annotated[int, typer.Option("--subjects", min=12, help="How many heads to render.")] = 400,
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="How long to train.")] = 4.4,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go the whole way once, on rendered scans.

    Renders a cohort, trains, evaluates, explains one scan; ends by naming the report.
    """
    output = Output(as_json, quiet)
    with output.progress() as progress:
        scan, found = _travel(out, subjects, minutes, seed, chosen_device(device), progress)
    report = out / "explanation" / "report.html"
    output.result(
        {"schema": 1, "out": out, "run": out / "run", "scan": scan, "evaluation": found, "report": report},
        [
            *summary(found),
            f"Evaluation: {out / 'run' / 'evaluation.html'}",
            f"Report:     {report}",
            f"Next:       medisent explain YOUR_SCAN.nii.gz --model {out / 'run'}",
        ],
    )


def _travel(
    out: Path, subjects: int, minutes: float, seed: int, device: str, progress: Progress
) -> tuple[Path, dict[str, object]]:
    """The scan that was explained, and what the evaluation found."""
    from medisent.config import load_study
    from medisent.evaluation import evaluate
    from medisent.explanations import explain
    from medisent.formats import read
    from medisent.phantoms import write_cohort
    from medisent.training import train

    table = write_cohort(out / "cohort", subjects=subjects, seed=seed, counterfactuals=True, progress=progress)
    study, run = load_study(out / "cohort" / "study.toml"), out / "run"
    study = replace(study, training=replace(study.training, minutes=minutes, seed=seed))
    trained = train(study, run, device=device, progress=progress)
    evaluate(trained, None, split="test", seed=seed, progress=progress).save(run)
    scan = _tested_scan(table)
    progress.stage("explaining a scan")
    explain(trained, read(scan)).save(out / "explanation")
    return scan, json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def _tested_scan(table: Path) -> Path:
    """The test scan whose tumour is nearest to the middle of the test split."""
    from medisent.cohorts import read_table

    rows = read_table(table)
    tested = rows[rows["split"] == "test"]
    order = tested["tumour_ml"].astype(float).sort_values().index
    return table.parent / str(tested.loc[order[len(order) // 2], "scan"])
