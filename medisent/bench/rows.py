"""The rows of the benchmark: every method, what it is trained and judged on, and how long it may learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from medisent.bench.cohorts import Cohorts
from medisent.bench.editing import (
    ByDirection,
    ByMatching,
    Editor,
    by_decoding,
    left_alone,
    score_edits,
    settings_of,
)
from medisent.bench.figures import Edit, Figures
from medisent.bench.harmonizing import Combat
from medisent.bench.linear import Linear
from medisent.bench.measuring import COLUMNS, Judge, figures_of_codes, figures_of_model
from medisent.checkpoints import Trained, load_model
from medisent.cohorts import read_table
from medisent.config import Study, Supervision, Weights, load_study
from medisent.evaluation.attributions import PATCH, SCANS, STEPS, map_scores
from medisent.evaluation.findings import MapScore
from medisent.formats import read
from medisent.grids import Grid
from medisent.metrics import r2
from medisent.progress import Progress, Silence
from medisent.training import train


@dataclass(frozen=True)
class Place:
    """Where the benchmark works and how large it is.

    Attributes:
        out: The folder.
        cohorts: The rendered heads.
        steps: Of the training of a row of share 1.
        small: The grid and the width of every network, where the benchmark is only tried out.
    """

    out: Path
    cohorts: Cohorts
    steps: int
    small: tuple[Grid, int] | None = None

    @property
    def size(self) -> str:
        """How large everything is, in words."""
        return f"{self.cohorts.subjects} heads, {self.steps} steps"

    def run(self, row: str, seed: int) -> Path:
        """The run folder of a row's training."""
        return self.out / "runs" / f"{row}-{seed}"


Work = Callable[[Place, str, int, Progress], tuple[int, Figures]]
"""From the place, the row's name and a seed to the steps that were trained and what was measured."""


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: As ``--only`` takes it.
        title: As tables show it.
        note: What a reader must know of it, in a sentence.
        work: What is done for it.
        needs: The row whose trained model it takes.
    """

    name: str
    title: str
    note: str
    work: Work
    needs: str | None = None


def recipe(name: str) -> Path:
    """The study file of a recipe: beside this file where the package is installed, in ``examples`` in a checkout."""
    installed = Path(__file__).parent / "recipes" / f"{name}.toml"
    return installed if installed.is_file() else Path(__file__).parents[2] / "examples" / "recipes" / f"{name}.toml"


@dataclass(frozen=True)
class Training:
    """A model is trained and measured.

    Attributes:
        recipe: Which study file; None is the one that comes with the cohort.
        share: Of the benchmark's steps.
        cohort: Trained on.
        judge: Read and edited on.
        apart: Held apart on; None is ``judge``.
        change: What of the study is otherwise.
    """

    recipe: str | None = None
    share: float = 0.25
    cohort: str = "plain"
    judge: str = "held"
    apart: str | None = None
    change: Callable[[Study], Study] = lambda study: study

    def study(self, place: Place, seed: int, progress: Progress) -> Study:
        """The study with the benchmark's cohort, duration and seed."""
        table = place.cohorts.table(self.cohort, progress)
        study = load_study(recipe(self.recipe) if self.recipe else table.with_name("study.toml"))
        steps = max(1, round(place.steps * self.share))
        study = self.change(
            replace(
                study,
                cohort=replace(study.cohort, table=table.resolve()),
                training=replace(study.training, minutes=None, epochs=None, steps=steps, seed=seed),
            )
        )
        if place.small is not None:
            grid, width = place.small
            network = replace(study.network, width=width)
            study = replace(study, grid=grid, network=network)
        return study

    def __call__(self, place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
        study = self.study(place, seed, progress)
        trained = train(study, place.run(row, seed), progress=progress)
        judge = Judge.of(place.cohorts.table(self.judge, progress))
        apart = judge if self.apart is None else Judge.of(place.cohorts.table(self.apart, progress))
        return trained.card.steps, figures_of_model(trained, judge, apart, seed, progress)


@dataclass(frozen=True)
class Editing:
    """Another way to edit with a model that another row has trained, or with none.

    Attributes:
        editor: From that model to the editor.
        source: The row with the model.
    """

    editor: Callable[[Trained], Editor]
    source: str = "ours"

    def __call__(self, place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
        trained = load_model(place.run(self.source, seed) / "model.safetensors")
        material = Judge.of(place.cohorts.table("held", progress)).material(trained.study, progress)
        return 0, Figures(edits=score_edits(material, self.editor(trained)))


@dataclass(frozen=True)
class Explaining:
    """Maps of a model that another row has trained.

    Attributes:
        kind: Which maps; from how much each of them is like the true difference.
        scans: In how many scans.
        source: The row with the model.
    """

    kind: Callable[[MapScore], float]
    scans: Callable[[MapScore], int] = lambda score: score.n_beside
    source: str = "ours"

    def __call__(self, place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
        model = place.run(self.source, seed) / "model.safetensors"
        scores = _maps_of(model, place.cohorts.table("held", progress))
        counts = [self.scans(score) for score in scores.values()]
        return 0, Figures(
            maps={name: self.kind(score) for name, score in scores.items()}, mapped=min(counts, default=None)
        )


@lru_cache(maxsize=1)  # three rows, one after the other, ask for the maps of one model
def _maps_of(model: Path, judged: Path) -> dict[str, MapScore]:
    """All maps of a trained model, by factor, held against what truly changes."""
    trained = load_model(model)
    material = Judge.of(judged).material(trained.study, Silence())
    return map_scores(trained, material, lambda: None, explained=SCANS)


def no_edit(place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
    """Nothing is read and nothing is changed."""
    return 0, Figures(edits=_edited(place, progress, lambda train, judged: left_alone))


def matching(place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
    """Histogram matching, which serves edits of the scanner only."""

    def editor(train: Path, judged: Path) -> Editor:
        rows, others = read_table(judged), read_table(train)
        settings = settings_of({name: rows[name].astype(float).tolist() for name in ("gain", "gamma")})
        return ByMatching(others[others["split"] == "train"], train.parent, settings)

    return 0, Figures(edits=_edited(place, progress, editor))


def components(place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
    """Principal components of scans and ridge regression, readouts and edits."""
    linear, figures = _linear(place, seed, progress, harmonised=False)
    return 0, replace(figures, edits=_edited(place, progress, lambda train, judged: ByDirection(linear)))


def combat(place: Place, row: str, seed: int, progress: Progress) -> tuple[int, Figures]:
    """The same after ComBat has taken the sites out of all voxels; the sites of new scans have to be known."""
    return 0, _linear(place, seed, progress, harmonised=True)[1]


def _edited(place: Place, progress: Progress, editor: Callable[[Path, Path], Editor]) -> dict[str, Edit]:
    """The edits of a method that is no model of ours, made from the tables of the training and the judged heads."""
    train, judged = (place.cohorts.table(name, progress) for name in ("plain", "held"))
    study = load_study(train.with_name("study.toml"))
    return score_edits(Judge.of(judged).material(study, progress), editor(train, judged))


def _linear(place: Place, seed: int, progress: Progress, *, harmonised: bool) -> tuple[Linear, Figures]:
    train, judged = (place.cohorts.table(name, progress) for name in ("plain", "held"))
    rows, judge = read_table(train), Judge.of(judged)
    rows = rows[rows["split"] == "train"]
    known = {name: rows[column].astype(float).to_numpy() for name, (_, column) in COLUMNS.items()}
    seen, new = _voxels(train, list(rows["scan"])), _voxels(judged, list(read_table(judged)["scan"]))
    if harmonised:
        seen, new = _harmonised(seen, list(rows["site"])), _harmonised(new, list(judge.sites))
    linear = Linear.fitted(seen, known)
    readout = {name: r2(linear.read(name, new), judge.labels[name].to_numpy()) for name in COLUMNS}
    return linear, replace(figures_of_codes(linear.codes(new), judge, None, seed, latents=False), readout=readout)


def _harmonised(scans: np.ndarray, sites: list[str]) -> np.ndarray:
    nothing = np.zeros((len(scans), 0))
    return Combat.fitted(scans, sites, nothing)(scans, sites, nothing)


def _voxels(table: Path, scans: list[str]) -> np.ndarray:
    return np.stack([read(table.parent / scan).voxels.astype(np.float64).ravel() for scan in scans])


def _without_masks(study: Study) -> Study:
    return replace(study, factors=tuple(replace(factor, mask=None) for factor in study.factors))


def _bare(study: Study) -> Study:
    """The same networks and labels, but no scanner layer and nothing that keeps blocks apart."""
    kept = ("distortion", "rate", "readout", "mask")
    weights = Weights(**{n: getattr(study.weights, n) if n in kept else 0.0 for n in Weights.__dataclass_fields__})
    network = replace(study.network, remainders=False)
    return replace(study, scanner=replace(study.scanner, factors=()), weights=weights, network=network)


def _travelling(study: Study) -> Study:
    """No label of the scanner; scans of one subject share their anatomy."""
    factors = tuple(factor for factor in study.factors if factor.role == "anatomy")
    group = Supervision(kind="groups", by="subject", share=("anatomy",))
    return replace(study, factors=factors, supervision=(group,), network=replace(study.network, nuisance_rest=8))


def _plain(name: str, title: str, note: str) -> Row:
    return Row(name, title, note, Training(name))


ROWS: tuple[Row, ...] = (
    Row("none", "doing nothing", "Every scan left as it is: what an edit has to beat.", no_edit),
    Row("ours", "ours", "The study that comes with a rendered cohort, at its full size.", Training(share=1.0)),
    Row(
        "decode",
        "ours, decoded directly",
        "The same model; the edited latents' decoding in place of the scan.",
        Editing(lambda trained: by_decoding(trained, difference=False)),
        needs="ours",
    ),
    Row(
        "difference",
        "ours, difference of decodings",
        "The same model; the scan gains what the decodings of edited and own latents differ by.",
        Editing(lambda trained: by_decoding(trained, difference=True)),
        needs="ours",
    ),
    Row(
        "maps",
        "ours, factor maps",
        "The same model; an edit by one standard deviation of the cohort.",
        Explaining(lambda score: score.ncc, lambda score: score.n),
        needs="ours",
    ),
    Row(
        "gradients",
        "integrated gradients",
        f"Of the same model's readouts, from air, {STEPS} steps.",
        Explaining(lambda score: score.integrated_gradients),
        needs="ours",
    ),
    Row(
        "occlusion",
        "occlusion",
        f"Of the same model's readouts, by cubes of {PATCH} grid voxels a side.",
        Explaining(lambda score: score.occlusion),
        needs="ours",
    ),
    Row(
        "matching",
        "histogram matching",
        "To the training scan whose true gain and exponent are nearest to the asked ones.",
        matching,
    ),
    Row("pca", "PCA and ridge regression", "64 components of the voxels; edits along the regression.", components),
    Row(
        "combat", "ComBat, PCA and ridge regression", "ComBat on all voxels by site; sites known at test time.", combat
    ),
    Row(
        "ours_small",
        "ours, small",
        "Voxels of 8 mm: what the row with the foreign scanner is to be held against.",
        Training("ours", share=0.625),
    ),
    Row(
        "confounded",
        "ours, confounded",
        "Trained where tumour and gain correlate 0.8; readouts and edits judged at -0.8, leakage at 0.",
        Training(share=1.0, cohort="confounded", judge="opposite", apart="held"),
    ),
    Row(
        "confounded_bare",
        "the same without scanner layer and independence",
        "As above, but trained less than half as long; the gain is a label like any other.",
        Training(share=5 / 12, cohort="confounded", judge="opposite", apart="held", change=_bare),
    ),
    Row(
        "foreign",
        "ours, foreign scanner",
        "One scanner in training is of a kind that the layer cannot express; judged on other heads of that scanner.",
        Training("ours", share=0.625, cohort="mixed", judge="far"),
    ),
    Row(
        "half",
        "ours, half of the labels",
        "At full size; masks go with their labels.",
        Training(share=1.0, cohort="missing"),
    ),
    Row(
        "scalar",
        "ours, scalar labels only",
        "As small as the recipes; no masks.",
        Training("ours", change=_without_masks),
    ),
    Row(
        "travelling",
        "ours, travelling subjects",
        "Half of the heads; no label of the scanner; scans of one subject share their anatomy; the nuisance's rest has"
        " eight latents.",
        Training(share=1.0, cohort="travelling", change=_travelling),
    ),
    _plain("beta_vae", "beta-VAE", "No labels."),
    _plain("diva", "DIVA", "Labels of anatomy and scanner, no masks."),
    Row("gvae", "GVAE", "No labels; scans of one person share their anatomy.", Training("gvae", cohort="travelling")),
    Row(
        "ml_vae",
        "ML-VAE",
        "No labels; scans of one person share their anatomy.",
        Training("ml_vae", cohort="travelling"),
    ),
    Row(
        "ada_gvae",
        "Ada-GVAE",
        "No labels; pairs that differ in one or two factors.",
        Training("ada_gvae", cohort="pairs"),
    ),
    Row(
        "dc_ign",
        "DC-IGN",
        "No labels; groups in which one factor varies; behind the scanner layer.",
        Training("dc_ign", share=2.5, cohort="clamped"),
    ),
    _plain("beta_tcvae", "beta-TCVAE", "No labels."),
    _plain("factor_vae", "FactorVAE", "No labels."),
    _plain("dip_vae", "DIP-VAE-II", "No labels."),
)
"""By importance."""
