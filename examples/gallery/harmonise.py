"""Take the scanner out: one head seen by three scanners, before and after.

python examples/gallery/harmonise.py harmonise.png
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
    """Above as the scanners saw the head, below with each scanner at the reference; how far apart they are."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -94.5
    head = render(Anatomy(tumour_ml=14, tumour_mm=(34, 12, 18), seed=3), Geometry(affine, (64, 64, 64)))
    scanners = {
        "as rendered": Acquisition(noise=0.02, seed=1),
        "dim, flat, uneven": Acquisition(gain=0.5, gamma=0.9, bias=(0.2, 0.1, -0.1), noise=0.02, seed=2),
        "bright, steep, uneven": Acquisition(gain=1.6, gamma=1.15, bias=(-0.15, 0.1, 0.15), noise=0.02, seed=3),
    }
    scans = [Volume(acquire(head, scanner), head.geometry) for scanner in scanners.values()]

    model = medisent.load("rendered-heads")
    harmonised = [model.harmonize(scan) for scan in scans]

    inside = head.canonical > 0.1
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    at = int(head.masks.tumour.sum((0, 1)).argmax())
    for row, (said, volumes) in zip(axes, {"before": scans, "after": harmonised}.items(), strict=True):
        seen = np.array([volume.voxels[inside] for volume in volumes])
        apart = seen.std(axis=0).mean() / seen.mean()
        print(f"{said}: the three scans differ by {100 * apart:.1f} % of the mean signal")
        for axis, name, volume in zip(row, scanners, volumes, strict=True):
            axis.imshow(volume.voxels[::-1, :, at].T, cmap="gray", origin="lower", vmin=0, vmax=1.4)
            axis.set_title(f"{said}: {name}", fontsize=10)
            axis.set_axis_off()
        row[1].text(
            0.5, -0.04, f"the three differ by {100 * apart:.1f} %", transform=row[1].transAxes, ha="center", va="top"
        )
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
