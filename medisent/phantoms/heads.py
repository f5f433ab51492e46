"""Rendered heads: skin, skull, folded brain, ventricles and a tumour, each of exactly the size that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.polynomial.legendre import legval

from medisent.errors import InterventionError
from medisent.phantoms.shapes import Box, Lattice, Waves, inside, solve, width
from medisent.phantoms.tissues import T1_WEIGHTED, TEMPLATE_MM, Tones, paint, person_rng, tissue
from medisent.volumes import Geometry

RIM_MM = 5.0
"""Thickness of a tumour's bright rim; a tumour of a smaller radius is rim throughout."""

TUMOUR_REACH_MM = 52.0
"""How far from its centre the largest tumour may reach."""


@dataclass(frozen=True)
class Anatomy:
    """The factors of a head, and the seed of everything about it that is no factor.

    Attributes:
        head_size: Mean radius of the cranium, in mm; about 75 to 95 in adults.
        ventricle_ml: Both lateral ventricles together, in mL, with what a tumour may hide.
        tumour_ml: The tumour, rim and core, in mL; 0 for none.
        tumour_mm: Its centre, in world mm (right, anterior, superior).
        roughness: How far its outline departs from a sphere, 0 to 1.
        seed: Folds, texture, pose, asymmetry and the tumour's irregularities; the same seed is the same person.
    """

    head_size: float = 80.0
    ventricle_ml: float = 20.0
    tumour_ml: float = 0.0
    tumour_mm: tuple[float, float, float] = (32.0, 10.0, 22.0)
    roughness: float = 0.5
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Masks:
    """The visible fraction of each voxel that belongs to a structure; a tumour hides the ventricle behind it."""

    tumour: Float[np.ndarray, "x y z"]
    ventricles: Float[np.ndarray, "x y z"]


@dataclass(frozen=True, eq=False)
class Head:
    """A rendered head before any scanner has seen it.

    Attributes:
        canonical: Brightness of the tissue in each voxel, 0 (air) to about 1.
        masks: What of each voxel is tumour and ventricle.
        anatomy: The factors it was rendered from.
        geometry: Where its voxels lie.
    """

    canonical: Float[np.ndarray, "x y z"]
    masks: Masks
    anatomy: Anatomy
    geometry: Geometry

    @property
    def tumour_ml(self) -> float:
        """The visible tumour, in mL."""
        return float(self.masks.tumour.sum(dtype=np.float64)) * self.geometry.voxel_ml

    @property
    def ventricle_ml(self) -> float:
        """The visible ventricles, in mL."""
        return float(self.masks.ventricles.sum(dtype=np.float64)) * self.geometry.voxel_ml


@dataclass(frozen=True, eq=False)
class Growable:
    """A shape of any size: the points where a level lies below a threshold, and no more than there is room for.

    Attributes:
        box: Where on the lattice it may be.
        level: Grows outwards, about 1 a mm.
        ramp: What the level changes by across one point's box.
        room: The fraction of each point that it may fill.
        point_ml: Volume of a point, in mL.
        limit: The largest threshold that stays within the box.
    """

    box: Box
    level: Float[np.ndarray, "x y z"]
    ramp: Float[np.ndarray, "x y z"]
    room: Float[np.ndarray, "x y z"]
    point_ml: float
    limit: float

    def fraction(self, threshold: float) -> Float[np.ndarray, "x y z"]:
        """The fraction of each point of the box that lies inside."""
        fraction = inside(self.level, self.ramp, threshold)
        fraction *= self.room
        return fraction

    def volume_ml(self, threshold: float) -> float:
        """Its volume at a threshold, in mL."""
        return float(self.fraction(threshold).sum(dtype=np.float64)) * self.point_ml

    def threshold(self, ml: float, name: str) -> float:
        """The threshold at which its volume is ``ml``, to 1e-5 mL or single precision.

        Raises:
            InterventionError: It has not that much room.
        """
        if ml <= 0 or not self.level.size:
            found = None if ml > 0 else -np.inf
        else:
            found = solve(self.volume_ml, ml, -self.limit, self.limit)
        if found is None:
            most = self.volume_ml(self.limit) if self.level.size else 0.0
            raise InterventionError(
                f"A {name} of {ml:g} mL does not fit into this head: there is room for {most:.1f} mL. "
                "Ask for less, or for another place."
            )
        return found


@dataclass(frozen=True, eq=False)
class Stage:
    """A head with its ventricles and tumour still to be sized; sizing them leaves everything else as it is.

    Attributes:
        lattice: The points at which it is rendered.
        tissue: Brightness of everything but ventricles and tumour, at every point.
        ventricles: The ventricles, growable.
        tumour: The tumour, growable.
        bloom: The tumour's own texture over its box, about 1.
        tones: How bright tissues are.
    """

    lattice: Lattice
    tissue: Float[np.ndarray, "x y z"]
    ventricles: Growable
    tumour: Growable
    bloom: Float[np.ndarray, "a b c"]
    tones: Tones

    def play(self, ventricles: float, tumour: float) -> tuple[Float[np.ndarray, "x y z"], Masks]:
        """The canonical brightness and the masks for two thresholds."""
        canvas = self.tissue.copy()
        fluid, mass = np.zeros_like(canvas), np.zeros_like(canvas)
        if ventricles > -np.inf:
            fluid[self.ventricles.box] = self.ventricles.fraction(ventricles)
            paint(canvas, self.ventricles.box, fluid[self.ventricles.box], self.tones.fluid)
        if tumour > -np.inf:
            fraction = self.tumour.fraction(tumour)
            mass[self.tumour.box] = fraction
            core = np.minimum(self.tumour.fraction(tumour - RIM_MM), fraction) / np.maximum(fraction, 1e-6)
            tone = (self.tones.rim + (self.tones.core - self.tones.rim) * core) * self.bloom
            paint(canvas, self.tumour.box, fraction, tone)
            fluid *= 1 - mass
        means = self.lattice.voxel_means
        return means(canvas), Masks(tumour=means(mass), ventricles=means(fluid))


def render(anatomy: Anatomy, geometry: Geometry, tones: Tones = T1_WEIGHTED) -> Head:
    """A head with these factors on any grid, lying around the world's origin.

    The sums of its masks are the asked volumes to 1e-3 mL. With the same seed and one factor changed it is the true
    counterfactual: whatever the factor does not reach stays as it is, value for value.

    Raises:
        InterventionError: A tumour or ventricles of that size do not fit.
    """
    stage = set_stage(anatomy, geometry, tones)
    canonical, masks = stage.play(
        stage.ventricles.threshold(anatomy.ventricle_ml, "pair of ventricles"),
        stage.tumour.threshold(anatomy.tumour_ml, "tumour"),
    )
    return Head(canonical, masks, anatomy, geometry)


def set_stage(anatomy: Anatomy, geometry: Geometry, tones: Tones = T1_WEIGHTED) -> Stage:
    """The head of a person before ventricles and tumour are sized."""
    to_head = head_frame(anatomy)
    lattice = Lattice.of(geometry, to_head)
    hull, bare = tissue(lattice, anatomy.seed, tones)
    centre = to_head[:3, :3] @ np.array(anatomy.tumour_mm) + to_head[:3, 3]
    tumour = grow_tumour(anatomy, lattice, hull, (float(centre[0]), float(centre[1]), float(centre[2])))
    texture = Waves.draw(person_rng(anatomy.seed, "tumour texture"), shortest_mm=8, longest_mm=20)
    bloom = 1 + 0.07 * texture.at(lattice.crop(tumour.box)) if tumour.level.size else tumour.level
    return Stage(lattice, bare, grow_ventricles(anatomy, lattice), tumour, bloom, tones)


def head_frame(anatomy: Anatomy) -> Float[np.ndarray, "4 4"]:
    """World mm to mm of the template head: a person's size and how they happened to lie in the scanner."""
    rng = person_rng(anatomy.seed, "pose")
    x, y, z = np.radians(rng.normal(0, 3, 3).clip(-7, 7))
    shift = rng.normal(0, 1.5, 3).clip(-3, 3)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    frame = np.eye(4)
    frame[:3, :3] = (about_x @ about_y @ about_z) * (TEMPLATE_MM / anatomy.head_size)
    frame[:3, 3] = -frame[:3, :3] @ shift
    return frame


def grow_tumour(
    anatomy: Anatomy,
    lattice: Lattice,
    hull: Float[np.ndarray, "x y z"],
    centre: tuple[float, float, float],
) -> Growable:
    """A star-shaped tumour around a centre (template mm), rough by spherical harmonics, confined to the brain."""
    scale = anatomy.head_size / TEMPLATE_MM
    reach = TUMOUR_REACH_MM / scale
    x0, y0, z0 = centre
    box = lattice.box((x0 - reach, y0 - reach, z0 - reach), (x0 + reach, y0 + reach, z0 + reach))
    region = lattice.crop(box)
    offset = np.stack(region.points()) - np.array(centre, dtype=np.float32)[:, None, None, None]
    distance = np.sqrt(np.square(offset).sum(axis=0)) * np.float32(scale)
    outline = 1 + 0.45 * anatomy.roughness * _lobes(offset / np.maximum(distance / scale, 1e-3), anatomy.seed)
    level = (distance / outline).astype(np.float32)
    ramp = np.maximum(width(level), 0.5 * (1000 * lattice.point_ml) ** (1 / 3)).astype(np.float32)
    room = inside(hull[box], width(hull[box])) if level.size else level
    return Growable(box, level, ramp, room, lattice.point_ml, TUMOUR_REACH_MM / (1 + 0.45 * anatomy.roughness))


def grow_ventricles(anatomy: Anatomy, lattice: Lattice) -> Growable:
    """Both lateral ventricles: frontal horn, body, atrium, occipital and temporal horn, all widening together."""
    box = lattice.box((-56, -76, -42), (56, 62, 46))
    region = lattice.crop(box)
    x, y, z = region.points()
    rng = person_rng(anatomy.seed, "ventricles")
    side = np.abs(x - np.float32(rng.normal(0, 0.6)))
    path = _HORNS + np.concatenate([rng.normal(0, 0.8, (len(_HORNS), 3)), np.zeros((len(_HORNS), 1))], axis=1)
    level = np.full(region.shape, np.inf, dtype=np.float32)
    for start, end in _HORN_ENDS:
        np.minimum(level, _tube(side, y, z, path[start], path[end]), out=level)
    level *= 1 + 0.10 * Waves.draw(rng, shortest_mm=25, longest_mm=60, waves=24).at(region)
    ramp = np.maximum(width(level), 0.5 * (1000 * lattice.point_ml) ** (1 / 3) * TEMPLATE_MM / anatomy.head_size)
    return Growable(box, level, ramp.astype(np.float32), np.ones_like(level), lattice.point_ml, 24.0)


_HORNS = np.array(
    [  # x (away from the midline), y, z in template mm, relative radius
        [9, 36, 3, 0.75],
        [11, 23, 12, 1.35],
        [13, -4, 19, 1.05],
        [25, -32, 9, 1.35],
        [24, -54, 3, 0.40],
        [34, -22, -9, 0.80],
        [31, 5, -20, 0.50],
    ]
)
_HORN_ENDS = ((0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (5, 6))


def _lobes(direction: Float[np.ndarray, "3 x y z"], seed: int) -> Float[np.ndarray, "x y z"]:
    """A random function of direction between -1 and 1: spherical harmonics of degree 2 to 6 about random axes."""
    rng = person_rng(seed, "lobes")
    axes = rng.standard_normal((8, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    weights = rng.standard_normal((8, 7)) * np.array([0, 0, 1, 1, 0.7, 0.5, 0.3])
    weights *= np.sqrt((2 * np.arange(7) + 1) / 8 / 3)
    total = np.zeros(direction.shape[1:], dtype=np.float32)
    for axis, weight in zip(axes, weights, strict=True):
        cosine = np.tensordot(axis.astype(np.float32), direction, axes=1)
        total += legval(cosine, weight.astype(np.float32))
    return np.asarray(np.tanh(total))


def _tube(
    x: Float[np.ndarray, "x y z"],
    y: Float[np.ndarray, "x y z"],
    z: Float[np.ndarray, "x y z"],
    start: Float[np.ndarray, "4"],
    end: Float[np.ndarray, "4"],
) -> Float[np.ndarray, "x y z"]:
    """Distance from a segment, in units of a radius that tapers along it, higher than wide."""
    way = (end - start)[:3].astype(np.float32)
    dx, dy, dz = x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])
    along = np.clip((dx * way[0] + dy * way[1] + dz * way[2]) / np.square(way).sum(), 0, 1)
    dx -= along * way[0]
    dy -= along * way[1]
    dz -= along * way[2]
    distance = np.sqrt(1.4 * np.square(dx) + np.square(dy) + 0.75 * np.square(dz))
    return np.asarray(distance / (start[3] + along * (end[3] - start[3])), dtype=np.float32)
