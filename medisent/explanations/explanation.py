"""A scan explained: its factors, where each of them acts, the scan with each of them changed alone, and the report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medisent.checkpoints import Trained
from medisent.counterfactuals import factor_map, harmonized, with_values
from medisent.errors import InterventionError
from medisent.explanations.choices import LEVELED, likeliest, percentile_rows, shown_values
from medisent.explanations.sentences import Sentences
from medisent.explanations.traversals import traversals
from medisent.exports import Edit, Making, voxels_digest, write_synthetic
from medisent.files import digests, whole_folder, write_text
from medisent.formats import write
from medisent.grids import restore
from medisent.mechanisms import cautions
from medisent.precision import brief_edit, brief_map
from medisent.readings import Reading, Readout, read_factors
from medisent.reports import Comparison, FactorMap, explanation_page
from medisent.reports.cards import Page, card, map_pictures, plot_percentiles
from medisent.rereading import Reread, reread
from medisent.version import __version__, versions
from medisent.volumes import Volume
from medisent.words import words

if TYPE_CHECKING:
    from medisent.derived import DerivedFolder

SCHEMA = 1
_CITATIONS = (
    "Kingma and Welling. Auto-Encoding Variational Bayes. ICLR 2014.",
    "Lei, G'Sell, Rinaldo, Tibshirani, Wasserman. Distribution-Free Predictive Inference for Regression. JASA 2018.",
    "Monteiro et al. Measuring axiomatic soundness of counterfactual image models. ICLR 2023.",
    "Cardoso et al. MONAI: An open-source framework for deep learning in healthcare. arXiv:2211.02701, 2022.",
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model has to say about one scan. Maps and counterfactuals are computed when they are first asked for.

    Attributes:
        trained: The model.
        reading: What it read.
    """

    trained: Trained
    reading: Reading

    @property
    def scan(self) -> Volume:
        """The scan that is explained."""
        return self.reading.scan

    @cached_property
    def factors(self) -> pd.DataFrame:
        """A row a factor: name, role, unit, estimate, low, high, level, percentile."""
        return pd.DataFrame(
            [_row(self.trained, readout.name, self.reading) for readout in self.reading.readouts.values()],
            columns=[part.name for part in fields(Readout)],
        )

    @cached_property
    def canonical(self) -> Volume:
        """The scan with its nuisance factors at the reference: gain and exponent 1, no bias field."""
        return harmonized(self.trained, self.reading)

    @cached_property
    def maps(self) -> dict[str, Volume]:
        """For each factor that a number can be added to, what the scan gains per unit of it, signed."""
        return dict(self._maps())

    @cached_property
    def counterfactuals(self) -> dict[str, Volume]:
        """The scan with one factor halved, doubled or moved to the 10th or 90th percentile; by file name."""
        return {name: volume for _, _, name, volume in self._edits()}

    def map_of(self, name: str) -> Volume:
        """What the scan gains per unit of one factor, signed, in the scan's own space.

        The factor rises by what is typical in the cohort; see ``factor_map``.
        """
        return factor_map(self.trained, self.reading, name)

    @cached_property
    def masks(self) -> dict[str, Volume]:
        """For each factor with a mask that the model finds here, its structure: 1 inside, 0 outside.

        As many of the likeliest voxels as the soft mask amounts to.
        """
        found = {}
        for name, soft in zip(self.trained.network.shaped, self.reading.scene.masks.numpy(), strict=True):
            inside = likeliest(restore(soft, self.reading.placed, self.scan.geometry))
            if inside.any():
                found[name] = self.scan.with_voxels(inside.astype(np.uint8))
        return found

    def save(self, folder: Path | str, *, dicom: bool = False) -> None:
        """Write factors, maps, counterfactuals, the canonical scan, the report and the manifest into a folder.

        Args:
            folder: Where to.
            dicom: Also write objects for a PACS into its ``dicom``, for a scan that was DICOM.

        Raises:
            FormatError: DICOM objects were asked for, but the scan was not DICOM.
            MachineError: The folder cannot be written.
        """
        target = Path(folder)
        derive = deriving(self.scan, self.trained.digest) if dicom else None
        with whole_folder(target, record="manifest.json") as place:
            began = time.perf_counter()
            maps, comparisons, rereads = self._write_scans(place, None if derive is None else derive(place / "dicom"))
            self.factors.to_csv(place / "factors.csv", index=False, lineterminator="\n")
            page = self._page(maps, comparisons, rereads)
            write_text(place / "report.html", page)
            names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
            summary = {**self.summary(), "files": sorted([*names, "factors.json", "manifest.json"])}
            write_text(place / "factors.json", _json(summary))
            # In whole minutes: who explains a scan twice wants the same bytes.
            timings = {"minutes": round((time.perf_counter() - began) / 60)}
            write_text(place / "manifest.json", _json({**self._manifest(place), "timings": timings}))

    def summary(self) -> dict[str, object]:
        """The content of ``factors.json`` but for the list of files."""
        return {
            "schema": SCHEMA,
            "scan": voxels_digest(self.scan),
            "model": self.trained.digest,
            "factors": [_finite({str(k): v for k, v in row.items()}) for row in self.factors.to_dict("records")],
            "quality": {name: _finite(vars(check)) for name, check in self.reading.checks.items()},
            "files": [],
        }

    @property
    def warnings(self) -> list[str]:
        """What a reader must know first: checks that failed, and edits that are hardly to be relied on."""
        network = self.trained.network
        return [*self.reading.warnings, *cautions(network, network.factors)]

    @property
    def sentences(self) -> Sentences:
        """What it says in words."""
        return Sentences(self.trained, self.reading)

    def headline(self, rereads: Sequence[Reread] = ()) -> str:
        """One plain sentence: the first anatomy factor, its interval and percentile, and whether brightness matters.

        Arguments:
            rereads: Edited scans that were read again, if they were.
        """
        return self.sentences.headline(rereads)

    def to_dataframe(self) -> pd.DataFrame:
        """A row a factor; see ``factors``."""
        return self.factors.copy()

    def plot(self, axes: Axes | None = None) -> Axes:
        """Where each factor lies among the training scans, with its value and interval.

        Maps are drawn over the scan: ``result.scan.plot(over=result.maps[name])``.
        """
        return plot_percentiles(percentile_rows(self.trained, self.reading), axes)

    def view(self) -> Page:
        """The report, as ``save`` writes it, for a notebook to show in a frame."""
        with TemporaryDirectory() as scratch:
            self.save(scratch)
            return Page((Path(scratch) / "report.html").read_text(encoding="utf-8"), height=55)

    def _repr_html_(self) -> str:
        units = {name: factor.unit for name, factor in self.trained.network.factors.items()}
        pictures = map_pictures(self.scan, self.maps, units)
        return card(self.headline(), self.warnings, self.factors.drop(columns="level"), pictures)

    def _maps(self) -> Iterator[tuple[str, Volume]]:
        """Each factor that a number can be added to and that this scan shows, with its map."""
        for name, factor in self.trained.network.factors.items():
            if factor.kind not in ("real", "positive", "circular"):
                continue
            try:
                yield name, self.map_of(name)
            except InterventionError:
                continue

    def _edits(self) -> Iterator[tuple[str, float, str, Volume]]:
        """Factor, value, file name and scan of each counterfactual that is shown."""
        for name, factor in self.trained.network.factors.items():
            for value in shown_values(self.trained, factor, self.reading.readouts[name].estimate):
                try:
                    volume = with_values(self.trained, self.reading, [(name, value)])
                except InterventionError:
                    continue
                label = factor.show(value).split(" ")[0] if factor.kind in LEVELED else _short(value)
                yield name, value, f"{name}_{_safe(label)}", volume

    def _write_scans(
        self, place: Path, derived: DerivedFolder | None
    ) -> tuple[list[FactorMap], list[Comparison], list[Reread]]:
        """Write every volume, also as DICOM where there is a folder for that.

        What the report shows of each, and what is read again from one edit a factor.
        """
        network, sentences = self.trained.network, self.sentences
        maps: list[FactorMap] = []
        comparisons: list[Comparison] = []
        rereads: dict[str, Reread] = {}
        for name, change in self._maps():
            factor, file = network.factors[name], f"maps/{name}.nii.gz"
            brief = brief_map(change)
            write(brief, place / file, description=f"medisent factor map: {name} per {factor.unit or 'unit'}")
            maps.append(FactorMap(name, factor.role, factor.unit, brief.voxels, file))
            if derived is not None:
                derived.add_map(brief, name, factor.unit)
        for name, value, stem, whole in self._edits():
            volume, step = brief_edit(whole, self.scan)
            factor, file = network.factors[name], f"counterfactuals/{stem}.nii.gz"
            wish = f"{name}={_short(value)}"
            write_synthetic(volume, place / file, self._making(wish, step, Edit(name, value, factor.unit)))
            title = f"{words(name)} {sentences.asked(name, value)[0]}"
            comparisons.append(Comparison(name, factor.role, title, volume.voxels.astype(np.float32), file))
            if name not in rereads and factor.kind in ("real", "positive"):
                rereads[name] = reread(self.trained, self.reading, name, value, volume)
            if derived is not None:
                derived.add_series(volume, f"counterfactuals/{stem}", wish)
        reference = "nuisance at the reference"
        volume, step = brief_edit(self.canonical, self.scan)
        write_synthetic(volume, place / "canonical.nii.gz", self._making(reference, step))
        if derived is not None:
            derived.add_series(volume, "canonical", reference)
            for name, mask in self.masks.items():
                derived.add_mask(mask.voxels > 0, name)
            derived.add_readouts(list(self.reading.readouts.values()), self._levels())
        return maps, comparisons, list(rereads.values())

    def _levels(self) -> dict[str, str]:
        """For factors with levels, the one that was read."""
        factors, readouts = self.trained.network.factors, self.reading.readouts
        leveled = {name: factor for name, factor in factors.items() if factor.kind in LEVELED}
        return {name: factor.show(readouts[name].estimate) for name, factor in leveled.items()}

    def _making(self, wish: str, step: float, *edits: Edit) -> Making:
        return Making(self.scan, self.trained.digest, (wish,), edits, "explain", step)

    def _page(self, maps: Sequence[FactorMap], comparisons: Sequence[Comparison], rereads: Sequence[Reread]) -> str:
        card, sentences = self.trained.card, self.sentences
        rows = []
        for row in self.factors.to_dict("records"):
            entry = card.factors[str(row["name"])]
            known = {
                "cohort_low": entry.quantiles[5],
                "cohort_high": entry.quantiles[95],
                "calibrated": bool(entry.calibrated),
            }
            rows.append({**{str(k): v for k, v in row.items()}, **known})
        return explanation_page(
            headline=sentences.headline(rereads),
            answers=sentences.answers(rereads),
            edit_checks=[sentences.edit_check(found) for found in rereads],
            traversals=traversals(self.trained, self.reading),
            scan=self.scan,
            factors=rows,
            maps=maps,
            comparisons=comparisons,
            quality={name: vars(check) for name, check in self.reading.checks.items()},
            warnings=self.warnings,
            methods=sentences.methods(),
            citations=_CITATIONS,
            provenance={
                "medisent": __version__,
                "model (SHA-256)": self.trained.digest,
                "scan's voxels (SHA-256)": voxels_digest(self.scan),
                "trained on": card.learned_from,
            },
        )

    def _manifest(self, place: Path) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "command": "explain",
            "arguments": {"factors": list(self.trained.network.factors), "level": self.trained.card.level},
            "versions": versions(),
            "inputs": {"scan_voxels_sha256": voxels_digest(self.scan), "model_sha256": self.trained.digest},
            "seed": self.trained.study.training.seed,
            "outputs": digests(place),
        }


def explain(trained: Trained, scan: Volume) -> Explanation:
    """The explanation of a scan.

    Raises:
        MedisentError: The scan is refused.
    """
    return Explanation(trained, read_factors(trained, scan))


def deriving(scan: Volume, model: str) -> Callable[[Path], DerivedFolder]:
    """What makes a folder of DICOM objects derived from a scan, once it is known that there can be any.

    Raises:
        FormatError: The scan was not DICOM.
    """
    from medisent.derived import DerivedFolder, Origin

    return partial(DerivedFolder, origin=Origin.of(scan, model))


def _row(trained: Trained, name: str, reading: Reading) -> dict[str, object]:
    readout, factor = reading.readouts[name], trained.network.factors[name]
    estimate: object = readout.estimate
    if factor.kind in LEVELED:
        estimate = factor.show(readout.estimate)
    return {**vars(readout), "estimate": estimate}


def _json(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(row: Mapping[str, object]) -> dict[str, object]:
    """The row with null where a number is not one, as JSON wants it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _short(value: float) -> str:
    return f"{value:.3g}"


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-+" else "-" for c in text)
