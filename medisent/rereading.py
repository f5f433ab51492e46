"""An edited scan read again: do the model, and a ruler that is no model, find what was asked, and what else moved?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from medisent.checkpoints import Trained
from medisent.readings import Reading, Readout, read_factors
from medisent.scanners import measured_scale
from medisent.volumes import Volume

_SAMPLE = 1_000_000  # voxels that a ruler looks at, at most about
_HALF = 0.5
_HARDLY = 0.05  # of a value; a move by less hardly matters


@dataclass(frozen=True)
class Reread:
    """What is read from a scan after an edit.

    Attributes:
        before: The edited factor, as read from the scan.
        asked: Its value that was asked for.
        after: The edited factor, as read from the edited scan.
        ruled: Its value after the edit by a ruler that only sees the two scans; NaN where there is none.
        others: All other factors, as read from the edited scan.
        moved: By how much each of them moved, in half widths of its interval; without those that have none, or one
            that nothing has calibrated while others were.
    """

    before: Readout
    asked: float
    after: Readout
    ruled: float
    others: Mapping[str, Readout]
    moved: Mapping[str, float]

    @property
    def found(self) -> bool:
        """Whether the reading changed by what was asked for, give or take a half of it.

        The interval of the reading would be no measure: the wider it is the more it would forgive.
        """
        return abs(self.after.estimate - self.asked) <= _HALF * abs(self.asked - self.before.estimate)

    @property
    def most_moved(self) -> tuple[str, float] | None:
        """The other factor that moved most, and by how much, in half widths of its interval."""
        return max(self.moved.items(), key=lambda item: item[1], default=None)

    @property
    def kept(self) -> bool:
        """Whether all other factors stayed in the intervals that the scan itself gave."""
        return all(share <= 1 for share in self.moved.values())


def reread(trained: Trained, reading: Reading, name: str, asked: float, edited: Volume) -> Reread:
    """What is read from an edited scan.

    Arguments:
        trained: The model.
        reading: Of the scan before the edit.
        name: The factor that was edited.
        asked: The value it was to get, in its unit.
        edited: The scan after the edit.
    """
    again = read_factors(trained, edited).readouts
    others = {other: readout for other, readout in again.items() if other != name}
    calibrated = {known for known, entry in trained.card.factors.items() if entry.calibrated}
    moved = {}
    for other, readout in others.items():
        first = reading.readouts[other]
        half = (first.high - first.low) / 2
        counts = other in calibrated or not calibrated
        if counts and math.isfinite(half) and half > 0 and math.isfinite(readout.estimate):
            moved[other] = abs(readout.estimate - first.estimate) / half
    before = reading.readouts[name]
    ruled = _ruled(name, before.estimate, asked, reading.scan, edited, shaped=name in trained.network.shaped)
    return Reread(before, asked, again[name], ruled, others, moved)


def dependence(first: Readout, after: Readout) -> str:
    """How much a factor's reading depends on what was edited: ``hardly``, ``somewhat`` or ``much``."""
    if abs(after.estimate - first.estimate) <= _HARDLY * abs(first.estimate):
        return "hardly"
    return "somewhat" if first.low <= after.estimate <= first.high else "much"


def _ruled(name: str, present: float, asked: float, scan: Volume, edited: Volume, *, shaped: bool) -> float:
    """The factor's value after the edit, from what differs between the two scans alone; NaN without a ruler.

    Brightness is the ratio of the typical intensities of tissue, contrast the slope of log intensity over log
    intensity. A volume with a mask gains or loses the voxels that changed by more than half of the largest change.
    """
    if name == "brightness":
        scales = [float(measured_scale(torch.from_numpy(_thin(v)))) for v in (scan, edited)]
        return present * scales[1] / scales[0]
    if name == "contrast":
        one, other = _thin(scan).ravel(), _thin(edited).ravel()
        tissue = (one > 0.3 * float(measured_scale(torch.from_numpy(one)))) & (other > 0)
        x, y = np.log(one[tissue]), np.log(other[tissue])
        spread = float(x.var()) if x.size > 1 else 0.0
        return present * float(((x - x.mean()) * y).mean()) / spread if spread > 0 else math.nan
    if not shaped:
        return math.nan
    change = np.abs(np.subtract(edited.voxels, scan.voxels, dtype=np.float32))
    largest = float(np.quantile(change[change > 0], 0.95)) if change.any() else 0.0
    changed = float(np.count_nonzero(change > largest / 2)) if largest else 0.0
    return max(0.0, present + math.copysign(changed * scan.geometry.voxel_ml, asked - present))


def _thin(scan: Volume) -> Float[np.ndarray, "x y z"]:
    """Every so many voxels of a scan along each axis, float64."""
    step = max(1, round((scan.voxels.size / _SAMPLE) ** (1 / 3)))
    return np.ascontiguousarray(scan.voxels[::step, ::step, ::step], dtype=np.float64)
