"""Rendered scanners: what gain, contrast, bias field, blur and noise make of a head."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.polynomial import Polynomial
from scipy.ndimage import gaussian_filter

from medisent.errors import UsageError
from medisent.phantoms.heads import Head, render
from medisent.phantoms.tissues import T1_WEIGHTED, Tones
from medisent.volumes import Geometry

Curve = Literal["linear", "sigmoid", "spgr"]
"""How a scanner turns tissue into signal before the exponent: as rendered, through an S-shaped curve, or by physics."""

TERMS = (
    *((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    *((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)),
    *((3, 0, 0), (0, 3, 0), (0, 0, 3), (2, 1, 0), (2, 0, 1), (1, 2, 0), (0, 2, 1), (1, 0, 2), (0, 1, 2), (1, 1, 1)),
)
"""Orders along x, y and z of each term of the log bias field; the first 3 are linear, the first 9 quadratic."""

TERMS_TO_ORDER = {1: 3, 2: 9, 3: 19}
"""How many terms a field of an order has. There is no constant: that is the gain."""

_LEGENDRE = (Polynomial([1.0]), Polynomial([0.0, 1.0]), Polynomial([-1 / 3, 0, 1]), Polynomial([0, -3 / 5, 0, 1]))

# T1 in ms and proton density at 3 T, roughly; the rim has taken up contrast agent.
_RELAXATION = {
    "fat": (380.0, 0.90),
    "soft": (1200.0, 0.75),
    "bone": (500.0, 0.06),
    "fluid": (4000.0, 1.00),
    "grey": (1400.0, 0.83),
    "white": (850.0, 0.71),
    "nuclei": (1150.0, 0.80),
    "rim": (420.0, 0.85),
    "core": (2600.0, 0.93),
}


@dataclass(frozen=True)
class Acquisition:
    """The settings of a rendered scanner: ``gain * exp(bias field) * curve(canonical) ** gamma``, blurred, plus noise.

    Attributes:
        gain: What the brightest canonical tissue, 1, becomes; 1 is the reference.
        gamma: The contrast's exponent; 1 is the reference.
        bias: Coefficients of the log bias field, in the order of ``TERMS``: 3, 9 or 19 of them, or none.
        blur_mm: Full width at half maximum of the point spread, in mm.
        noise: Standard deviation of the Rician noise's two channels, relative to the gain.
        curve: ``linear`` as the model assumes; ``sigmoid`` or ``spgr`` (spoiled gradient echo) as it does not.
        flip_degrees: Flip angle of the spoiled gradient echo.
        repetition_ms: Its repetition time.
        seed: Of the noise; the same seed is the same noise, whatever else changes.
    """

    gain: float = 1.0
    gamma: float = 1.0
    bias: tuple[float, ...] = ()
    blur_mm: float = 0.0
    noise: float = 0.0
    curve: Curve = "linear"
    flip_degrees: float = 16.0
    repetition_ms: float = 12.0
    seed: int = 0

    def brighter(self, times: float) -> Acquisition:
        """The same scan with another gain; its noise, in the scanner's unit, stays as it was."""
        return replace(self, gain=self.gain * times, noise=self.noise / times)


def acquire(head: Head, acquisition: Acquisition) -> Float[np.ndarray, "x y z"]:
    """The scan of a head, in the scanner's unit, float32."""
    tones = tones_of(acquisition)
    if tones != T1_WEIGHTED:
        head = render(head.anatomy, head.geometry, tones)
    return noisy(expose(head.canonical, head.geometry, acquisition), acquisition)


def tones_of(acquisition: Acquisition) -> Tones:
    """How bright a scanner shows each tissue, before curve and exponent."""
    if acquisition.curve == "spgr":
        return spgr_tones(acquisition.flip_degrees, acquisition.repetition_ms)
    return T1_WEIGHTED


def expose(
    canonical: Float[np.ndarray, "x y z"], geometry: Geometry, acquisition: Acquisition
) -> Float[np.ndarray, "x y z"]:
    """The noiseless scan of canonical brightness that already has the scanner's own tones, float32."""
    tone = np.maximum(canonical, 0)
    if acquisition.curve == "sigmoid":
        tone = s_curve(tone)
    clean = np.power(tone, np.float32(acquisition.gamma)) * np.float32(acquisition.gain)
    if acquisition.bias:
        clean *= np.exp(bias_field(acquisition.bias, geometry.shape))
    return blurred(clean, geometry, acquisition.blur_mm)


def noisy(clean: Float[np.ndarray, "x y z"], acquisition: Acquisition) -> Float[np.ndarray, "x y z"]:
    """A noiseless scan with the scanner's Rician noise, float32."""
    if acquisition.noise == 0:
        return clean
    rng = np.random.default_rng([acquisition.seed, 0x5CA7])
    sigma = np.float32(acquisition.noise * acquisition.gain)
    real, imaginary = (rng.standard_normal(clean.shape, dtype=np.float32) for _ in range(2))
    return np.asarray(np.hypot(clean + sigma * real, sigma * imaginary))


def blurred(values: Float[np.ndarray, "x y z"], geometry: Geometry, fwhm_mm: float) -> Float[np.ndarray, "x y z"]:
    """Values after a Gaussian point spread of a full width at half maximum in mm, float32."""
    if fwhm_mm <= 0:
        return np.asarray(values, dtype=np.float32)
    sigma = [fwhm_mm / 2.3548 / spacing for spacing in geometry.spacing]
    return np.asarray(gaussian_filter(values, sigma, mode="nearest"), dtype=np.float32)


def bias_field(coefficients: tuple[float, ...], shape: tuple[int, int, int]) -> Float[np.ndarray, "x y z"]:
    """The log bias field: Legendre polynomials (monic) in coordinates from -1 to 1 over the field of view, float32.

    Raises:
        UsageError: The number of coefficients fits no order.
    """
    if coefficients and len(coefficients) not in TERMS_TO_ORDER.values():
        raise UsageError(
            f"A bias field with {len(coefficients)} coefficients was asked for; orders 1, 2 and 3 have 3, 9 and 19."
        )
    field = np.zeros(shape, dtype=np.float32)
    axes = [[curve(np.linspace(-1, 1, n)).astype(np.float32) for curve in _LEGENDRE] for n in shape]
    for coefficient, (a, b, c) in zip(coefficients, TERMS, strict=False):
        plane = axes[0][a][:, None, None] * axes[1][b][:, None]
        field += np.float32(coefficient) * plane * axes[2][c]
    return field


def bias_strength(canonical: Float[np.ndarray, "x y z"], coefficients: tuple[float, ...]) -> float:
    """Standard deviation of the log bias field over the head; 0.1 is about ten percent."""
    field = bias_field(coefficients, _shape(canonical))
    return float(field[canonical > 0.05].std(dtype=np.float64))


def s_curve(tone: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """An S-shaped contrast curve that keeps 0 and 1 and that no exponent can imitate."""
    low, high = (1 / (1 + np.exp(-6.0 * (end - 0.45))) for end in (0.0, 1.0))
    curved = 1 / (1 + np.exp(-6.0 * (tone - 0.45)))
    return np.asarray((curved - low) / (high - low), dtype=np.float32)


def spgr_tones(flip_degrees: float, repetition_ms: float) -> Tones:
    """How bright a spoiled gradient echo shows each tissue; an enhancing rim is as bright as in the reference."""
    signals = {name: _spgr(*constants, flip_degrees, repetition_ms) for name, constants in _RELAXATION.items()}
    unit = T1_WEIGHTED.rim / signals["rim"]
    return Tones(**{field.name: signals[field.name] * unit for field in fields(Tones)})


def _spgr(t1_ms: float, density: float, flip_degrees: float, repetition_ms: float) -> float:
    decay = np.exp(-repetition_ms / t1_ms)
    flip = np.radians(flip_degrees)
    return float(density * np.sin(flip) * (1 - decay) / (1 - decay * np.cos(flip)))


def _shape(values: Float[np.ndarray, "x y z"]) -> tuple[int, int, int]:
    x, y, z = values.shape
    return x, y, z
