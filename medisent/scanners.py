"""How a scanner changes what it sees: gain, contrast and bias field, put on (apply) and taken off (remove)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

# Legendre polynomials of order one and two in three coordinates, without the constant (that is the gain), and
# the variance of each over the cube [-1, 1]^3, over which they are orthogonal.
_VARIANCES = (1 / 3, 1 / 3, 1 / 3, 4 / 45, 4 / 45, 4 / 45, 1 / 9, 1 / 9, 1 / 9)
BIAS_TERMS = len(_VARIANCES)

# Voxels that tell the noise well enough.
_ENOUGH = 1 << 18


@dataclass(frozen=True, eq=False)
class Scanner:
    """The settings of a scanner, one for each scan of a batch: ``gain * exp(bias field) * canonical ** gamma``.

    Attributes:
        log_gain: Logarithm of the gain; what the brightest canonical tissue, 1, becomes.
        log_gamma: Logarithm of the contrast's exponent.
        bias: Coefficients of the log bias field.
    """

    log_gain: Float[Tensor, " batch"]
    log_gamma: Float[Tensor, " batch"]
    bias: Float[Tensor, "batch terms"]

    def apply(
        self, canonical: Float[Tensor, "batch 1 *space"], basis: Float[Tensor, "terms *space"]
    ) -> Float[Tensor, "batch 1 *space"]:
        """What this scanner makes of canonical scans. Values below zero count as zero."""
        return exposed(canonical, _wide(self.log_gamma.exp(), canonical), self._field(canonical, basis))

    def remove(
        self, scan: Float[Tensor, "batch 1 *space"], basis: Float[Tensor, "terms *space"]
    ) -> Float[Tensor, "batch 1 *space"]:
        """The canonical scans behind scans of this scanner. Values below zero count as zero."""
        return developed(scan, _wide((-self.log_gamma).exp(), scan), self._field(scan, basis))

    def after(self, first: Scanner) -> Scanner:
        """The one scanner that does what ``first`` and then this one do."""
        gamma = self.log_gamma.exp()
        return Scanner(
            self.log_gain + gamma * first.log_gain,
            self.log_gamma + first.log_gamma,
            self.bias + gamma[:, None] * first.bias,
        )

    def stacked(self) -> Float[Tensor, "batch settings"]:
        """All settings side by side: log gain, log gamma, bias coefficients."""
        return torch.cat([self.log_gain[:, None], self.log_gamma[:, None], self.bias], 1)

    @staticmethod
    def unstacked(settings: Float[Tensor, "batch settings"]) -> Scanner:
        """The inverse of ``stacked``."""
        return Scanner(settings[:, 0], settings[:, 1], settings[:, 2:])

    def _field(
        self, like: Float[Tensor, "batch 1 *space"], basis: Float[Tensor, "terms *space"]
    ) -> Float[Tensor, "batch 1 *space"]:
        field: Tensor = _wide(self.log_gain, like) + torch.tensordot(self.bias, basis, dims=1)[:, None]
        return field


def exposed(canonical: Tensor, gamma: Tensor | float, log_gain: Tensor) -> Tensor:
    """The scanner's equation, ``exp(log_gain) * canonical ** gamma``; values below zero count as zero.

    Arguments:
        canonical: Intensities in any shape.
        gamma: The contrast's exponent.
        log_gain: Logarithm of gain and bias field together, at each of them.
    """
    return canonical.clamp(min=0).pow(gamma) * log_gain.exp()


def developed(scan: Tensor, inverse: Tensor | float, log_gain: Tensor) -> Tensor:
    """The inverse of ``exposed``, with one over the exponent; values below zero count as zero."""
    return (scan.clamp(min=0) * (-log_gain).exp()).pow(inverse)


def random_scanner(
    batch: int, generator: torch.Generator, *, gain: float = 0.4, gamma: float = 0.2, bias: float = 0.15
) -> Scanner:
    """Scanners drawn at random around the reference.

    Arguments:
        batch: How many.
        generator: The source of chance.
        gain: Standard deviation of the log gain.
        gamma: Standard deviation of the log exponent.
        bias: Mean strength of the log bias field (see ``bias_strength``).
    """
    draw = torch.randn(batch, 2 + BIAS_TERMS, generator=generator)
    weights = torch.tensor(_VARIANCES).rsqrt() / BIAS_TERMS**0.5
    return Scanner(gain * draw[:, 0], gamma * draw[:, 1], bias * weights * draw[:, 2:])


def bias_basis(coordinates: Float[Tensor, "3 *space"]) -> Float[Tensor, "terms *space"]:
    """The polynomials of the log bias field at points given in the field's own coordinates, -1 to 1."""
    x, y, z = coordinates
    return torch.stack([x, y, z, x * x - 1 / 3, y * y - 1 / 3, z * z - 1 / 3, x * y, x * z, y * z])


def bias_strength(bias: Float[Tensor, "batch terms"]) -> Float[Tensor, " batch"]:
    """The standard deviation of the log bias field over the whole field (0.1 is about ten percent)."""
    return (bias.square() @ torch.tensor(_VARIANCES, dtype=bias.dtype, device=bias.device)).sqrt()


def measured_scale(image: Float[Tensor, "*space"]) -> Float[Tensor, ""]:
    """The typical intensity of tissue in a scan, in the scan's own unit; k times as large in a scan k times as bright.

    Tissue is what exceeds half of the intensity-weighted mean intensity; its median is the scale.
    Air hardly weighs in, nor does a handful of very bright voxels. A scan without a positive voxel has scale 1.
    """
    positive = image.clamp(min=0).double()
    total = positive.sum()
    if total <= 0:
        return torch.ones((), dtype=image.dtype)
    threshold = 0.5 * positive.square().sum() / total
    tissue = positive >= threshold
    if image.device.type != "cpu" or not tissue.any():
        return positive[tissue].median().to(image.dtype)
    # NumPy chooses and partitions many times as fast, and finds the same number.
    found = image.detach().numpy()[tissue.numpy()]
    middle = (len(found) - 1) // 2
    return torch.as_tensor(np.partition(found, middle)[middle])


def air_noise(voxels: Num[np.ndarray, "..."], air: float, scale: float) -> float:
    """Standard deviation of the noise in each of the two channels of a magnitude scan, as air tells it.

    Where there is no signal the magnitude follows Rayleigh's distribution, whose median is 1.177 standard deviations.
    Air is what lies below a fifth of the scan's scale.

    Arguments:
        voxels: The scan.
        air: Its intensity without signal.
        scale: Its typical intensity of tissue, above that.

    Returns:
        In the scan's unit; 0 where there is no air to tell it by (less than a tenth of the voxels, as in scans without
        background) or where the dark voxels reach too high to be noise alone.

    References:
        The Rician Distribution of Noisy MRI Data (Gudbjartsson, Patz, 1995)
    """
    some = voxels.ravel(order="K")[:: max(1, voxels.size // _ENOUGH)].astype(np.float64) - air
    dark = some[(some > 0) & (some < 0.2 * scale)]
    if dark.size < 0.1 * some.size:
        return 0.0
    noise = float(np.median(dark)) / math.sqrt(2 * math.log(2))
    return noise if noise < 0.05 * scale else 0.0


def _wide(value: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
