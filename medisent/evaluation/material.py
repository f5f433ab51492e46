"""Which scans a model is measured on, and what a table says of them: labels, subjects, true counterfactuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from medisent.batches import Batch
from medisent.checkpoints import study_factors
from medisent.cohorts import Cohort, load_cohort, read_cohort, read_table
from medisent.config import Study
from medisent.counterfactuals import Wish, parse_wish
from medisent.errors import CohortError, UsageError
from medisent.factors import Factor
from medisent.loading import loading
from medisent.plurals import several
from medisent.progress import Progress
from medisent.stores import usual_store

TRUTHS = "counterfactuals.tsv"
_TRUTH_COLUMNS = ("scan", "edit", "counterfactual")


@dataclass(frozen=True)
class Truth:
    """One true counterfactual.

    Attributes:
        row: Of the scan, among the scans that are measured.
        edit: As the table writes it.
        wish: The same, understood.
        path: Where it is.
    """

    row: int
    edit: str
    wish: Wish
    path: Path


@dataclass(frozen=True, eq=False)
class Material:
    """What a model is measured on.

    Attributes:
        cohort: The scans' rows.
        batch: The scans on the model's grid; NaN is an unknown label.
        truths: Their true counterfactuals.
        notes: What had to be left out, in sentences.
        varying: For each factor that alone varies in groups of scans, the group of each scan; empty is none.
    """

    cohort: Cohort
    batch: Batch
    truths: tuple[Truth, ...]
    notes: tuple[str, ...]
    varying: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        """Whose scan each is."""
        return [row.subject for row in self.cohort.rows]

    def labelled(self) -> dict[str, tuple[Factor, Float[np.ndarray, " scans"]]]:
        """The factors of which a value is known, with the values; NaN is unknown."""
        values = self.batch.values.double().numpy()
        columns = {factor.name: (factor, values[:, i]) for i, factor in enumerate(self.cohort.factors)}
        return {name: (factor, column) for name, (factor, column) in columns.items() if np.isfinite(column).any()}

    def true_change(self, truth: Truth) -> float:
        """By how much a true counterfactual differs from its scan in the factor, in its unit; NaN is unknown."""
        factor, values = self.labelled().get(truth.wish.name, (None, np.full(len(self.cohort), np.nan)))
        present, operation = float(values[truth.row]), truth.wish.operation
        if factor is None or factor.kind in ("ordinal", "categorical"):
            return math.nan
        number = float(truth.wish.value)
        return number if operation == "+=" else present * (number - 1) if operation == "*=" else number - present


def evenly(rows: Sequence[int], most: int) -> list[int]:
    """At most so many of the rows, evenly spread over them."""
    step = max(1, -(-len(rows) // most))
    return list(rows[::step])


def gathered(study: Study, table: Path | None, split: str, progress: Progress) -> Material:
    """The scans of a split of the study's own cohort, or of another table with the same columns.

    Factors and masks for which the table has no column, or an empty one, are unknown.

    Raises:
        CohortError: The table is gone, does not fit the study, has no scan in the split, or its scans cannot be read.
    """
    path = _found(study, table)
    columns = read_table(path)
    factors = tuple(_as_far_as_known(factor, columns) for factor in study_factors(study))
    clamps = _clamps(study, factors, columns)
    cohort, notes = _rows(study, path, columns, factors, list(clamps.values()), split)
    progress.stage("reading scans", len(cohort))
    masks = [factor.name for factor in factors if factor.mask]
    loader = loading(study.grid, masks, air=study.scanner.air)
    voxel_ml = study.grid.spacing_mm**3 / 1000
    store = usual_store(study.grid, study.scanner.air)
    batch = load_cohort(cohort, loader, voxel_ml, lambda done, total: progress.advance(1), store)
    varying = {name: tuple(row.groups[i] for row in cohort.rows) for i, name in enumerate(clamps)}
    return Material(cohort, batch, _truths(path, cohort), notes, varying)


def _clamps(study: Study, factors: Sequence[Factor], table: pd.DataFrame) -> dict[str, str]:
    """For each factor that a clamped [[supervision]] lets vary alone, the column that names the groups."""
    names = {*(factor.name for factor in factors), *study.scanner.factors}
    return {
        entry.vary[0]: entry.by
        for entry in study.supervision
        if entry.kind == "clamp" and entry.vary and len(entry.vary) == 1 and entry.vary[0] in names
        if entry.by in table.columns
    }


def _found(study: Study, table: Path | None) -> Path:
    if table is not None:
        return table
    own = study.cohort.table
    if not own.is_file():
        raise CohortError(
            f"The model's own cohort was asked for, but its table {own} is not there any more. "
            "Name a table with --cohort COHORT.tsv."
        )
    return own


def _as_far_as_known(factor: Factor, table: pd.DataFrame) -> Factor:
    """The factor without the columns of which this table says nothing."""
    has = {name: name in table.columns and bool((table[name].str.strip() != "").any()) for name in table.columns}
    column, mask = (name if name and has.get(name) else None for name in (factor.column, factor.mask))
    return replace(factor, column=column, mask=mask)


def _rows(
    study: Study, path: Path, table: pd.DataFrame, factors: Sequence[Factor], groups: Sequence[str], split: str
) -> tuple[Cohort, tuple[str, ...]]:
    settings = study.cohort
    missing_split = settings.split is not None and settings.split not in table.columns
    cohort = read_cohort(
        path,
        factors,
        scan=settings.scan,
        subject=settings.subject,
        split=None if missing_split else settings.split,
        groups=groups,
        seed=study.training.seed,
    )
    if missing_split:
        every = tuple(replace(row, split=split) for row in cohort.rows)
        note = f"The table has no column {settings.split}, so all of its scans were measured, whatever training saw."
        return Cohort(every, cohort.factors), (note,)
    return cohort.of(split), ()


def _truths(path: Path, cohort: Cohort) -> tuple[Truth, ...]:
    """The true counterfactuals beside a cohort's table, of the scans that are measured.

    Raises:
        CohortError: The table of counterfactuals is not one, or files that it names are not there.
    """
    beside = path.parent / TRUTHS
    if not beside.is_file():
        return ()
    table = read_table(beside)
    absent = [name for name in _TRUTH_COLUMNS if name not in table.columns]
    if absent:
        raise CohortError(f"{TRUTHS} has no column {', '.join(absent)}. It needs {', '.join(_TRUTH_COLUMNS)}.")
    rows = {row.scan: index for index, row in enumerate(cohort.rows)}
    truths, faults = [], []
    for number, (scan, edit, name) in enumerate(table[list(_TRUTH_COLUMNS)].itertuples(index=False), start=2):
        row = rows.get(path.parent / scan)
        if row is None:
            continue
        try:
            truths.append(Truth(row, edit, parse_wish(edit), path.parent / name))
        except UsageError as error:
            faults.append(f"row {number}: {error}")
            continue
        if not name or not truths[-1].path.is_file():
            faults.append(f"row {number}: {Path(name).name or 'an empty cell'} is not there")
    if faults:
        raise CohortError(f"{several(len(faults), 'row')} of {TRUTHS} cannot be used: {'; '.join(faults)}.")
    return tuple(truths)
