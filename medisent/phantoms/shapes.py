"""Shapes in space: where a grid's points lie, random waves over them, how much of a voxel lies inside a level set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medisent.volumes import Geometry

FINEST_MM = 3.0
"""Voxels longer than this are rendered as several thinner ones and averaged."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Lattice:
    """The points at which a head is evaluated: those of a grid, or several in each of its voxels.

    Attributes:
        affine: Point index to millimetres in the head's own frame.
        shape: Points along each axis.
        per_voxel: Points in one voxel of the grid, along each axis.
        point_ml: Volume that one point stands for, in mL.
    """

    affine: Float[np.ndarray, "4 4"]
    shape: tuple[int, int, int]
    per_voxel: tuple[int, int, int]
    point_ml: float

    @classmethod
    def of(cls, geometry: Geometry, to_head: Float[np.ndarray, "4 4"]) -> Lattice:
        """The points of a grid, seen from the head's frame (world mm to head mm: ``to_head``)."""
        n = np.array([min(4, max(1, round(spacing / FINEST_MM))) for spacing in geometry.spacing])
        refine = np.diag([*(1 / n), 1.0])
        refine[:3, 3] = 0.5 / n - 0.5
        shape = tuple(int(size * k) for size, k in zip(geometry.shape, n, strict=True))
        per_voxel = (int(n[0]), int(n[1]), int(n[2]))
        return cls(to_head @ geometry.affine @ refine, _triple(shape), per_voxel, geometry.voxel_ml / int(n.prod()))

    def box(self, low: tuple[float, float, float], high: tuple[float, float, float]) -> Box:
        """The index box around a box in the head's frame, in mm; empty where the two do not meet."""
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
        index = (corners - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        start = np.clip(np.floor(index.min(axis=0)).astype(int) - 1, 0, self.shape)
        stop = np.clip(np.ceil(index.max(axis=0)).astype(int) + 2, start, self.shape)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        return x, y, z

    def crop(self, box: Box) -> Lattice:
        """The points inside an index box."""
        shift = np.eye(4)
        shift[:3, 3] = [part.start for part in box]
        shape = _triple(tuple(part.stop - part.start for part in box))
        return Lattice(self.affine @ shift, shape, self.per_voxel, self.point_ml)

    def points(self) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
        """The coordinates of every point in the head's frame, in mm."""
        i, j, k = np.ogrid[: self.shape[0], : self.shape[1], : self.shape[2]]
        x, y, z = (
            (row[0] * i + row[3] + row[1] * j).astype(np.float32) + (row[2] * k).astype(np.float32)
            for row in self.affine[:3]
        )
        return x, y, z

    def voxel_means(self, values: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "a b c"]:
        """The mean of each voxel's points, in single precision."""
        for axis, n in enumerate(self.per_voxel):
            if n > 1:
                shape = (*values.shape[:axis], values.shape[axis] // n, n, *values.shape[axis + 1 :])
                values = values.reshape(shape).mean(axis=axis + 1)
        return np.ascontiguousarray(values, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field with mean about 0 and variance about 1: a sum of plane waves, the same at any resolution.

    Attributes:
        vectors: Wave vectors, in radians a mm.
        phases: Their phases.
    """

    vectors: Float[np.ndarray, "waves 3"]
    phases: Float[np.ndarray, "waves"]

    @classmethod
    def draw(cls, rng: np.random.Generator, *, shortest_mm: float, longest_mm: float, waves: int = 32) -> Waves:
        """Waves of random directions whose lengths lie between two bounds, in mm."""
        direction = rng.standard_normal((waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        number = rng.uniform(2 * np.pi / longest_mm, 2 * np.pi / shortest_mm, waves)
        return cls(direction * number[:, None], rng.uniform(0, 2 * np.pi, waves))

    def at(self, lattice: Lattice) -> Float[np.ndarray, "x y z"]:
        """The field at every point.

        On a lattice a plane wave is the product of three one-dimensional ones, whatever the affine; their sum is a
        matrix product.
        """
        steps = self.vectors @ lattice.affine[:3, :3]
        start = self.vectors @ lattice.affine[:3, 3] + self.phases
        x, y, z = (np.exp(1j * np.outer(np.arange(lattice.shape[axis]), steps[:, axis])) for axis in range(3))
        x *= np.exp(1j * start) * np.sqrt(2 / len(start))
        plane = x[:, None, :] * y[None, :, :]
        left = np.concatenate([plane.real, -plane.imag], axis=2).astype(np.float32)
        right = np.concatenate([z.real, z.imag], axis=1).astype(np.float32)
        return _product(left.reshape(-1, left.shape[2]), right.T).reshape(lattice.shape)


def ellipsoid(
    x: Float[np.ndarray, "x y z"],
    y: Float[np.ndarray, "x y z"],
    z: Float[np.ndarray, "x y z"],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> Float[np.ndarray, "x y z"]:
    """Roughly the distance outside an ellipsoid, in mm; negative inside."""
    total = np.square((x - centre[0]) / radii[0])
    total += np.square((y - centre[1]) / radii[1])
    total += np.square((z - centre[2]) / radii[2])
    np.sqrt(total, out=total)
    total -= 1
    total *= float(np.prod(radii)) ** (1 / 3)
    return total


def width(level: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """How much a level function changes across one point's own box, whatever the direction of its border.

    It is the width of the uniform ramp whose variance is that of the level over the box, to first order.
    """
    if min(level.shape) < 2:
        return np.ones_like(level)
    total = np.zeros_like(level)
    for axis in range(3):
        total += np.square(np.gradient(level, axis=axis))
    np.sqrt(total, out=total)
    return total


def inside(
    level: Float[np.ndarray, "x y z"], ramp: Float[np.ndarray, "x y z"], threshold: float = 0.0
) -> Float[np.ndarray, "x y z"]:
    """The fraction of each point's box in which the level lies below a threshold: a linear ramp across the border."""
    fraction = (threshold - level) / np.maximum(ramp, 1e-3)
    fraction += 0.5
    return np.asarray(np.clip(fraction, 0, 1, out=fraction))


def solve(volume_ml: Callable[[float], float], wanted_ml: float, low: float, high: float) -> float | None:
    """The threshold at which a growing shape has the wanted volume, by bisection; None where ``high`` is too small."""
    if volume_ml(high) < wanted_ml:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        found = volume_ml(middle)
        if abs(found - wanted_ml) < 1e-5:
            return middle
        low, high = (middle, high) if found < wanted_ml else (low, middle)
    return (low + high) / 2


_ONE_THREAD = 1 << 18
"""Multiplications up to which linear algebra libraries stay in one thread; waiting for others costs more."""


def _product(left: Float[np.ndarray, "rows inner"], right: Float[np.ndarray, "inner columns"]) -> np.ndarray:
    """A matrix product in blocks so small that each is done in one thread."""
    block = max(1, _ONE_THREAD // right.size)
    whole = len(left) // block * block
    product = np.empty((len(left), right.shape[1]), dtype=np.float32)
    np.matmul(
        left[:whole].reshape(-1, block, left.shape[1]), right, out=product[:whole].reshape(-1, block, right.shape[1])
    )
    np.matmul(left[whole:], right, out=product[whole:])
    return product


def _triple(values: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z
