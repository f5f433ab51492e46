"""Knows the linear baseline: principal components, a ridge regression on them, edits along its direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

_PENALTIES = np.logspace(-2, 4, 13)


@dataclass(frozen=True, eq=False)
class Linear:
    """Principal components of scans and, for each factor, what reads it from them and what it adds to a scan.

    Attributes:
        components: The fitted components.
        readers: By factor, from components to the factor's logarithm.
        directions: By factor, what a scan gains per unit of the logarithm.

    References:
        A morphable model for the synthesis of 3D faces (Blanz, Vetter, 1999), for edits along a regression's direction
    """

    components: PCA
    readers: dict[str, RidgeCV]
    directions: dict[str, Float[np.ndarray, " voxels"]]

    @classmethod
    def fitted(
        cls, scans: Float[np.ndarray, "scans voxels"], factors: dict[str, Float[np.ndarray, " scans"]], count: int = 64
    ) -> Linear:
        """Components of training scans, and the regressions both ways; factors are positive.

        The direction of a factor is the regression of the components on all factors at once, so that factors which go
        together in the cohort do not share what they show.
        """
        count = min(count, len(scans) - 1)
        components = PCA(count, svd_solver="randomized", random_state=0).fit(scans)
        codes = components.transform(scans)
        logs = {name: np.log(values) for name, values in factors.items()}
        readers = {name: RidgeCV(alphas=_PENALTIES).fit(codes, values) for name, values in logs.items()}
        together = np.stack([*logs.values()], 1)
        design = np.hstack([together - together.mean(0), np.ones((len(together), 1))])
        slopes = np.linalg.lstsq(design, codes, rcond=None)[0][: len(logs)]
        directions = {name: slope @ components.components_ for name, slope in zip(logs, slopes, strict=True)}
        return cls(components, readers, directions)

    def codes(self, scans: Float[np.ndarray, "scans voxels"]) -> Float[np.ndarray, "scans components"]:
        """The components of scans."""
        found: np.ndarray = self.components.transform(scans)
        return found

    def read(self, name: str, scans: Float[np.ndarray, "scans voxels"]) -> Float[np.ndarray, " scans"]:
        """A factor of scans, in its unit."""
        log: np.ndarray = self.readers[name].predict(self.codes(scans))
        value: np.ndarray = np.exp(log)
        return value

    def edited(
        self, name: str, scan: Float[np.ndarray, " voxels"], present: float, wanted: float
    ) -> Float[np.ndarray, " voxels"]:
        """The scan with a factor gone from its present to a wanted value, in its unit."""
        moved: np.ndarray = scan + (np.log(wanted) - np.log(present)) * self.directions[name]
        return moved
