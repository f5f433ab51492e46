"""What is learned from and what is held out: the scans of a study's cohort, split by split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medisent.batches import Batch
from medisent.checkpoints import study_factors
from medisent.cohorts import Cohort, groups_told, load_cohort, read_cohort
from medisent.config import Study
from medisent.errors import CohortError, StudyError
from medisent.factors import SCANNER_FACTORS, Factor
from medisent.loading import loading
from medisent.objectives import too_few_told
from medisent.plurals import several
from medisent.progress import Progress
from medisent.stores import usual_store
from medisent.training.plans import varied_settings


def study_cohort(study: Study, table: Path | None = None) -> Cohort:
    """The cohort of a study, or of another table with the same columns.

    Raises:
        CohortError: The table does not fit.
    """
    settings = study.cohort
    return read_cohort(
        table or settings.table,
        study_factors(study),
        scan=settings.scan,
        subject=settings.subject,
        split=settings.split,
        groups=[entry.by for entry in study.supervision],
        orders=[entry.order for entry in study.supervision],
        seed=study.training.seed,
    )


def doubts(study: Study) -> tuple[str, ...]:
    """What a study asks of its groups and its batches that these cannot give, in sentences.

    Raises:
        CohortError: The table does not fit.
    """
    entries = study.supervision
    groups = groups_told(study_cohort(study), [said.by for said in entries], [said.kind == "clamp" for said in entries])
    return (*groups, *_masked_told(study), *too_few_told(vars(study.weights), study.training.batch))


def _masked_told(study: Study) -> Iterator[str]:
    """Where ranks and match pairs name factors with masks, which teach all there is to learn of them."""
    masked = {factor.name for factor in study.factors if factor.mask}
    for index, said in enumerate(study.supervision, 1):
        named = sorted(masked.intersection(said.share or ())) if said.kind in ("groups", "ranks") else []
        if named:
            yield (
                f"[[supervision]] number {index} teaches nothing of {', '.join(named)}: "
                "a volume with masks is learned from masks alone."
            )


def load_split(study: Study, cohort: Cohort, progress: Progress, stage: str) -> Batch:
    """All scans of a cohort on the study's grid.

    Raises:
        CohortError: Scans cannot be read.
    """
    progress.stage(stage, len(cohort))
    masks = [factor.name for factor in cohort.factors if factor.mask]
    loader = loading(study.grid, masks, air=study.scanner.air)
    store = usual_store(study.grid, study.scanner.air)
    return load_cohort(cohort, loader, study.grid.spacing_mm**3 / 1000, lambda done, total: progress.advance(1), store)


@dataclass(frozen=True, eq=False)
class Splits:
    """What training needs of a cohort.

    Attributes:
        training: The scans that are learned from.
        shown: They on the grid.
        validation: The scans by which readouts are calibrated, if there are any.
        held: They on the grid.
    """

    training: Cohort
    shown: Batch
    validation: Cohort | None
    held: Batch | None

    @property
    def owners(self) -> list[str]:
        """The subject of each held-out scan."""
        return [row.subject for row in self.validation.rows] if self.validation else []


def read_splits(study: Study, progress: Progress) -> Splits:
    """The scans of a study that are learned from, and those that are held out.

    Raises:
        CohortError: The table does not fit the study, or scans cannot be read.
        StudyError: There are clamped groups in which nothing varies.
    """
    cohort = study_cohort(study)
    training, validation = cohort.of("train"), _part(cohort, "validation")
    refuse_unvaried(study, training)
    if validation is None and (study.training.patience or study.training.keep == "best"):
        raise CohortError(
            'The study has patience or keep = "best", but its table has no validation split to look at. '
            "Leave them out of [training], or put subjects into that split."
        )
    shown = load_split(study, training, progress, "reading training scans")
    refuse_constant(training.factors, shown)
    held = load_split(study, validation, progress, "reading validation scans") if validation else None
    return Splits(training, shown, validation, held)


def _part(cohort: Cohort, split: str) -> Cohort | None:
    try:
        return cohort.of(split)
    except CohortError:
        return None


def refuse_unvaried(study: Study, training: Cohort) -> None:
    """Refuse clamped groups in which nothing varies: of one scan each, between whose repeats no scanner is changed.

    Raises:
        StudyError: There are such groups; the sentence says what may vary.
    """
    for index, said in enumerate(study.supervision):
        sizes = Counter(row.groups[index] for row in training.rows if row.groups[index])
        if said.kind != "clamp" or max(sizes.values(), default=2) > 1 or varied_settings(study, said):
            continue
        way = (
            "all settings in [scanner] factors are shared. Share less, such as the anatomy alone."
            if study.scanner.factors
            else "[scanner] factors is empty. Name there what may change: brightness, contrast, bias_field."
        )
        raise StudyError(
            f"[[supervision]] number {index + 1} clamps groups by {said.by}, but no two training scans agree there. "
            f"One scan can be repeated with its scanner changed, but {way}"
        )


def refuse_constant(factors: Sequence[Factor], shown: Batch) -> None:
    """Refuse factors that are the same in all training scans: nothing tells how a scan would look with another.

    What the scanner does is changed while training, so it may be the same in all scans.

    Raises:
        CohortError: There are such factors; the sentence names them.
    """
    same = []
    for column, factor in enumerate(factors):
        values = shown.values[:, column]
        known = values[values.isfinite()]
        if factor.name not in SCANNER_FACTORS and len(known) > 1 and bool((known == known[0]).all()):
            same.append(f"{factor.name} (one value in all {several(len(known), 'scan')})")
    if same:
        raise CohortError(
            f"Nothing can be learned of {', '.join(same)}: a factor has to differ within the training split. "
            "Leave it out of the study, or add scans that differ in it."
        )
