"""A trained model as users hold it: explain, counterfactual, encode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import pandas as pd

from medisent.checkpoints import Card, Trained, find_model, load_model
from medisent.config import Study
from medisent.counterfactuals import Wish, counterfactual, harmonized
from medisent.errors import InterventionError
from medisent.explanations import Explanation, explain
from medisent.exports import Making
from medisent.images import Image, Scan, image_like, scans_of, volume_of
from medisent.readings import read_factors
from medisent.volumes import Volume

Kind = TypeVar("Kind", bound=Image)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model.

    Attributes:
        trained: Its study, weights and card.

    Example:
        ``medisent.load("runs/study").explain(medisent.read("scan.nii.gz")).factors``
    """

    trained: Trained

    @property
    def study(self) -> Study:
        """What it was made from."""
        return self.trained.study

    @property
    def card(self) -> Card:
        """What its training saw."""
        return self.trained.card

    @property
    def factors(self) -> tuple[str, ...]:
        """The names of its factors."""
        return tuple(self.trained.network.factors)

    def explain(self, scan: Scan) -> Explanation:
        """The factors of a scan, where each acts, and the scan with each changed alone.

        Raises:
            MedisentError: The scan is refused.
        """
        return explain(self.trained, volume_of(scan))

    @overload
    def counterfactual(
        self, scan: Volume | Path | str, *, extrapolate: bool = False, **values: float | str
    ) -> Volume: ...
    @overload
    def counterfactual(self, scan: Kind, *, extrapolate: bool = False, **values: float | str) -> Kind: ...
    def counterfactual(self, scan: Scan, *, extrapolate: bool = False, **values: float | str) -> Scan:
        """The scan, in its own space, with factors at these values (``tumour_volume=20.0``, in the factor's unit).

        It comes back as it was given: a nibabel image for a nibabel image, a SimpleITK image for a SimpleITK image, a
        MetaTensor for a MetaTensor, (array, affine) for (array, affine), else as a volume. Without any value it is the
        scan itself.

        Arguments:
            scan: What to edit.
            extrapolate: Allow values beyond what training saw.
            values: By factor; a number, or the name of a level.

        Raises:
            InterventionError: The model has no such factor, or cannot give it that value.
        """
        for name, value in values.items():
            if not isinstance(value, int | float | str):
                raise InterventionError(
                    f"{name} takes a number or the name of a level, but got {type(value).__name__}."
                )
        wishes = [
            Wish(name, "=", value if isinstance(value, str) else repr(float(value))) for name, value in values.items()
        ]
        volume = volume_of(scan)
        edited = counterfactual(self.trained, volume, wishes, extrapolate=extrapolate)
        return self._as_given(scan, volume, edited, tuple(map(str, wishes)))

    @overload
    def harmonize(self, scan: Volume | Path | str, to: Scan | None = None) -> Volume: ...
    @overload
    def harmonize(self, scan: Kind, to: Scan | None = None) -> Kind: ...
    def harmonize(self, scan: Scan, to: Scan | None = None) -> Scan:
        """The scan as the scanner of another scan, or the reference scanner, would have shown it; anatomy stays.

        It comes back as it was given; see ``counterfactual``.

        Raises:
            MedisentError: A scan is refused.
        """
        other = None if to is None else read_factors(self.trained, volume_of(to))
        volume = volume_of(scan)
        result = harmonized(self.trained, read_factors(self.trained, volume), other)
        return self._as_given(scan, volume, result, ("nuisance at the reference" if to is None else "another scanner",))

    def encode(self, scans: Iterable[Scan] | Scan) -> pd.DataFrame:
        """The latents of several scans, or of one, a row a scan, columns named BLOCK.INDEX.

        Raises:
            MedisentError: A scan is refused.
        """
        columns = list(self.trained.network.partition.columns)
        rows = [read_factors(self.trained, volume_of(scan)).abduction.q.loc[0].tolist() for scan in scans_of(scans)]
        return pd.DataFrame(rows, columns=columns, dtype="float64")

    def _as_given(self, scan: Scan, before: Volume, after: Volume, wishes: tuple[str, ...]) -> Scan:
        """What was made of a scan, as the scan was given; the very scan where nothing was to be made."""
        if after is before and scan is not before and not isinstance(scan, Path | str):
            return scan
        return image_like(after, scan, Making(before, self.trained.digest, wishes).description)

    def _repr_html_(self) -> str:
        card = self.card
        rows = [
            {"factor": n, "training saw": f"{e.low:.4g} to {e.high:.4g}", "calibrated on": e.calibrated}
            for n, e in card.factors.items()
        ]
        table: str = pd.DataFrame(rows).to_html(index=False)
        return f"<p><b>medisent model</b>, trained on {card.scans} scans of {card.subjects} subjects</p>{table}"


def load(model: Path | str | None = None, device: str = "cpu") -> Model:
    """The model of a run folder or a model file, or the one that the package carries, ``rendered-heads``.

    Without a name it is that of MEDISENT_MODEL, else of the newest run in ``./runs``, else the packaged one.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    return Model(load_model(find_model(model), device))
