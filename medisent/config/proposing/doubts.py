"""What in a cohort can mislead: split subjects, copies, missing labels, mixed scans, factors that go together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from medisent.cohorts import SPLITS
from medisent.config.proposing.columns import Column, Guesses
from medisent.config.proposing.dependence import Dependence, Variable, dependent
from medisent.config.proposing.listing import Listing, known
from medisent.config.proposing.sizes import Sizes, extent_mm
from medisent.config.proposing.survey import HOUNSFIELD_AIR, Survey
from medisent.plurals import several
from medisent.words import percent

SITE, BRIGHTNESS = "site", "measured brightness"
_FEW_SUBJECTS, _FEW_HELD, _FEW_OF_LEVEL = 50, 5, 5
_SAME = 0.95
_PAIRS_TOLD = 6
_MISSING_TOLD = 0.005
_SPACING_APART, _FIELD_APART, _CUT_TOLD = 2.0, 1.5, 0.01


def of_table(listing: Listing, splits: Sequence[str]) -> Iterator[str]:
    """What is odd about subjects and splits.

    Arguments:
        listing: The table.
        splits: Of its rows, as training deals them out.
    """
    subjects = listing.subjects
    if listing.subject is None:
        yield "There is no column 'subject': every scan counts as a subject of its own."
    if listing.split is not None and (leaking := leaking_subjects(listing)):
        yield (
            f"{leaking} {_subjects(leaking)} in more than one split. Training refuses that: until column "
            f"{listing.split} gives each subject one split, subjects are dealt out anew."
        )
    elif listing.split is not None and (wrong := odd_splits(listing)):
        yield (
            f"{several(wrong, f'cell of column {listing.split} is', f'cells of column {listing.split} are')} none of "
            "train, validation, test. Until that is mended, subjects are dealt out anew."
        )
    if (count := len(set(subjects))) < _FEW_SUBJECTS:
        yield f"{several(count, 'subject is', 'subjects are')} few: expect wide intervals."
    for split in ("validation", "test"):
        held = len({s for s, dealt in zip(subjects, splits, strict=True) if dealt == split})
        if held < _FEW_HELD and count >= _FEW_HELD:
            yield f"The {split} split has {held} {'subject' if held == 1 else 'subjects'}: its figures will be loose."


def leaking_subjects(listing: Listing) -> int:
    """How many subjects are in more than one split."""
    if listing.split is None or listing.subject is None:
        return 0
    return int((listing.rows.groupby(listing.subject)[listing.split].nunique() > 1).sum())


def odd_splits(listing: Listing) -> int:
    """How many cells of the column of splits name none."""
    return 0 if listing.split is None else int((~listing.rows[listing.split].isin(SPLITS)).sum())


def _subjects(count: int) -> str:
    return "subject is" if count == 1 else "subjects are"


def of_scans(listing: Listing, survey: Survey, splits: Sequence[str], sizes: Sizes) -> Iterator[str]:
    """What is odd about the scans."""
    if survey.unreadable:
        rows = len({fault.row for fault in survey.unreadable})
        name = "names" if rows == 1 else "name"
        of_all = f"{rows} of {several(len(listing.rows), 'row')}"
        yield f"{of_all} {name} a scan or mask that cannot be read. Training refuses such rows."
    yield from _of_copies(listing, survey, splits)
    kinds = Counter(filter(None, survey.modalities))
    like_ct, looks = sum(look.hounsfield for look in survey.looks.values()), len(survey.looks)
    if len(kinds) > 1:
        yield f"Scans of several kinds are mixed: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}."
    elif 0 < like_ct < looks:
        yield f"{like_ct} of {looks} scans whose voxels were read have intensities of CT, the others have not."
    yield from _of_geometries(survey)
    if sizes.cut > _CUT_TOLD:
        yield f"The grid cuts off up to {percent(sizes.cut)} of a scan's tissue. Give it more cells if that matters."


def _of_copies(listing: Listing, survey: Survey, splits: Sequence[str]) -> Iterator[str]:
    paths = [listing.path(row) for row in range(len(listing.rows))]
    repeated = len(paths) - len(set(paths))
    if repeated:
        yield f"{several(repeated, 'row names', 'rows name')} a scan that an earlier row names."
    groups = [group for group in survey.copies if len({paths[row] for row in group}) > 1]
    if not groups:
        return
    extra = sum(len({paths[row] for row in group}) - 1 for group in groups)
    first = ", ".join(str(row + 2) for row in groups[0])
    copies = several(extra, "scan is a copy of another", "scans are copies of others")
    yield f"{copies}, voxel for voxel; the first are those of rows {first}."
    subjects = listing.subjects
    apart = [g for g in groups if len({splits[row] for row in g}) > 1 and len({subjects[row] for row in g}) > 1]
    if apart:
        rows = ", ".join(str(row + 2) for row in apart[0])
        yield (
            f"{several(len(apart), 'scan is', 'scans are')} in two splits under two subjects' names (rows {rows}), "
            "which flatters figures. Give copies one subject, or leave them out."
        )


def _of_geometries(survey: Survey) -> Iterator[str]:
    spacings = [max(g.spacing) for g in survey.geometries]
    if max(spacings) > _SPACING_APART * min(spacings):
        apart = f"between {min(spacings):.3g} and {max(spacings):.3g} mm"
        yield f"Voxels are {apart} long: thick and thin slices are mixed."
    fields = np.array([extent_mm(g) for g in survey.geometries])
    low, high = np.percentile(fields, 5, axis=0), np.percentile(fields, 95, axis=0)
    worst = int((high / low).argmax())
    if high[worst] > _FIELD_APART * low[worst]:
        axis = ("left to right", "back to front", "bottom to top")[worst]
        span = f"{low[worst]:.0f} to {high[worst]:.0f} mm"
        yield f"Fields of view differ: {axis} they measure {span}. Anatomy may be cut off in some."


def of_labels(listing: Listing, guesses: Guesses) -> Iterator[str]:
    """What is odd about the columns of factors."""
    for name, why in guesses.left_out:
        yield f"Column {name} {why}: it is no factor."
    for column in guesses.factors:
        for name in filter(None, (column.column, column.mask)):
            missing = 1 - float(np.mean(known(listing.rows[name])))
            if missing > _MISSING_TOLD:
                yield f"{percent(missing)} of column {name} is empty."
        rare = [level for level, number in _levels(listing, column).items() if number < _FEW_OF_LEVEL]
        if rare:
            yield f"{column.name} has fewer than {_FEW_OF_LEVEL} scans of {', '.join(rare)}: that is hard to learn."


def _levels(listing: Listing, column: Column) -> Counter[str]:
    if not column.levels or column.column is None:
        return Counter()
    return Counter(cell.strip() for cell in listing.rows[column.column] if cell.strip() in column.levels)


def confounded(listing: Listing, survey: Survey, factors: Sequence[Column]) -> tuple[Dependence, ...]:
    """Factors of the anatomy that go with the site, the brightness of the scans, or another factor."""
    first = _first_scans(listing)
    variables = {c.name: _variable(listing, c, first) for c in factors if c.column}
    anatomy = [c.name for c in factors if c.role == "anatomy" and c.column]
    others = [c.name for c in factors if c.role == "nuisance" and c.column]
    pairs = [*combinations(anatomy, 2), *((a, b) for a in anatomy for b in others)]
    surroundings = {
        SITE: _sites(listing, first),
        BRIGHTNESS: Variable(np.array([_log_brightness(survey, row) for row in first])),
    }
    if survey.air == HOUNSFIELD_AIR:  # calibrated: how bright tissue is says what it is, not what saw it
        del surroundings[BRIGHTNESS]
    for name, variable in surroundings.items():
        if len(np.unique(variable.values[np.isfinite(variable.values)])) > 1:
            label = name if name not in variables else f"{name} of the scans"
            variables[label] = variable
            pairs += [(a, label) for a in anatomy]
    return dependent(variables, pairs)


def of_confounding(found: Sequence[Dependence], columns: Sequence[Column]) -> Iterator[str]:
    """The pairs that go together, in sentences, the strongest of each sort first."""
    names = {column.name for column in columns}
    outer = [pair for pair in found if pair.other not in names]
    inner = [pair for pair in found if pair.other in names]
    for pair in outer:
        if pair.other.startswith(SITE):
            yield f"{pair.one} differs between sites ({_measured(pair)}): its effect and theirs are confounded."
        else:
            yield (
                f"{pair.one} goes with the {BRIGHTNESS} of the scans ({_measured(pair)}): "
                "the model may read the scanner for it."
            )
    for pair in inner[:_PAIRS_TOLD]:
        advice = "keep one of them" if pair.strength > _SAME else "each may be read for the other"
        yield f"{pair.one} and {pair.other} go together ({_measured(pair)}): {advice}."
    if len(inner) > _PAIRS_TOLD:
        yield f"Further pairs of factors go together, less strongly: {len(inner) - _PAIRS_TOLD}."


def _measured(pair: Dependence) -> str:
    return f"distance correlation {pair.strength:.2f}, p {pair.p:.1g}"


def _first_scans(listing: Listing) -> list[int]:
    """The first row of each subject: scans of one subject are not independent."""
    return list({subject: row for row, subject in reversed(list(enumerate(listing.subjects)))}.values())[::-1]


def _variable(listing: Listing, column: Column, rows: Sequence[int]) -> Variable:
    assert column.column is not None
    cells = [listing.rows[column.column].iloc[row].strip() for row in rows]
    if column.kind in ("categorical", "ordinal"):
        place = {level: float(index) for index, level in enumerate(column.levels)}
        return Variable(np.array([place.get(cell, math.nan) for cell in cells]), levels=column.kind == "categorical")
    values = np.array([float(cell) if there else math.nan for cell, there in zip(cells, known(cells), strict=True)])
    if column.kind == "positive":
        values = np.log(np.maximum(values + column.offset, 1e-30))
    return Variable(values)


def _sites(listing: Listing, rows: Sequence[int]) -> Variable:
    if listing.site is None:
        return Variable(np.full(len(rows), math.nan), levels=True)
    cells = [listing.rows[listing.site].iloc[row].strip() for row in rows]
    place = {site: float(index) for index, site in enumerate(sorted(set(cells)))}
    return Variable(
        np.array([place[cell] if there else math.nan for cell, there in zip(cells, known(cells), strict=True)]),
        levels=True,
    )


def _log_brightness(survey: Survey, row: int) -> float:
    look = survey.looks.get(row)
    return math.log(look.brightness) if look is not None and look.brightness > 0 else math.nan
