"""A trained model as users hold it: explain, counterfactual, encode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeVar, overload

import pandas as pd

from medisent.checkpoints import PACKAGED_MODEL, Card, FactorCard, Trained, find_model, load_model
from medisent.config import Study
from medisent.counterfactuals import Wish, counterfactual, harmonized
from medisent.errors import InterventionError
from medisent.evaluation import Evaluation, evaluate
from medisent.explanations import Explanation, explain
from medisent.exports import Making
from medisent.factors import Factor
from medisent.files import file_digest
from medisent.images import Image, Scan, image_like, scans_of, volume_of
from medisent.plurals import several
from medisent.readings import read_factors
from medisent.reports.cards import card as model_card
from medisent.volumes import Volume
from medisent.words import number, percent, words

Kind = TypeVar("Kind", bound=Image)

_HEADINGS = {"low": "training saw: least", "high": "most", "calibrated": "subjects that calibrated its intervals"}


@dataclass(frozen=True, eq=False, repr=False)
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

    def evaluate(self, table: Path | str | None = None, *, split: str = "test", seed: int = 0) -> Evaluation:
        """What the model is worth on scans whose truth is known.

        Arguments:
            table: A cohort table with the study's columns; None is the study's own.
            split: ``train``, ``validation`` or ``test``.
            seed: Of folds, permutations and halves.

        Raises:
            CohortError: The table is gone or does not fit, the split has no scan, or scans cannot be used.
        """
        return evaluate(self.trained, None if table is None else Path(table), split=split, seed=seed)

    def to_dataframe(self) -> pd.DataFrame:
        """A row a factor: name, role, kind, unit, the range that training saw, subjects that calibrated intervals."""
        network, card = self.trained.network, self.card
        rows = [
            (name, factor.role, factor.kind, factor.unit, *_range(factor, card.factors[name]))
            for name, factor in network.factors.items()
        ]
        return pd.DataFrame(rows, columns=["name", "role", "kind", "unit", "low", "high", "calibrated"])

    def __repr__(self) -> str:
        return f"Model({', '.join(self.factors)}; trained on {self.card.learned_from})"

    def _repr_html_(self) -> str:
        card, grid = self.card, self.study.grid
        rendered = self.trained.digest == file_digest(PACKAGED_MODEL)
        figures = "".join(f"<li>{escape(words(n))}: {number(v)}</li>" for n, v in card.figures.items())
        return model_card(
            f"medisent model, trained on {card.learned_from} ({several(card.steps, 'step')})",
            ["It learned from rendered heads: it shows what medisent does, but knows no real scan."] * rendered,
            self.to_dataframe().rename(columns=_HEADINGS),
            f"<p>Its grid: {' × '.join(map(str, grid.shape))} cells of {grid.spacing_mm:g} mm. Its intervals are meant "
            f"to hold the truth in {percent(card.level)} of scans.</p>"
            + (f"<p>On the validation split:</p><ul>{figures}</ul>" if figures else "")
            + f"<p>Research use only. SHA-256 {self.trained.digest}</p>",
        )


def _range(factor: Factor, entry: FactorCard) -> tuple[object, object, int]:
    """Smallest and largest value that training saw, levels by name, and how many subjects calibrated intervals."""
    ends = (entry.low, entry.high)
    leveled = factor.kind in ("ordinal", "categorical")
    low, high = (factor.show(end) for end in ends) if leveled else ends
    return low, high, entry.calibrated


def load(model: Path | str | None = None, device: str = "cpu") -> Model:
    """The model of a run folder or a model file, or the one that the package carries, ``rendered-heads``.

    Without a name it is that of MEDISENT_MODEL, else of the newest run in ``./runs``, else the packaged one.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    return Model(load_model(find_model(model), device))
