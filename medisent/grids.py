"""The model's grid: a scan is averaged onto it once, and a change comes back from it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Float, Num

from medisent.volumes import Geometry, Volume

_MOST_POINTS = 16  # along one axis of a cell
_NOTHING = 1e-7  # of the largest change
_AT_ONCE = 1 << 23  # points held in memory
_IN_CACHE = 1 << 19  # voxels
_ROWS = 64  # of a band of weights that are multiplied at once
_CLOSEST = 3  # times that an edge is divided
_MOST_CELLS = 1 << 24
_STRAIGHT = 1e-3  # of a voxel: grids that lean no further to one another are taken for aligned


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


def finer(cells: Geometry, times: int) -> Geometry:
    """The same box in cells that divide each edge of these so many times."""
    affine = cells.affine.copy()
    affine[:3, :3] /= times
    affine[:3, 3] += affine[:3, :3].sum(1) * (1 - times) / 2
    x, y, z = (n * times for n in cells.shape)
    return Geometry(affine, (x, y, z))


def closeness(geometry: Geometry, cells: Geometry) -> int:
    """How often the edges of cells have to be divided to be about as fine as a scan, three times at most.

    The scan's middle spacing counts: slices far apart show no more than they do. So many cells are not divided that
    the finer ones would be more than sixteen million.
    """
    wanted = round(cells.spacing[0] / sorted(geometry.spacing)[1])
    most = int((_MOST_CELLS / np.prod(cells.shape)) ** (1 / 3))
    return max(1, min(wanted, most, _CLOSEST))


def sample(volume: Volume, onto: Geometry) -> Float[np.ndarray, "x y z"]:
    """The mean of the scan over each cell of ``onto``, float32, in the scan's unit; 0 where the scan has nothing.

    The scan is interpolated linearly at points so close that none of its voxels is passed over, up to 16 along each
    axis of a cell, and each cell takes the mean of its own. Voxels at the border reach half a voxel beyond their
    centre. A scan that lies on ``onto`` comes back value for value.
    """
    if volume.geometry == onto:
        return volume.voxels.astype(np.float32)
    points = _points(onto, volume.geometry)
    if (bands := _sampling_bands(volume.geometry, onto, points)) is not None:
        return _banded(volume.voxels, bands)
    image = sitk.GetImageFromArray(_portable(volume.voxels).T)
    return _cell_means(image, _index_map(onto, volume.geometry), points, onto.shape)


def coverage(geometry: Geometry, onto: Geometry) -> Float[np.ndarray, "x y z"]:
    """The part of each cell of ``onto`` that lies in the field of view of ``geometry``, from 0 to 1, float32."""
    if geometry == onto or _within(onto, geometry):
        return np.ones(onto.shape, np.float32)
    points = _points(onto, geometry)
    if (bands := _sampling_bands(geometry, onto, points)) is not None:
        x, y, z = (band.sums.astype(np.float32) for band in sorted(bands, key=lambda band: band.along))
        return x[:, None, None] * y[:, None] * z
    ones = sitk.Image(geometry.shape, sitk.sitkUInt8) + 1
    return _cell_means(ones, _index_map(onto, geometry), points, onto.shape)


def restore(change: Float[np.ndarray, "x y z"], placed: Geometry, onto: Geometry) -> Float[np.ndarray, "i j k"]:
    """The change on the grid ``placed``, interpolated at the voxels of ``onto``, float32, in the change's unit.

    It is exactly 0 where the surrounding grid cells are 0, fades to 0 within one cell beyond the grid, and is 0
    outside; so is what rounding leaves, less than a ten-millionth of the largest change. On the grid itself the change
    comes back value for value.
    """
    if placed == onto:
        return change.astype(np.float32)
    if (axes := _aligned(onto, placed)) is not None:
        bands = [_Band.fading(axis, count) for axis, count in zip(axes, placed.shape, strict=True)]
        return _banded(change, bands)
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


@dataclass(frozen=True)
class _Axis:
    """Where points lie on one axis of an image, evenly spaced.

    Attributes:
        along: The axis of the points that runs along it.
        start: Index of the first point.
        step: From one point to the next, in indices; negative where they run the other way.
        count: How many points.
    """

    along: int
    start: float
    step: float
    count: int

    def finer(self, points: int) -> Float[np.ndarray, " points"]:
        """The indices of so many points within the cell around each."""
        cells = (np.arange(self.count * points) + 0.5) / points - 0.5
        found: np.ndarray = self.start + self.step * cells
        return found


@dataclass(frozen=True, eq=False)
class _Band:
    """How much each point of one axis takes of each voxel along it: a matrix with a narrow band beside zeros.

    Attributes:
        along: The axis of the points.
        count: How many points.
        voxels: The voxels of which anything is taken.
        blocks: Points, voxels (counted from the first that is taken), and the matrix between them.
        sums: How much each point takes in all.
    """

    along: int
    count: int
    voxels: slice
    blocks: tuple[tuple[slice, slice, Float[np.ndarray, "_points _voxels"]], ...]
    sums: Float[np.ndarray, " points"]

    @classmethod
    def holding(cls, axis: _Axis, voxels: int, points: int) -> _Band:
        """Means of so many points in each cell; voxels at the border hold to their edge, beyond which nothing is."""
        at = axis.finer(points)
        seen = (at >= -0.5) & (at < voxels - 0.5)
        return cls._of(axis, at.clip(0, voxels - 1), seen / points, voxels)

    @classmethod
    def fading(cls, axis: _Axis, voxels: int) -> _Band:
        """Single points, between voxels that are zero beyond the border."""
        at = axis.finer(1)
        return cls._of(axis, at, np.ones_like(at), voxels)

    @classmethod
    def _of(
        cls, axis: _Axis, at: Float[np.ndarray, " points"], share: Float[np.ndarray, " points"], voxels: int
    ) -> _Band:
        """Linear weights of points with a share each, so many in a row for each cell."""
        weights = np.zeros((axis.count, voxels))
        rows = np.arange(len(at)) // (len(at) // axis.count)
        low = np.floor(at)
        for neighbour, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
            there = (neighbour >= 0) & (neighbour < voxels)
            np.add.at(weights, (rows[there], neighbour[there].astype(int)), (weight * share)[there])
        weights[weights < _NOTHING] = 0
        taken = _used(weights)
        kept = weights[:, taken].astype(np.float32)
        blocks = []
        for start in range(0, axis.count, _ROWS):
            cells = slice(start, min(start + _ROWS, axis.count))
            used = _used(kept[cells])
            blocks.append((cells, used, np.ascontiguousarray(kept[cells, used])))
        return cls(axis.along, axis.count, taken, tuple(blocks), weights.sum(1))

    def of(self, rows: Float[np.ndarray, "rows voxels"]) -> Float[np.ndarray, "points rows"]:
        """What the points take of each row."""
        taken = np.empty((self.count, len(rows)), np.float32)
        for cells, used, weights in self.blocks:
            np.matmul(weights, rows[:, used].T, out=taken[cells])
        return taken


def _used(weights: Float[np.ndarray, "points voxels"]) -> slice:
    """From the first to the last voxel that has any weight."""
    found = np.flatnonzero(weights.any(axis=0))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _aligned(points: Geometry, within: Geometry) -> list[_Axis] | None:
    """Where the points lie on each axis of ``within``, if the axes of both run alike, in any order and direction."""
    to_index = _index_map(points, within)
    along = np.abs(to_index[:3, :3]).argmax(axis=1)
    if len(set(along.tolist())) < 3:
        return None
    middle = (np.array(points.shape) - 1) / 2
    axes = []
    for row, axis in zip(to_index[:3], along.tolist(), strict=True):
        lean = np.delete(row[:3], axis) @ np.delete(middle, axis)
        if np.abs(np.delete(row[:3], axis)) @ np.delete(middle, axis) > _STRAIGHT / 2:
            return None
        axes.append(_Axis(axis, float(row[3] + lean), float(row[axis]), points.shape[axis]))
    return axes


def _sampling_bands(geometry: Geometry, onto: Geometry, points: tuple[int, int, int]) -> list[_Band] | None:
    """For each axis of a scan what the cells take of it, if cells and voxels are aligned."""
    axes = _aligned(onto, geometry)
    if axes is None:
        return None
    return [_Band.holding(a, n, points[a.along]) for a, n in zip(axes, geometry.shape, strict=True)]


def _banded(voxels: Num[np.ndarray, "x y z"], bands: Sequence[_Band]) -> Float[np.ndarray, "i j k"]:
    """What points take of an image, axis by axis, float32; a few planes at a time, so that these stay in the cache.

    Each product takes the last axis and leaves its own first, so that after three of them the axes are in their order.
    """
    inner, middle, outer = bands  # as files are stored; always, since other orders would round otherwise
    used = voxels.T[outer.voxels, middle.voxels, inner.voxels]
    planes, height, width = used.shape
    shape = [band.count for band in sorted(bands, key=lambda band: band.along)]
    if not used.size:
        return np.zeros(shape, np.float32)
    partial = np.empty((middle.count, inner.count, planes), np.float32)
    depth = max(1, _IN_CACHE // max(1, height * width))
    for start in range(0, planes, depth):
        slab = used[start : start + depth].astype(np.float32, order="C")
        across = inner.of(slab.reshape(-1, width))
        partial[:, :, start : start + depth] = middle.of(across.reshape(-1, height)).reshape(*partial.shape[:2], -1)
    whole = outer.of(partial.reshape(-1, planes)).reshape(outer.count, middle.count, inner.count)
    return whole.transpose(np.argsort([outer.along, middle.along, inner.along]))


def _within(cells: Geometry, geometry: Geometry) -> bool:
    """Whether all cells lie in a field of view, by the corners of the outermost."""
    corners = np.array([[*corner, 1] for corner in product(*((-0.5, n - 0.5) for n in cells.shape))])
    index = (corners @ _index_map(cells, geometry).T)[:, :3]
    return bool((index >= -0.5).all() and (index <= np.array(geometry.shape) - 0.5).all())


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
