"""A trained model as users hold it: explain, counterfactual, encode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medisent.checkpoints import Card, Trained, find_model, load_model
from medisent.config import Study
from medisent.counterfactuals import Wish, counterfactual, harmonized
from medisent.errors import InterventionError
from medisent.explanations import Explanation, explain
from medisent.formats import read
from medisent.readings import read_factors
from medisent.volumes import Volume


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

    def explain(self, scan: Volume | Path | str) -> Explanation:
        """The factors of a scan, where each acts, and the scan with each changed alone.

        Raises:
            MedisentError: The scan is refused.
        """
        return explain(self.trained, _volume(scan))

    def counterfactual(self, scan: Volume | Path | str, *, extrapolate: bool = False, **values: float | str) -> Volume:
        """The scan, in its own space, with factors at these values (``tumour_volume=20.0``, in the factor's unit).

        Without any value it is the scan itself.

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
        return counterfactual(self.trained, _volume(scan), wishes, extrapolate=extrapolate)

    def harmonize(self, scan: Volume | Path | str, to: Volume | Path | str | None = None) -> Volume:
        """The scan as the scanner of another scan, or the reference scanner, would have shown it; anatomy stays.

        Raises:
            MedisentError: A scan is refused.
        """
        other = None if to is None else read_factors(self.trained, _volume(to))
        return harmonized(self.trained, read_factors(self.trained, _volume(scan)), other)

    def encode(self, scans: Iterable[Volume | Path | str]) -> pd.DataFrame:
        """The latents of scans, a row a scan, columns named BLOCK.INDEX.

        Raises:
            MedisentError: A scan is refused.
        """
        columns = list(self.trained.network.partition.columns)
        rows = [read_factors(self.trained, _volume(scan)).abduction.q.loc[0].tolist() for scan in scans]
        return pd.DataFrame(rows, columns=columns, dtype="float64")

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


def _volume(scan: Volume | Path | str) -> Volume:
    return scan if isinstance(scan, Volume) else read(scan)
