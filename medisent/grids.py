"""The model's grid: a scan is averaged onto it once, and a change comes back from it once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Float, Num

from medisent.volumes import Geometry, Volume

_MOST_POINTS = 16  # along one axis of a cell
_NOTHING = 1e-7  # of the largest change
_AT_ONCE = 1 << 23  # points held in memory


@dataclass(frozen=True)
class Grid:
    """A box of cubic cells along the axes of the body.

    Attributes:
        spacing_mm: Edge of a cell in mm.
        shape: Cells along right, anterior and superior.
    """

    spacing_mm: float
    shape: tuple[int, int, int]

    def place(self, geometry: Geometry) -> Geometry:
        """The grid laid over a scan: RAS+, centred on the middle of the scan's field of view."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = geometry.centre - self.spacing_mm * (np.array(self.shape) - 1) / 2
        return Geometry(affine, self.shape)


def sample(volume: Volume, onto: Geometry) -> Float[np.ndarray, "x y z"]:
    """The mean of the scan over each cell of ``onto``, float32, in the scan's unit; 0 where the scan has nothing.

    The scan is interpolated linearly at points so close that none of its voxels is passed over, up to 16 along each
    axis of a cell, and each cell takes the mean of its own. Voxels at the border reach half a voxel beyond their
    centre. A scan that lies on ``onto`` comes back value for value.
    """
    if volume.geometry == onto:
        return volume.voxels.astype(np.float32)
    image = sitk.GetImageFromArray(_portable(volume.voxels).T)
    return _cell_means(image, _index_map(onto, volume.geometry), _points(onto, volume.geometry), onto.shape)


def coverage(geometry: Geometry, onto: Geometry) -> Float[np.ndarray, "x y z"]:
    """The part of each cell of ``onto`` that lies in the field of view of ``geometry``, from 0 to 1, float32."""
    if geometry == onto:
        return np.ones(onto.shape, np.float32)
    ones = sitk.Image(geometry.shape, sitk.sitkUInt8) + 1
    return _cell_means(ones, _index_map(onto, geometry), _points(onto, geometry), onto.shape)


def restore(change: Float[np.ndarray, "x y z"], placed: Geometry, onto: Geometry) -> Float[np.ndarray, "i j k"]:
    """The change on the grid ``placed``, interpolated at the voxels of ``onto``, float32, in the change's unit.

    It is exactly 0 where the surrounding grid cells are 0, fades to 0 within one cell beyond the grid, and is 0
    outside; so is what rounding leaves, less than a ten-millionth of the largest change. On the grid itself the change
    comes back value for value.
    """
    if placed == onto:
        return change.astype(np.float32)
    padded = np.pad(change.astype(np.float32), 1)
    image = sitk.GetImageFromArray(padded.T)
    to_padded = _index_map(onto, placed)
    to_padded[:3, 3] += 1
    restored: np.ndarray = sitk.GetArrayFromImage(_resampled(image, to_padded, onto.shape)).T
    restored[np.abs(restored) < _NOTHING * np.abs(padded).max()] = 0
    return restored


def unit_coordinates(of: Geometry, within: Geometry) -> Float[np.ndarray, "3 x y z"]:
    """Where each voxel of ``of`` lies along the axes of ``within``, float32.

    -1 and 1 are the outer faces of the first and the last voxels of ``within``.
    """
    to_index = _index_map(of, within)
    scale = 2 / np.array(within.shape)
    matrix = scale[:, None] * to_index[:3, :3]
    start = scale * (to_index[:3, 3] + 0.5) - 1
    coordinates = np.empty((3, *of.shape), np.float32)
    x, y, z = (np.arange(n, dtype=np.float64) for n in of.shape)
    for axis in range(3):
        across = start[axis] + matrix[axis, 0] * x[:, None] + matrix[axis, 1] * y
        np.add(across[:, :, None], matrix[axis, 2] * z, out=coordinates[axis], casting="same_kind")
    return coordinates


def _portable(voxels: Num[np.ndarray, "x y z"]) -> Num[np.ndarray, "x y z"]:
    """The voxels in a type that SimpleITK has."""
    return voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels


def _index_map(source: Geometry, target: Geometry) -> Float[np.ndarray, "4 4"]:
    """From voxel indices of ``source`` to those of ``target``."""
    return np.linalg.solve(target.affine, source.affine)


def _points(onto: Geometry, native: Geometry) -> tuple[int, int, int]:
    """Points along each axis of a cell: one in a cell no larger than a voxel, else neighbours at most a voxel apart.

    In cells of few voxels, and not of a whole number of them, they are half a voxel apart: else voxels near the points
    would weigh too much.
    """
    voxels = np.abs(_index_map(onto, native)[:3, :3]).max(axis=0)
    voxels = np.where(np.abs(voxels - np.round(voxels)) < 1e-6, np.round(voxels), voxels)
    finer = np.where((voxels > 1) & (voxels < 4) & (voxels % 1 > 0), 2, 1)
    x, y, z = (int(n) for n in np.clip(finer * np.ceil(voxels), 1, _MOST_POINTS))
    return x, y, z


def _cell_means(
    image: sitk.Image, to_image: Float[np.ndarray, "4 4"], points: tuple[int, int, int], shape: tuple[int, int, int]
) -> Float[np.ndarray, "x y z"]:
    """The mean of ``image`` over each cell: points on a finer lattice in each cell, a few layers of cells at a time."""
    count = np.array(points)
    finer = np.diag([*(1 / count), 1.0])
    finer[:3, 3] = (1 / count - 1) / 2
    means = np.empty(shape, np.float32, order="F")
    layers = max(1, _AT_ONCE // int(np.prod(count) * shape[0] * shape[1]))
    for first in range(0, shape[2], layers):
        depth = min(layers, shape[2] - first)
        shifted = np.eye(4)
        shifted[2, 3] = first * points[2]
        size = (shape[0] * points[0], shape[1] * points[1], depth * points[2])
        fine = _resampled(image, to_image @ finer @ shifted, size)
        means[:, :, first : first + depth] = sitk.GetArrayFromImage(sitk.BinShrink(fine, points)).T
    return means


def _resampled(image: sitk.Image, to_image: Float[np.ndarray, "4 4"], size: tuple[int, int, int]) -> sitk.Image:
    """The image interpolated linearly, float32, where ``to_image`` takes the indices of a box of ``size``."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_image[:3, :3].ravel().tolist())
    transform.SetTranslation(to_image[:3, 3].tolist())
    flat = np.eye(3).ravel().tolist()
    return sitk.Resample(image, size, transform, sitk.sitkLinear, (0.0,) * 3, (1.0,) * 3, flat, 0.0, sitk.sitkFloat32)
