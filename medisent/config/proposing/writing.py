"""The lines of a proposed study file, each choice with a word on why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medisent.config.proposing.columns import Column, Guesses
from medisent.config.proposing.listing import Listing
from medisent.config.proposing.sizes import Sizes
from medisent.config.proposing.survey import HOUNSFIELD_AIR, Survey
from medisent.factors import SCANNER_FACTORS
from medisent.plurals import several
from medisent.words import percent

_COMMENT_AT = 29
_ROLES = "anatomy: to be explained; nuisance: to be told apart"


@dataclass(frozen=True, eq=False)
class Written:
    """What a study file is written from.

    Attributes:
        table: The cohort table as the study file names it.
        listing: What its columns are.
        guesses: The factors.
        survey: Of the scans.
        sizes: Of grid, networks and training.
        seed: By which subjects are dealt out.
        training: How many scans are for training.
    """

    table: str
    listing: Listing
    guesses: Guesses
    survey: Survey
    sizes: Sizes
    seed: int
    training: int


def study_lines(written: Written, warnings: Sequence[str], schema: str | None) -> Iterator[str]:
    """The lines of the study file.

    Arguments:
        written: What was decided.
        warnings: What to beware of, in sentences.
        schema: The file with the schema, for editors.
    """
    if schema is not None:
        yield f"#:schema {schema}"
    yield "# A study file to begin with. Read the factors: what they are is guessed from the columns' names and values."
    yield "# Every setting there is: docs/study-file.md, or medisent schema. Before training: medisent train --dry-run."
    yield from (f"# Beware: {warning}" for warning in warnings)
    yield from _cohort_lines(written)
    yield from _grid_lines(written.sizes, written.survey)
    yield from _scanner_lines(written.survey)
    for column in written.guesses.factors:
        yield from _factor_lines(column)
    if not written.guesses.factors:
        yield from _no_factor_lines()
    yield from _training_lines(written)


def _cohort_lines(written: Written) -> Iterator[str]:
    listing = written.listing
    yield from ("", "[cohort]", f"table = {_quoted(written.table)}", f"scan = {_quoted(listing.scan)}")
    named = {"subject": listing.subject, "split": listing.split, "site": listing.site}
    comments = {"subject": "scans of one subject never fall into different splits"}
    for setting, column in named.items():
        if column is not None:
            yield _commented(f"{setting} = {_quoted(column)}", comments.get(setting, ""))
    if listing.split is None:
        yield "# Without a column for splits, subjects are dealt out 70:15:15 by the seed."


def _grid_lines(sizes: Sizes, survey: Survey) -> Iterator[str]:
    yield from ("", "[grid]")
    looked = several(len(survey.looks), "scan")
    yield f"# Holds the anatomy of {looked} whose voxels were read, centred on each field of view."
    if sizes.outside >= 0.005:
        share = percent(sizes.outside)
        yield f"# It leaves out {share} of the median scan's field, {_cut(sizes)}; edits reach no further."
    yield _commented(f"spacing_mm = {sizes.grid.spacing_mm}", "of a cell; smaller structures are not seen")
    yield f"shape = {list(sizes.grid.shape)}"


def _cut(sizes: Sizes) -> str:
    return "air only" if sizes.cut < 0.0005 else f"and at most {percent(sizes.cut, 1)} of a scan's tissue"


def _scanner_lines(survey: Survey) -> Iterator[str]:
    yield from ("", "[scanner]", "# Learned without labels; leave out what your scanners do not vary in.")
    yield f"factors = {json.dumps(list(SCANNER_FACTORS))}"
    if survey.air:
        said = "intensities are those of CT" if survey.air == HOUNSFIELD_AIR else "values are shifted below zero"
        yield _commented(f"air = {survey.air}", f"what air measures: {said}")


def _factor_lines(column: Column) -> Iterator[str]:
    yield from ("", "[[factors]]", f'name = "{column.name}"')
    yield _commented(f'role = "{column.role}"', _ROLES)
    yield _commented(f'kind = "{column.kind}"', "" if column.offset else column.why)
    optional = {"unit": column.unit, "column": column.column, "mask": column.mask}
    yield from (f"{name} = {_quoted(value)}" for name, value in optional.items() if value)
    if column.levels:
        yield f"levels = {json.dumps(list(column.levels), ensure_ascii=False)}"
    if column.period:
        yield f"period = {column.period}"
    if column.offset:
        yield _commented(f"offset = {column.offset}", column.why)


def _no_factor_lines() -> Iterator[str]:
    yield ""
    yield "# The table says nothing of the anatomy. To learn a factor, give the table a column and name it here:"
    yield from ("# [[factors]]", '# name = "tumour_volume"', '# role = "anatomy"', '# kind = "positive"')
    yield from ('# unit = "mL"', '# column = "tumour_ml"', '# mask = "tumour_mask"    # optional')


def _training_lines(written: Written) -> Iterator[str]:
    sizes = written.sizes
    yield from ("", "[network]")
    yield _commented(f"width = {sizes.width}", f"a step takes about {sizes.step_gb:.1f} GB with this batch")
    yield _commented(f"rest = {sizes.rest}", "anatomy latents without a name")
    yield from ("", "[training]")
    yield _commented(f"minutes = {sizes.minutes}", "or epochs, or steps; --dry-run measures how far that goes")
    yield _commented(f"batch = {sizes.batch}", f"of {several(written.training, 'training scan')}")
    why = "the first that gives every split a subject" if written.seed else ""
    yield from (_commented(f"seed = {written.seed}", why), "")


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_COMMENT_AT}}# {comment}" if comment else line


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
