"""What results show of themselves in a notebook: short HTML, a page in a frame, plots. Plain values in, no model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medisent.files import write_text
from medisent.volumes import Volume
from medisent.volumes.pictures import planes
from medisent.volumes.showing import picture
from medisent.words import number, words

_ROLE_COLOURS = {"anatomy": "#c2571a", "nuisance": "#1c5ebe"}
_ROLE_MARKS = {"anatomy": "o", "nuisance": "s"}


@dataclass(frozen=True)
class Page:
    """A whole page, which a notebook shows in a frame of its own; it stays when the notebook is exported.

    Attributes:
        html: The page.
        height: Of the frame, in lines.
    """

    html: str = field(repr=False)
    height: int = 45

    def save(self, path: Path | str) -> None:
        """Write the page as a file.

        Raises:
            MachineError: It cannot be written.
        """
        write_text(Path(path), self.html)

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        style = f"width:100%;height:{self.height}rem;border:0"
        return f'<iframe srcdoc="{source}" style="{style}" sandbox="allow-scripts"></iframe>'


def card(title: str, warnings: Sequence[str], table: pd.DataFrame, rest: str = "") -> str:
    """HTML: a sentence, what to know first, a table, and what comes below."""
    warned = "".join(f"<p>&#9888; {html.escape(text)}</p>" for text in warnings)
    shown = table.map(_cell).rename(columns=words)
    return f"<p><b>{html.escape(title)}</b></p>{warned}{shown.to_html(index=False, border=0)}{rest}"


def map_pictures(scan: Volume, maps: Mapping[str, Volume], units: Mapping[str, str]) -> str:
    """HTML: for each factor its map over the scan, where it is largest."""
    return "".join(
        f"<figure style='margin:0.5rem 0'>{picture(planes(scan, change=change.voxels, height=200))}<figcaption>"
        f"What the scan gains per {html.escape(units[name] or 'unit')} of {html.escape(words(name))}: orange more, "
        "blue less.</figcaption></figure>"
        for name, change in maps.items()
        if change.voxels.any()
    )


def plot_percentiles(rows: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Where each factor lies among the training scans, with its value.

    Arguments:
        rows: ``factor``, ``role``, ``shown`` (the value with its unit), and the percentiles of the estimate and of the
            ends of its interval: ``percentile``, ``low``, ``high``.
        axes: To draw on; by default those of a new figure.
    """
    if axes is None:
        axes = _new_axes((7, 0.45 * len(rows) + 1.1))
    axes.axvspan(5, 95, color="#8a8a8a", alpha=0.15, linewidth=0)
    for place, row in enumerate(rows.to_dict("records")):
        colour = _ROLE_COLOURS[row["role"]]
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=4, alpha=0.4)
        axes.plot([row["percentile"]], [place], _ROLE_MARKS[row["role"]], color=colour)
    roles = [f"{words(row['factor'])} ({row['role']})\n{row['shown']}" for row in rows.to_dict("records")]
    axes.set_yticks(range(len(rows)), roles, fontsize=8)
    axes.set(xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5), xlabel="percentile among the training scans (grey: 5 to 95)")
    return axes


def plot_leakage(r2: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """How well each block (row) tells each factor (column): held-out R² as numbers in cells, own factors framed."""
    if axes is None:
        axes = _new_axes((1.2 * r2.shape[1] + 2, 0.5 * len(r2) + 1.5))
    axes.imshow(r2.to_numpy(np.float64), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, block in enumerate(r2.index):
        for column, name in enumerate(r2.columns):
            value = float(r2.loc[block, name])
            own = block == name
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value > 0.6 else "black",
                fontweight="bold" if own else "normal",
                bbox={"fill": False, "edgecolor": "black"} if own else None,
            )
    axes.set_xticks(range(r2.shape[1]), [words(name) for name in r2.columns], rotation=20, ha="right", fontsize=8)
    axes.set_yticks(range(len(r2)), [words(name) for name in r2.index], fontsize=8)
    axes.set(xlabel="factor", ylabel="block")
    axes.set_title("R² with which a block tells a factor", fontsize=9)
    return axes


def plot_readouts(r2: Mapping[str, float | None], axes: Axes | None = None) -> Axes:
    """How well each factor is read: R² against the truth as bars."""
    if axes is None:
        axes = _new_axes((5, 0.4 * len(r2) + 1.2))
    known = {name: value for name, value in r2.items() if value is not None}
    bars = axes.barh(range(len(known)), list(known.values()), color="#1c5ebe")
    axes.bar_label(bars, fmt="{:.2f}", fontsize=8, padding=2)
    axes.set_yticks(range(len(known)), [words(name) for name in known], fontsize=8)
    axes.set(ylim=(len(known) - 0.5, -0.5), xlim=(min(0.0, *known.values(), 0.0), 1.15))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title("R² of readouts against the truth", fontsize=9)
    return axes


def _cell(value: object) -> str:
    return number(value, 4)


def _new_axes(size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt  # slow, and not needed by who draws nothing

    axes: Axes = plt.subplots(figsize=size, layout="constrained")[1]
    return axes
