"""What reading a cohort for training takes when it is kept from before, beside reading it from its files.

    python examples/benchmarks/cache.py [--repeats N] [--json FILE]

Two cohorts: rendered heads as in `medisent demo`, and heads of 256 x 256 x 180 voxels on cells of 1 mm. Prints how many
times as much processor time the files take, and which part of a training step waits for its scans. One thread:
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from loading import GRID, head

from medisent.batches import Batch
from medisent.checkpoints import build_model
from medisent.cohorts import Cohort, Row, load_cohort
from medisent.config import Study, load_study
from medisent.formats import write
from medisent.grids import Grid
from medisent.loading import loading
from medisent.phantoms import write_cohort
from medisent.stores import Store
from medisent.training import Loop, study_cohort


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor seconds."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def compared(cohort: Cohort, grid: Grid, folder: Path, repeats: int) -> tuple[dict[str, float], Batch]:
    """The cohort from its files and from a store, and the batch that came of it."""
    loader = loading(grid, [factor.name for factor in cohort.factors if factor.mask])
    store, millilitres = Store(folder, grid), grid.spacing_mm**3 / 1000
    batch = load_cohort(cohort, loader, millilitres, store=store)
    files = seconds(lambda: load_cohort(cohort, loader, millilitres), repeats)
    kept = seconds(lambda: load_cohort(cohort, loader, millilitres, store=store), repeats)
    return {
        "scans": len(cohort),
        "files_s": round(files, 4),
        "kept_s": round(kept, 5),
        "times": round(files / kept),
    }, batch


def share_of_a_step(study: Study, batch: Batch, steps: int = 8) -> float:
    """Which part of a training step is spent waiting for its scans, on the clock."""
    torch.manual_seed(0)
    network = build_model(study)
    network.fit(batch)
    loop = Loop(study, network, batch, Path())
    loop.take_step()
    start, waited = time.perf_counter(), loop.feed.waited
    for _ in range(steps):
        loop.take_step()
    return (loop.feed.waited - waited) / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        table = write_cohort(place / "demo", subjects=40, seed=3)
        study = load_study(place / "demo" / "study.toml")
        study = replace(study, cohort=replace(study.cohort, table=table))
        small, batch = compared(study_cohort(study).of("train"), study.grid, place / "cache", asked.repeats)
        share = share_of_a_step(study, batch)
        scan = head((0.9, 0.9, 1.0), 0.0)
        rows = []
        for index in range(4):
            voxels = scan.voxels + np.int16(index)
            write(scan.with_voxels(voxels), place / f"{index}.nii.gz", description="rendered")
            rows.append(Row(place / f"{index}.nii.gz", str(index), "train", (), {}))
        large, _ = compared(Cohort(tuple(rows), ()), GRID, place / "cache", max(2, asked.repeats // 2))
    found = {"demo": small, "256 x 256 x 180": large, "share_of_a_step": round(share, 5)}
    for name in ("demo", "256 x 256 x 180"):
        print(f"{name:18} {found[name]['scans']:3} scans: files take {found[name]['times']} times as long as the cache")
    print(f"waiting for its scans takes {share:.2%} of a training step")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
