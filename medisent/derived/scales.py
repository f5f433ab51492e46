"""How the values of a derived slice fit into 16 bits without moving those that are still its source's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Num

from medisent.derived.origin import number
from medisent.volumes import Instance

_HALVINGS = 15  # of the source's step that are tried
_UNSIGNED, _SIGNED = (0, 65535), (-32768, 32767)


@dataclass(frozen=True)
class Scale:
    """How the values of a slice are stored, as ``stored * slope + intercept``.

    Attributes:
        slope: A decimal string of DICOM.
        intercept: Another.
    """

    slope: str
    intercept: str

    def stored(self, values: Num[np.ndarray, "x y"]) -> Integer[np.ndarray, "x y"]:
        """What is nearest to the values when it is stored, int64."""
        exact = (values.astype(np.float64) - float(self.intercept)) / float(self.slope)
        return np.rint(exact).astype(np.int64)

    def values(self, stored: Integer[np.ndarray, "x y"]) -> Float[np.ndarray, "x y"]:
        """What stored values mean, as readers compute it."""
        return stored.astype(np.float64) * float(self.slope) + float(self.intercept)

    def fits(self, values: Num[np.ndarray, "x y"], limits: tuple[int, int]) -> bool:
        """Whether all stored values lie within limits."""
        ends = self.stored(np.array([[values.min(), values.max()]]))
        return bool(limits[0] <= ends.min() and ends.max() <= limits[1])


def fitting_scales(
    planes: Sequence[Num[np.ndarray, "x y"]], own: Sequence[Instance | None]
) -> tuple[list[Scale], bool]:
    """For each slice a scale, and whether stored values have a sign.

    It is the scale of the image that the slice is, so that values which are still that image's come back equal, with
    its step halved as often as the range of 16 bits allows, and as often for each slice; not at all where every value
    lies on a step. A slice that has no such image, or whose values reach too far, spans its own values.

    Args:
        planes: Values of each slice.
        own: The image that each slice is, if it is one.
    """
    scales = [None if image is None else _halved(image, 0) for image in own]
    pairs = [(plane, scale) for plane, scale in zip(planes, scales, strict=True) if scale is not None]
    signed = any(scale.stored(plane).min() < 0 for plane, scale in pairs)
    limits = _SIGNED if signed else _UNSIGNED
    exact = all(np.array_equal(scale.values(scale.stored(plane)), plane) for plane, scale in pairs)
    times = 0 if exact else min((_most(p, i, limits) for p, i in zip(planes, own, strict=True) if i), default=0)
    found = []
    for plane, image in zip(planes, own, strict=True):
        scale = None if image is None else _halved(image, max(times, 0))
        found.append(scale if scale is not None and scale.fits(plane, limits) else _spanning(plane, limits))
    return found, signed


def _most(plane: Num[np.ndarray, "x y"], image: Instance, limits: tuple[int, int]) -> int:
    """How often the image's step can be halved; it counts as always where it does not fit at all."""
    times = 0
    scale = _halved(image, 0)
    if scale is None or not scale.fits(plane, limits):
        return _HALVINGS
    while times < _HALVINGS and (scale := _halved(image, times + 1)) is not None and scale.fits(plane, limits):
        times += 1
    return times


def _halved(image: Instance, times: int) -> Scale | None:
    """The image's scale with its step halved; None where a decimal string does not hold it to the last bit."""
    slope = image.slope / 2**times
    scale = Scale(number(slope), number(image.intercept))
    if slope == 0 or (float(scale.slope), float(scale.intercept)) != (slope, image.intercept):
        return None
    return scale


def _spanning(plane: Num[np.ndarray, "x y"], limits: tuple[int, int]) -> Scale:
    low, high = float(plane.min()), float(plane.max())
    slope = float(number((high - low) / (limits[1] - limits[0] - 2))) or 1.0  # two less, for the string's rounding
    return Scale(number(slope), number(low - (limits[0] + 1) * slope))
