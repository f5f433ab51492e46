"""Knows the two usual ways to take scanners out of scans without a model: ComBat and histogram matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num
from skimage.exposure import match_histograms

from medisent.errors import UsageError

_ROUNDS, _CLOSE = 100, 1e-5


def matched(scan: Num[np.ndarray, "x y z"], reference: Num[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """The scan with the reference's distribution of intensities, in the reference's unit; ranks of voxels stay.

    References:
        New Variants of a Method of MRI Scale Standardization (Nyul, Udupa, Zhang, 2000), with every quantile a landmark
    """
    moved: np.ndarray = match_histograms(scan.astype(np.float64), reference.astype(np.float64))
    return moved


@dataclass(frozen=True, eq=False)
class Combat:
    """Location and scale of every site in every feature, shrunk towards what the site's features have in common.

    The formulas are the paper's; the packages that offer them ask for numpy below 2 or are no longer kept up.

    Attributes:
        base: Of each feature, what it is where all covariates are 0.
        slopes: What a unit of each covariate adds; these are kept.
        spread: Standard deviation of each feature within sites.
        shift: By site, in spreads.
        scale: By site, relative to the spread.

    References:
        | Adjusting batch effects in microarray expression data using empirical Bayes methods (Johnson, Li, Rabinovic,
            2007)
        | Harmonization of multi-site diffusion tensor imaging data (Fortin et al., 2017)
    """

    base: Float[np.ndarray, " features"]
    slopes: Float[np.ndarray, "covariates features"]
    spread: Float[np.ndarray, " features"]
    shift: Mapping[str, Float[np.ndarray, " features"]]
    scale: Mapping[str, Float[np.ndarray, " features"]]

    @classmethod
    def fitted(
        cls,
        values: Float[np.ndarray, "scans features"],
        sites: Sequence[str],
        covariates: Float[np.ndarray, "scans covariates"],
    ) -> Combat:
        """What sites do to features, given covariates that they must not take away.

        Raises:
            UsageError: A site has a single scan, which has no spread.
        """
        names = sorted(set(sites))
        member = np.array([[site == name for name in names] for site in sites], dtype=float)
        count = member.sum(0)
        if count.min() < 2:
            raise UsageError(f"The site {names[int(count.argmin())]} has one scan. ComBat needs two or more a site.")
        solution = np.linalg.lstsq(np.hstack([member, covariates]), values, rcond=None)[0]
        base, slopes = (count / len(values)) @ solution[: len(names)], solution[len(names) :]
        left = values - np.hstack([member, covariates]) @ solution
        spread = np.sqrt((left**2).mean(0))
        spread = np.where(spread > 1e-12, spread, 1.0)
        standard = (values - base - covariates @ slopes) / spread
        found = {name: _shrunk(standard[member[:, i] > 0]) for i, name in enumerate(names)}
        return cls(
            base, slopes, spread, {n: shift for n, (shift, _) in found.items()}, {n: s for n, (_, s) in found.items()}
        )

    def __call__(
        self,
        values: Float[np.ndarray, "scans features"],
        sites: Sequence[str],
        covariates: Float[np.ndarray, "scans covariates"],
    ) -> Float[np.ndarray, "scans features"]:
        """Features as if all scans came from one site.

        Raises:
            UsageError: A site was not among those it was fitted to.
        """
        foreign = sorted(set(sites) - set(self.shift))
        if foreign:
            raise UsageError(
                f"ComBat was fitted to {', '.join(self.shift)} and knows nothing of {', '.join(foreign)}. Fit it anew."
            )
        kept = self.base + covariates @ self.slopes
        shift, scale = (np.stack([of[site] for site in sites]) for of in (self.shift, self.scale))
        result: np.ndarray = ((values - kept) / self.spread - shift) / scale * self.spread + kept
        return result


def _shrunk(
    rows: Float[np.ndarray, "scans features"],
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """Shift and scale of one site's standardised features, by the paper's conditional posterior means in turn."""
    count, shift, variance = len(rows), rows.mean(0), rows.var(0, ddof=1)
    centre, width = shift.mean(), shift.var()
    mean, spread = variance.mean(), variance.var()
    if width <= 0 or spread <= 0:  # a single feature has no company to learn from
        return shift, np.sqrt(np.maximum(variance, 1e-12))
    shape, rate = 2 + mean**2 / spread, mean + mean**3 / spread
    posterior, squared = shift, variance
    for _ in range(_ROUNDS):
        before = posterior, squared
        posterior = (count * width * shift + squared * centre) / (count * width + squared)
        squared = (rate + ((rows - posterior) ** 2).sum(0) / 2) / (count / 2 + shape - 1)
        if all(np.abs(new - old).max() < _CLOSE for new, old in zip((posterior, squared), before, strict=True)):
            break
    return posterior, np.sqrt(squared)
