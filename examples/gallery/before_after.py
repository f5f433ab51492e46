"""Show a scan, and the same scan with one factor changed: the tumour, the ventricles, the scanner, each alone.

python examples/gallery/before_after.py before_after.png
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
    """Above the scan and its counterfactuals, below what each of them changed, in the plane of the tumour."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -95.0
    anatomy = Anatomy(tumour_ml=16, ventricle_ml=22, head_size=80, tumour_mm=(34, 12, 18), seed=12)
    head = render(anatomy, Geometry(affine, (96, 96, 96)))
    scan = Volume(acquire(head, Acquisition(bias=(0.08, -0.05, 0.06), noise=0.02, seed=1)), head.geometry)

    model = medisent.load("rendered-heads")
    factors = model.explain(scan).factors.set_index("name").estimate
    edited = {
        "tumour twice as large": model.counterfactual(scan, tumour_volume=2 * factors.tumour_volume),
        "tumour half as large": model.counterfactual(scan, tumour_volume=factors.tumour_volume / 2),
        "ventricles x1.7": model.counterfactual(scan, ventricle_volume=1.7 * factors.ventricle_volume),
        "scanner dimmed to 60 %": model.counterfactual(scan, brightness=0.6 * factors.brightness),
    }
    for name, volume in edited.items():
        print(
            f"{name}: {100 * np.mean(volume.voxels == scan.voxels):.1f} % of the voxels are the scan's, value for value"
        )

    at = int(head.masks.tumour.sum((0, 1)).argmax())
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    axes = figure.subplots(2, 5)
    brightest = 1.05 * float(np.percentile(scan.voxels, 99.8))

    for axis, (name, volume) in zip(axes[0], {"the scan": scan, **edited}.items(), strict=True):
        plane = volume.voxels[::-1, :, at].T  # the patient's right on the viewer's left
        axis.imshow(plane, origin="lower", cmap="gray", vmin=0, vmax=brightest, interpolation="bilinear")
        axis.set_title(name)
    for axis, volume in zip(axes[1, 1:], edited.values(), strict=True):
        change = (volume.voxels - scan.voxels)[::-1, :, at].T
        axis.imshow(change, origin="lower", cmap="RdBu_r", vmin=-0.7, vmax=0.7)
    axes[1, 0].text(0.5, 0.5, "what changed:\nred brighter, blue darker,\nwhite not touched", ha="center", va="center")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
