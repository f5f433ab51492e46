"""How long a scan takes from its file to the model's grid, beside MONAI's usual chain of transforms.

    python examples/benchmarks/loading.py [--repeats N] [--oblique DEGREES] [--json FILE]

Renders a head of 256 x 256 x 180 voxels, stores it as `.nii.gz`, as `.nii` and as 180 DICOM files, and loads each by
turns with both, to 96 x 96 x 96 cells of 1 mm. Prints the processor time of one process as a part of that of MONAI's
chain (medians over the repetitions), and how well the voxels correlate where both lay on the same cells: MONAI counts
its cells from the scan's first voxel, medisent from the middle of the field of view, so that one's lie up to half a
millimetre beside the other's. One thread for both: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
    Spacingd,
)

from medisent.formats import read, write
from medisent.grids import Grid, sample
from medisent.loading import loading
from medisent.phantoms import Acquisition, Anatomy, acquire, render
from medisent.phantoms.dicom import write_series
from medisent.volumes import Geometry, Volume

SHAPE = (256, 256, 180)
GRID = Grid(1.0, (96, 96, 96))


def head(spacing: tuple[float, float, float], degrees: float) -> Volume:
    """A rendered head, int16, stored with its first two axes the other way round, turned about the long axis."""
    turn = np.radians(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1, -1, 1]) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    geometry = Geometry(affine, SHAPE)
    seen = acquire(render(Anatomy(tumour_ml=20, seed=2), geometry), Acquisition(bias=(0.1, 0.0, 0.0), noise=0.02))
    return Volume(np.rint(seen * 1000).astype(np.int16), geometry)


def usual(reader: str) -> Compose:
    """What most projects on MONAI begin with."""
    return Compose(
        [
            LoadImaged("scan", reader=reader),
            EnsureChannelFirstd("scan"),
            Orientationd("scan", axcodes="RAS", labels=None),
            Spacingd("scan", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
            ScaleIntensityd("scan"),
            ResizeWithPadOrCropd("scan", spatial_size=(96, 96, 96)),
        ]
    )


def timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Processor seconds of all threads, and what came of them."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def measure(path: Path, reader: str, repeats: int) -> dict[str, float]:
    """Both chains on one scan, by turns."""
    theirs, ours = usual(reader), loading(GRID)
    seconds: dict[str, list[float]] = {"usual": [], "medisent": []}
    for _ in range(repeats + 1):
        first, expected = timed(lambda: theirs({"scan": path})["scan"])
        second, found = timed(lambda: ours({"scan": path})["scan"])
        seconds["usual"].append(first)
        seconds["medisent"].append(second)
    # the first of each is warming up
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    ratios = [b / a for a, b in zip(*(taken[1:] for taken in seconds.values()), strict=True)]
    cells = Geometry(np.asarray(expected.affine, np.float64), GRID.shape)
    there = sample(read(path), cells)
    correlation = np.corrcoef(np.asarray(expected).ravel(), there.ravel())[0, 1]
    assert found.shape == expected.shape
    return {
        "usual_s": round(medians["usual"], 4),
        "medisent_s": round(medians["medisent"], 4),
        "ratio": round(medians["medisent"] / medians["usual"], 4),
        "worst_ratio": round(max(ratios), 4),
        "correlation": round(float(correlation), 6),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.9, 0.9, 1.0))
    parser.add_argument("--oblique", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        scan = head(tuple(asked.spacing), asked.oblique)
        write(scan, place / "scan.nii.gz", description="rendered")
        write(scan, place / "scan.nii", description="rendered")
        write_series(scan, place / "dicom", name="SUB-0001", description="rendered", entropy="benchmark")
        rows = {
            ".nii.gz": measure(place / "scan.nii.gz", "NibabelReader", asked.repeats),
            ".nii": measure(place / "scan.nii", "NibabelReader", asked.repeats),
            "180 DICOM files": measure(place / "dicom", "PydicomReader", asked.repeats),
        }
    print(f"{'':16}{'part of usual':>15}{'worst':>8}{'correlation':>14}")
    for name, row in rows.items():
        print(f"{name:16}{row['ratio']:15.3f}{row['worst_ratio']:8.3f}{row['correlation']:14.6f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
