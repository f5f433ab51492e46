"""What it saves to read the next scan while one is worked on, and to put several scans through the network at once.

    python examples/benchmarks/many.py [--repeats N] [--json FILE]

Renders a head of 256 x 256 x 180 voxels, int16, `.nii.gz`, and reads its latents with the packaged model. Prints how
the processor's time is spent, what a batch of scans that are read ahead takes in wall time (as a part of one where
each is read when it is needed), and what the network takes for each of several scans at once (as a part of one at a
time), with how far the latents then are from those of the single scan. One thread: OMP_NUM_THREADS=1. Wall times mean
something on an idle machine with two processors only; the share of reading bounds what they can come to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from medisent.batches import Batch
from medisent.checkpoints import PACKAGED_MODEL
from medisent.formats import read, write
from medisent.many import Encoding, Item, Journal, ModelFile, Source, here
from medisent.many.engine import fetched, finished
from medisent.phantoms import Acquisition, Anatomy, acquire, render
from medisent.readings import abducted, prepared, read_factors
from medisent.volumes import Geometry, Volume

SHAPE = (256, 256, 180)
SCANS = 6


def head() -> Volume:
    """A rendered head as a clinical scanner stores it."""
    affine = np.diag([0.9, 0.9, 1.0, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    geometry = Geometry(affine, SHAPE)
    seen = acquire(render(Anatomy(tumour_ml=20, seed=2), geometry), Acquisition(bias=(0.1, 0.0, 0.0), noise=0.02))
    return Volume(np.rint(seen * 1000).astype(np.int16), geometry)


def median(work: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    """The median time of some work."""
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def together(batch: Batch, count: int) -> Batch:
    """The same scan several times."""
    return Batch(*(torch.cat([getattr(batch, part.name)] * count) for part in fields(Batch)))


def measure(path: Path, repeats: int) -> dict[str, float]:
    """All figures, as ratios."""
    work = Encoding(ModelFile.of(PACKAGED_MODEL, "cpu"), Journal())
    trained, scan = work.model.trained, read(path)
    cpu = time.process_time
    reading, whole = median(lambda: read(path), cpu, repeats), median(lambda: read_factors(trained, scan), cpu, repeats)
    batch = prepared(trained, scan)[0]
    items = [Item(number, Source(path, str(number)), "") for number in range(SCANS)]

    def in_turn() -> None:
        for item in items:
            finished(work, item, fetched(work, item), 0)

    walls = [
        [median(run, time.perf_counter, 1) for run in (in_turn, lambda: list(here(work, items, 0)))]
        for _ in range(repeats)
    ]
    found = {
        "reading, share of processor time": reading / (reading + whole),
        "read ahead, wall time, in turn = 1": statistics.median(ahead / turn for turn, ahead in walls),
    }
    single = abducted(trained.network, batch).q.loc
    alone = median(lambda: abducted(trained.network, batch), cpu, repeats)
    found["network, share of processor time"] = alone / (reading + whole)
    for count in (2, 4, 16):
        several = together(batch, count)
        took = median(lambda several=several: abducted(trained.network, several), cpu, repeats)
        found[f"network, {count} at once, processor time of each, alone = 1"] = took / count / alone
        found[f"network, {count} at once, largest difference of a latent"] = float(
            (abducted(trained.network, several).q.loc - single).abs().max()
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.nii.gz"
        write(head(), path, description="synthetic: rendered head")
        found = measure(path, asked.repeats)
    for name, value in found.items():
        print(f"{name}: {value:.2g}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
