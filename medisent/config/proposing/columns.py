"""What factor a column of a table may hold: its kind, role, unit and levels, guessed from its name and its values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from medisent.config.proposing.listing import Listing, known, words
from medisent.config.reading import RESERVED_NAMES
from medisent.factors import SCANNER_FACTORS
from medisent.formats.folder import MASK_WORDS
from medisent.plurals import several

# By how a name ends: the unit as it is printed, and what the rest of the name is then called.
_UNITS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("ml", "cc", "cm3", "cm³"), ("mL", "_volume")),
    **dict.fromkeys(("mm3", "mm³"), ("mm3", "_volume")),
    **dict.fromkeys(("years", "year", "yrs", "yr"), ("years", "")),
    **dict.fromkeys(("months", "month"), ("months", "")),
    **dict.fromkeys(("weeks", "week"), ("weeks", "")),
    **dict.fromkeys(("days", "day"), ("days", "")),
    **dict.fromkeys(("deg", "degree", "degrees"), ("degrees", "")),
    **dict.fromkeys(("rad", "radians"), ("rad", "")),
    **dict.fromkeys(("percent", "pct", "%"), ("%", "")),
    **dict.fromkeys(("tesla",), ("T", "")),
    **{unit.lower(): (unit, "") for unit in ("mm", "cm", "µm", "kg", "ms", "HU", "mGy", "Hz", "kV", "mAs")},
}
_USUAL_UNITS = {"age": "years", "bmi": "kg/m2"}
_PERIODS = {"degrees": 360.0, "rad": round(2 * np.pi, 6)}
_SCANNER_NAMES = {"gain": "brightness", "gamma": "contrast"}
_SIDES = {"sex", "gender", "side", "hemisphere", "handedness", "group", "diagnosis", "dx", "type", "class"}
_ORDERED = {"grade", "stage", "score", "rating", "severity", "level", "class", "birads", "pirads", "asa"}
_SCALES = (
    ("none", "minimal", "mild", "moderate", "severe"),
    ("absent", "small", "medium", "large"),
    ("very low", "low", "medium", "high", "very high"),
    ("i", "ii", "iii", "iv", "v"),
)
_NUISANCE = {
    *("brightness", "contrast", "bias", "blur", "noise", "snr", "cnr", "gain", "gamma", "motion", "artefact"),
    *("artifact", "scanner", "vendor", "manufacturer", "model", "coil", "coils", "protocol", "sequence", "software"),
    *("field", "strength", "tesla", "te", "tr", "ti", "flip", "echo", "kernel", "dose", "kvp", "mas", "slice"),
    *("site", "center", "centre", "hospital", "institution", "operator", "station"),
}
_NOT_FACTORS = {
    *("session", "session_id", "ses", "visit", "run", "seed", "id", "index", "row", "number", "no", "uid", "uuid"),
    *("date", "time", "datetime", "name", "comment", "comments", "note", "notes", "md5", "sha256", "checksum"),
    *("split", "fold", "set", "partition", "subject", "patient", "participant", "participant_id", "accession", "scan"),
    *("unnamed", "birthday", "dob"),
}
_MOST_LEVELS = 12
_FEW_LEVELS = 6


@dataclass(frozen=True)
class Column:
    """A factor as a column of the table suggests it.

    Attributes:
        name: Of the factor.
        role: Of the factor.
        kind: Of the factor.
        unit: Of its values, if the name tells.
        column: With the values.
        mask: Column with its masks.
        levels: Of an ordinal or categorical factor.
        offset: Of a positive factor with zeros.
        period: Of a circular factor.
        why: A word about the guess, for the study file.
    """

    name: str
    role: str
    kind: str
    unit: str = ""
    column: str | None = None
    mask: str | None = None
    levels: tuple[str, ...] = ()
    offset: float = 0.0
    period: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Guesses:
    """What the columns of a table may be.

    Attributes:
        factors: In the table's order.
        left_out: Columns that look like factors and cannot be taken as such, with the reason.
    """

    factors: tuple[Column, ...]
    left_out: tuple[tuple[str, str], ...]


def guess_factors(listing: Listing, learning: Sequence[bool]) -> Guesses:
    """A factor for every column that varies, with its mask where there is one.

    Arguments:
        listing: The table.
        learning: Which of its rows training may see: a factor has to vary there.
    """
    found: list[Column] = []
    left_out: list[tuple[str, str]] = []
    for name in listing.others:
        cells = [cell.strip() for cell in listing.rows[name]]
        there = known(cells)
        seen = {cell for cell, here, learnt in zip(cells, there, learning, strict=True) if here and learnt}
        filled = [cell for cell, here in zip(cells, there, strict=True) if here]
        if _is_no_factor(name) or not filled:
            continue
        if len(seen) < 2:
            same = "has one value in all scans" if len(set(filled)) < 2 else "has one value in all training scans"
            left_out.append((name, same))
            continue
        column = _factor(name, filled)
        if isinstance(column, str):
            left_out.append((name, column))
        elif column is not None and column.name not in [other.name for other in found]:
            found.append(column)
    return Guesses(tuple(_with_masks(found, listing.masks)), tuple(left_out))


def _is_no_factor(name: str) -> bool:
    parts = words(name)
    return "_".join(parts) in _NOT_FACTORS or not parts or parts[-1] in ("id", "uid", "uuid", "date", "path")


def _factor(name: str, cells: Sequence[str]) -> Column | str | None:
    """The factor in a column with these filled cells; a reason where it might be one, None where it holds none."""
    parts = words(name)
    unit, ending = _UNITS.get(parts[-1], ("", "")) if len(parts) > 1 else ("", "")
    base = "_".join(parts[:-1] if unit else parts)
    base += ending if unit and not base.endswith(ending) else ""
    factor = _SCANNER_NAMES.get(base, identifier(base))
    role = "nuisance" if factor in SCANNER_FACTORS or not _NUISANCE.isdisjoint(base.split("_")) else "anatomy"
    column = Column(factor, role, "", unit or _USUAL_UNITS.get(base, ""), name)
    numbers = numbers_in(cells)
    if numbers is None:
        return _of_words(column, cells)
    return _of_numbers(column, cells, numbers, set(parts))


def _of_words(column: Column, cells: Sequence[str]) -> Column | str | None:
    levels = sorted(set(cells))
    odd = sorted({cell for cell in cells if numbers_in([cell]) is None})
    count = sum(cell in odd for cell in cells)
    if len(cells) - count > 0.5 * len(cells):
        said = several(count, "cell that is none; empty this cell", "cells that are none; empty these cells")
        return f"has numbers and {said}"
    if all(numbers_in([cell.replace(",", ".", 1)]) is not None for cell in cells):
        return "has decimal commas; write points"
    if len(levels) > _MOST_LEVELS or len(levels) > len(cells) / 2:
        return None
    ordered = _in_order(levels)
    if ordered is not None and len(levels) > 2:
        return replace(column, kind="ordinal", levels=ordered, why="in this order, from the lowest")
    return replace(column, kind="categorical", levels=tuple(levels))


def _in_order(levels: Sequence[str]) -> tuple[str, ...] | None:
    """Levels from the lowest to the highest, where words or numbers in them tell."""
    plain = {level: level.lower() for level in levels}
    for scale in _SCALES:
        if set(plain.values()) <= set(scale):
            return tuple(sorted(levels, key=lambda level: scale.index(plain[level])))
    parts = {level: re.fullmatch(r"(\D*)(\d+)", level) for level in levels}
    stems = {match[1].strip().lower() for match in parts.values() if match}
    if all(parts.values()) and len(stems) == 1 and stems & _ORDERED:
        return tuple(sorted(levels, key=lambda level: int(re.sub(r"\D", "", level))))
    return None


def _of_numbers(column: Column, cells: Sequence[str], numbers: Float[np.ndarray, " n"], parts: set[str]) -> Column:
    levels = sorted(set(cells), key=float)
    whole = bool((numbers == np.round(numbers)).all()) and len(levels) == len(np.unique(numbers))
    graded = not _ORDERED.isdisjoint(parts)
    few = len(levels) <= (_MOST_LEVELS if graded else _FEW_LEVELS) and len(cells) > 2 * len(levels)
    if whole and few and not column.unit:
        kind = "ordinal" if len(levels) > 2 and _SIDES.isdisjoint(parts - {"class"}) else "categorical"
        return replace(column, kind=kind, levels=tuple(levels))
    period = _PERIODS.get(column.unit, 0.0)
    if period and np.ptp(numbers) > period / 2 and np.ptp(numbers) <= period:
        return replace(column, kind="circular", period=period)
    if numbers.min() < 0:
        return replace(column, kind="real")
    if numbers.min() > 0:
        return replace(column, kind="positive")
    offset = float(f"{np.median(numbers[numbers > 0]) / 10:.2g}")
    why = "zeros occur: the offset is added before the logarithm"
    return replace(column, kind="positive", offset=offset, why=why)


def numbers_in(cells: Sequence[str]) -> Float[np.ndarray, " n"] | None:
    """The cells as finite numbers; None where one is none."""
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _with_masks(factors: Sequence[Column], masks: Sequence[str]) -> Iterator[Column]:
    """The factors, each volume in mL with the mask that measures it, then a volume for every other mask."""
    stems = {mask: "_".join(word for word in words(mask) if word not in MASK_WORDS) for mask in masks}
    volumes = [column for column in factors if column.kind == "positive" and column.unit == "mL"]
    given: dict[str, str] = {}
    for mask, stem in stems.items():
        near = [column.name for column in volumes if stem and column.name.startswith(stem)]
        if not near and len(volumes) == len(masks) == 1:
            near = [volumes[0].name]
        if near and near[0] not in given:
            given[near[0]] = mask
    for column in factors:
        yield replace(column, mask=given.get(column.name))
    names = {column.name for column in factors}
    for mask in masks:
        name = identifier(f"{stems[mask]}_volume" if stems[mask] else "masked_volume")
        if mask not in given.values() and name not in names:
            names.add(name)
            yield Column(name, "anatomy", "positive", "mL", mask=mask, why="measured from the masks")


def identifier(name: str) -> str:
    """A name that a factor may have."""
    letters = "".join(c if c.isalnum() else "_" for c in name.strip().lower()).strip("_")
    letters = re.sub("_+", "_", letters)[:60]
    if not letters[:1].isalpha():
        letters = f"factor_{letters}"
    return f"{letters}_factor" if letters in RESERVED_NAMES or not letters.isidentifier() else letters
