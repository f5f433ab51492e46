"""What an evaluation found, as typed parts, as JSON and as a page. Knows no model and no scan."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from medisent.files import whole_folder, write_text
from medisent.metrics import Score
from medisent.reports import evaluation_page
from medisent.reports.cards import Page, plot_leakage, plot_readouts

SCHEMA = 1
_PARTS = (
    "readout",
    "leakage",
    "leakage_floor",
    "leakage_by_labels",
    "disentanglement",
    "counterfactual",
    "off_target_ml",
    "commutativity",
    "maps",
    "reconstruction",
    "robustness",
)
_DIGITS = 6


@dataclass(frozen=True)
class Readout:
    """How well a factor is read, over the scans whose truth is known. None is what these scans cannot say.

    Attributes:
        r2: Coefficient of determination; of the levels' indicators for a categorical factor, of cosine and sine for a
            circular one.
        mae: Mean absolute error in the factor's unit, in levels for an ordinal factor; for a categorical one the share
            of scans that are read wrongly.
        coverage90: Share of truths inside their 90 % interval.
        n: How many scans.
        unit: Of the error.
    """

    r2: float | None
    mae: float
    coverage90: float | None
    n: int
    unit: str = ""


@dataclass(frozen=True)
class EditScore:
    """What an edit is worth, over the scans whose true counterfactual is known; each figure is the median scan's.

    Attributes:
        rce: Relative counterfactual error: 0 is perfect, 1 is doing nothing.
        rce_low: Lower end of the 95 % interval of the median.
        rce_high: Upper end.
        rce_noop: What doing nothing scores.
        effect_error: By how much the change that a ruler finds misses the true one, relative to it (see ``rulers``).
        off_target: Mean absolute error outside of what truly changes, relative to the mean true change inside.
        composition: Largest voxel difference, over all scans, of an edit that asks for nothing, in the scan's unit.
        reversibility: Size of what is left after editing there and back, relative to the size of the edit (both root
            mean squares).
        rce_inside: The part of the RCE where the truth changes.
        rce_outside: The part of it elsewhere.
        effect: What was made of the true effect, as the ruler sees it: 1 is all of it, 0 nothing.
        asked: The true change, in the factor's unit.
        missed: By how much the effect misses the true one, in the factor's unit.
        unit: That unit.
        off_target_noop: What doing nothing scores off target.
        cld: Counterfactual latent divergence: how minimal the edit is, less is better (see ``metrics``).
        cld_noop: What doing nothing scores.
        n: How many scans.
        failed: In how many of them the model could not make the edit; these count as scans left as they were.
    """

    rce: float
    rce_low: float
    rce_high: float
    effect_error: float | None
    off_target: float | None
    composition: float
    reversibility: float | None
    rce_inside: float | None
    rce_outside: float | None
    effect: float | None
    asked: float | None
    missed: float | None
    unit: str
    off_target_noop: float | None
    cld: float | None
    cld_noop: float | None
    n: int
    failed: int = 0
    rce_noop: float = 1.0
    effect_error_noop: float = 1.0
    composition_noop: float = 0.0
    reversibility_noop: float = 0.0


@dataclass(frozen=True)
class SideEffect:
    """What an edit does to a structure that it should leave alone; medians over scans.

    Attributes:
        ml: How much of the structure is more or less than it should be, where the truth does not change.
        most_ml: The largest over scans.
        n: How many scans.
    """

    ml: float
    most_ml: float
    n: int


@dataclass(frozen=True)
class MapScore:
    """How much a factor's map is like the true difference: normalised cross-correlations, medians over scans.

    Attributes:
        ncc: Of the model's factor map: what the scan gains over a typical step.
        ncc_edit: Of what the scan gains over the whole step that was truly made.
        integrated_gradients: Of integrated gradients of the same readout.
        occlusion: Of occlusion of the same readout.
        n: How many scans.
        n_beside: How many of them had gradients and occlusion computed.
        noop: Of a map that is empty.
    """

    ncc: float
    ncc_edit: float
    integrated_gradients: float
    occlusion: float
    n: int
    n_beside: int
    noop: float = 0.0


@dataclass(frozen=True)
class Disturbance:
    """How far a factor's readout moves when a plain formula changes the scanner and nothing else.

    Attributes:
        edit: What was done to the scan's voxels.
        moved: The median change of the readout, as a share of its value; for a factor with levels the share of scans
            that change level.
    """

    edit: str
    moved: float


@dataclass(frozen=True)
class Reconstruction:
    """How near decoded scans come to the canonical scans they were encoded from; means over scans.

    Attributes:
        psnr: Peak signal-to-noise ratio in the field of view, in dB; the peak is 1, the brightest normal tissue.
        ssim: Structural similarity, at most 1.
    """

    psnr: float
    ssim: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of a model, each figure with what it takes to read it.

    Attributes:
        n: How many scans were measured.
        split: Of which split.
        seed: Of folds, permutations and halves.
        readout: By factor whose truth is known.
        leakage: How well each block predicts each factor: block, factor, held-out R2.
        leakage_floor: The same with the factors permuted between subjects.
        leakage_by_labels: For pairs that leak, how well the labels of the block's own factor predict the other one.
        disentanglement: By metric.
        counterfactual: By edit, as the cohort's table of true counterfactuals writes it.
        side_effects: By edit and structure.
        commutativity: By two edits: what remains between their two orders, relative to their size.
        maps: By factor.
        reconstruction: On the model's grid.
        robustness: By anatomy factor.
        notes: What a reader must know, among it what could not be measured, and why.
        definitions: How the figures were measured.
        pictures: Captions and PNG files.
    """

    n: int
    split: str
    seed: int
    readout: Mapping[str, Readout]
    leakage: Mapping[str, Mapping[str, float]]
    leakage_floor: Mapping[str, Mapping[str, float]]
    leakage_by_labels: Mapping[str, Mapping[str, float]]
    disentanglement: Mapping[str, Score]
    counterfactual: Mapping[str, EditScore]
    side_effects: Mapping[str, Mapping[str, SideEffect]]
    commutativity: Mapping[str, float]
    maps: Mapping[str, MapScore]
    reconstruction: Reconstruction
    robustness: Mapping[str, tuple[Disturbance, ...]]
    notes: tuple[str, ...]
    definitions: tuple[str, ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What ``evaluation.json`` holds: plain numbers of six digits; null is what could not be measured."""
        found = {
            "schema": SCHEMA,
            "n": self.n,
            "readout": {name: vars(score) for name, score in self.readout.items()},
            "leakage": self.leakage,
            "disentanglement": {name: vars(score) for name, score in self.disentanglement.items()},
            "counterfactual": {edit: vars(score) for edit, score in self.counterfactual.items()},
            "off_target_ml": {
                edit: {name: vars(effect) for name, effect in found.items()}
                for edit, found in self.side_effects.items()
            },
            "commutativity": self.commutativity,
            "maps": {name: vars(score) for name, score in self.maps.items()},
            "reconstruction": vars(self.reconstruction),
            "robustness": {name: {d.edit: d.moved for d in found} for name, found in self.robustness.items()},
            "leakage_floor": self.leakage_floor,
            "leakage_by_labels": self.leakage_by_labels,
            "split": self.split,
            "seed": self.seed,
            "notes": list(self.notes),
            "definitions": list(self.definitions),
        }
        plain: dict[str, Any] = _plain(found)
        return plain

    def page(self) -> str:
        """What ``evaluation.html`` holds."""
        shown = self.to_json()
        for score in shown["counterfactual"].values():
            low, high = score.pop("rce_low"), score.pop("rce_high")
            score["rce"] = {"value": score["rce"], "low": low, "high": high}
        for part in ("notes", "definitions", "split", "seed"):
            del shown[part]
        return evaluation_page(
            shown,
            title=f"Evaluation on the {self.split} split",
            notes=self.notes,
            definitions=self.definitions,
            pictures=self.pictures,
        )

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``evaluation.html`` into a folder.

        Raises:
            MachineError: The folder cannot be written.
        """
        with whole_folder(folder, record="evaluation.json") as temporary:
            text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
            write_text(temporary / "evaluation.json", text + "\n")
            write_text(temporary / "evaluation.html", self.page())

    def to_dataframe(self) -> pd.DataFrame:
        """Every figure in a row of its own: part, name, figure, value; NaN is what could not be measured."""
        rows = [row for part in _PARTS for row in _rows(part, self.to_json()[part], ())]
        return pd.DataFrame(rows, columns=["part", "name", "figure", "value"]).astype({"value": "float64"})

    def plot(self, axes: Iterable[Axes] | None = None) -> tuple[Axes, Axes]:
        """How well factors are read, and which block tells which factor.

        Arguments:
            axes: Two to draw on; by default those of a new figure.
        """
        import matplotlib.pyplot as plt  # slow, and not needed by who draws nothing

        left, right = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")[1] if axes is None else axes
        plot_readouts({name: score.r2 for name, score in self.readout.items()}, left)
        return left, plot_leakage(pd.DataFrame(self.leakage, dtype="float64").T, right)

    def view(self) -> Page:
        """The page that ``save`` writes, for a notebook to show in a frame."""
        return Page(self.page())

    def _repr_html_(self) -> str:
        return self.view()._repr_html_()


def _rows(part: str, found: object, names: tuple[str, ...]) -> Iterator[tuple[str, str, str, float | None]]:
    """The numbers in nested mappings, each with what led to it."""
    if isinstance(found, Mapping):
        for name, inner in found.items():
            yield from _rows(part, inner, (*names, str(name)))
    elif found is None or isinstance(found, int | float):
        yield part, ": ".join(names[:-1]), names[-1], found


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """The value with numbers of a few digits; what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
