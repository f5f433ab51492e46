"""The benchmark from end to end: which row with which seed is next, and what is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from medisent.bench.claims import claimed
from medisent.bench.cohorts import Cohorts
from medisent.bench.figures import Result
from medisent.bench.rows import ROWS, Place, Row
from medisent.bench.tables import Standing, write_standing
from medisent.errors import UsageError
from medisent.files import write_text
from medisent.grids import Grid
from medisent.progress import Progress, Silence

STEPS, SUBJECTS, SEEDS = 2400, 800, 3


def bench(
    out: Path,
    *,
    seeds: int = SEEDS,
    steps: int = STEPS,
    subjects: int = SUBJECTS,
    only: Sequence[str] = (),
    quick: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Standing:
    """Measure every method on rendered heads, and write ``bench.json``, ``bench.html`` and ``bench.md`` into a folder.

    Each row with each seed is a file of its own in ``results``, never made twice, so that the benchmark can be cut
    short, taken up again, and run by several processes in one folder: each takes what nobody has taken. All rows come
    with the first seed before any comes with the next.

    Arguments:
        out: The folder.
        seeds: How many trainings a row has.
        steps: Of a training at full size; the others take a fixed share of them.
        subjects: Heads in the training cohort, for training, validation and test.
        only: Rows to make; none is all.
        quick: Tiny heads and networks, to see whether everything works; its figures mean nothing.
        threads: Of PyTorch; None leaves them as they are.
        progress: Is told how far the work is.

    Raises:
        UsageError: There is no such row, or the folder holds a benchmark of another size.
        MachineError: The folder cannot be written.
    """
    progress = progress or Silence()
    if threads is not None:
        torch.set_num_threads(threads)
    rows = _chosen(only)
    place = _quick_place(out) if quick else Place(out, Cohorts(out / "cohorts", subjects), steps)
    _hold_size(place)
    failed: dict[Path, Exception] = {}
    while _pass(place, rows, seeds, failed, progress):
        write_standing(out, ROWS, place.size)
    standing = write_standing(out, ROWS, place.size)
    for error in failed.values():  # not before: one row that fails must not cost the others
        raise error
    return standing


def _quick_place(out: Path) -> Place:
    return Place(out, Cohorts(out / "cohorts", 24, 12.0, 16), 8, (Grid(12.0, (16, 16, 16)), 4))


def _chosen(only: Sequence[str]) -> list[Row]:
    known = [row.name for row in ROWS]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"There is no row {', '.join(unknown)}. There are {', '.join(known)}.")
    return [row for row in ROWS if not only or row.name in only]


def _hold_size(place: Place) -> None:
    """Refuse a folder whose results are of another size: rows of one table have to be comparable."""
    size, path = place.size + "\n", place.out / "size.txt"
    with claimed(path.with_suffix(".lock")):
        if not path.is_file():
            write_text(path, size)
    found = path.read_text(encoding="utf-8")
    if found != size:
        raise UsageError(
            f"{place.out} holds a benchmark of {found.strip()}, but {size.strip()} were asked for. Choose another."
        )


def _pass(place: Place, rows: Sequence[Row], seeds: int, failed: dict[Path, Exception], progress: Progress) -> bool:
    """Make the next piece that is neither made nor held by another; False if there is none.

    Arguments:
        place: Where.
        rows: To be made.
        seeds: How many trainings a row has.
        failed: The pieces that could not be made and why; receives the next one.
        progress: Is told how far the work is.
    """
    for seed in range(seeds):
        for row in rows:
            path = result_path(place.out, row.name, seed)
            if (
                path.is_file()
                or path in failed
                or not (row.needs is None or result_path(place.out, row.needs, seed).is_file())
            ):
                continue
            with claimed(path.with_suffix(".lock")) as mine:
                if mine and not path.is_file():
                    try:
                        _make(place, row, seed, path, progress)
                    except Exception as error:
                        failed[path] = error
                    return True
    return False


def _make(place: Place, row: Row, seed: int, path: Path, progress: Progress) -> None:
    progress.stage(f"{row.title}, seed {seed}")
    torch.manual_seed(seed)
    start = time.monotonic()
    steps, figures = row.work(place, row.name, seed, progress)
    Result(row.name, seed, steps, round(time.monotonic() - start, 1), figures).save(path)


def result_path(out: Path, row: str, seed: int) -> Path:
    """The file of one row with one seed."""
    return out / "results" / f"{row}-{seed}.json"
