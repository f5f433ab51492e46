"""To what precision results are worth writing: steps far below their noise, and maps to a few significant bits.

Noise does not shrink when it is packed: each binary digit that is kept costs a bit a voxel. Those far below the noise
tell nothing.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from medisent.volumes import Stored, Volume

BELOW = 16  # times smaller than the noise are steps: rounding to them adds a three-thousandth to its variance
MAP_BITS = 10  # significant bits of a map's values: they are right to a thousandth
_SIDE = 64  # voxels along each side of the box in the middle that noise is measured in
_NORMAL = 0.6745  # the median of a standard normal variable's absolute value


def noise_of(volume: Volume) -> float:
    """The standard deviation of the noise from voxel to voxel in the middle of a volume, in its unit; 0 without any.

    What second differences along all axes leave is taken for noise. Neighbours that share theirs, as in resampled
    scans, make it come out too small.

    References:
        Fast Noise Variance Estimation (Immerkaer, 1996)
    """
    box = tuple(slice(max(0, (n - _SIDE) // 2), (n + _SIDE) // 2) for n in volume.voxels.shape)
    left, taken = volume.voxels[box].astype(np.float64), 0
    for axis, count in enumerate(left.shape):
        if count >= 3:
            left, taken = np.diff(left, 2, axis), taken + 1
    return float(np.median(np.abs(left))) / _NORMAL / math.sqrt(6) ** taken if taken else 0.0


def brief_edit(edited: Volume, scan: Volume) -> tuple[Volume, float]:
    """An edit of a scan without the digits that tell nothing, and the step of its values; 0 where all were kept."""
    step = step_of(edited, scan)
    return in_steps(edited, scan, step), step


def step_of(edited: Volume, scan: Volume) -> float:
    """The step in which an edit of a scan is worth being written, in the scan's unit; 0 where every digit may matter.

    The largest power of two, times the slope of the scan's file, that is at most a sixteenth of the noise of both: a
    scan made darker has less. It is never coarser than the steps of a scan that was stored in whole numbers.

    References:
        Optimal Compression of Floating-Point Astronomical Images without Significant Loss of Information
        (Pence, White, Seaman, 2010)
    """
    own = scan.stored or Stored(scan.voxels.dtype.name)
    step = _step(min(noise_of(edited), noise_of(scan)) / abs(own.slope))
    return abs(own.slope) * (min(1.0, step) if np.dtype(own.dtype).kind in "iu" else step)


def in_steps(edited: Volume, scan: Volume, step: float) -> Volume:
    """The edited scan with what differs from the scan's values in whole steps; the scan's own values stay as they are.

    Steps are counted from the intercept of the scan's file, so that they are those of a scan in whole numbers.
    """
    if step <= 0 or edited.voxels.dtype.kind in "iu":
        return edited
    intercept = scan.stored.intercept if scan.stored else 0.0
    voxels = edited.voxels.copy(order="K")
    for z in range(voxels.shape[2]):  # a plane at a time stays in the cache
        plane = voxels[:, :, z]
        np.copyto(plane, _rounded(plane - intercept, step) + intercept, where=plane != scan.voxels[:, :, z])
    return edited.with_voxels(voxels)


def brief_map(change: Volume) -> Volume:
    """A map in float32, each value to ten significant bits, and not finer than a sixteenth of the map's own noise."""
    step = _step(noise_of(change))
    values = change.voxels.astype(np.float32)
    if step:
        values = _rounded(values, step)
    whole, idle = values.view(np.int32), 24 - MAP_BITS
    whole += 1 << (idle - 1)
    whole &= -1 << idle
    return change.with_voxels(values)


def _step(noise: float) -> float:
    """The largest power of two that is at most a sixteenth of the noise; 0 for none."""
    return 2.0 ** math.floor(math.log2(noise / BELOW)) if math.isfinite(noise) and noise > 0 else 0.0


def _rounded(values: Float[np.ndarray, "*shape"], step: float) -> Float[np.ndarray, "*shape"]:
    """The nearest multiples of a step."""
    found: np.ndarray = np.rint(values / step) * step
    return found
