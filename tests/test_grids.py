"""Laws of the grid: a scan is averaged where it lies, and a change comes back to where it belongs, and only there."""

import itertools
import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medisent.grids import Grid, closeness, coverage, finer, restore, sample, unit_coordinates
from medisent.volumes import Geometry, Volume

ORIENTATIONS = [
    np.array([sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True)]).T
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
GRID = Grid(6.0, (8, 9, 7))


def turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def geometry(matrix: np.ndarray, shape: tuple[int, int, int], centre: tuple[float, ...] = (5.0, -8.0, 3.0)) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.array(centre) - matrix @ ((np.array(shape) - 1) / 2)
    return Geometry(affine, shape)


def world(place: Geometry) -> np.ndarray:
    indices = np.indices(place.shape).reshape(3, -1)
    return (place.affine[:3, :3] @ indices + place.affine[:3, 3:]).reshape(3, *place.shape)


def ramp(place: Geometry) -> np.ndarray:
    x, y, z = world(place)
    return 100 + 2 * x - 3 * y + 0.5 * z


def ball(place: Geometry, radius: float, centre: tuple[float, ...] = (5.0, -8.0, 3.0)) -> np.ndarray:
    return (np.linalg.norm(world(place) - np.reshape(centre, (3, 1, 1, 1)), axis=0) < radius).astype(np.uint8)


@st.composite
def places(draw: st.DrawFn, size: float = 60.0) -> Geometry:
    """Scans of about ``size`` mm: any orientation, oblique, sheared, anisotropic."""
    spacing = np.array(draw(st.tuples(*[st.sampled_from([1.0, 1.4, 2.0, 3.1, 5.0])] * 3)))
    shear = np.eye(3)
    shear[0, 2] = draw(st.sampled_from([0.0, 0.3, -0.2]))
    orientation = draw(st.sampled_from(ORIENTATIONS))
    matrix = turn(draw(st.sampled_from([0.0, 0.0, 0.2, 1.0]))) @ orientation @ shear * spacing
    x, y, z = (int(n) for n in np.ceil(size / spacing))
    return geometry(matrix, (x, y, z))


# ------------------------------------------------------------------------------------------ placing


@given(places())
def test_the_grid_lies_along_the_body_and_shares_the_scans_centre(place):
    placed = GRID.place(place)
    assert np.allclose(placed.centre, place.centre)
    assert np.array_equal(placed.affine[:3, :3], 6.0 * np.eye(3))
    assert placed.shape == (8, 9, 7)


# ------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_a_ramp_keeps_its_place_in_every_orientation(matrix):
    place = geometry(matrix * [1.5, 2.0, 2.5], (60, 45, 36))
    placed = GRID.place(place)
    inside = coverage(place, placed) == 1
    assert inside.all()
    found = sample(Volume(ramp(place), place), placed)
    assert found.dtype == np.float32
    deep = (slice(1, -1),) * 3
    assert np.allclose(found[deep], ramp(placed)[deep], atol=0.02)


@settings(max_examples=25, deadline=None)
@given(places())
def test_a_ramp_keeps_its_place_wherever_the_scan_covers_the_cell(place):
    placed = Grid(6.0, (6, 6, 6)).place(place)
    found = sample(Volume(ramp(place), place), placed)
    index = np.linalg.solve(place.affine, placed.affine)
    reach = np.abs(index[:3, :3]).sum(axis=1) / 2
    at = (index[:3, :3] @ np.indices(placed.shape).reshape(3, -1) + index[:3, 3:]).reshape(3, *placed.shape)
    low, high = reach.reshape(3, 1, 1, 1), (np.array(place.shape) - 1 - reach).reshape(3, 1, 1, 1)
    deep = ((at >= low) & (at <= high)).all(axis=0)
    assert np.allclose(found[deep], ramp(placed)[deep], atol=0.05)


@settings(max_examples=25, deadline=None)
@given(places(), st.floats(12, 20))
def test_the_volume_of_a_mask_survives(place, radius):
    mask = ball(place, radius)
    placed = Grid(6.0, (8, 8, 8)).place(place)
    ml = mask.sum() * place.voxel_ml
    assert sample(Volume(mask, place), placed).sum(dtype=float) * placed.voxel_ml == pytest.approx(ml, rel=0.01)


@given(places(), st.integers(1, 4))
def test_finer_cells_fill_the_same_box_and_average_to_the_cells_that_they_divide(place, times):
    cells = GRID.place(place)
    within = finer(cells, times)
    assert within.shape == tuple(times * n for n in cells.shape)
    assert np.allclose(within.spacing, np.array(cells.spacing) / times)
    where = world(within)
    for axis in (1, 2, 3):
        where = where.reshape(*where.shape[:axis], -1, times, *where.shape[axis + 1 :]).mean(axis + 1)
    assert np.allclose(where, world(cells), atol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "shape", "times"),
    [
        ((6.0, 6.0, 6.0), (32, 32, 32), 1),
        ((8.0, 8.0, 8.0), (32, 32, 32), 1),
        ((4.5, 4.5, 4.5), (32, 32, 32), 1),
        ((3.0, 3.0, 3.0), (32, 32, 32), 2),
        ((1.0, 1.0, 1.0), (32, 32, 32), 3),
        ((1.0, 1.0, 6.0), (32, 32, 32), 3),
        ((0.5, 6.0, 6.0), (32, 32, 32), 1),
        ((2.0, 2.0, 2.0), (128, 128, 128), 2),
        ((2.0, 2.0, 2.0), (256, 256, 256), 1),
    ],
)
def test_cells_are_divided_until_they_are_as_fine_as_the_scan_within_reason(spacing, shape, times):
    scan = geometry(np.diag(spacing), (10, 10, 10))
    assert closeness(scan, Grid(6.0, shape).place(scan)) == times


@given(arrays(np.float64, (3, 4, 2), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_scan_that_lies_on_the_grid_comes_back_bit_for_bit(voxels):
    place = geometry(turn(0.3) * [1.0, 2.0, 3.0], (3, 4, 2))
    assert np.array_equal(sample(Volume(voxels, place), place), voxels.astype(np.float32))
    assert coverage(place, place).min() == 1


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_every_type_of_voxel_is_sampled(dtype):
    place = geometry(np.diag([2.0, 2, 2]), (10, 10, 10))
    found = sample(Volume(np.full((10, 10, 10), 7, dtype), place), Grid(4.0, (4, 4, 4)).place(place))
    assert np.array_equal(found, np.full((4, 4, 4), 7, np.float32))


def test_a_cell_takes_the_mean_of_its_voxels():
    voxels = np.random.default_rng(0).normal(size=(12, 8, 8))
    place = geometry(np.eye(3), (12, 8, 8))
    found = sample(Volume(voxels, place), Grid(4.0, (3, 2, 2)).place(place))
    assert np.allclose(found, voxels.reshape(3, 4, 2, 4, 2, 4).mean(axis=(1, 3, 5)), atol=1e-6)


def test_voxels_at_the_border_hold_to_their_edge_and_nothing_is_beyond():
    place = geometry(np.diag([6.0, 6, 6]), (2, 2, 2), (0.0, 0, 0))
    placed = Grid(2.0, (10, 10, 10)).place(place)
    found = sample(Volume(np.full((2, 2, 2), 9.0), place), placed)
    inside = np.zeros((10, 10, 10), bool)
    inside[2:8, 2:8, 2:8] = True
    assert np.array_equal(found, np.where(inside, np.float32(9), np.float32(0)))
    assert np.array_equal(coverage(place, placed), inside.astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(places(30.0))
def test_coverage_is_what_a_scan_of_ones_gives_and_sums_to_the_field_of_view(place):
    placed = Grid(6.0, (12, 12, 12)).place(place)
    part = coverage(place, placed)
    assert part.min() >= 0
    assert part.max() <= 1
    assert np.allclose(part, sample(Volume(np.ones(place.shape), place), placed), atol=1e-6)
    # Points 1.5 mm apart see a side of 31 mm up to a thirtieth too short or too long, three sides a tenth.
    assert part.sum(dtype=float) * placed.voxel_ml == pytest.approx(np.prod(place.shape) * place.voxel_ml, rel=0.1)


def test_layers_of_cells_join_without_a_seam(monkeypatch):
    place = geometry(turn(0.2) * 1.5, (40, 40, 40))
    volume = Volume(np.random.default_rng(0).normal(size=(40, 40, 40)), place)
    at_once = sample(volume, GRID.place(place))
    monkeypatch.setattr("medisent.grids._AT_ONCE", 1)
    assert np.allclose(sample(volume, GRID.place(place)), at_once, atol=1e-6)


# ------------------------------------------------------------------------------------------ axes that run alike


@st.composite
def straight(draw: st.DrawFn) -> tuple[Geometry, Geometry]:
    """A scan along the body in any orientation, and a grid that lies over it anyhow, wholly, in part or not at all."""
    spacing = np.array(draw(st.tuples(*[st.sampled_from([0.7, 1.0, 1.5, 2.2, 4.0])] * 3)))
    shape = draw(st.tuples(*[st.integers(2, 14)] * 3))
    # No point lies on the very edge of a voxel, where rounding would decide whether it is inside.
    shift = tuple(0.0371 + draw(st.integers(-30, 30)) for _ in range(3))
    scan = geometry(draw(st.sampled_from(ORIENTATIONS)) * spacing, shape, (0.0, 0.0, 0.0))
    cells = draw(st.tuples(*[st.integers(1, 9)] * 3))
    return scan, geometry(np.eye(3) * draw(st.sampled_from([1.0, 2.5, 6.0])), cells, shift)


def by_the_general_way(work):
    with (
        mock.patch("medisent.grids._aligned", return_value=None),
        mock.patch("medisent.grids._within", return_value=False),
    ):
        return work()


@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(straight(), st.integers(0, 9))
def test_along_shared_axes_products_give_what_interpolation_gives(places, seed):
    scan, grid = places
    rng = np.random.default_rng(seed)
    volume, change = Volume(rng.normal(100, 30, scan.shape), scan), rng.normal(size=grid.shape).astype(np.float32)
    for work in (lambda: coverage(scan, grid), lambda: sample(volume, grid), lambda: restore(change, grid, scan)):
        assert np.allclose(work(), by_the_general_way(work), atol=1e-3 if work().max() > 10 else 1e-5)


@given(st.sampled_from(ORIENTATIONS))
def test_the_order_in_memory_does_not_matter(matrix):
    place = geometry(matrix * 1.4, (20, 15, 12))
    voxels = np.random.default_rng(0).normal(size=place.shape)
    one, other = (
        sample(Volume(order(voxels), place), GRID.place(place)) for order in (np.ascontiguousarray, np.asfortranarray)
    )
    assert np.array_equal(one, other)


def test_a_scan_that_hardly_leans_is_taken_for_straight_and_one_that_does_is_not():
    lean = np.eye(3)
    lean[0, 1] = 1e-5  # header digits
    place, straight_one = geometry(lean * 1.5, (40, 40, 30)), geometry(np.eye(3) * 1.5, (40, 40, 30))
    voxels = ramp(place)
    with mock.patch("medisent.grids._resampled", side_effect=AssertionError("interpolated")):
        found = sample(Volume(voxels, place), GRID.place(place))
        assert np.allclose(found, sample(Volume(voxels, straight_one), GRID.place(place)), atol=0.01)
        lean[0, 1] = 1e-3
        with pytest.raises(AssertionError, match="interpolated"):
            sample(Volume(voxels, geometry(lean * 1.5, (40, 40, 30))), GRID.place(place))


# ------------------------------------------------------------------------------------------ restoring


@settings(max_examples=25, deadline=None)
@given(places())
def test_no_change_restores_to_exactly_nothing(place):
    placed = GRID.place(place)
    restored = restore(np.zeros(placed.shape, np.float32), placed, place)
    assert restored.shape == place.shape
    assert restored.dtype == np.float32
    assert not restored.any()


@settings(max_examples=25, deadline=None)
@given(places(), st.tuples(st.integers(0, 7), st.integers(0, 8), st.integers(0, 6)), st.floats(-1e4, 1e4, width=32))
def test_a_change_of_one_cell_reaches_less_than_one_cell_far(place, cell, value):
    placed = GRID.place(place)
    change = np.zeros(placed.shape, np.float32)
    change[cell] = value
    restored = restore(change, placed, place)
    index = (world(place) - placed.affine[:3, 3].reshape(3, 1, 1, 1)) / 6.0
    far = np.abs(index - np.reshape(cell, (3, 1, 1, 1))).max(axis=0)
    assert not restored[far >= 1 + 1e-9].any()
    hat = np.prod(np.clip(1 - np.abs(index - np.reshape(cell, (3, 1, 1, 1))), 0, None), axis=0)
    # Below the smallest normal number float32 has few digits.
    assert np.allclose(restored, value * hat, atol=1e-4 * abs(value) + 1e-37)


@settings(max_examples=25, deadline=None)
@given(places())
def test_outside_the_support_of_a_change_the_scan_stays_value_for_value(place):
    scan = np.random.default_rng(0).normal(1000, 300, place.shape)
    placed = GRID.place(place)
    change = np.zeros(placed.shape, np.float32)
    change[3:5, 4:6, 2:4] = 50.0
    edited = scan + restore(change, placed, place)
    index = (world(place) - placed.affine[:3, 3].reshape(3, 1, 1, 1)) / 6.0
    low, high = np.reshape([2, 3, 1], (3, 1, 1, 1)), np.reshape([5, 6, 4], (3, 1, 1, 1))
    outside = ((index <= low) | (index >= high)).any(axis=0)
    assert np.array_equal(edited[outside], scan[outside])
    assert (edited[~outside] != scan[~outside]).mean() > 0.9


@given(arrays(np.float32, (3, 4, 2), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_change_on_the_scans_own_grid_comes_back_bit_for_bit(change):
    place = geometry(turn(0.3) * [1.0, 2.0, 3.0], (3, 4, 2))
    assert np.array_equal(restore(change, place, place), change)


def test_a_smooth_change_comes_back_where_it_was():
    place = geometry(turn(0.3) * [1.0, 1.3, 2.0], (30, 25, 15))
    placed = Grid(6.0, (10, 10, 10)).place(place)
    assert np.allclose(restore(ramp(placed).astype(np.float32), placed, place), ramp(place), atol=0.01)


# ------------------------------------------------------------------------------------------ coordinates


@given(places())
def test_the_faces_of_a_field_lie_at_minus_one_and_one(place):
    x, y, z = unit_coordinates(place, place)
    for axis, values in enumerate((x, y, z)):
        n = place.shape[axis]
        assert values.min() == pytest.approx(-1 + 1 / n, abs=1e-5)
        assert values.max() == pytest.approx(1 - 1 / n, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(places())
def test_one_point_of_space_has_one_coordinate_on_the_grid_and_on_the_scan(place):
    placed = GRID.place(place)
    found = unit_coordinates(place, placed)
    assert found.dtype == np.float32
    expected = (world(place) - placed.centre.reshape(3, 1, 1, 1)) / (3.0 * np.reshape(placed.shape, (3, 1, 1, 1)))
    assert np.allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------ speed


@pytest.mark.slow
def test_a_clinical_scan_goes_onto_the_grid_and_back_in_seconds():
    place = geometry(turn(0.2), (256, 256, 180))
    volume = Volume(np.random.default_rng(0).normal(size=place.shape).astype(np.float32), place)
    placed = Grid(6.0, (32, 32, 32)).place(place)
    for work in (lambda: sample(volume, placed), lambda: restore(np.ones(placed.shape, np.float32), placed, place)):
        started = time.process_time()
        work()
        assert time.process_time() - started < 1.5
