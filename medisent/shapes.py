"""How a structure with a soft outline grows or shrinks to a wanted volume, and what a scan then shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.optimize import brentq
from torch.nn.functional import interpolate

# Sub-voxels along each edge of a voxel: outlines move by fractions of a voxel.
FINE = 3
# Depths, in voxels, at which a structure's intensity is described; sparser further down.
_KNOTS = (0.5, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0, 20.0)
# What holds less, in voxels, is no structure.
_LEAST = 1 / 8
# How the mask's surface gives way to the image: in at most so many steps, until none is larger than this (voxels).
_STEPS, _STILL = 6, 0.02
# The image speaks for a surface within this of a place (standard deviation of a Gaussian, voxels).
NEAR = 0.7
# Variance of what the profile misses of the image (scale of a scan: 1) over that of the mask's error (voxels).
_DOUBT = 0.003


@dataclass(frozen=True, eq=False)
class Outline:
    """A soft mask as a surface that can be moved.

    Attributes:
        distance: Signed distance to the surface at sub-voxels, in voxels; negative inside.
        voxel_ml: Volume of a voxel in mL.
        fine: Sub-voxels along each edge of a voxel.
    """

    distance: Float[np.ndarray, "fx fy fz"]
    voxel_ml: float
    fine: int = FINE

    @classmethod
    def of(cls, mask: Float[np.ndarray, "x y z"], voxel_ml: float, fine: int = FINE) -> Outline:
        """The surface that encloses as much as the soft mask does; its level is chosen for that.

        Raises:
            ValueError: The mask holds less than an eighth of a voxel.
        """
        volume = float(mask.sum())
        if volume < _LEAST:
            raise ValueError("The mask is empty.")
        refined = divided(mask, fine)
        ranked = np.sort(refined, axis=None)[::-1]
        inside = refined >= max(float(ranked[min(round(volume * fine**3), ranked.size) - 1]), 1e-3)
        return cls(_distance(inside, fine), voxel_ml, fine)

    def moved(self, by: Float[np.ndarray, "x y z"]) -> Outline:
        """The surface after each part of it has moved outwards by so many voxels; other distances are not exact."""
        return replace(self, distance=(self.distance - divided(by, self.fine)).astype(np.float32))

    @property
    def empty(self) -> bool:
        """Whether next to nothing is inside."""
        return self.volume(0.0) < self.voxel_ml * _LEAST

    def measured(self) -> Outline:
        """The same surface with exact distances from it."""
        return replace(self, distance=_distance(self.distance < 0, self.fine))

    def mask(self, offset: float) -> Float[np.ndarray, "x y z"]:
        """The soft mask after the surface has moved outwards by ``offset`` voxels."""
        return averaged(self.fine_mask(offset), self.fine)

    def fine_mask(self, offset: float) -> Float[np.ndarray, "fx fy fz"]:
        """How much of each sub-voxel is inside after the surface has moved outwards by ``offset`` voxels."""
        inside: np.ndarray = np.clip(0.5 - (self.distance - offset) * self.fine, 0, 1)
        return inside

    def volume(self, offset: float) -> float:
        """Volume in mL after the surface has moved outwards by ``offset`` voxels."""
        return float(self.fine_mask(offset).sum(dtype=np.float64)) / self.fine**3 * self.voxel_ml

    def offset_for(self, change_ml: float) -> float:
        """How far the surface has to move, in voxels, for the volume to change by so much, or as far as it can."""
        return self.solved(self.volume, change_ml)

    def solved(self, volume: Callable[[float], float], change_ml: float) -> float:
        """The offset at which what grows with the surface, in mL, has changed by so many mL, or as far as it can."""
        if change_ml == 0:
            return 0.0
        goal = volume(0.0) + change_ml
        low, high = float(self.distance.min()) - 1, float(self.distance.max()) + 1
        if goal <= volume(low):
            return low
        if goal >= volume(high):
            return high
        return float(brentq(lambda offset: volume(offset) - goal, low, high, xtol=1e-4))


@dataclass(frozen=True, eq=False)
class Regrowth:
    """What comes of a structure's new volume.

    Attributes:
        image: What the image gains, voxel by voxel; zero where nothing changes.
        mask: The structure's soft mask afterwards.
    """

    image: Float[np.ndarray, "x y z"]
    mask: Float[np.ndarray, "x y z"]


@dataclass(frozen=True, eq=False)
class Profile:
    """A structure as intensities at depths below its surface, over the tissue around it.

    Attributes:
        outline: Its surface.
        around: The surrounding tissue, continued to where the structure is.
        depths: Knots, in voxels.
        levels: Intensity at each knot, linear between them.
    """

    outline: Outline
    around: Float[np.ndarray, "x y z"]
    depths: Float[np.ndarray, " knots"]
    levels: Float[np.ndarray, " knots"]

    @classmethod
    def of(cls, image: Float[np.ndarray, "x y z"], outline: Outline) -> Profile:
        """The profile that explains the image best, by least squares; smooth where the image does not say."""
        inside = outline.mask(0.0)
        around = np.where(inside > 0.02, _continued(image, np.clip(1 - 1.5 * inside, 0, 1) ** 2), image)
        deepest = max(1.0, -float(outline.distance.min()))
        depths = np.array([0.0, *(knot for knot in _KNOTS if knot < deepest + 0.5)])
        chosen = inside > 0.02
        parts = np.stack([part[chosen] for part in _by_depth(outline, depths)], axis=1)
        mean = float((image * inside**2).sum() / (inside**2).sum())
        unexplained = (image - (1 - inside) * around)[chosen] - parts.sum(axis=1) * mean
        smooth = 0.35 * np.diff(np.eye(len(depths)), axis=0)
        system = np.vstack([parts, smooth, 0.05 * np.eye(len(depths))])
        wanted = np.concatenate([unexplained, np.zeros(2 * len(depths) - 1)])
        levels = np.linalg.lstsq(system, wanted, rcond=None)[0] + mean
        return cls(outline, around, depths, levels.clip(min=0))

    @classmethod
    def settled(cls, image: Float[np.ndarray, "x y z"], outline: Outline, near: float = NEAR) -> Profile:
        """The profile and the surface that explain the image best together, the surface near where the mask has it.

        Gauss-Newton steps for a surface displaced by ``d`` along its normals: least squares of what the rendered
        profile misses of the image, in Gaussian neighbourhoods, and of ``d`` itself. Between steps the profile is
        fitted anew. A mask's error of half a voxel is most of what an edit of a small structure would get wrong.
        """
        profile, displaced = cls.of(image, outline), np.zeros_like(image)
        for _ in range(_STEPS):
            missed = image - profile.rendered(0.0)
            slope = 2 * (profile.rendered(0.25) - profile.rendered(-0.25))
            pull = gaussian_filter(slope * missed, near) - _DOUBT * displaced
            step = np.clip(pull / (gaussian_filter(slope**2, near) + _DOUBT), -0.5, 0.5)
            moved = profile.outline.moved(step)
            if moved.empty:
                break
            displaced += step
            profile = cls.of(image, moved)
            if np.abs(step).max() < _STILL:
                break
        settled = profile.outline.measured()
        return profile if settled.empty or np.abs(displaced).max() < _STILL else cls.of(image, settled)

    def rendered(self, offset: float) -> Float[np.ndarray, "x y z"]:
        """The image after the surface has moved outwards by ``offset`` voxels."""
        inside = self.outline.fine_mask(offset)
        deep, within = self.outline.distance - offset, inside > 0
        shown = np.zeros_like(inside)
        shown[within] = inside[within] * np.interp(-deep[within], self.depths, self.levels)
        fine = self.outline.fine
        rendered: np.ndarray = (1 - averaged(inside, fine)) * self.around + averaged(shown, fine)
        return rendered


@dataclass(frozen=True, eq=False)
class Structure:
    """What a soft mask shows in an image, such that it can grow and shrink.

    Its surface first gives way to the image (see ``Profile.settled``), then moves along its normals. The tissue inside
    is described by its intensity as a function of depth below the surface, fitted through the partial volumes of the
    voxels, and rendered again below the moved surface: a rim stays a rim of its thickness. Outside, the surrounding
    tissue is continued to where it comes to light. What the description misses of the image stays in place.

    Attributes:
        mask: As it is.
        box: The part of the image that can change.
        profile: There.
    """

    mask: Float[np.ndarray, "x y z"]
    box: tuple[slice, slice, slice]
    profile: Profile

    @classmethod
    def of(
        cls,
        image: Float[np.ndarray, "x y z"],
        mask: Float[np.ndarray, "x y z"],
        voxel_ml: float,
        margin: int,
        fine: int = FINE,
        near: float = NEAR,
    ) -> Structure:
        """The structure as its mask and the image have it.

        Arguments:
            image: What the structure is in.
            mask: Its soft mask.
            voxel_ml: Volume of a voxel in mL.
            margin: Voxels around the mask into which it may grow.
            fine: Sub-voxels along each edge of a voxel, on which the surface is known.
            near: How far, in voxels, the image around a place speaks for the surface there.

        Raises:
            ValueError: The mask is empty.
        """
        box = _box(mask, margin)
        return cls(mask, box, Profile.settled(image[box], Outline.of(mask[box], voxel_ml, fine), near))

    def regrown(self, change_ml: float) -> Regrowth:
        """The image and the mask when the structure changes its volume by so many mL."""
        profile, outline = self.profile, self.profile.outline
        change, moved = np.zeros_like(self.mask), self.mask.copy()
        change[self.box] = profile.rendered(outline.offset_for(change_ml)) - profile.rendered(0.0)
        change[np.abs(change) < 1e-6] = 0
        own, begun = self.mask[self.box], outline.mask(0.0)

        def passed(offset: float) -> Float[np.ndarray, "x y z"]:
            after: np.ndarray = np.clip(own + (outline.mask(offset) - begun), 0, 1)
            return after

        # The mask was not quite where the surface has settled, so it fills at another offset.
        filled = outline.solved(lambda offset: float(passed(offset).sum()) * outline.voxel_ml, change_ml)
        moved[self.box] = passed(filled)
        return Regrowth(change, moved)


def room(mask: Float[np.ndarray, "x y z"], change_ml: float, voxel_ml: float) -> int:
    """How many voxels around a mask a change of its volume by so many mL needs, with some to spare."""
    voxels = float(mask.sum())
    growth = _radius(voxels + max(0.0, change_ml) / voxel_ml) - _radius(voxels)
    return int(np.ceil(growth)) + 3


def _by_depth(outline: Outline, depths: Float[np.ndarray, " knots"]) -> list[Float[np.ndarray, "x y z"]]:
    """For each knot, how much of each voxel lies inside the surface and near that depth; together the soft mask."""
    inside = outline.fine_mask(0.0)
    within = inside > 0
    depth, parts = -outline.distance[within], []
    for hat in np.eye(len(depths)):
        part = np.zeros_like(inside)
        part[within] = inside[within] * np.interp(depth, depths, hat)
        parts.append(averaged(part, outline.fine))
    return parts


def _distance(inside: Bool[np.ndarray, "fx fy fz"], fine: int) -> Float[np.ndarray, "fx fy fz"]:
    """Of every sub-voxel from the surface, in voxels, negative inside; a little smoothed."""
    outer = distance_transform_edt(~inside) - 0.5
    inner = distance_transform_edt(inside) - 0.5
    distance = np.where(inside, -inner, outer) / fine
    return gaussian_filter(distance, 0.7).astype(np.float32)


def _box(mask: Float[np.ndarray, "x y z"], margin: int) -> tuple[slice, slice, slice]:
    """Where the mask is, and a margin around it."""
    seen = [np.flatnonzero((mask > 0.01).any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (slice(max(0, int(s[0]) - margin), int(s[-1]) + margin + 1) if len(s) else slice(None) for s in seen)
    return x, y, z


def _radius(volume: float) -> float:
    """Of a ball."""
    return float((3 * volume / (4 * np.pi)) ** (1 / 3))


def divided(coarse: Float[np.ndarray, "x y z"], times: int) -> Float[np.ndarray, "fx fy fz"]:
    """Values in voxels that divide others' edges so many times, linear between these."""
    whole = torch.from_numpy(np.ascontiguousarray(coarse))[None, None]
    fine: np.ndarray = interpolate(whole, scale_factor=times, mode="trilinear")[0, 0].numpy()
    return fine


def averaged(fine: Float[np.ndarray, "fx fy fz"], times: int) -> Float[np.ndarray, "x y z"]:
    """Means over so many voxels along each axis."""
    # Slice by slice: five times as fast as the mean over three axes at once.
    means = fine
    for axis in range(3):
        before = (slice(None),) * axis
        means = np.add.reduce([means[(*before, slice(start, None, times))] for start in range(times)])
    means = means / times**3
    return means


def _continued(image: Float[np.ndarray, "x y z"], weight: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """The image where it has weight, continued smoothly into where it has none.

    References:
        Normalized and Differential Convolution (Knutsson, Westin, 1993)
    """
    result = np.zeros_like(image, dtype=np.float64)
    missing = np.ones_like(result)
    for sigma in (0.5, 1.0, 2.0, 4.0, 16.0):
        total = gaussian_filter(weight.astype(np.float64), sigma, mode="nearest")
        mean = gaussian_filter((image * weight).astype(np.float64), sigma, mode="nearest") / np.maximum(total, 1e-9)
        trust = np.clip(total / 0.2, 0, 1) if sigma < 16 else np.ones_like(total)
        result += missing * trust * mean
        missing = missing * (1 - trust)
    return result
