"""Map where in a scan each factor shows, signed, per unit of the factor.

python examples/gallery/factor_maps.py factor_maps.png
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
    """The scan in grey, and over it each factor's map where it is more than a tenth of its largest value."""
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = -98.75
    head = render(
        Anatomy(tumour_ml=20, ventricle_ml=24, tumour_mm=(-34, 12, 18), seed=8), Geometry(affine, (80, 80, 80))
    )
    scan = Volume(acquire(head, Acquisition(noise=0.02)), head.geometry)

    result = medisent.load("rendered-heads").explain(scan)
    units = result.factors.set_index("name").unit
    shown = ["tumour_volume", "ventricle_volume", "brightness", "bias_field"]

    at = int(head.masks.tumour.sum((0, 1)).argmax())
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(shown)), shown, strict=True):
        plane, change = (volume[::-1, :, at].T for volume in (scan.voxels, result.map_of(name).voxels))
        largest = float(np.percentile(np.abs(change), 99.9))
        axis.imshow(plane, cmap="gray", origin="lower", vmin=0, vmax=1.3)
        over = np.ma.masked_less(np.abs(change), 0.1 * largest)
        image = axis.imshow(
            np.ma.array(change, mask=over.mask), cmap="RdBu_r", origin="lower", vmin=-largest, vmax=largest, alpha=0.85
        )
        axis.set_title(f"{name.replace('_', ' ')},\ngain per {units[name] or 'unit'}")
        axis.set_axis_off()
        figure.colorbar(image, ax=axis, shrink=0.7)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
