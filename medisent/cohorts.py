"""What a cohort table says: which scans there are, of whom, in which split, and what is known of each."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from medisent.batches import Batch
from medisent.errors import CohortError, InterventionError, MachineError, MedisentError
from medisent.factors import Factor
from medisent.plurals import several
from medisent.stores import Sample, Stack, Store

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One scan of a cohort.

    Attributes:
        scan: Where it is.
        subject: Whose it is.
        split: ``train``, ``validation`` or ``test``.
        values: Of the factors, in their order; NaN is unknown.
        masks: Where the masks are, by factor; None is unknown.
        groups: For each [[supervision]], what it has in common with other rows, as written; empty is nothing.
        orders: For each [[supervision]], what orders it among these; NaN is unknown.
    """

    scan: Path
    subject: str
    split: str
    values: tuple[float, ...]
    masks: Mapping[str, Path | None]
    groups: tuple[str, ...] = ()
    orders: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """The rows of a table, checked.

    Attributes:
        rows: In the table's order.
        factors: Whose values the rows hold.
    """

    rows: tuple[Row, ...]
    factors: tuple[Factor, ...]

    def of(self, split: str) -> Cohort:
        """The rows of one split.

        Raises:
            CohortError: There are none.
        """
        rows = tuple(row for row in self.rows if row.split == split)
        if not rows:
            have = ", ".join(f"{s} {sum(r.split == s for r in self.rows)}" for s in SPLITS)
            raise CohortError(f"The {split} split was asked for, but the cohort has no scan in it ({have}).")
        return Cohort(rows, self.factors)

    def __len__(self) -> int:
        return len(self.rows)


def read_table(path: Path) -> pd.DataFrame:
    """The table as text, tab- or comma-separated; an empty cell is an empty string.

    Raises:
        CohortError: The table is missing or is not one.
    """
    if not path.is_file():
        raise CohortError(f"The cohort table {path} does not exist.")
    try:
        head = path.read_text(encoding="utf-8-sig").split("\n", 1)[0]
        table = pd.read_csv(
            path, sep="\t" if "\t" in head else ",", dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CohortError(f"{path} is not a tab- or comma-separated table: {error}.") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise CohortError(
            f"The rows of {path} have more cells than its header. Name every column, and end no row with a separator."
        )
    if table.empty:
        raise CohortError(f"{path} has a header but no row. A cohort needs at least one scan.")
    return table


def read_cohort(
    path: Path,
    factors: Sequence[Factor],
    *,
    scan: str = "scan",
    subject: str = "subject",
    split: str | None = None,
    groups: Sequence[str] = (),
    orders: Sequence[str | None] = (),
    seed: int = 0,
) -> Cohort:
    """The cohort of a table, with every path and every value checked.

    Arguments:
        path: Of the table; paths in it are relative to its folder.
        factors: What to look for in its columns.
        scan: Column with the scans.
        subject: Column with the subjects. Without it every scan is a subject of its own.
        split: Column with the splits; without it subjects are dealt out 70:15:15 by the seed.
        groups: Columns that say which rows have something in common, one a [[supervision]].
        orders: Columns with numbers that order rows that have it in common, one a [[supervision]]; None is none.
        seed: For dealing out subjects.

    Raises:
        CohortError: A column, a file or a value is not what it has to be; all such rows are named.
    """
    table = read_table(path)
    wanted = {
        scan,
        *(c for f in factors for c in (f.column, f.mask) if c),
        *groups,
        *(c for c in (split, *orders) if c),
    }
    absent = sorted(wanted - set(table.columns))
    if absent:
        raise CohortError(
            f"The study asks for the columns {', '.join(absent)}, but {path.name} has {', '.join(table.columns)}."
        )
    subjects = table[subject] if subject in table.columns else pd.Series(unnamed_subjects(len(table)))
    splits = _checked_splits(table[split], subjects) if split else subjects.map(lambda s: dealt(s, seed))
    values = factor_values(table, factors)
    ordered = _orders(table, orders or [None] * len(groups))
    _check_scans(table[scan])
    folder = path.parent
    rows = tuple(
        Row(
            folder / table[scan][i],
            subjects[i],
            splits[i],
            tuple(values[i]),
            {f.name: folder / table[f.mask][i] if table[f.mask][i] else None for f in factors if f.mask},
            tuple(table[column][i].strip() for column in groups),
            tuple(ordered[i]),
        )
        for i in range(len(table))
    )
    _check_files(rows, path)
    return Cohort(rows, tuple(factors))


def groups_told(cohort: Cohort, columns: Sequence[str], repeated: Sequence[bool]) -> Iterator[str]:
    """What to know of the groups that a study learns from: those that reach into other splits, and columns without any.

    Arguments:
        cohort: With a group a row for each of these columns.
        columns: Of the table.
        repeated: Of which of them something can be learned although no two scans agree, as scans are repeated.
    """
    for index, (column, alone) in enumerate(zip(columns, repeated, strict=True)):
        splits: dict[str, list[str]] = {}
        for row in cohort.rows:
            if row.groups[index]:
                splits.setdefault(row.groups[index], []).append(row.split)
        crossing = sum("train" in found and len(set(found)) > 1 for found in splits.values())
        if crossing:
            groups = several(crossing, f"group of column {column} reaches", f"groups of column {column} reach")
            yield f"{groups} into other splits; only their training scans are used."
        if not any(found.count("train") for found in splits.values()):
            yield f"No training scan is in a group of column {column}: nothing can be learned from it."
        elif not alone and all(found.count("train") < 2 for found in splits.values()):
            yield f"No two training scans agree in column {column}: nothing can be learned from it."


def load_cohort(
    cohort: Cohort,
    loader: Callable[[dict[str, Any]], Any],
    voxel_ml: float,
    tell: Callable[[int, int], None] = lambda done, total: None,
    store: Store | None = None,
) -> Batch:
    """All scans of a cohort on the model's grid, as one batch; memory-mapped where a store keeps them.

    A factor with a mask but without a value has the mask's volume as its value.

    Arguments:
        cohort: Which scans.
        loader: From the paths of one scan (and its masks) to tensors; see ``medisent.loading``.
        voxel_ml: Volume of a voxel of the model's grid in mL.
        tell: Called with how many are done, and of how many.
        store: Where cohorts are kept that were loaded before, on the loader's grid.

    Raises:
        CohortError: Scans cannot be read; all of them are listed with the reason.
    """
    shaped = [f.name for f in cohort.factors if f.mask]
    stack = _kept(cohort, loader, shaped, tell, store) if store else None
    stack = stack or Stack.of(_samples(cohort, loader, shaped, tell))
    values = torch.tensor([row.values for row in cohort.rows], dtype=torch.float32).reshape(len(cohort), -1)
    batch = Batch(
        stack.scan,
        stack.coverage,
        stack.log_scale,
        values,
        stack.masks,
        _group_numbers([row.groups for row in cohort.rows]),
        torch.tensor([row.orders for row in cohort.rows], dtype=torch.float32).reshape(len(cohort), -1),
    )
    return _with_measured_volumes(batch, cohort, shaped, voxel_ml)


def _samples(
    cohort: Cohort,
    loader: Callable[[dict[str, Any]], Any],
    shaped: Sequence[str],
    tell: Callable[[int, int], None],
) -> Iterator[Sample]:
    """Each scan on the grid: scan, coverage, masks, log scale.

    Raises:
        CohortError: After the last, if any could not be read.
    """
    faults: list[str] = []
    for index, row in enumerate(cohort.rows):
        try:
            found = loader({"scan": row.scan, **row.masks})
        except MedisentError as error:
            faults.append(str(error))
        else:
            scan = found["scan"]
            masks = torch.cat([found[name] for name in shaped]) if shaped else scan.new_zeros(0, *scan.shape[1:])
            yield scan, found["coverage"], masks, found["log_scale"]
        tell(index + 1, len(cohort))
    if faults:
        raise CohortError(f"{len(faults)} of {several(len(cohort), 'scan')} cannot be used: " + _listed(faults))


def _kept(
    cohort: Cohort,
    loader: Callable[[dict[str, Any]], Any],
    shaped: Sequence[str],
    tell: Callable[[int, int], None],
    store: Store,
) -> Stack | None:
    """The stack that a store has or now gets; None where it cannot keep one."""
    scans = [(row.scan, *(row.masks.get(name) for name in shaped)) for row in cohort.rows]
    try:
        key = store.key(scans)
    except OSError:
        return None  # reading them will say what is wrong
    if key is None:
        return None
    found = store.kept(key, scans)
    if found is not None:
        for index in range(len(cohort)):
            tell(index + 1, len(cohort))
        return found
    with contextlib.suppress(MachineError):  # a cache without room is no reason not to train
        return store.keep(key, scans, _samples(cohort, loader, shaped, tell))
    return None


def _with_measured_volumes(batch: Batch, cohort: Cohort, shaped: Sequence[str], voxel_ml: float) -> Batch:
    for column, factor in enumerate(cohort.factors):
        if factor.mask:
            volume = batch.masks[:, shaped.index(factor.name)].sum((1, 2, 3)) * voxel_ml
            unknown = batch.values[:, column].isnan()
            batch.values[unknown, column] = volume[unknown]
    return batch


def factor_values(table: pd.DataFrame, factors: Sequence[Factor]) -> Float[np.ndarray, "rows factors"]:
    """What a table says of each factor, row by row; NaN is unknown.

    Raises:
        CohortError: A cell is no value of its factor, or a column has none at all.
    """
    values = np.full((len(table), len(factors)), math.nan)
    faults: list[str] = []
    for column, factor in enumerate(factors):
        if factor.column is None:
            continue
        for row, text in enumerate(table[factor.column]):
            if text.strip().lower() in ("", "nan", "na", "n/a"):
                continue
            try:
                values[row, column] = factor.parse(text.strip())
            except InterventionError as error:
                faults.append(f"row {row + 2}: {error}")
        if not np.isfinite(values[:, column]).any() and not faults and not factor.mask:
            raise CohortError(
                f"The column {factor.column} of {factor.name} has no value at all. "
                "Fill some in, or leave the factor out."
            )
    if faults:
        raise CohortError(f"{several(len(faults), 'value')} cannot be used: " + _listed(faults))
    return values


def _orders(table: pd.DataFrame, orders: Sequence[str | None]) -> np.ndarray:
    """The numbers of these columns, NaN where a cell is empty; a column of NaN where there is none."""
    found = np.full((len(table), len(orders)), math.nan)
    faults: list[str] = []
    for column, name in enumerate(orders):
        for row, text in enumerate(table[name] if name else ()):
            if text.strip().lower() in ("", "nan", "na", "n/a"):
                continue
            try:
                found[row, column] = float(text)
            except ValueError:
                faults.append(f"row {row + 2}: {text!r}")
    if faults:
        named = ", ".join(sorted({name for name in orders if name}))
        raise CohortError(
            f"What orders rows ({named}) are numbers, but {several(len(faults), 'cell is', 'cells are')} not: "
            + _listed(faults)
        )
    return found


def _checked_splits(splits: pd.Series[str], subjects: pd.Series[str]) -> pd.Series[str]:
    wrong = [f"row {i + 2}: {s!r}" for i, s in enumerate(splits) if s not in SPLITS]
    if wrong:
        raise CohortError(
            f"A split is one of {', '.join(SPLITS)}, but {several(len(wrong), 'row has', 'rows have')} another: "
            + _listed(wrong)
        )
    spread = splits.groupby(subjects).nunique()
    leaking = [f"row {i + 2}" for i, s in enumerate(subjects) if spread[s] > 1]
    if leaking:
        raise CohortError(
            "Scans of one subject fall into different splits, which would flatter every figure "
            f"({several(int((spread > 1).sum()), 'subject')}): " + _listed(leaking)
        )
    return splits


def unnamed_subjects(rows: int) -> list[str]:
    """The subjects of a table that names none: one a row."""
    return [f"row {i}" for i in range(rows)]


def dealt(subject: str, seed: int) -> str:
    """A split for a subject, the same wherever the subject stands in the table: 70:15:15."""
    digest = hashlib.sha256(f"{seed} {subject}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.7 else "validation" if share < 0.85 else "test"


def _check_scans(scans: pd.Series[str]) -> None:
    absent = [f"row {i + 2}" for i, name in enumerate(scans) if not name.strip()]
    if absent:
        raise CohortError(
            f"{several(len(absent), 'row names', 'rows name')} no scan. Name one, or leave the row out: "
            + _listed(absent)
        )


def _check_files(rows: Sequence[Row], path: Path) -> None:
    absent = [
        f"row {i + 2}: {p.name}"
        for i, row in enumerate(rows)
        for p in (row.scan, *row.masks.values())
        if p is not None and not p.exists()
    ]
    if absent:
        raise CohortError(
            f"{path.name} names {several(len(absent), 'file that is', 'files that are')} not there: " + _listed(absent)
        )


def _listed(faults: Sequence[str]) -> str:
    """All of them, on one line: a refusal is short, but names everything there is to mend."""
    return "; ".join(faults) + "."


def _group_numbers(groups: Sequence[tuple[str, ...]]) -> Tensor:
    """One column a [[supervision]]; within it, one number a group."""
    columns = []
    for column in zip(*groups, strict=True):
        names = {name: number for number, name in enumerate(sorted({g for g in column if g}))}
        columns.append(torch.tensor([names.get(group, -1) for group in column]))
    return torch.stack(columns, 1) if columns else torch.zeros(len(groups), 0, dtype=torch.long)
