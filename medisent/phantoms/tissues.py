"""A head without ventricles and tumour: skin, skull, the folded brain, and how bright each tissue is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medisent.phantoms.shapes import Box, Lattice, Waves, ellipsoid, inside, width

TEMPLATE_MM = 80.0
"""The mean radius of the head in whose millimetres every shape below is written."""


@dataclass(frozen=True)
class Tones:
    """How bright each tissue is: 0 is air, 1 about the brightest tissue."""

    fat: float = 0.78
    soft: float = 0.42
    bone: float = 0.10
    fluid: float = 0.15
    grey: float = 0.48
    white: float = 0.70
    nuclei: float = 0.56
    rim: float = 0.98
    core: float = 0.27


T1_WEIGHTED = Tones()
"""A T1-weighted scan after contrast agent: the reference in which a canonical head is rendered."""


def brain_hull(lattice: Lattice, seed: int) -> Float[np.ndarray, "x y z"]:
    """Distance outside the brain without its folds, in template mm: cerebrum, cerebellum and stem; negative inside."""
    x, y, z = lattice.points()
    # The frontal half is narrower than the occipital, and people differ by a millimetre or two everywhere.
    cerebrum = ellipsoid(x * (1 + 0.0012 * y), y, z, (0, 0, 0), (59, 76, 67))
    cerebrum = _smooth_max(cerebrum, -35 - 0.12 * y - z)
    hull = np.minimum(cerebrum, ellipsoid(x, y, z, (0, -40, -40), (46, 31, 25)))
    np.minimum(hull, ellipsoid(x, y, z, (0, -17, -50), (12, 13, 47)), out=hull)
    hull += 1.3 * Waves.draw(person_rng(seed, "shape"), shortest_mm=70, longest_mm=150, waves=24).at(lattice)
    return np.asarray(hull)


def tissue(lattice: Lattice, seed: int, tones: Tones) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
    """The hull's level and the brightness of everything but ventricles and tumour, at every point."""
    x, y, z = lattice.points()
    hull = brain_hull(lattice, seed)
    ramp = np.maximum(width(hull), 0.1)
    # Below the equator the head goes on into face and neck.
    long = np.where(z < 0, z / np.float32(1.6), z)
    skin = ellipsoid(x * (1 + 0.0012 * y), y, long, (0, 0, 0), (71, 89, 82))
    skin += 1.0 * Waves.draw(person_rng(seed, "skin"), shortest_mm=60, longest_mm=150, waves=24).at(lattice)
    soft = _soft_tissue(x, y, z, skin, ramp, seed, lattice, tones)
    canvas = inside(skin, ramp) * soft
    over(canvas, inside(hull, ramp, 9.5) * inside(skin, ramp, -4.0), tones.bone)
    over(canvas, inside(hull, ramp, 2.5), tones.fluid)
    valley = Waves.draw(person_rng(seed, "folds"), shortest_mm=22, longest_mm=36).at(lattice)
    np.square(valley, out=valley)
    fissure = np.exp(-np.square(x / 2.5)) * (z > -30)
    brain = _parenchyma(lattice, hull, valley, fissure, tones)
    texture = Waves.draw(person_rng(seed, "texture"), shortest_mm=12, longest_mm=50).at(lattice)
    brain *= 1 + 0.035 * texture
    pia = hull + 13 * np.maximum(np.exp(-valley / 0.06), fissure)
    over(canvas, inside(pia, width(pia)), brain)
    return hull, canvas.astype(np.float32)


def _soft_tissue(
    x: Float[np.ndarray, "x y z"],
    y: Float[np.ndarray, "x y z"],
    z: Float[np.ndarray, "x y z"],
    skin: Float[np.ndarray, "x y z"],
    ramp: Float[np.ndarray, "x y z"],
    seed: int,
    lattice: Lattice,
    tones: Tones,
) -> Float[np.ndarray, "x y z"]:
    """Skin and fat outside, muscle within, two eyes and the air of the nose."""
    mottled = Waves.draw(person_rng(seed, "muscle"), shortest_mm=15, longest_mm=40).at(lattice)
    soft = tones.soft * (1 + 0.08 * mottled)
    over(soft, 1 - inside(skin, ramp, -5.5), tones.fat)
    for centre, radii, tone in _CAVITIES:
        (x0, y0, z0), (rx, ry, rz) = centre, radii
        box = lattice.box((x0 - rx - 4, y0 - ry - 4, z0 - rz - 4), (x0 + rx + 4, y0 + ry + 4, z0 + rz + 4))
        part = ellipsoid(x[box], y[box], z[box], centre, radii)
        paint(soft, box, inside(part, ramp[box]), tones.fluid * tone)
    return soft


_CAVITIES: tuple[tuple[tuple[float, float, float], tuple[float, float, float], float], ...] = (
    ((-31, 66, -36), (12, 12, 12), 1),  # centre and radii in template mm; filled with fluid (1) or air (0)
    ((31, 66, -36), (12, 12, 12), 1),
    ((0, 66, -62), (11, 20, 24), 0),
)


def _parenchyma(
    lattice: Lattice,
    hull: Float[np.ndarray, "x y z"],
    valley: Float[np.ndarray, "x y z"],
    fissure: Float[np.ndarray, "x y z"],
    tones: Tones,
) -> Float[np.ndarray, "x y z"]:
    """Grey ribbon, white matter within, deep nuclei within that."""
    white = hull + 4.5 + 15 * np.maximum(np.exp(-valley / 0.6), fissure)
    brain = np.full_like(hull, tones.grey)
    over(brain, inside(white, width(white)), tones.white)
    box = lattice.box((-36, -30, -14), (36, 26, 20))
    region = lattice.crop(box)
    if np.prod(region.shape):
        x, y, z = region.points()
        side = np.abs(x)
        thalamus = ellipsoid(side, y, z, (10, -13, 4), (8, 14, 9))
        level = np.minimum(thalamus, ellipsoid(side, y, z, (25, 3, 2), (6, 17, 10)))
        paint(brain, box, inside(level, np.maximum(width(level), 0.3)), tones.nuclei)
    return brain


def _smooth_max(first: Float[np.ndarray, "x y z"], second: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """The larger of two levels, rounded where they meet."""
    corner = np.maximum(1 - np.abs(first - second) / 18, 0)
    return np.asarray(np.maximum(first, second) + 4.5 * np.square(corner))


def over(
    canvas: Float[np.ndarray, "x y z"],
    fraction: Float[np.ndarray, "x y z"],
    tone: float | Float[np.ndarray, "x y z"],
) -> None:
    """Paint a tissue over what is there."""
    canvas += fraction * (tone - canvas)


def paint(
    canvas: Float[np.ndarray, "x y z"],
    box: Box,
    fraction: Float[np.ndarray, "a b c"],
    tone: float | Float[np.ndarray, "a b c"],
) -> None:
    """Paint a tissue over what is there, inside a box."""
    part = canvas[box]
    part += fraction * (tone - part)


_STREAMS = ("pose", "shape", "skin", "folds", "texture", "muscle", "ventricles", "lobes", "tumour texture")


def person_rng(seed: int, part: str) -> np.random.Generator:
    """One stream of random numbers for each part of a person, so that no factor can shift another part's draws."""
    return np.random.default_rng([seed, _STREAMS.index(part)])
