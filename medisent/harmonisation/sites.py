"""How well a plain classifier tells sites from scans, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.ndimage import laplace

from medisent.plurals import several

LEAST_SUBJECTS = 5
"""Subjects of each site without whom nothing can be told."""

_PERMUTATIONS = 499
_FOLDS = 10
_PENALTY = 0.01  # of the mean variance that a direction of the features has
_BLOCKS = 8
_QUANTILES = np.linspace(0.01, 0.99, 25)


@dataclass(frozen=True, eq=False)
class Sketch:
    """What a sceptic looks at in a scan: no model has a part in it.

    Attributes:
        quantiles: Logarithms of 25 quantiles of all intensities.
        picture: Square roots of the mean intensities of 8 x 8 x 8 equal blocks of the field of view.
        texture: Logarithms of how grainy air, and tissue, is, relative to the tissue's intensity.
    """

    quantiles: Float[np.ndarray, " quantiles"]
    picture: Float[np.ndarray, " blocks"]
    texture: Float[np.ndarray, "two"]


VIEWS = {"quantiles": "intensities", "picture": "a coarse picture", "texture": "graininess"}
"""What a classifier may look at: the parts of a sketch, and their names."""


@dataclass(frozen=True)
class Told:
    """How well sites are told from one view.

    Attributes:
        view: ``quantiles``, ``picture`` or ``texture``.
        accuracy: Balanced: the mean over sites of the share of their scans that are put there, subjects held out.
        chance: What the same classifier reaches when sites are dealt out anew, at the 95th percentile.
        p: How often dealing them out anew does as well.
    """

    view: str
    accuracy: float
    chance: float
    p: float


@dataclass(frozen=True)
class SiteTest:
    """Whether sites can be told.

    Attributes:
        sites: How many.
        views: By each view.
        p: How often dealing sites out anew does as well by any view as these sites do by the best.
    """

    sites: int
    views: tuple[Told, ...]
    p: float

    @property
    def best(self) -> Told:
        """The view that tells most."""
        return max(self.views, key=lambda told: told.accuracy)

    @property
    def found(self) -> bool:
        """Whether sites differ, at five in a hundred."""
        return self.p <= 0.05


def sketch(voxels: Num[np.ndarray, "x y z"]) -> Sketch:
    """What a sceptic looks at in a scan."""
    image = np.clip(np.nan_to_num(voxels.astype(np.float32)), 0, None)
    landmarks = np.quantile(image, _QUANTILES)
    floor = max(1e-3 * float(landmarks[-1]), 1e-12)
    return Sketch(np.log(np.maximum(landmarks, floor)), np.sqrt(_coarse(image)).ravel(), _texture(image))


def _coarse(image: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "a b c"]:
    """Mean intensities of equal blocks; axes of fewer voxels than blocks keep theirs, repeated."""
    for axis, length in enumerate(image.shape):
        edges = np.linspace(0, length, _BLOCKS + 1).round().astype(int)
        parts = [image.take(range(a, max(b, a + 1)), axis, mode="clip").mean(axis) for a, b in pairwise(edges)]
        image = np.stack(parts, axis)
    return np.asarray(image, dtype=np.float64)


def _texture(image: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "two"]:
    total = float(image.sum(dtype=np.float64))
    threshold = 0.5 * float(np.square(image).sum(dtype=np.float64)) / total if total > 0 else 1.0
    rough = np.abs(laplace(image))
    parts = [rough[image < 0.2 * threshold], rough[image >= threshold]]
    return np.log([max(float(np.median(part)) if part.size else 0.0, 1e-4 * threshold) / threshold for part in parts])


def why_not(sites: Sequence[str], subjects: Sequence[str]) -> str:
    """Why sites cannot be tested, in a sentence; empty where they can."""
    of_site = {site: {who for at, who in zip(sites, subjects, strict=True) if at == site} for site in set(sites)}
    if len(of_site) < 2:
        return "All scans come from one site, so that no difference between sites can be told."
    least = min(sorted(of_site), key=lambda site: len(of_site[site]))
    if len(of_site[least]) < LEAST_SUBJECTS:
        return (
            f"A site has scans of {several(len(of_site[least]), 'subject')} only. With fewer than {LEAST_SUBJECTS} "
            "subjects a site, a difference between scanners cannot be told from one between people."
        )
    return ""


def site_test(sketches: Sequence[Sketch], sites: Sequence[str], subjects: Sequence[str], seed: int = 0) -> SiteTest:
    """Whether, and how well, a classifier trained on some subjects tells the sites of the others.

    The classifier is a ridge regression on the sites, trained anew on these very scans, cross-fitted by subject. Under
    the null, sites are dealt out anew: among a subject's own scans where it was at several sites, among the subjects
    of one site each otherwise.

    References:
        | Permutation Tests for Studying Classifier Performance (Ojala and Garriga, 2010)
        | Resampling-Based Multiple Testing (Westfall and Young, 1993), for the best of several views
    """
    level = np.unique(list(sites), return_inverse=True)[1]
    people, person = np.unique(list(subjects), return_inverse=True)
    rng = np.random.default_rng(seed)
    folds = rng.permutation(len(people))[person] % min(_FOLDS, len(people))
    dealt = [level, *(_dealt_anew(level, person, rng) for _ in range(_PERMUTATIONS))]
    table = []
    for view in VIEWS:
        predict = _cross_fitted(np.stack([getattr(one, view) for one in sketches]), folds)
        table.append([_accuracy(predict, labels) for labels in dealt])
    found = np.array(table)
    best = found.max(0)
    views = (
        Told(name, float(row[0]), float(np.quantile(row[1:], 0.95)), float((row >= row[0]).mean()))
        for name, row in zip(VIEWS, found, strict=True)
    )
    return SiteTest(int(level.max()) + 1, tuple(views), float((best >= best[0]).mean()))


def _dealt_anew(
    level: Int[np.ndarray, " scans"], person: Int[np.ndarray, " scans"], rng: np.random.Generator
) -> Int[np.ndarray, " scans"]:
    result = level.copy()
    settled = []
    for who in range(int(person.max()) + 1):
        rows = np.flatnonzero(person == who)
        if np.ptp(level[rows]):
            result[rows] = rng.permutation(level[rows])
        else:
            settled.append(rows)
    for rows, site in zip(settled, rng.permutation([level[rows[0]] for rows in settled]), strict=True):
        result[rows] = site
    return result


def _cross_fitted(
    features: Float[np.ndarray, "scans features"], folds: Int[np.ndarray, " scans"]
) -> Float[np.ndarray, "scans scans"]:
    """What turns targets of all scans into predictions, each by a ridge regression that saw no scan of its fold."""
    spread = features.std(0)
    rows = (features - features.mean(0)) / np.where(spread > 1e-12, spread, 1.0)
    result = np.zeros((len(rows), len(rows)))
    for fold in np.unique(folds):
        inside, outside = folds == fold, folds != fold
        seen = rows[outside] - rows[outside].mean(0)
        kernel = seen @ seen.T
        kernel.flat[:: len(kernel) + 1] += max(_PENALTY * float(np.trace(kernel)) / len(kernel), 1e-9)
        reach = (rows[inside] - rows[outside].mean(0)) @ seen.T
        result[np.ix_(inside, outside)] = np.linalg.solve(kernel, reach.T).T
    return result


def _accuracy(predict: Float[np.ndarray, "scans scans"], level: Int[np.ndarray, " scans"]) -> float:
    """Balanced accuracy; sites weigh the same however many scans they have."""
    member = np.eye(int(level.max()) + 1)[level]
    right = (predict @ (member / member.sum(0))).argmax(1) == level
    return float(((right[:, None] * member).sum(0) / member.sum(0)).mean())
