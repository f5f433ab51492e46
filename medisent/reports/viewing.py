"""What the viewer in a page is given: its program, the copies of the volumes, and what belongs to what."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from isal import igzip

from medisent.reports.copies import STEP, Copies
from medisent.volumes.pictures import shade
from medisent.words import number

PAGE = 9_600_000  # characters that a page with all it holds may have
_NODES = 33  # of the colour scale


@dataclass(frozen=True)
class Viewer:
    """The viewer of a page.

    Attributes:
        program: Base64 of the gzipped program, NiiVue.
        volumes: JSON: the copies, for every edit the factor and the place to look at, for every map its factor.
        maps: What the maps are called, in order.
        remark: What to know about the copies.
    """

    program: str = field(repr=False)
    volumes: str = field(repr=False)
    maps: tuple[str, ...]
    remark: str


def viewer(
    copies: Copies, edited: Sequence[tuple[str, Sequence[float]]], mapped: Mapping[str, str], start: Sequence[float]
) -> Viewer:
    """The viewer of a scan's copies.

    Arguments:
        copies: The volumes.
        edited: Of each edit, the factor and the place where it changes most, in mm RAS+.
        mapped: Of each map, the factor and what it is called.
        start: Where to look first without any edit, in mm RAS+.
    """
    nodes = [2 * i / (_NODES - 1) - 1 for i in range(_NODES)]
    red, green, blue, opacity = zip(*(shade(share) for share in nodes), strict=True)
    volumes = {
        "scan": copies.scan,
        "step": STEP,
        "edits": [
            {"factor": factor, "at": [round(mm, 3) for mm in at], "table": edit.table, "rest": edit.rest}
            for (factor, at), edit in zip(edited, copies.edits, strict=True)
        ],
        "maps": [{"factor": factor, "volume": text} for factor, text in zip(mapped, copies.maps, strict=True)],
        "start": [round(mm, 3) for mm in start],
        "colours": {
            "R": red, "G": green, "B": blue, "A": opacity, "I": [round(127 + 127 * share) for share in nodes]
        },
    }  # fmt: skip
    return Viewer(packed_program(), json.dumps(volumes, separators=(",", ":")), tuple(mapped.values()), _remark(copies))


@cache
def program() -> str:
    """The viewer's program: NiiVue 0.69.0, BSD-2-Clause (see ``vendor/niivue.LICENSE``)."""
    return (Path(__file__).parent / "vendor" / "niivue.umd.js").read_text(encoding="utf-8")


@cache
def packed_program() -> str:
    """Base64 of the gzipped program."""
    return base64.b64encode(igzip.compress(program().encode(), 3, mtime=0)).decode()


def _remark(copies: Copies) -> str:
    """What a display copy is, in a sentence or two."""
    blocks = copies.sampling.blocks
    mm = " × ".join(number(side) for side in copies.spacing)
    text = "The viewer shows copies made for display: 256 greys"
    if blocks != (1, 1, 1):
        text += f", {' × '.join(map(str, blocks))} voxels averaged into one of {mm} mm"
    if copies.cropped:
        text += ", without empty slices at the border"
    return text + ". Measure on the files."
