"""What the scans of a cohort are: their headers one by one, the voxels of some, and what is wrong with any."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Num

from medisent.config.proposing.listing import Listing, known
from medisent.errors import MedisentError
from medisent.formats import Outline, outline, read
from medisent.progress import Progress
from medisent.scanners import measured_scale
from medisent.volumes import Geometry, Volume

HOUNSFIELD_AIR = -1000.0
_MOST_VOXELS = 1 << 29  # that are read, in all
_FEWEST_SCANS = 8  # that are read, however large
_SAMPLED = 100_000  # voxels of a scan whose intensities are looked at
_POINTS = 4000  # of tissue whose places are kept
_CT_LOW, _CT_HIGH = -500.0, 5000.0
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Unreadable:
    """A scan, or a mask, that training would refuse.

    Attributes:
        scan: Where it is.
        row: Of the table, counted from 0.
        column: Of the table.
        code: The name of the fault.
        message: The refusal.
    """

    scan: Path
    row: int
    column: str
    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Look:
    """What the voxels of a scan say.

    Attributes:
        hounsfield: Whether intensities are those of CT.
        low: The intensity that one voxel in a hundred is below.
        brightness: The typical intensity of tissue above air.
        tissue_mm: Where voxels of tissue lie: distances from the middle of the field of view, along the body's axes.
        digest: Of the voxels.
    """

    hounsfield: bool
    low: float
    brightness: float
    tissue_mm: Float[np.ndarray, "points 3"]
    digest: str


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found out about the scans of a table.

    Attributes:
        outlines: By row; None where the scan cannot be read.
        looks: By row, of those whose voxels were read.
        unreadable: Scans and masks, in the table's order.
        copies: Rows whose scans are the same voxels, in groups.
    """

    outlines: tuple[Outline | None, ...]
    looks: Mapping[int, Look]
    unreadable: tuple[Unreadable, ...]
    copies: tuple[tuple[int, ...], ...]

    @property
    def geometries(self) -> list[Geometry]:
        """Where scans lie that can be read."""
        return [found.geometry for found in self.outlines if found is not None]

    @property
    def modalities(self) -> list[str]:
        """What made each scan, as far as its header or its intensities tell; by row, empty where unknown."""
        looks = self.looks
        return [
            (found.modality if found else "") or ("CT" if row in looks and looks[row].hounsfield else "")
            for row, found in enumerate(self.outlines)
        ]

    @property
    def air(self) -> float:
        """What air measures in these scans, in their unit: -1000 in CT, 0 in MR, the lowest where that is below 0."""
        looks = list(self.looks.values())
        if not looks:
            return 0.0
        if sum(look.hounsfield for look in looks) > len(looks) / 2:
            return HOUNSFIELD_AIR
        below = [look.low for look in looks if look.low < -0.05 * look.brightness]
        return float(f"{np.median(below):.3g}") if len(below) > len(looks) / 2 else 0.0

    def of_rows(self, rows: Sequence[int]) -> Survey:
        """The survey of these rows alone, none of which is at fault."""
        place = {row: index for index, row in enumerate(rows)}
        copies = [tuple(place[row] for row in group if row in place) for group in self.copies]
        return Survey(
            tuple(self.outlines[row] for row in rows),
            {place[row]: look for row, look in self.looks.items() if row in place},
            (),
            tuple(group for group in copies if len(group) > 1),
        )


def look_over(listing: Listing, progress: Progress) -> Survey:
    """The headers of all scans and masks of a table, and the voxels of some scans, evenly spread over it.

    So many voxels are read as take seconds, not minutes; which scans these are depends on the table and the headers
    alone.
    """
    faults: dict[tuple[int, str], Unreadable] = {}
    progress.stage("reading headers", len(listing.rows))
    outlines: list[Outline | None] = []
    for row in range(len(listing.rows)):
        outlines.append(_outlined(listing, row, listing.scan, faults))
        for mask in listing.masks:
            if known([listing.rows[mask].iloc[row]])[0]:
                _outlined(listing, row, mask, faults)
        progress.advance(1)
    rows = _some_rows(outlines)
    progress.stage("looking at voxels", len(rows))
    looks: dict[int, Look] = {}
    for row in rows:
        found = _looked(listing, row, faults)
        if found is None:
            outlines[row] = None
        else:
            looks[row] = found
        progress.advance(1)
    copies = tuple(_copies(listing, outlines, looks))
    return Survey(tuple(outlines), looks, tuple(faults[key] for key in sorted(faults)), copies)


def _outlined(listing: Listing, row: int, column: str, faults: dict[tuple[int, str], Unreadable]) -> Outline | None:
    path = listing.path(row, column)
    try:
        if not listing.rows[column].iloc[row].strip():
            raise MedisentError(f"Row {row + 2} names no scan. Name one, or leave the row out.", "cohort")
        return outline(path, constant=column != listing.scan)
    except MedisentError as error:
        faults[row, column] = Unreadable(path, row, column, error.code, str(error))
        return None


def _looked(listing: Listing, row: int, faults: dict[tuple[int, str], Unreadable]) -> Look | None:
    path = listing.path(row)
    try:
        return look_at(read(path))
    except MedisentError as error:
        faults[row, listing.scan] = Unreadable(path, row, listing.scan, error.code, str(error))
        return None


def _some_rows(outlines: Sequence[Outline | None]) -> list[int]:
    """Rows of scans to be read, in an order of which every beginning is evenly spread over the table."""
    there = [row for row, found in enumerate(outlines) if found is not None]
    there.sort(key=lambda row: (row + 1) * _GOLDEN % 1)
    chosen: list[int] = []
    voxels = 0
    for row in there:
        found = outlines[row]
        assert found is not None
        voxels += math.prod(found.geometry.shape)
        if voxels > _MOST_VOXELS and len(chosen) >= _FEWEST_SCANS:
            break
        chosen.append(row)
    return sorted(chosen)


def look_at(scan: Volume) -> Look:
    """What the voxels of a scan say."""
    step = max(1, math.ceil((scan.voxels.size / _SAMPLED) ** (1 / 3)))
    some = scan.voxels[::step, ::step, ::step].astype(np.float64)
    low, high = (float(v) for v in np.percentile(some, (1, 99.9)))
    hounsfield = low < _CT_LOW and float(some.min()) < _CT_LOW and high < _CT_HIGH
    air = HOUNSFIELD_AIR if hounsfield else min(low, 0.0)
    above = some - air
    brightness = float(measured_scale(torch.from_numpy(above).float()))
    tissue = np.argwhere(above >= (_CT_LOW - air if hounsfield else _threshold(above)))
    tissue = tissue[:: max(1, len(tissue) // _POINTS)] * step
    middle = (np.array(scan.geometry.shape) - 1) / 2
    places = np.abs((tissue - middle) @ scan.affine[:3, :3].T)
    digest = hashlib.sha256(np.ascontiguousarray(scan.voxels).data).hexdigest()
    return Look(hounsfield, low, brightness, places, digest)


def _threshold(above: Num[np.ndarray, "x y z"]) -> float:
    """Half of the intensity-weighted mean intensity: what exceeds it is tissue, as in ``measured_scale``."""
    positive = np.clip(above, 0, None)
    return float(0.5 * np.square(positive).sum() / max(positive.sum(), 1e-300))


def _copies(
    listing: Listing, outlines: Sequence[Outline | None], looks: Mapping[int, Look]
) -> Iterator[tuple[int, ...]]:
    """Groups of rows whose scans are the same, voxel for voxel, though they may be called differently."""
    suspects: dict[str, list[int]] = {}
    for row, found in enumerate(outlines):
        if found is not None:
            suspects.setdefault(f"{found.geometry.shape} {found.likeness}", []).append(row)
        if row in looks:
            suspects.setdefault(looks[row].digest, []).append(row)
    digests = {row: look.digest for row, look in looks.items()}
    told: set[tuple[int, ...]] = set()
    for rows in suspects.values():
        if len(rows) < 2:
            continue
        same: dict[str, list[int]] = {}
        for row in rows:
            if row not in digests:
                digests[row] = _digest(listing.path(row), row)
            same.setdefault(digests[row], []).append(row)
        for group in map(tuple, same.values()):
            if len(group) > 1 and group not in told:
                told.add(group)
                yield group


def _digest(path: Path, row: int) -> str:
    try:
        return hashlib.sha256(np.ascontiguousarray(read(path).voxels).data).hexdigest()
    except MedisentError:
        return f"row {row}"  # like no other
