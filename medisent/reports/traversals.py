"""A factor moved through its range: three planes of the scan at every stop, kept as steps from the scan's own grey."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from medisent.reports.copies import STEP, packed, steps_between
from medisent.reports.films import GREY_PIXELS, Film, LightTable
from medisent.volumes import Volume
from medisent.volumes.pictures import Upright, at_most


@dataclass(frozen=True, eq=False)
class Traversal:
    """A factor on its way through its range.

    Attributes:
        factor: Its name.
        role: Its role, ``anatomy`` or ``nuisance``.
        labels: Its value at each stop, with its unit.
        own: The stop at which it has the value that was read from the scan.
        show: A part of the scan as it would be at a stop.
    """

    factor: str
    role: str
    labels: tuple[str, ...]
    own: int
    show: Callable[[Volume, int], Volume]


@dataclass(frozen=True)
class Passage:
    """What a page shows of a traversal.

    Attributes:
        factor: Its name.
        role: Its role.
        labels: Its value at each stop, with its unit.
        own: The scan's own stop.
        film: The planes of the scan itself.
        main: Which of them changes most.
    """

    factor: str
    role: str
    labels: tuple[str, ...]
    own: int
    film: Film
    main: int


@dataclass(frozen=True)
class Passages:
    """What a page shows of all of them.

    Attributes:
        each: One after the other.
        frames: JSON: the scan's planes, and for each traversal which planes it takes and how they change from stop to
            stop: a table of greys a plane, and steps that are left, one signed byte a pixel.
    """

    each: tuple[Passage, ...]
    frames: str = field(repr=False)


def passages(table: LightTable, placed: Sequence[tuple[Traversal, tuple[int, int, int]]]) -> Passages:
    """What a page shows of traversals.

    Arguments:
        table: Hangs the scan.
        placed: Each traversal with the upright index that its planes go through.
    """
    slabs = {at: table.upright.slabs(at) for _, at in placed}
    planes: dict[str, int] = {}
    each, frames = [], []
    for traversal, at in placed:
        stops = [
            [_grey(table, traversal.show(slab, stop), plane) for plane, slab in enumerate(slabs[at])]
            for stop in range(len(traversal.labels))
        ]
        own = stops[traversal.own]
        changes = [steps_between(one, other) for stop in stops for one, other in zip(own, stop, strict=True)]
        frames.append(
            {
                "planes": [planes.setdefault(_plane(grey), len(planes)) for grey in own],
                "tables": packed(b"".join(greys.tobytes() for greys, _ in changes)),
                "rests": packed(b"".join(rest.tobytes("F") for _, rest in changes)),
            }
        )
        moved = [
            np.mean([np.abs(one.astype(np.int16) - own[i]).mean() for one in seen])
            for i, seen in enumerate(zip(*stops, strict=True))
        ]
        film, main = table.scan_film(at), int(np.argmax(moved))
        each.append(Passage(traversal.factor, traversal.role, traversal.labels, traversal.own, film, main))
    held = ",".join(planes)
    return Passages(tuple(each), f'{{"step":{STEP},"planes":[{held}],"factors":{json.dumps(frames)}}}')


def _grey(table: LightTable, slab: Volume, plane: int) -> UInt8[np.ndarray, "columns rows 1"]:
    """One of the three planes, as far as it is shown, in a part of the scan that holds it alone."""
    cut = Upright(slab).cut(slab.voxels, (0, 0, 0))[plane]
    return table.window.grey(at_most(cut, GREY_PIXELS)).T[:, :, None]


def _plane(grey: UInt8[np.ndarray, "columns rows 1"]) -> str:
    columns, rows, _ = grey.shape
    return json.dumps({"columns": columns, "rows": rows, "grey": packed(grey.tobytes("F"))})
