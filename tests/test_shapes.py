"""Laws of shapes: an outline holds what its mask holds, growing hits the asked volume, and only near the surface."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from medisent.shapes import Outline, Profile, Regrowth, Structure, room

VOXEL_ML = 0.216  # of a cell of 6 mm
SHAPE = (18, 17, 19)
MIDDLE = (8.3, 7.8, 9.6)
FINE = 5


def radius_of(ml: float) -> float:
    """Of a sphere, in voxels."""
    return float((3 * ml / VOXEL_ML / (4 * np.pi)) ** (1 / 3))


def distance(fine: int = 1) -> np.ndarray:
    """From the sphere's middle, in voxels, at voxels or at their sub-voxels."""
    axes = [(np.arange(n * fine) + 0.5) / fine - 0.5 - m for n, m in zip(SHAPE, MIDDLE, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(x**2 + y**2 + z**2)


FAR = distance(FINE)


def meaned(fine: np.ndarray) -> np.ndarray:
    x, y, z = SHAPE
    return fine.reshape(x, FINE, y, FINE, z, FINE).mean((1, 3, 5))


def ball(ml: float) -> np.ndarray:
    """The soft mask of a sphere of that volume."""
    mask = meaned((radius_of(ml) >= FAR).astype(np.float64))
    return np.minimum(mask * (ml / VOXEL_ML / mask.sum()), 1)


def scene(ml: float, rim: float = 0.8) -> np.ndarray:
    """A sphere with a dark core and a bright rim, in voxels, in a tissue that varies slowly."""
    depth = radius_of(ml) - FAR
    x, _, z = np.meshgrid(*[np.linspace(-1, 1, n * FINE) for n in SHAPE], indexing="ij")
    around = 0.55 + 0.05 * x - 0.03 * z
    return meaned(np.where(depth < 0, around, np.where(depth < rim, 1.0, 0.3)))


def regrown(image: np.ndarray, mask: np.ndarray, change: float) -> Regrowth:
    return Structure.of(image, mask, VOXEL_ML, room(mask, change, VOXEL_ML)).regrown(change)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return ball(20.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return scene(20.0)


@pytest.mark.parametrize(("ml", "error"), [(2.0, 0.12), (20.0, 0.03), (60.0, 0.02)])
def test_an_outline_encloses_what_its_mask_holds(ml, error):
    assert Outline.of(ball(ml), VOXEL_ML).volume(0.0) == pytest.approx(ml, rel=error)


def test_an_outline_encloses_what_a_soft_and_blurred_mask_holds(mask):
    soft = np.clip(mask * 0.7 + 0.001, 0, 1)
    assert Outline.of(soft, VOXEL_ML).volume(0.0) == pytest.approx(soft.sum() * VOXEL_ML, rel=0.05)


def test_a_mask_comes_back_from_its_outline(mask):
    again = Outline.of(mask, VOXEL_ML).mask(0.0)
    assert 0 <= again.min() <= again.max() <= 1
    assert np.abs(again - mask).sum() < 0.1 * mask.sum()


def test_an_outline_that_moves_out_only_gains(mask):
    outline = Outline.of(mask, VOXEL_ML)
    volumes = [outline.volume(offset) for offset in np.linspace(-4, 4, 9)]
    assert volumes == sorted(volumes)
    assert (outline.mask(0.5) >= outline.mask(0.0)).all()


@pytest.mark.parametrize("offset", [-0.8, 0.6, 1.5])
def test_the_surface_of_a_sphere_moves_by_the_offset(mask, offset):
    outline = Outline.of(mask, VOXEL_ML)
    moved = radius_of(outline.volume(offset)) - radius_of(outline.volume(0.0))
    assert moved == pytest.approx(offset, abs=0.15)


@pytest.mark.parametrize("change", [-15.0, -5.0, -0.01, 0.02, 5.0, 40.0])
def test_the_offset_for_a_change_of_volume_gives_that_change(mask, change):
    outline = Outline.of(mask, VOXEL_ML)
    got = outline.volume(outline.offset_for(change)) - outline.volume(0.0)
    assert got == pytest.approx(change, abs=2e-2)


def test_no_change_of_volume_needs_no_offset(mask):
    assert Outline.of(mask, VOXEL_ML).offset_for(0.0) == 0


def test_a_surface_moves_as_far_as_it_can_at_most(mask):
    outline = Outline.of(mask, VOXEL_ML)
    assert outline.volume(outline.offset_for(-1e6)) == 0
    assert outline.volume(outline.offset_for(1e6)) == pytest.approx(np.prod(SHAPE) * VOXEL_ML)


@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_an_empty_mask_has_no_outline(level):
    with pytest.raises(ValueError, match="empty"):
        Outline.of(np.full(SHAPE, level), VOXEL_ML)
    with pytest.raises(ValueError, match="empty"):
        regrown(np.ones(SHAPE), np.full(SHAPE, level), 1.0)


def test_no_change_is_exactly_no_change(image, mask):
    same = regrown(image, mask, 0.0)
    assert not same.image.any()
    assert np.array_equal(same.mask, mask)


@pytest.mark.parametrize("change", [-12.0, -3.3, 0.7, 9.0, 25.0])
def test_what_was_regrown_holds_the_asked_volume(image, mask, change):
    after = regrown(image, mask, change)
    assert after.mask.sum() * VOXEL_ML == pytest.approx(20 + change, rel=0.02)
    assert 0 <= after.mask.min() <= after.mask.max() <= 1


@pytest.mark.parametrize("change", [-10.0, 5.0, 15.0])
def test_nothing_changes_away_from_the_surface(image, mask, change):
    after = regrown(image, mask, change)
    reach = radius_of(max(20.0, 20.0 + change)) + 2
    assert after.image.any()
    assert not after.image[distance() > reach].any()
    assert np.array_equal(after.mask[distance() > reach], mask[distance() > reach])


def test_a_structure_at_the_edge_of_the_grid_grows_inwards():
    cut = ball(20.0)[8:], scene(20.0)[8:]
    after = regrown(cut[1], cut[0], 4.0)
    assert np.isfinite(after.image).all()
    assert after.mask.sum() - cut[0].sum() == pytest.approx(4.0 / VOXEL_ML, rel=0.1)


@pytest.mark.parametrize(("before", "after"), [(20.0, 35.0), (20.0, 8.0), (30.0, 33.0)])
def test_a_sphere_with_a_bright_rim_becomes_the_larger_sphere_with_the_same_rim(before, after):
    found = scene(before) + regrown(scene(before), ball(before), after - before).image
    truth, nothing = scene(after), scene(before)
    assert ((found - truth) ** 2).sum() < 0.4 * ((nothing - truth) ** 2).sum()


def test_what_the_description_misses_stays_in_place(image, mask):
    texture = np.random.default_rng(0).normal(0, 0.02, SHAPE)
    far = ~binary_dilation(mask > 0.02, iterations=3)
    change = regrown(image + texture, mask, 3.0).image
    assert not change[far].any()


def test_a_profile_renders_the_structure_that_it_describes(image, mask):
    profile = Profile.of(image, Outline.of(mask, VOXEL_ML))
    inside = mask > 0.5
    assert np.abs(profile.rendered(0.0) - image)[inside].mean() < 0.06
    assert profile.levels[0] > 0.7
    assert profile.levels[-1] < 0.45


def test_the_same_input_gives_the_same_bytes(image, mask):
    one, other = (regrown(image, mask, 7.0) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert one.mask.tobytes() == other.mask.tobytes()


def dent(mask: np.ndarray) -> np.ndarray:
    """The mask shifted by about half a voxel: an error as networks make it."""
    return 0.5 * (mask + np.roll(mask, 1, 0))


def test_a_surface_gives_way_to_the_image(image, mask):
    begun = Outline.of(dent(mask), VOXEL_ML)
    settled = Profile.settled(image, begun).outline
    assert np.abs(settled.mask(0.0) - mask).sum() < 0.6 * np.abs(begun.mask(0.0) - mask).sum()


def test_an_edit_minds_an_error_of_its_mask_the_less_for_it(image, mask, monkeypatch):
    def error() -> float:
        found = image + regrown(image, dent(mask), 15.0).image
        return float(((found - scene(35.0)) ** 2).sum())

    settled = error()
    monkeypatch.setattr("medisent.shapes._STEPS", 0)
    assert settled < 0.5 * error()


def test_a_surface_stays_where_the_image_shows_nothing(mask):
    begun = Outline.of(mask, VOXEL_ML)
    settled = Profile.settled(np.full(SHAPE, 0.5), begun).outline
    assert np.abs(settled.distance - begun.distance).max() < 0.05


def test_a_surface_does_not_vanish():
    speck = np.zeros(SHAPE)
    speck[8, 8, 9] = 0.3
    assert not Profile.settled(0.2 * np.indices(SHAPE).sum(0), Outline.of(speck, VOXEL_ML)).outline.empty
