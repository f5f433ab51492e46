"""The command that sets methods beside each other, ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisent.cli.options import Debug, Json, Quiet
from medisent.cli.output import Output


def bench(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for cohorts, runs, results and the page.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings a row.")] = 3,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps of a training at full size; others in proportion.")
    ] = 2400,
    subjects: Annotated[int, typer.Option("--subjects", min=12, help="Heads in the training cohort.")] = 800,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ROW", help="This row alone; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny, to see whether it works; the figures mean nothing.")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of this process.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Set this and other methods beside each other.

    Renders heads, trains, measures. The same command again goes on; run it twice at once to use two cores.
    """
    from medisent.bench import bench as run_bench

    output = Output(as_json, quiet)
    with output.progress() as progress:
        standing = run_bench(
            out,
            seeds=seeds,
            steps=steps,
            subjects=subjects,
            only=only or [],
            quick=quick,
            threads=threads,
            progress=progress,
        )
    measured = sum(len(entry.results) for entry in standing.entries)
    output.result(
        {"schema": 1, "out": out, "page": out / "bench.html", "measured": measured, **standing.to_json()},
        [
            f"Measured: {measured} results in {out / 'results'}",
            f"Page:     {out / 'bench.html'}",
            f"Markdown: {out / 'bench.md'}",
        ],
    )
