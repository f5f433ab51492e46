"""How a scan shows itself where people look at it: as HTML in a notebook, as axes of Matplotlib."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from medisent.volumes.pictures import (
    LETTERS,
    PALETTE,
    PLANES,
    Upright,
    Window,
    planes,
    robust_limit,
    robust_window,
    slices_through,
)
from medisent.volumes.volume import Volume

_EDGES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.98, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)


def scan_card(scan: Volume) -> str:
    """HTML: three planes, and below them size, spacing, orientation, values and what the reader had to decide."""
    low, high = scan.voxels.min(), scan.voxels.max()
    facts = [
        f"{_times(scan.geometry.shape)} voxels of {_times(f'{mm:.3g}' for mm in scan.spacing)} mm",
        f"axes {scan.geometry.axis_codes}"
        + (f", tilted by {tilt:.0f}°" if (tilt := Upright(scan).tilt) >= 0.5 else ""),
        f"{scan.voxels.dtype}, {low:.4g} to {high:.4g}",
    ]
    remarks = "".join(f"<p>&#9888; {escape(remark)}</p>" for remark in scan.remarks)
    caption = f"<figcaption>{'; '.join(facts)}</figcaption>"
    return f"<figure style='margin:0'>{picture(planes(scan, height=240))}{caption}{remarks}</figure>"


def picture(png: bytes, alt: str = "Axial, coronal and sagittal plane; the patient's right is on the left") -> str:
    """A picture as HTML that holds it."""
    source = base64.b64encode(png).decode()
    return f'<img alt="{escape(alt)}" style="max-width:100%" src="data:image/png;base64,{source}">'


def plot_planes(
    scan: Volume,
    *,
    over: Volume | None = None,
    at: tuple[int, int, int] | None = None,
    window: tuple[float, float] | None = None,
    axes: Iterable[Axes] | None = None,
) -> tuple[Axes, Axes, Axes]:
    """Axial, coronal and sagittal plane on axes in mm, in radiological convention, with letters.

    Arguments:
        scan: What is drawn in grey.
        over: Signed change on the same voxels, in colour, with a bar.
        at: Stored voxel index the planes go through; by default where ``over`` is largest, else the middle.
        window: What is black and what is white; by default robust percentiles.
        axes: Three to draw on; by default those of a new figure.

    Raises:
        GeometryError: ``over`` is not on the scan's grid, or ``at`` lies outside of it.
    """
    upright = Upright(scan)
    index = slices_through(upright, at, None if over is None else over.voxels.astype(np.float32))
    greys = upright.cut(scan.voxels, index)
    colours = None if over is None else upright.cut(over.voxels, index)
    shades = Window(*window) if window else robust_window(scan.voxels)
    if axes is None:
        widths = [width for width, _ in upright.sizes]
        _, made = plt.subplots(
            1, 3, figsize=(10, 4), layout="constrained", gridspec_kw={"width_ratios": widths}, squeeze=True
        )
        axes = list(made)
    axial, coronal, sagittal = axes
    limit = robust_limit(list(colours)) if colours else 0.0
    for i, panel in enumerate((axial, coronal, sagittal)):
        _draw(panel, greys[i], upright.sizes[i], shades)
        panel.set_title(f"{PLANES[i]}, {upright.places(index)[i]}", fontsize=9)
        for (x, y, across, up), letter in zip(_EDGES, LETTERS[PLANES[i]], strict=True):
            panel.text(x, y, letter, color="white", ha=across, va=up, transform=panel.transAxes, fontweight="bold")
        if colours is not None and limit > 0:
            width, height = upright.sizes[i]
            shown = panel.imshow(
                colours[i], ListedColormap(PALETTE / 255.0), extent=(0, width, 0, height), vmin=-limit, vmax=limit
            )
            if panel is sagittal:
                panel.figure.colorbar(shown, ax=[axial, coronal, sagittal], shrink=0.7)
    return axial, coronal, sagittal


def _draw(panel: Axes, plane: Float[np.ndarray, "_ _"], size: tuple[float, float], window: Window) -> None:
    panel.imshow(plane, cmap="gray", extent=(0, size[0], 0, size[1]), vmin=window.low, vmax=window.high)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_facecolor("black")


def _times(parts: object) -> str:
    return " × ".join(map(str, parts))  # type: ignore[call-overload]
