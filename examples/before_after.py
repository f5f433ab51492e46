"""Draw a scan beside its counterfactuals, from a folder that `medisent explain` wrote.

python examples/before_after.py demo/cohort/scans/sub-0001_synthetic.nii.gz demo/explanation picture.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

import medisent

matplotlib.use("Agg")


def main(scan_path: Path, explanation: Path, picture: Path, factors: list[str]) -> None:
    """One row: the scan, then each counterfactual, in the axial plane where the first one changes most."""
    import matplotlib.pyplot as plt

    scan = medisent.read(scan_path).voxels.astype(float)
    found = sorted((explanation / "counterfactuals").glob("*.nii.gz"))
    chosen = [path for factor in factors for path in found if path.name.startswith(factor)] if factors else found
    edits = [(path.name.removesuffix(".nii.gz"), medisent.read(path).voxels.astype(float)) for path in chosen]
    at = int(np.abs(edits[0][1] - scan).sum((0, 1)).argmax())
    top = float(np.percentile(scan, 99.5))
    columns = min(5, len(edits) + 1)
    rows = -(-(len(edits) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 3.0 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, voxels) in zip(axes.flat, [("the scan", scan), *edits], strict=False):
        # The patient's right on the viewer's left; the scans of the demo are stored RAS.
        axis.imshow(
            voxels[::-1, :, at].T, cmap="gray", origin="lower", vmin=0, vmax=1.15 * top, interpolation="bilinear"
        )
        words, _, value = name.rpartition("_")
        axis.set_title(f"{words.replace('_', ' ')} = {value}" if words else name, fontsize=10)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
