"""A measuring instrument for edited scans that is no model: it knows the person and the scanner, and asks how large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from medisent.phantoms.acquisition import Acquisition, blurred, expose, tones_of
from medisent.phantoms.heads import Anatomy, Growable, Stage, set_stage
from medisent.volumes import Geometry

_DARKER, _BRIGHTER = 0.8, 1.2
"""How far a structure's tissue may lie beyond its own darkest and brightest tone and still be taken for it."""

_TOLERANCE = 0.02
"""Departures of this part of the gain are nothing, besides the noise."""


@dataclass(frozen=True)
class Measurement:
    """What a ruler read.

    Attributes:
        ml: The size of the structure, in mL.
        explained: How much of what the scan shows there the right tissue of that size explains, against a head without
            the structure: 1 is all but the noise, 0 nothing. An outline filled with the wrong tissue has a size, but
            explains less.
    """

    ml: float
    explained: float


@dataclass(frozen=True, eq=False)
class Ruler:
    """Reads the size of a tumour, or of the ventricles, off a scan of a known person by a known scanner.

    The person is rendered without the structure. A voxel of which the structure's outline covers a fraction ``m`` then
    shows ``(1 - m) * background + m * tissue`` and noise, where the tissue may have any brightness between the darkest
    and the brightest of that structure, all equally likely. The reading is the size of the person's own outline under
    which the scan is most likely. It therefore asks where the scan departs from the person without the structure, not
    whether the tissue is painted well: that is what ``explained`` says. A departure in the wrong place, or one that
    looks like the background, is not counted.

    Attributes:
        stage: The person.
        geometry: The scan's grid.
        acquisition: The scanner.
        ventricle: Threshold of the ventricles in the person as scanned.
        tumour: Threshold of the tumour in the person as scanned.
    """

    stage: Stage
    geometry: Geometry
    acquisition: Acquisition
    ventricle: float
    tumour: float

    @classmethod
    def of(cls, anatomy: Anatomy, geometry: Geometry, acquisition: Acquisition) -> Ruler:
        """A ruler for scans of one person by one scanner, edited or not."""
        stage = set_stage(anatomy, geometry, tones_of(acquisition))
        ventricle = stage.ventricles.threshold(anatomy.ventricle_ml, "pair of ventricles")
        return cls(stage, geometry, acquisition, ventricle, stage.tumour.threshold(anatomy.tumour_ml, "tumour"))

    def tumour_ml(self, scan: Num[np.ndarray, "x y z"]) -> Measurement:
        """The tumour in a scan, the ventricles being as they were."""

        def play(size: float) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
            canonical, masks = self.stage.play(self.ventricle, size)
            return canonical, masks.tumour

        return self._measure(scan, self.stage.tumour, play, (self.stage.tones.core, self.stage.tones.rim))

    def ventricle_ml(self, scan: Num[np.ndarray, "x y z"]) -> Measurement:
        """The ventricles in a scan, the tumour being as it was; with what the tumour hides."""

        def play(size: float) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
            canonical, masks = self.stage.play(size, self.tumour)
            return canonical, masks.ventricles

        return self._measure(scan, self.stage.ventricles, play, (self.stage.tones.fluid, self.stage.tones.fluid))

    def _expected(self, canonical: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
        """What this scanner makes of canonical brightness, its noise in the mean."""
        clean = expose(canonical, self.geometry, self.acquisition)
        return np.asarray(np.hypot(clean, np.float32(self.acquisition.noise * self.acquisition.gain)))

    def _measure(
        self,
        scan: Num[np.ndarray, "x y z"],
        shape: Growable,
        play: Callable[[float], tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]],
        tones: tuple[float, float],
    ) -> Measurement:
        without, _ = play(-np.inf)
        reach = blurred(play(shape.limit)[1], self.geometry, self.acquisition.blur_mm) > 0.01
        found = scan[reach].astype(np.float64)
        limits = (_DARKER * tones[0], _BRIGHTER * tones[1])
        sigma = self.acquisition.gain * float(np.hypot(self.acquisition.noise, _TOLERANCE))

        def surprise(size: float) -> float:
            part = play(size)[1]
            dark, bright = (self._expected(without + part * (np.float32(tone) - without))[reach] for tone in limits)
            return _surprise(found, dark.astype(np.float64), bright.astype(np.float64), sigma)

        sizes = np.linspace(-2.0, shape.limit, 16)
        start = int(np.argmin([surprise(float(size)) for size in sizes]))
        bounds = (float(sizes[max(start - 1, 0)]), float(sizes[min(start + 1, len(sizes) - 1)]))
        best = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 0.01})
        if best.fun >= surprise(-np.inf):
            return Measurement(0.0, 0.0)
        size = float(best.x)
        left = float(np.square(found - self._expected(play(size)[0])[reach]).sum())
        nothing = float(np.square(found - self._expected(without)[reach]).sum())
        noise = int(reach.sum()) * (self.acquisition.noise * self.acquisition.gain) ** 2
        return Measurement(shape.volume_ml(size), _share(left, nothing, noise))


def measure_tumour_ml(
    scan: Num[np.ndarray, "x y z"], anatomy: Anatomy, geometry: Geometry, acquisition: Acquisition
) -> float:
    """The tumour in a scan of a known person by a known scanner, in mL (see ``Ruler``)."""
    return Ruler.of(anatomy, geometry, acquisition).tumour_ml(scan).ml


def measure_ventricle_ml(
    scan: Num[np.ndarray, "x y z"], anatomy: Anatomy, geometry: Geometry, acquisition: Acquisition
) -> float:
    """The ventricles in a scan of a known person by a known scanner, in mL (see ``Ruler``)."""
    return Ruler.of(anatomy, geometry, acquisition).ventricle_ml(scan).ml


def _surprise(
    found: Float[np.ndarray, "voxels"],
    dark: Float[np.ndarray, "voxels"],
    bright: Float[np.ndarray, "voxels"],
    sigma: float,
) -> float:
    """Minus the log likelihood of voxels that may show anything from dark to bright, and Gaussian noise; in nats."""
    span = np.maximum(bright - dark, 0.05 * sigma)
    density = (ndtr((found - dark) / sigma) - ndtr((found - dark - span) / sigma)) / span
    # One voxel in a thousand may show anything at all: an odd one does not decide.
    return float(-np.log(density + 1e-3 / sigma).sum())


def _share(left: float, nothing: float, noise: float) -> float:
    """The share of what is to be explained that is explained, the noise set aside."""
    return float(np.clip(1 - max(left - noise, 0) / max(nothing - noise, 1e-30), 0, 1))
