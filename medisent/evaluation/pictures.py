"""Pictures of an evaluation: estimates against truths, and scans before an edit, as they should be, as they became."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image, ImageDraw, ImageFont

from medisent.factors import Factor
from medisent.reports import Window, planes
from medisent.volumes import Volume
from medisent.volumes.pictures import robust_window
from medisent.words import words

_SIDE = 3.0  # inches, of one scatter
_ROW = 180  # pixels, of one scan
_MARGIN = 22


def scatter(
    readouts: Mapping[str, tuple[Factor, Float[np.ndarray, "scans 3"], Float[np.ndarray, " scans"]]],
) -> bytes:
    """Estimates with their intervals against the truth, one panel a factor, as PNG.

    Arguments:
        readouts: By factor: the factor, estimates with the ends of their intervals, and truths (NaN is unknown).
    """
    across = min(2, len(readouts))
    down = -(-len(readouts) // across)
    figure = Figure(figsize=(_SIDE * across, _SIDE * down), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, (factor, found, truth) in zip(grid.flat, readouts.values(), strict=False):
        known = np.isfinite(truth)
        _panel(axes, factor, found[known], truth[known])
    for axes in grid.flat[len(readouts) :]:
        axes.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _panel(axes: Axes, factor: Factor, found: Float[np.ndarray, "known 3"], truth: Float[np.ndarray, " known"]) -> None:
    estimate, low, high = found.T
    if np.isfinite(found).all():
        axes.vlines(truth, low, high, color="#9db8d2", linewidth=1, zorder=1)
    axes.scatter(truth, estimate, s=12, color="#1c5ebe", zorder=2)
    low_end, high_end = min(truth.min(), estimate.min()), max(truth.max(), estimate.max())
    if factor.kind == "positive" and low_end > 0 and high_end > 10 * low_end:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        ends = low_end / 1.2, high_end * 1.2
    else:
        margin = 0.06 * (high_end - low_end) or 1.0
        ends = low_end - margin, high_end + margin
    axes.plot(ends, ends, color="#888888", linewidth=0.8, zorder=0)
    axes.set(xlim=ends, ylim=ends)
    unit = f" ({factor.unit})" if factor.unit else ""
    axes.set_title(words(factor.name) + unit, fontsize=9)
    axes.set_xlabel("truth", fontsize=8)
    axes.set_ylabel("estimate", fontsize=8)
    axes.tick_params(labelsize=7)


def triple(scan: Volume, truth: Num[np.ndarray, "x y z"], edited: Num[np.ndarray, "x y z"]) -> bytes:
    """A scan, its true counterfactual and its edit one below the other, in one window, where most changes; PNG."""
    change = np.abs(truth.astype(np.float64) - scan.voxels.astype(np.float64))
    x, y, z = (int(np.argmax((change**2).sum(axis=other))) for other in ((1, 2), (0, 2), (0, 1)))
    window = _common(robust_window(scan.voxels), robust_window(truth))
    rows = [
        (label, Image.open(io.BytesIO(planes(scan.with_voxels(voxels), at=(x, y, z), window=window, height=_ROW))))
        for label, voxels in (("the scan", scan.voxels), ("the truth", truth), ("the model's edit", edited))
    ]
    sheet = Image.new("RGB", (rows[0][1].width, len(rows) * (_ROW + _MARGIN)))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (label, picture) in enumerate(rows):
        top = index * (_ROW + _MARGIN)
        pen.text((6, top + _MARGIN // 2), label, fill=(255, 255, 255), font=font, anchor="lm")
        sheet.paste(picture, (0, top + _MARGIN))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def _common(one: Window, other: Window) -> Window:
    return Window(min(one.low, other.low), max(one.high, other.high))
