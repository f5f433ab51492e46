"""Rendered cohorts on disk: scans, masks, the table with the truth, and the true counterfactual of every edit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from medisent.errors import UsageError
from medisent.files import digests, whole_folder, write_text
from medisent.formats import write
from medisent.phantoms.acquisition import Acquisition, bias_strength, expose, noisy, tones_of
from medisent.phantoms.dicom import write_series
from medisent.phantoms.heads import Masks, Stage, set_stage
from medisent.phantoms.repeats import REST, with_repeats
from medisent.phantoms.sampling import FACTORS, Plan, Visit, sample
from medisent.progress import Progress, Silence
from medisent.version import versions
from medisent.volumes import Volume
from medisent.words import percent

DESCRIPTION = "synthetic: rendered head, medisent phantom, no patient"

COLUMNS = (
    *("scan", "subject", "session", "site", "split", "head_size_mm", "tumour_ml", "ventricle_ml"),
    *("tumour_x_mm", "tumour_y_mm", "tumour_z_mm", "roughness", "gain", "gamma", "bias_field", "blur_mm", "noise"),
    *("tumour_mask", "ventricle_mask"),
)
LABELS = (("head_size_mm",), ("tumour_ml", "tumour_mask"), ("ventricle_ml", "ventricle_mask"), ("gain",), ("gamma",))
"""Columns that may be unknown, those together that tell the same."""


@dataclass(frozen=True, eq=False)
class Truth:
    """A scan with what is true of it.

    Attributes:
        visit: Whose it is, and by which scanner.
        stage: The person, ventricles and tumour still to be sized.
        ventricle: Threshold of the ventricles.
        tumour: Threshold of the tumour.
        canonical: Brightness of the tissue, as the scanner's own contrast has it.
        masks: The visible tumour and ventricles.
        plan: The cohort's.
    """

    visit: Visit
    stage: Stage
    ventricle: float
    tumour: float
    canonical: Float[np.ndarray, "x y z"]
    masks: Masks
    plan: Plan

    @classmethod
    def of(cls, visit: Visit, plan: Plan) -> Truth:
        """Render a visit."""
        stage = set_stage(visit.anatomy, plan.geometry, tones_of(visit.acquisition))
        ventricle = stage.ventricles.threshold(visit.anatomy.ventricle_ml, "pair of ventricles")
        tumour = stage.tumour.threshold(visit.anatomy.tumour_ml, "tumour")
        return cls(visit, stage, ventricle, tumour, *stage.play(ventricle, tumour), plan)

    @property
    def name(self) -> str:
        """What its files are called."""
        session = f"_ses-{self.visit.session}" if self.visit.of > 1 else ""
        return f"sub-{self.visit.subject:04d}{session}"

    @property
    def tumour_ml(self) -> float:
        """The tumour, in mL."""
        return float(self.masks.tumour.sum(dtype=np.float64)) * self.plan.geometry.voxel_ml

    @property
    def ventricle_ml(self) -> float:
        """The visible ventricles, in mL."""
        return float(self.masks.ventricles.sum(dtype=np.float64)) * self.plan.geometry.voxel_ml

    def scan(self, acquisition: Acquisition | None = None) -> Float[np.ndarray, "x y z"]:
        """What the scanner, or another one, makes of it."""
        acquisition = acquisition or self.visit.acquisition
        return noisy(expose(self.canonical, self.plan.geometry, acquisition), acquisition)

    def with_tumour(self, ml: float) -> Truth:
        """The same, but for the tumour's size."""
        tumour = self.stage.tumour.threshold(ml, "tumour")
        canonical, masks = self.stage.play(self.ventricle, tumour)
        return replace(self, tumour=tumour, canonical=canonical, masks=masks)

    def with_ventricles(self, ml: float) -> Truth:
        """The same, but for the size of the ventricles, so that ``ml`` of them can be seen."""
        hidden = np.zeros_like(self.stage.tissue)
        hidden[self.stage.tumour.box] = self.stage.tumour.fraction(self.tumour)
        shape = self.stage.ventricles
        visible = replace(shape, room=shape.room * (1 - hidden[shape.box]))
        ventricle = visible.threshold(ml, "pair of ventricles")
        canonical, masks = self.stage.play(ventricle, self.tumour)
        return replace(self, ventricle=ventricle, canonical=canonical, masks=masks)


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """The scan that would have been made.

    Attributes:
        edit: What is different, as the command line says it.
        factor: Which factor.
        value: Its value then, in its unit.
        slug: The edit as part of a file name.
        voxels: The scan.
    """

    edit: str
    factor: str
    value: float
    slug: str
    voxels: Float[np.ndarray, "x y z"]


def write_cohort(
    out: Path,
    *,
    subjects: int = 240,
    seed: int = 0,
    spacing_mm: float = 6.0,
    shape: tuple[int, int, int] = (32, 32, 32),
    confound: float = 0.0,
    dicom: bool = False,
    counterfactuals: bool = False,
    missing: float = 0.0,
    travelling: int = 0,
    longitudinal: int = 0,
    foreign: bool = False,
    clamped: int = 0,
    clamped_size: int = 8,
    pairs: int = 0,
    alike: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Render a cohort into a folder; returns the path of its table, ``cohort.tsv``.

    Beside it stand ``study.toml``, ready to train on, ``scans``, ``masks`` and, where asked for,
    ``counterfactuals.tsv`` with the true counterfactual of four edits of every scan of the test split. The same
    arguments give the same bytes.

    Args:
        out: The folder.
        subjects: How many people; 70 % for training, 15 % each for validation and test.
        seed: Of everything that is drawn.
        spacing_mm: Voxel size. In a field of view below 190 mm the heads are smaller in proportion.
        shape: Voxels along each axis.
        confound: Correlation of log tumour volume and log gain, and through it of tumour and site.
        dicom: Scans as DICOM series in place of NIfTI; masks and counterfactuals stay NIfTI.
        counterfactuals: Whether to write those.
        missing: The share of labels, outside the test split, that is left out, each with its mask.
        travelling: How many subjects are scanned at every site.
        longitudinal: How many subjects come back with a larger tumour.
        foreign: Scanners of a family that gain, exponent and a quadratic bias field cannot express.
        clamped: For tumour, ventricles, head size, brightness and contrast each, how many people for training are
            scanned again while nothing else varies; columns ``clamp_tumour`` ... hold the name of the group.
        clamped_size: Scans of each of them.
        pairs: How many people for training are scanned twice, one or two of these factors different, in column
            ``pair``; the table does not say which.
        alike: How many groups of ``clamped_size`` people for training have all five factors in common and differ in
            everything else, in column ``clamp_rest``.
        progress: Who is told how far it is.

    Raises:
        UsageError: Such a cohort cannot be rendered.
        MachineError: The folder cannot be written.
    """
    if not 0 <= missing <= 1:
        raise UsageError(f"A share of {missing:g} missing labels was asked for. Choose one between 0 and 1.")
    plan = Plan(
        subjects,
        seed,
        spacing_mm,
        shape,
        confound,
        travelling,
        longitudinal,
        foreign,
        clamped,
        clamped_size,
        pairs,
        alike,
    )
    visits = with_repeats(sample(plan), plan)
    clamps = [*(FACTORS if clamped else ()), *((REST,) if alike else ())]
    columns = [*COLUMNS, *(f"clamp_{name}" for name in clamps), *(("pair",) if pairs else ())]
    progress = progress or Silence()
    progress.stage("rendering heads", len(visits))
    rows: list[dict[str, str]] = []
    edits: list[tuple[str, ...]] = []
    with whole_folder(out, record="manifest.json") as folder:
        for visit in visits:
            truth = Truth.of(visit, plan)
            rows.append(_write_visit(folder, truth, dicom))
            if counterfactuals and visit.split == "test":
                edits += [_write_counterfactual(folder, truth, rows[-1]["scan"], edit) for edit in _edits(truth)]
            progress.advance(1)
        _forget(rows, missing, seed)
        _write_table(folder / "cohort.tsv", columns, [[row[name] for name in columns] for row in rows])
        if counterfactuals:
            _write_table(folder / "counterfactuals.tsv", ("scan", "edit", "factor", "value", "counterfactual"), edits)
        write_text(folder / "study.toml", _study(plan))
        write_text(folder / "README.txt", _readme(plan, missing))
        write_text(folder / "manifest.json", _manifest(plan, folder))
    return out / "cohort.tsv"


def _write_visit(folder: Path, truth: Truth, dicom: bool) -> dict[str, str]:
    """Write a scan and its masks; its row of the table."""
    visit, geometry = truth.visit, truth.plan.geometry
    scan = f"scans/{truth.name}_synthetic" + ("" if dicom else ".nii.gz")
    volume = Volume(truth.scan(), geometry)
    if dicom:
        entropy = f"medisent phantom {truth.plan} {truth.name}"
        write_series(volume, folder / scan, name=truth.name.upper(), description=DESCRIPTION, entropy=entropy)
    else:
        write(volume, folder / scan, description=DESCRIPTION)
    _write_sidecar(folder / scan, DESCRIPTION)
    masks = {"tumour": truth.masks.tumour, "ventricle": truth.masks.ventricles}
    paths = {name: f"masks/{truth.name}_{name}_synthetic.nii.gz" for name in masks}
    for name, mask in masks.items():
        write(Volume(mask, geometry), folder / paths[name], description=f"synthetic: fraction of {name}")
        _write_sidecar(folder / paths[name], f"synthetic: fraction of {name} in each voxel")
    anatomy, acquisition = visit.anatomy, visit.acquisition
    numbers = {
        "head_size_mm": anatomy.head_size,
        "tumour_ml": truth.tumour_ml,
        "ventricle_ml": truth.ventricle_ml,
        **dict(zip(("tumour_x_mm", "tumour_y_mm", "tumour_z_mm"), anatomy.tumour_mm, strict=True)),
        "roughness": anatomy.roughness,
        "gain": acquisition.gain,
        "gamma": acquisition.gamma,
        "bias_field": bias_strength(truth.canonical, acquisition.bias),
        "blur_mm": acquisition.blur_mm,
        "noise": acquisition.noise,
    }
    return {
        "scan": scan,
        "subject": f"sub-{visit.subject:04d}",
        "session": str(visit.session),
        "site": f"site-{visit.site}",
        "split": visit.split,
        **{name: f"{number:.7g}" for name, number in numbers.items()},
        **{f"{name}_mask": path for name, path in paths.items()},
        **{
            f"clamp_{name}": f"sub-{visit.group or visit.subject:04d}" if visit.clamp == name else ""
            for name in (*FACTORS, REST)
        },
        "pair": f"sub-{visit.subject:04d}" if visit.paired else "",
    }


def _edits(truth: Truth) -> list[Counterfactual]:
    """The four edits of a scan: two of the scanner, two of the anatomy, everything else as it was, noise included."""
    acquisition = truth.visit.acquisition
    bright = acquisition.brighter(1.5)
    steep = replace(acquisition, gamma=acquisition.gamma * 1.2)
    wide, growth = truth.ventricle_ml * 1.6, truth.plan.growth_ml
    large = truth.tumour_ml + growth
    ventricles, tumour = truth.with_ventricles(wide).scan(), truth.with_tumour(large).scan()
    return [
        Counterfactual("brightness*=1.5", "brightness", bright.gain, "brightness-x1.5", truth.scan(bright)),
        Counterfactual("contrast*=1.2", "contrast", steep.gamma, "contrast-x1.2", truth.scan(steep)),
        Counterfactual("ventricle_volume*=1.6", "ventricle_volume", wide, "ventricle_volume-x1.6", ventricles),
        Counterfactual(f"tumour_volume+={growth:g}", "tumour_volume", large, f"tumour_volume-plus{growth:g}", tumour),
    ]


def _write_counterfactual(folder: Path, truth: Truth, scan: str, edit: Counterfactual) -> tuple[str, ...]:
    path = f"counterfactuals/{truth.name}_{edit.slug}_synthetic.nii.gz"
    write(Volume(edit.voxels, truth.plan.geometry), folder / path, description=f"synthetic: {edit.edit}, re-rendered")
    _write_sidecar(folder / path, f"{DESCRIPTION}; true counterfactual, {edit.edit}")
    return scan, edit.edit, edit.factor, f"{edit.value:.7g}", path


def _write_sidecar(scan: Path, description: str) -> None:
    sidecar = scan.with_name(scan.name.removesuffix(".nii.gz") + ".json")
    write_text(sidecar, json.dumps({"synthetic": True, "description": description}, indent=2) + "\n")


def _write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    write_text(path, "".join("\t".join(row) + "\n" for row in [names, *rows]))


def _forget(rows: list[dict[str, str]], missing: float, seed: int) -> None:
    """Empty a share of the labels outside the test split, in place."""
    rng = np.random.default_rng([seed, 10])
    for row in rows:
        for names, draw in zip(LABELS, rng.random(len(LABELS)), strict=True):
            if draw < missing and row["split"] != "test":
                row.update(dict.fromkeys(names, ""))


def _manifest(plan: Plan, folder: Path) -> str:
    """What the cohort was made with, and what it is made of; by it the next cohort in this folder removes this one."""
    said = {"schema": 1, "command": "phantom", "plan": asdict(plan), "versions": versions(), "outputs": digests(folder)}
    return json.dumps(said, indent=2) + "\n"


def _study(plan: Plan) -> str:
    return STUDY.format(spacing_mm=float(plan.spacing_mm), shape=list(plan.shape), seed=plan.seed)


STUDY = """\
# A study of this rendered cohort: medisent train study.toml

[cohort]
table = "cohort.tsv"
scan = "scan"
subject = "subject"
split = "split"
about = "Rendered heads, no patients."

[grid]
spacing_mm = {spacing_mm}
shape = {shape}

[scanner]
factors = ["brightness", "contrast", "bias_field"]

[[factors]]
name = "tumour_volume"
role = "anatomy"
kind = "positive"
unit = "mL"
column = "tumour_ml"
mask = "tumour_mask"

[[factors]]
name = "ventricle_volume"
role = "anatomy"
kind = "positive"
unit = "mL"
column = "ventricle_ml"
mask = "ventricle_mask"

[[factors]]
name = "head_size"
role = "anatomy"
kind = "real"
unit = "mm"
column = "head_size_mm"

[[factors]]
name = "brightness"
role = "nuisance"
kind = "positive"
column = "gain"

[training]
minutes = 5
mirror = true               # none of these factors has a side
seed = {seed}
"""


def _readme(plan: Plan, missing: float) -> str:
    curves = (
        "sigmoid or spoiled-gradient-echo contrast, bias field of order 3" if plan.foreign else "gain * exp(bias field)"
    )
    return README.format(
        plan=plan,
        grid=" x ".join(map(str, plan.shape)),
        missing=percent(missing),
        law=curves + ("" if plan.foreign else " * canonical ** gamma"),
    )


README = """\
A rendered cohort. Every scan in this folder is synthetic: there is no patient behind any of them.

{plan.subjects} subjects, seed {plan.seed}, voxels of {plan.spacing_mm:g} mm, {grid}.
Scanner: {law}, blurred, plus Rician noise.
Confounding (correlation of log tumour volume and log gain): {plan.confound:g}. Labels left out: {missing}.
Subjects at every site: {plan.travelling}. Subjects who come back: {plan.longitudinal}.
Clamped groups of each factor: {plan.clamped}. Pairs: {plan.pairs}. Groups of people alike: {plan.alike}.

cohort.tsv           one row a scan; an empty cell is unknown
  head_size_mm       mean radius of the cranium
  tumour_ml          the tumour, rim and core
  ventricle_ml       the lateral ventricles, as far as a tumour does not hide them
  tumour_x_mm ...    the tumour's centre, right, anterior, superior
  roughness          of the tumour's outline, 0 to 1
  gain, gamma        of the scanner; 1 is the reference
  bias_field         standard deviation of the log bias field over the head
  blur_mm            full width at half maximum of the point spread
  noise              standard deviation of the noise, relative to the gain
  clamp_...          scans of one name differ in this factor (and noise) alone, where clamped groups were asked for
  clamp_rest         heads of one name agree in these five factors and differ in all else, where such were asked for
  pair               scans of one name differ in one or two of these factors, where pairs were asked for
  ..._mask           the fraction of each voxel; its sum times the voxel's volume is the volume in the table
counterfactuals.tsv  the true counterfactual of each edit, where it was asked for: the same person, the same noise
study.toml           ready for: medisent train study.toml
"""
