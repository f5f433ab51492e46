"""Rulers for edited scans that are no model: they see the scan, its edit and the true counterfactual."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from scipy.ndimage import distance_transform_edt, gaussian_filter

from medisent.metrics import relative_counterfactual_error
from medisent.scanners import measured_scale

_TISSUE_MM = 10.0
_REACH_MM = 9.0
_NOTICEABLE = 0.02  # of the largest true change
_NEAR_MM = 12.0


@dataclass(frozen=True, eq=False)
class Trio:
    """A scan, what became of it, and what should have become of it; air is at zero.

    Attributes:
        scan: As it is.
        edited: As the model changed it.
        truth: The true counterfactual.
        spacing: Of the voxels, in mm.
    """

    scan: Float[np.ndarray, "x y z"]
    edited: Float[np.ndarray, "x y z"]
    truth: Float[np.ndarray, "x y z"]
    spacing: tuple[float, float, float]

    @classmethod
    def of(
        cls,
        scan: Num[np.ndarray, "x y z"],
        edited: Num[np.ndarray, "x y z"],
        truth: Num[np.ndarray, "x y z"],
        spacing: tuple[float, float, float],
        air: float = 0.0,
    ) -> Trio:
        """The trio of three scans whose air measures ``air``."""
        one, two, three = (voxels.astype(np.float64) - air for voxels in (scan, edited, truth))
        return cls(one, two, three, spacing)

    @property
    def achieved(self) -> Float[np.ndarray, "x y z"]:
        """What the model changed."""
        difference: np.ndarray = self.edited - self.scan
        return difference

    @property
    def wanted(self) -> Float[np.ndarray, "x y z"]:
        """What should have changed."""
        difference: np.ndarray = self.truth - self.scan
        return difference

    @property
    def support(self) -> Bool[np.ndarray, "x y z"]:
        """Where the true change is noticeable: more than 2 % of its largest value."""
        size = np.abs(self.wanted)
        return np.asarray(size > _NOTICEABLE * size.max())

    def rce(self) -> float:
        """Relative counterfactual error: 0 is perfect, 1 is the scan itself.

        Raises:
            UsageError: Nothing truly changes.
        """
        return relative_counterfactual_error(self.edited, self.scan, self.truth)

    def rce_parts(self) -> tuple[float, float]:
        """The parts of the RCE inside and outside of the support; they add up to it.

        Raises:
            UsageError: Nothing truly changes.
        """
        inside = self.support
        one, other = (
            relative_counterfactual_error(self.edited, self.scan, self.truth, within=where)
            for where in (inside, ~inside)
        )
        return one, other

    def off_target(self) -> float:
        """Mean absolute error outside of the support, relative to the mean true change inside; NaN without outside."""
        inside, size = self.support, np.abs(self.wanted)
        if inside.all() or not inside.any():
            return math.nan
        error = np.abs(self.edited - self.truth)
        return float(error[~inside].mean() / size[inside].mean())


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure whose mask is known, as a ruler in mL: how far the scan departs there from the tissue around it.

    A voxel that a structure fills departs from its surroundings by the structure's contrast; a part of a voxel by that
    part of it. So the departure summed near the structure, over its mean inside the mask, is a volume.

    Attributes:
        box: The part of the scan that holds the structure and its surroundings; the other arrays are of that part.
        around: The surrounding tissue, continued to where the structure is.
        contrast: Departure of a voxel that is full of it: the slope of the departure over the mask.
        near: Where it is looked for: up to 9 mm beyond the mask.
        voxel_ml: Volume of a voxel.
    """

    box: tuple[slice, ...]
    around: Float[np.ndarray, "a b c"]
    contrast: float
    near: Bool[np.ndarray, "a b c"]
    voxel_ml: float

    @classmethod
    def of(
        cls, scan: Float[np.ndarray, "x y z"], mask: Num[np.ndarray, "x y z"], spacing: tuple[float, float, float]
    ) -> Structure | None:
        """The ruler of a structure in a scan; None where there is none of it, or nothing by which to tell it."""
        if not (mask > 0.5).any():
            return None
        margins = [math.ceil(3 * _TISSUE_MM / side) for side in spacing]
        ends = [(int(at.min()), int(at.max())) for at in np.nonzero(mask > 0.1)]
        box = tuple(slice(max(0, low - m), high + m + 1) for (low, high), m in zip(ends, margins, strict=True))
        part, inside = scan[box], np.clip(mask[box].astype(np.float64), 0, 1)
        weight = np.clip(1 - 1.5 * inside, 0, 1) ** 2 * (part > 0)
        sigma = [_TISSUE_MM / side for side in spacing]
        around = gaussian_filter(weight * part, sigma) / np.maximum(gaussian_filter(weight, sigma), 1e-9)
        contrast = float((np.abs(part - around) * inside).sum() / np.square(inside).sum())
        near = distance_transform_edt(inside <= 0.1, sampling=spacing) <= _REACH_MM
        return cls(box, around, contrast, near, math.prod(spacing) / 1000) if contrast > 1e-6 * part.max() else None

    def difference_ml(
        self, one: Float[np.ndarray, "x y z"], other: Float[np.ndarray, "x y z"], where: Bool[np.ndarray, "x y z"]
    ) -> float:
        """How much of the structure two images differ by, more or less of it alike, in mL; NaN without any voxel.

        It errs on the side of too much: of 2 mL that the ventricles of six rendered heads gained it made 2.3 to 2.6, of
        2 mL of tumour, whose rim and core both move, 2.2 to 4.6.
        """
        seen = self.near & where[self.box]
        if not seen.any():
            return math.nan
        return float(np.abs(one[self.box] - other[self.box])[seen].sum()) / self.contrast * self.voxel_ml


def effect(factor: str, trio: Trio) -> float:
    """The size of an edit's effect, relative to the true one: 1 is as large, 0 nothing, negative the other way round.

    - ``brightness``: change of the typical intensity of tissue (``measured_scale``).
    - ``contrast``: change of the slope of log intensity over the scan's own log intensity, in tissue.
    - any other factor: the amount of change (sum of absolute voxel differences) within 12 mm of where the truth
      changes, with the sign of its agreement with the true change. On rendered heads of which 0.5 to 1.5 of an edit was
      made it read that share of ventricles to 0.01 and of tumours to 0.2. The projection on the true change read 1.5 of
      a tumour's growth as 0.96 to 1.4, since what grows
      beyond the truth lies where the truth does not change.
    """
    measure = _MEASURES.get(factor)
    if measure is None:
        return _amount(trio)
    changes = [measure(trio.scan, image) - 1 for image in (trio.edited, trio.truth)]
    return changes[0] / changes[1] if changes[1] else math.nan


def effect_error(factor: str, trio: Trio) -> float:
    """By how much the effect misses the true one, relative to it: 0 is perfect, 1 is doing nothing."""
    return abs(effect(factor, trio) - 1)


def _scale_ratio(scan: Float[np.ndarray, "x y z"], image: Float[np.ndarray, "x y z"]) -> float:
    before, after = (float(measured_scale(torch.from_numpy(np.ascontiguousarray(i)))) for i in (scan, image))
    return after / before


def _log_slope(scan: Float[np.ndarray, "x y z"], image: Float[np.ndarray, "x y z"]) -> float:
    tissue = (scan > 0.3 * float(measured_scale(torch.from_numpy(np.ascontiguousarray(scan))))) & (image > 0)
    x, y = np.log(scan[tissue]), np.log(image[tissue])
    spread = float(((x - x.mean()) ** 2).sum()) if x.size > 1 else 0.0
    return float(((x - x.mean()) * y).sum()) / spread if spread > 0 else 1.0


def _amount(trio: Trio) -> float:
    achieved, wanted = trio.achieved, trio.wanted
    near = distance_transform_edt(~trio.support, sampling=trio.spacing) <= _NEAR_MM
    total = float(np.abs(wanted[near]).sum())
    sign = float(np.sign(achieved[near] @ wanted[near]))
    return sign * float(np.abs(achieved[near]).sum()) / total if total else math.nan


_MEASURES = {"brightness": _scale_ratio, "contrast": _log_slope}
