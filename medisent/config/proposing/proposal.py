"""From a table or a folder to a study file: looks at both, decides, writes it down, and reads it back to be sure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from medisent.cohorts import SPLITS, dealt, factor_values, read_table
from medisent.config.proposing.columns import guess_factors
from medisent.config.proposing.dependence import Dependence
from medisent.config.proposing.doubts import (
    confounded,
    leaking_subjects,
    odd_splits,
    of_confounding,
    of_labels,
    of_scans,
    of_table,
)
from medisent.config.proposing.folders import table_of
from medisent.config.proposing.listing import Listing
from medisent.config.proposing.sizes import Machine, propose_sizes
from medisent.config.proposing.survey import Survey, Unreadable, look_over
from medisent.config.proposing.writing import Written, study_lines
from medisent.config.reading import parse_study
from medisent.errors import CohortError, UsageError
from medisent.plurals import several
from medisent.progress import Progress

_TABLES = ("cohort.tsv", "cohort.csv")
_MOST_SEEDS = 1000


@dataclass(frozen=True, eq=False)
class Proposal:
    """A study file to begin with.

    Attributes:
        text: The file, with comments.
        table: The cohort's table.
        rows: The table itself where it is to be written; None where it is there.
        factors: The names of its factors.
        warnings: What in the cohort can mislead, one sentence each.
        unreadable: Every scan and mask that training would refuse.
        confounding: The pairs that go together.
        scans: How many rows the table has.
        subjects: Of how many people.
    """

    text: str
    table: Path
    rows: str | None
    factors: tuple[str, ...]
    warnings: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]
    confounding: tuple[Dependence, ...]
    scans: int
    subjects: int


def propose_study(
    cohort: Path, study: Path, progress: Progress, machine: Machine | None = None, *, schema: str | None = None
) -> Proposal:
    """A study file for a cohort.

    Arguments:
        cohort: Its table; or a folder with scans, for which a table is made.
        study: Where the study file is to be.
        progress: Is told how far the work is.
        machine: What it is trained on.
        schema: The schema's file, as editors are told in the study file's first line.

    Raises:
        CohortError: There is no table or scan, or none that can be read.
        UsageError: The table that is to be written is there already.
    """
    table = next((cohort / name for name in _TABLES if (cohort / name).is_file()), cohort)
    made = table.is_dir()
    notes: tuple[str, ...] = ()
    if made:
        table = study.with_name("cohort.tsv" if study.stem == "study" else f"{study.stem}_cohort.tsv")
        if table.exists():
            raise UsageError(
                f"{table} is there already and is not written over. Give it to init, or choose another -o."
            )
        found = table_of(cohort)
        rows, notes = found.rows, found.notes
    else:
        rows = read_table(table)
    listing = Listing.of(rows, table.parent)
    survey = look_over(listing, progress)
    _refuse_unreadable(listing, survey)
    unreadable = survey.unreadable
    if made:
        listing, survey, said = _readable(listing, survey)
        notes = (*notes, *said)
    progress.stage("looking for what can mislead")
    proposal = _proposed(listing, survey, table, study, machine or Machine(), notes, schema)
    written = _text_of(listing, table.parent) if made else None
    return replace(proposal, rows=written, unreadable=unreadable)


def _proposed(
    listing: Listing,
    survey: Survey,
    table: Path,
    study: Path,
    machine: Machine,
    notes: Iterable[str],
    schema: str | None,
) -> Proposal:
    split = None if leaking_subjects(listing) or odd_splits(listing) else listing.split
    seed, splits = _dealt(listing, split)
    guesses = guess_factors(listing, [dealt == "train" for dealt in splits])
    sizes = propose_sizes(survey, splits.count("train"), machine)
    pairs = confounded(listing, survey, guesses.factors)
    warnings = (
        *notes,
        *of_table(listing, splits),
        *of_scans(listing, survey, splits, sizes),
        *of_labels(listing, guesses),
        *of_confounding(pairs, guesses.factors),
    )
    kept = replace(listing, split=split)
    written = Written(_relative(table, study.parent), kept, guesses, survey, sizes, seed, splits.count("train"))
    text = "\n".join(study_lines(written, warnings, schema))
    study_said = parse_study(text, "the proposed study")
    factor_values(listing.rows, study_said.factors)
    return Proposal(
        text,
        table,
        None,
        tuple(column.name for column in guesses.factors),
        warnings,
        survey.unreadable,
        pairs,
        len(listing.rows),
        len(set(listing.subjects)),
    )


def _dealt(listing: Listing, split: str | None) -> tuple[int, list[str]]:
    """The seed, the first by which every split gets a subject if there is one, and the split of each row."""
    subjects = listing.subjects
    if split is not None:
        return 0, list(listing.rows[split])
    enough = len(set(subjects)) >= len(SPLITS)
    for seed in range(_MOST_SEEDS):
        splits = [dealt(subject, seed) for subject in subjects]
        if "train" in splits and (not enough or set(splits) == set(SPLITS)):
            return seed, splits
    return 0, [dealt(subject, 0) for subject in subjects]


def _readable(listing: Listing, survey: Survey) -> tuple[Listing, Survey, tuple[str, ...]]:
    """The rows that can be read, without the masks that cannot, and a word on the others."""
    if not survey.unreadable:
        return listing, survey, ()
    rows = listing.rows.copy()
    for fault in survey.unreadable:
        if fault.column != listing.scan:
            rows.loc[fault.row, fault.column] = ""
    kept = [row for row, found in enumerate(survey.outlines) if found is not None]
    rows = rows.iloc[kept].reset_index(drop=True)
    what = several(
        len(survey.unreadable), "scan or mask cannot be read and is", "scans or masks cannot be read and are"
    )
    said = f"{what} left out of the table."
    return replace(listing, rows=rows), survey.of_rows(kept), (said,)


def _refuse_unreadable(listing: Listing, survey: Survey) -> None:
    if not survey.geometries:
        first = survey.unreadable[0].message if survey.unreadable else ""
        raise CohortError(f"Not one of {several(len(listing.rows), 'scan')} can be read. The first: {first}")


def _text_of(listing: Listing, home: Path) -> str:
    """The table as text, its paths relative to the folder that it will be in."""
    rows = listing.rows.copy()
    for name in (listing.scan, *listing.masks):
        rows[name] = [_relative(Path(cell), home) if cell else "" for cell in rows[name]]
    return rows.to_csv(sep="\t", index=False, lineterminator="\n")


def _relative(path: Path, home: Path) -> str:
    return Path(os.path.relpath(path.resolve(), home.resolve())).as_posix()
