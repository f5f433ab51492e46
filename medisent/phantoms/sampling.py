"""Who is in a rendered cohort and which scanner saw them: factors, sites, confounding, repeated visits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt

from medisent.errors import UsageError
from medisent.phantoms.acquisition import TERMS, TERMS_TO_ORDER, Acquisition, Curve, bias_field
from medisent.phantoms.heads import Anatomy, grow_ventricles, head_frame
from medisent.phantoms.shapes import Lattice
from medisent.phantoms.tissues import TEMPLATE_MM, brain_hull
from medisent.volumes import Geometry

GAIN_SPREAD = 0.35
GAMMA_SPREAD = 0.12
SITES = 4

FACTORS = ("tumour", "ventricles", "head_size", "brightness", "contrast")
"""What varies in clamped groups, one of them in each, and in pairs, one or two."""

FULL_VIEW_MM = 190.0
"""An adult head needs a field of view of this width; in a narrower one all heads are smaller in proportion."""


@dataclass(frozen=True)
class Plan:
    """What a cohort is to be like.

    Attributes:
        subjects: How many people.
        seed: Of everything that is drawn.
        spacing_mm: Voxel size.
        shape: Voxels along each axis.
        confound: Correlation of log tumour volume and log gain over the subjects' first scans; sites follow the gain.
        travelling: How many of them are scanned at every site.
        longitudinal: How many of them come back later, with a larger tumour.
        foreign: Whether scanners are of a family that gain, exponent and a quadratic bias field cannot express.
        clamped: For each of five factors, how many people for training are scanned again while nothing else varies.
        clamped_size: Scans of each of them.
        pairs: How many people for training are scanned twice, one or two of the five factors different.
        alike: How many groups, as large as the clamped ones, of people for training have all five factors in common.
    """

    subjects: int = 240
    seed: int = 0
    spacing_mm: float = 6.0
    shape: tuple[int, int, int] = (32, 32, 32)
    confound: float = 0.0
    travelling: int = 0
    longitudinal: int = 0
    foreign: bool = False
    clamped: int = 0
    clamped_size: int = 8
    pairs: int = 0
    alike: int = 0

    def check(self) -> None:
        """Refuse what cannot be rendered.

        Raises:
            UsageError: A number is out of its range.
        """
        if self.subjects < 1 or self.travelling < 0 or self.longitudinal < 0:
            raise UsageError(f"A cohort of {self.subjects} subjects was asked for; it needs at least one.")
        if self.travelling + self.longitudinal > self.subjects:
            raise UsageError(
                f"{self.travelling} travelling and {self.longitudinal} longitudinal subjects were asked for, "
                f"but the cohort has {self.subjects}. Ask for fewer, or for more --subjects."
            )
        if min(self.clamped, self.pairs, self.alike) < 0 or self.clamped_size < 2:
            raise UsageError(
                f"{self.clamped} clamped groups of {self.clamped_size} scans, {self.pairs} pairs and {self.alike} "
                "groups of people alike were asked for, "
                "but a group has at least two scans."
            )
        if not -1 <= self.confound <= 1:
            raise UsageError(f"The confounding {self.confound:g} is no correlation. Choose one between -1 and 1.")
        if not self.spacing_mm > 0 or min(self.shape) * self.spacing_mm < FULL_VIEW_MM / 2:
            width = min(self.shape) * self.spacing_mm
            raise UsageError(
                f"A field of view of {width:g} mm was asked for, which no head fits into. "
                f"Choose spacing times shape of {FULL_VIEW_MM / 2:g} mm or more, {FULL_VIEW_MM:g} for adults."
            )

    @property
    def geometry(self) -> Geometry:
        """The grid of every scan: axis-aligned, its middle at the world's origin."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = -self.spacing_mm * (np.array(self.shape) - 1) / 2
        return Geometry(affine, self.shape)

    @property
    def scale(self) -> float:
        """Size of the heads relative to adults."""
        return min(1.0, min(self.shape) * self.spacing_mm / FULL_VIEW_MM)

    @property
    def growth_ml(self) -> float:
        """By how much the tumour edit enlarges a tumour, in mL: 15 in an adult."""
        return max(1.0, float(round(15 * self.scale**3)))


@dataclass(frozen=True)
class Visit:
    """One scan that is to be made.

    Attributes:
        subject: Number of the person, from 1.
        session: Number of the visit, from 1.
        of: How many visits the person makes.
        site: Number of the scanner, from 1.
        split: ``train``, ``validation`` or ``test``; the same for all visits of a person.
        anatomy: The person on that day.
        acquisition: The scanner's settings on that day.
        clamp: The factor in which alone the person's visits differ, if they were made for that; ``rest`` is all but the
            five factors, in which the people of a group differ.
        group: Number of the first person of such a group, else 0.
        paired: Whether they differ in one or two factors.
    """

    subject: int
    session: int
    of: int
    site: int
    split: str
    anatomy: Anatomy
    acquisition: Acquisition
    clamp: str = ""
    paired: bool = False
    group: int = 0


@dataclass(frozen=True)
class Site:
    """What is typical of one scanner.

    Attributes:
        log_gain: Mean logarithm of its gain.
        log_gamma: Mean logarithm of its exponent.
        pattern: Direction of its log bias field.
        blur: Its point spread, in voxels.
        noise: Its noise, relative to the gain.
        curve: Its contrast curve.
    """

    log_gain: float
    log_gamma: float
    pattern: Float[np.ndarray, "terms"]
    blur: float
    noise: float
    curve: Curve

    def setting(self, log_gain: float, spacing_mm: float, rng: np.random.Generator) -> Acquisition:
        """The settings of one scan."""
        foreign = self.curve != "linear"
        direction = 0.7 * self.pattern + 0.7 * _pattern(rng, 3 if foreign else 2)
        low, high = (0.10, 0.25) if foreign else (0.05, 0.20)
        bias = direction * np.exp(rng.uniform(np.log(low), np.log(high))) / _strength(direction)
        return Acquisition(
            gain=float(np.exp(log_gain)),
            gamma=float(np.exp(self.log_gamma + 0.8 * GAMMA_SPREAD * rng.standard_normal())),
            bias=tuple(float(coefficient) for coefficient in bias),
            blur_mm=spacing_mm * self.blur * float(rng.uniform(0.95, 1.05)),
            noise=self.noise * float(rng.uniform(0.9, 1.1)),
            curve=self.curve,
            seed=int(rng.integers(2**31)),
        )


def sample(plan: Plan) -> tuple[Visit, ...]:
    """Every scan of a cohort, in the order of its table.

    Anatomy factors are drawn independently of each other; only a tumour's place depends on its size, since it lies
    within the brain and, as far as there is room, clear of the ventricles, also once it has grown.

    Raises:
        UsageError: The plan cannot be rendered.
    """
    plan.check()
    people = _people(plan)
    log_gain = _gains(plan, np.log([person.tumour_ml for person in people]))
    number = _site_of(plan, log_gain)
    sites = [_site(plan, k, log_gain[number == k]) for k in range(SITES)]
    splits = _splits(plan)
    order = np.random.default_rng([plan.seed, 7]).permutation(plan.subjects)
    travelling = set(order[: plan.travelling].tolist())
    returning = set(order[plan.travelling : plan.travelling + plan.longitudinal].tolist())
    visits: list[Visit] = []
    for i, person in enumerate(people):
        rng = np.random.default_rng([plan.seed, 8, i])
        days = [(int(number[i]), person, float(log_gain[i]))]
        if i in travelling:
            days += [(k, person, _again(sites[k], rng)) for k in range(SITES) if k != number[i]]
        if i in returning:
            grown = min(person.tumour_ml * float(rng.uniform(1.3, 1.8)), person.tumour_ml + plan.growth_ml)
            days.append((int(number[i]), replace(person, tumour_ml=grown), _again(sites[number[i]], rng)))
        for session, (k, anatomy, gain) in enumerate(days, 1):
            setting = sites[k].setting(gain, plan.spacing_mm, rng)
            visits.append(Visit(i + 1, session, len(days), k + 1, splits[i], anatomy, setting))
    return tuple(visits)


def _people(plan: Plan) -> list[Anatomy]:
    rng = np.random.default_rng([plan.seed, 1])
    n, volume = plan.subjects, plan.scale**3
    head = plan.scale * rng.normal(80, 3.2, n).clip(73, 87)
    tumour = volume * np.exp(rng.uniform(np.log(2), np.log(50), n))
    ventricle = volume * np.exp(rng.uniform(np.log(8), np.log(50), n))
    roughness = rng.uniform(0.1, 0.9, n)
    # Seeds are drawn last and apart: nothing about a person but the factors follows the factors.
    seeds = np.random.default_rng([plan.seed, 2]).integers(2**31, size=n)
    people = []
    for i in range(n):
        person = Anatomy(
            head_size=float(head[i]),
            ventricle_ml=float(ventricle[i]),
            tumour_ml=float(tumour[i]),
            roughness=float(roughness[i]),
            seed=int(seeds[i]),
        )
        people.append(place_tumour(person, plan.growth_ml, np.random.default_rng([plan.seed, 3, i])))
    return people


def place_tumour(anatomy: Anatomy, growth_ml: float, rng: np.random.Generator) -> Anatomy:
    """The person with the tumour somewhere where it fits.

    Any place, with equal chance, from which the tumour, ``growth_ml`` larger, would reach neither beyond the brain nor
    into the ventricles, 1.6 times as large, were its lobes of average length; or else one of those with most room.
    """
    step, scale = 4.0, anatomy.head_size / TEMPLATE_MM
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = (-62.0, -80.0, -66.0)
    lattice = Lattice(affine, (32, 40, 36), (1, 1, 1), (step * scale) ** 3 / 1000)
    free = brain_hull(lattice, anatomy.seed) < 0
    ventricles = grow_ventricles(anatomy, lattice)
    wide = ventricles.threshold(1.6 * anatomy.ventricle_ml, "pair of ventricles")
    free[ventricles.box] &= ventricles.level > wide
    x, _, z = lattice.points()
    # Not in the cerebellum or the stem; and at least as far from the midline as its fissure is wide.
    cerebrum = (z > -18) & (np.abs(x) > 10)
    room = distance_transform_edt(free, sampling=step * scale) * cerebrum
    wanted = (3 / (4 * np.pi) * 1000 * (anatomy.tumour_ml + growth_ml)) ** (1 / 3) * (1 + 0.25 * anatomy.roughness)
    places = np.argwhere(room >= min(wanted, float(room.max()) - 0.5 * step * scale))
    index = places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 3)
    centre = affine[:3, :3] @ index + affine[:3, 3]
    world = np.linalg.inv(head_frame(anatomy)) @ np.append(centre, 1.0)
    return replace(anatomy, tumour_mm=(float(world[0]), float(world[1]), float(world[2])))


def _gains(plan: Plan, log_tumour: Float[np.ndarray, "subjects"]) -> Float[np.ndarray, "subjects"]:
    """Log gains whose correlation with the log tumour volumes is exactly the plan's."""
    draw = np.random.default_rng([plan.seed, 4]).standard_normal(plan.subjects)
    if plan.subjects < 3:
        return np.asarray(GAIN_SPREAD * draw)
    tumour = (log_tumour - log_tumour.mean()) / log_tumour.std()
    rest = draw - draw.mean()
    rest -= tumour * (tumour @ rest) / plan.subjects
    rest /= rest.std()
    return np.asarray(GAIN_SPREAD * (plan.confound * tumour + np.sqrt(1 - plan.confound**2) * rest))


def _site_of(plan: Plan, log_gain: Float[np.ndarray, "subjects"]) -> Int[np.ndarray, "subjects"]:
    """Sites of equal size that go with the gain, and through it with what confounds the gain."""
    draw = np.random.default_rng([plan.seed, 5]).standard_normal(plan.subjects)
    rank = np.argsort(np.argsort(0.6 * log_gain / GAIN_SPREAD + 0.8 * draw, kind="stable"), kind="stable")
    return np.asarray(rank * SITES // plan.subjects)


def _site(plan: Plan, number: int, log_gain: Float[np.ndarray, "scans"]) -> Site:
    rng = np.random.default_rng([plan.seed, 6, number])
    curve: Curve = "linear"
    if plan.foreign:
        curve = "sigmoid" if number % 2 == 0 else "spgr"
    return Site(
        log_gain=float(log_gain.mean()) if len(log_gain) else 0.0,
        log_gamma=0.6 * GAMMA_SPREAD * float(rng.standard_normal()),
        pattern=_pattern(rng, 3 if plan.foreign else 2),
        blur=float(rng.uniform(0.5, 0.9)) * (1.6 if plan.foreign else 1.0),
        noise=float(rng.uniform(0.01, 0.027)),
        curve=curve,
    )


def _again(site: Site, rng: np.random.Generator) -> float:
    """The log gain of one more scan at a site."""
    return site.log_gain + 0.8 * GAIN_SPREAD * float(rng.standard_normal())


def _pattern(rng: np.random.Generator, order: int) -> Float[np.ndarray, "terms"]:
    """Random coefficients of a log bias field of strength 1, the higher orders weaker."""
    terms = np.array(TERMS[: TERMS_TO_ORDER[order]])
    drawn = rng.standard_normal(len(terms)) * np.array([0, 1.0, 1.2, 2.0])[terms.sum(axis=1)]
    return np.asarray(drawn / _strength(drawn))


def _strength(coefficients: Float[np.ndarray, "terms"]) -> float:
    """Standard deviation of the log bias field over a ball that a head about fills."""
    field = bias_field(tuple(float(c) for c in coefficients), (13, 13, 13))
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 13)] * 3, indexing="ij")
    return float(field[x**2 + y**2 + z**2 < 0.8].std())


def _splits(plan: Plan) -> list[str]:
    """A split for each person, 70:15:15; from three people on none is empty."""
    n = plan.subjects
    held = max(round(0.15 * n), 1 if n >= 3 else 0)
    names = ["test"] * held + ["validation"] * held + ["train"] * (n - 2 * held)
    order = np.random.default_rng([plan.seed, 9]).permutation(n)
    splits = [""] * n
    for place, name in zip(order, names, strict=True):
        splits[place] = name
    return splits
