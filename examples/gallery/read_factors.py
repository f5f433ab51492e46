"""Read the factors of a scan, each with its interval and its place among the training scans.

python examples/gallery/read_factors.py read_factors.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import medisent
from medisent.phantoms import Acquisition, Anatomy, acquire, render
from medisent.volumes import Geometry, Volume


def main(picture: Path) -> None:
    """Every factor on its own axis: what training saw, what is read with its interval, and the truth."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -94.5  # the middle of the box is the origin
    head = render(Anatomy(tumour_ml=18, ventricle_ml=26, head_size=82, seed=5), Geometry(affine, (64, 64, 64)))
    scan = Volume(acquire(head, Acquisition(gain=1.4, gamma=1.05, bias=(0.1, 0, -0.1), noise=0.03)), head.geometry)
    truth = {
        "tumour_volume": head.tumour_ml,
        "ventricle_volume": head.ventricle_ml,
        "head_size": 82,
        "brightness": 1.4,
        "contrast": 1.05,
    }

    model = medisent.load("rendered-heads")
    factors = model.explain(scan).factors.set_index("name")
    print(factors[["estimate", "low", "high", "unit", "percentile"]])

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    for axis, name in zip(figure.subplots(len(truth), 1), truth, strict=True):
        row, seen = factors.loc[name], model.card.factors[name]
        axis.axvspan(seen.quantiles[5], seen.quantiles[95], color="0.92")
        axis.plot([row.low, row.high], [0, 0], color="tab:blue", lw=5, solid_capstyle="round", alpha=0.5)
        axis.plot(row.estimate, 0, "o", color="tab:blue")
        axis.plot(truth[name], 0, "k|", ms=16, mew=2)
        axis.set(xlim=(seen.low, seen.high), ylim=(-1, 1), yticks=[])
        axis.set_ylabel(f"{name.replace('_', ' ')}\n{row.unit}", rotation=0, ha="right", va="center")
        axis.spines[["top", "left", "right"]].set_visible(False)
    figure.suptitle("read (blue, with its 90 % interval), true (black), 5th to 95th percentile of training (grey)")
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
