"""Laws of place: what an affine says about spacing, centre, volume and orientation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medisent.volumes import Geometry, Volume


def matrices() -> st.SearchStrategy[np.ndarray]:
    tenths = st.integers(-30, 30).map(lambda n: n / 10)
    return arrays(np.float64, (3, 3), elements=tenths).filter(lambda m: abs(np.dot(m[0], np.cross(m[1], m[2]))) > 0.1)


def geometry(matrix: np.ndarray, origin: np.ndarray, shape: tuple[int, int, int]) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return Geometry(affine, shape)


@given(
    matrices(),
    arrays(np.float64, 3, elements=st.floats(-200, 200)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)
def test_the_centre_is_the_mean_place_of_all_voxels(matrix, origin, shape):
    place = geometry(matrix, origin, shape)
    indices = np.indices(shape).reshape(3, -1)
    assert np.allclose(place.centre, (matrix @ indices + origin[:, None]).mean(axis=1))


@given(matrices())
def test_spacing_is_the_way_from_one_voxel_to_the_next(matrix):
    place = geometry(matrix, np.zeros(3), (2, 2, 2))
    for axis in range(3):
        step = matrix @ np.eye(3)[axis]
        assert place.spacing[axis] == pytest.approx(np.linalg.norm(step))


def test_a_voxel_of_ten_by_ten_by_ten_mm_holds_one_ml_also_when_mirrored():
    assert geometry(np.diag([-10.0, 10, 10]), np.zeros(3), (2, 2, 2)).voxel_ml == pytest.approx(1)


def test_axis_codes_name_the_nearest_directions():
    assert geometry(np.array([[0, 0.1, -2], [-1, 0, 0], [0.1, 3, 0]]), np.zeros(3), (2, 2, 2)).axis_codes == "PSL"


def test_geometries_are_equal_when_affine_and_shape_are():
    here = geometry(np.eye(3), np.zeros(3), (2, 3, 4))
    assert here == geometry(np.eye(3), np.zeros(3), (2, 3, 4))
    assert here != geometry(np.eye(3), np.zeros(3), (4, 3, 2))
    assert here != geometry(np.eye(3), np.ones(3), (2, 3, 4))
    assert here != "a geometry"


def test_other_voxels_stay_in_the_same_place():
    scan = Volume(np.zeros((2, 3, 4)), geometry(np.eye(3), np.ones(3), (2, 3, 4)), remarks=("one",))
    other = scan.with_voxels(np.ones((2, 3, 4)))
    assert other.geometry == scan.geometry
    assert other.remarks == scan.remarks
    assert other.spacing == scan.spacing == (1, 1, 1)
    assert np.array_equal(other.affine, scan.affine)
    assert other.voxels.min() == 1
