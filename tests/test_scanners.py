"""Laws of the scanner layer: what it puts on it takes off, settings compose, and a scan's scale follows its gain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medisent.scanners import BIAS_TERMS, Scanner, air_noise, bias_basis, bias_strength, measured_scale, random_scanner

SHAPE = (9, 7, 6)
SEEDS = st.integers(0, 2**31)
laws = settings(max_examples=40, deadline=None)


def axes(shape: tuple[int, int, int]) -> Tensor:
    sides = [(torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1 for n in shape]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))


BASIS = bias_basis(axes(SHAPE))


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scanners(batch: int, seed: int) -> Scanner:
    return Scanner.unstacked(random_scanner(batch, chance(seed)).stacked().double())


def tissue(batch: int, seed: int) -> Tensor:
    """Canonical scans: air and tissue."""
    image = torch.rand(batch, 1, *SHAPE, generator=chance(seed), dtype=torch.float64)
    return torch.where(image < 0.2, 0.0, image)


@laws
@given(SEEDS)
def test_removing_a_scanner_gives_back_what_it_was_applied_to(seed):
    scanner, canonical = scanners(3, seed), tissue(3, seed + 1)
    assert torch.allclose(scanner.remove(scanner.apply(canonical, BASIS), BASIS), canonical, atol=1e-10)
    assert torch.allclose(scanner.apply(scanner.remove(canonical, BASIS), BASIS), canonical, atol=1e-10)


@laws
@given(SEEDS)
def test_one_scanner_after_another_is_the_scanner_that_does_both(seed):
    first, then, canonical = scanners(2, seed), scanners(2, seed + 1), tissue(2, seed + 2)
    both = then.after(first).apply(canonical, BASIS)
    assert torch.allclose(both, then.apply(first.apply(canonical, BASIS), BASIS), rtol=1e-10)


@laws
@given(SEEDS)
def test_composing_scanners_may_begin_anywhere(seed):
    a, b, c = (scanners(2, seed + i) for i in range(3))
    assert torch.allclose(c.after(b).after(a).stacked(), c.after(b.after(a)).stacked(), rtol=1e-10)


def test_the_reference_scanner_changes_nothing():
    reference = Scanner.unstacked(torch.zeros(2, 2 + BIAS_TERMS, dtype=torch.float64))
    canonical, other = tissue(2, 0), scanners(2, 1)
    assert torch.equal(reference.apply(canonical, BASIS), canonical)
    assert torch.equal(reference.remove(canonical, BASIS), canonical)
    assert torch.equal(other.after(reference).stacked(), other.stacked())
    assert torch.equal(reference.after(other).stacked(), other.stacked())


def test_air_stays_air_and_what_is_below_zero_counts_as_air():
    scanner = scanners(2, 3)
    image = torch.full((2, 1, *SHAPE), -0.3, dtype=torch.float64)
    assert torch.equal(scanner.apply(image, BASIS), torch.zeros_like(image))
    assert torch.equal(scanner.remove(image, BASIS), torch.zeros_like(image))


def test_every_scan_of_a_batch_has_its_own_scanner():
    scanner, canonical = scanners(3, 4), tissue(3, 5)
    together = scanner.apply(canonical, BASIS)
    for row in range(3):
        alone = Scanner.unstacked(scanner.stacked()[row : row + 1]).apply(canonical[row : row + 1], BASIS)
        assert torch.equal(alone[0], together[row])


def test_settings_learn_from_the_scan_also_where_it_is_air():
    settings = scanners(2, 6).stacked().requires_grad_()
    Scanner.unstacked(settings).apply(tissue(2, 7), BASIS).sum().backward()
    assert settings.grad is not None
    assert settings.grad.isfinite().all()
    assert (settings.grad != 0).all()


def test_settings_side_by_side_come_apart_as_they_were():
    scanner = random_scanner(4, chance(8))
    again = Scanner.unstacked(scanner.stacked())
    assert torch.equal(again.log_gain, scanner.log_gain)
    assert torch.equal(again.log_gamma, scanner.log_gamma)
    assert torch.equal(again.bias, scanner.bias)
    assert scanner.stacked().shape == (4, 2 + BIAS_TERMS)


def test_the_same_chance_draws_the_same_scanners_around_the_reference():
    drawn = random_scanner(4000, chance(9), gain=0.4, gamma=0.2, bias=0.15)
    assert torch.equal(drawn.stacked(), random_scanner(4000, chance(9), gain=0.4, gamma=0.2, bias=0.15).stacked())
    assert float(drawn.log_gain.mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn.log_gain.std()) == pytest.approx(0.4, rel=0.05)
    assert float(drawn.log_gamma.std()) == pytest.approx(0.2, rel=0.05)
    assert float(bias_strength(drawn.bias).square().mean().sqrt()) == pytest.approx(0.15, rel=0.05)


def test_the_strength_of_a_bias_field_is_its_spread_over_the_field():
    fine = bias_basis(axes((41, 41, 41)))
    bias = random_scanner(3, chance(10)).bias.double()
    fields = torch.tensordot(bias, fine, dims=1).flatten(1)
    assert torch.allclose(bias_strength(bias), fields.std(1, correction=0), rtol=5e-3)
    assert torch.allclose(fields.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-3)


# The measured scale


@laws
@given(SEEDS, st.integers(-12, 20))
def test_a_scan_twice_as_bright_has_exactly_twice_the_scale(seed, power):
    image = torch.rand(SHAPE, generator=chance(seed)) ** 3
    assert measured_scale(image * 2.0**power) == measured_scale(image) * 2.0**power


@laws
@given(SEEDS, st.floats(1e-3, 1e6))
def test_the_scale_follows_any_gain(seed, gain):
    image = torch.rand(SHAPE, generator=chance(seed)) ** 3
    assert float(measured_scale(image * gain)) == pytest.approx(gain * float(measured_scale(image)), rel=1e-5)


def test_the_scale_is_that_of_the_tissue_however_much_air_is_around_it():
    for side in (12, 24):
        image = torch.zeros(side, side, side)
        image[2:8, 2:8, 2:8] = 350.0
        assert measured_scale(image) == 350.0


def test_a_few_very_bright_voxels_and_a_little_noise_do_not_move_the_scale():
    image = torch.zeros(20, 20, 20)
    image[4:16, 4:16, 4:16] = 100.0
    noisy = (image + 4 * torch.randn(image.shape, generator=chance(11))).abs()
    noisy[8, 8, 8:10] = 1000.0
    assert float(measured_scale(noisy)) == pytest.approx(100, rel=0.05)


def test_a_scan_without_anything_has_scale_one():
    assert measured_scale(torch.zeros(SHAPE)) == 1
    assert measured_scale(torch.full(SHAPE, -5.0)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_of_the_scans_own_type_and_survives_extreme_units(dtype):
    image = torch.rand(SHAPE, generator=chance(12)).to(dtype)
    for gain in (1e-12, 2.46e5, 1e12):
        scale = measured_scale(image * gain)
        assert scale.dtype == dtype
        assert math.isclose(float(scale), gain * float(measured_scale(image)), rel_tol=1e-5)


def noisy_half(level: float, noise: float, air: float = 0.0) -> np.ndarray:
    """Half air, half tissue of one intensity, with noise in two channels."""
    signal = np.repeat([0.0, level], 50_000)
    real, imaginary = np.random.default_rng(0).normal(0, noise, (2, signal.size))
    magnitude: np.ndarray = np.hypot(signal + real, imaginary) + air
    return magnitude


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.04])
@pytest.mark.parametrize("air", [0.0, -1000.0])
def test_air_tells_the_noise(noise, air):
    assert air_noise(noisy_half(1.0, noise, air), air, 1.0) == pytest.approx(noise, rel=0.02)


def test_a_scan_without_air_or_with_dark_tissue_in_its_place_tells_no_noise():
    assert air_noise(noisy_half(1.0, 0.01)[50_000:], 0.0, 1.0) == 0
    assert air_noise(np.repeat([0.0, 1.0], 500), 0.0, 1.0) == 0
    assert air_noise(np.repeat([0.15, 1.0], 500), 0.0, 1.0) == 0
