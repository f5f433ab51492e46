"""What is learned from and what is held out: the scans of a study's cohort, split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medisent.batches import Batch
from medisent.checkpoints import study_factors
from medisent.cohorts import Cohort, groups_told, load_cohort, read_cohort
from medisent.config import Study
from medisent.errors import CohortError
from medisent.factors import SCANNER_FACTORS, Factor
from medisent.loading import loading
from medisent.objectives import too_few_told
from medisent.plurals import several
from medisent.progress import Progress
from medisent.stores import usual_store


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
    groups = groups_told(study_cohort(study), [entry.by for entry in study.supervision])
    return (*groups, *too_few_told(vars(study.weights), study.training.batch))


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
    """
    cohort = study_cohort(study)
    training, validation = cohort.of("train"), _part(cohort, "validation")
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
