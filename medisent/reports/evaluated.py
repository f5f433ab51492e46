"""The page that says what is known of a model: scores with interval, floor and ceiling, edits beside doing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medisent.reports.columns import COLUMNS, FURTHER, METRICS, figure, way
from medisent.reports.figures import Bar, bar, share_of
from medisent.reports.pages import data_uri, rendered
from medisent.words import (
    MISSING,
    decimals_for,
    edit,
    fixed,
    known,
    measured,
    metric,
    number,
    sentence,
    words,
)

SECTIONS = ("readout", "counterfactual", "leakage", "disentanglement", "reconstruction")
DETAILS = ("rce_inside", "rce_outside", "effect", "asked", "missed", "unit", "n", "failed")
"""Columns of edits that stand in a table of their own."""


@dataclass(frozen=True)
class Table:
    """Figures under heads, one row a name."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Edit:
    """What an edit scores, and what doing nothing scores in its place; ``shares`` are bars from 0 to 1."""

    name: str
    figures: tuple[str, ...]
    nothing: tuple[str, ...]
    shares: tuple[float | None, float]
    better: bool | None


@dataclass(frozen=True)
class Edits:
    """The table of counterfactuals."""

    heads: tuple[str, ...]
    rows: tuple[Edit, ...]


@dataclass(frozen=True)
class Heat:
    """How well each block tells each factor; cells are text, shade from 0 to 1, and whether the two belong together."""

    factors: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, float, bool], ...]], ...]


@dataclass(frozen=True)
class ScoreRow:
    """A score in words and as a bar."""

    name: str
    meaning: str
    value: str
    interval: str
    floor: str
    ceiling: str
    bar: Bar


@dataclass(frozen=True)
class Headline:
    """One of the few figures that matter most: the figure, what it is, and what to hold it against."""

    figure: str
    what: str
    against: str


@dataclass(frozen=True)
class EvaluationPage:
    """Everything the template shows."""

    title: str
    n: str
    headlines: tuple[Headline, ...]
    notes: tuple[str, ...]
    definitions: tuple[str, ...]
    readout: Table | None
    edits: Edits | None
    details: Table | None
    leakage: Heat | None
    scores: tuple[ScoreRow, ...]
    reconstruction: Table | None
    further: tuple[tuple[str, Table], ...]
    pictures: tuple[tuple[str, str], ...]


def evaluation_page(
    evaluation: Mapping[str, Any],
    *,
    title: str,
    notes: Sequence[str],
    definitions: Sequence[str] = (),
    pictures: Sequence[tuple[str, bytes]] = (),
) -> str:
    """One HTML page about one model.

    Args:
        evaluation: What evaluation.json holds. Effect errors and coverages are shares. A figure may be a number or a
            mapping with value, low and high. Sections that are not known here are shown as plain tables.
        title: What was measured.
        notes: What a reader must know first.
        definitions: How the figures were measured.
        pictures: Captions and PNG files.
    """
    readout, edits, leakage, scores, reconstruction = (_section(evaluation, name) for name in SECTIONS)
    named = _named(edits)
    facts = EvaluationPage(
        title=title,
        n=number(evaluation.get("n")),
        headlines=tuple(_headlines(readout, edits, leakage, _section(evaluation, "maps"), named)),
        notes=tuple(notes),
        definitions=tuple(definitions),
        readout=_table(readout) if readout else None,
        edits=_edits(edits, named) if edits else None,
        details=_details(edits, named),
        leakage=_heat(leakage) if leakage else None,
        scores=tuple(_score(name, score) for name, score in scores.items()),
        reconstruction=_table({"all scans": reconstruction}) if reconstruction else None,
        further=tuple(_further(evaluation, named)),
        pictures=tuple((caption, data_uri(png)) for caption, png in pictures),
    )
    return rendered("evaluation", (), facts)


def _headlines(
    readout: Mapping[str, Any],
    edits: Mapping[str, Any],
    leakage: Mapping[str, Any],
    maps: Mapping[str, Any],
    named: Mapping[str, str],
) -> Iterator[Headline]:
    """How well factors are read, how near edits come to the truth, what leaks most, and how good the maps are."""
    r2 = {name: found for name, row in readout.items() if (found := _part(row, "r2")) is not None}
    if r2:
        worst = min(r2, key=lambda name: r2[name])
        yield Headline(fixed(r2[worst], 2), "R² of the least well read factor", words(worst))
    rce = {wish: found for wish, row in edits.items() if (found := _part(row, "rce")) is not None}
    if rce:
        worst = max(rce, key=lambda wish: rce[wish])
        yield Headline(fixed(rce[worst], 2), "RCE of the worst edit; doing nothing scores 1", named[worst])
    leaks = {
        (block, name): found
        for block, row in leakage.items()
        if isinstance(row, Mapping)
        for name in row
        if name != block and (found := _part(row, name)) is not None
    }
    if leaks:
        block, name = max(leaks, key=lambda pair: leaks[pair])
        yield Headline(fixed(leaks[block, name], 2), "R² of the largest leak", f"{words(name)} from {words(block)}")
    ncc = {name: found for name, row in maps.items() if (found := _part(row, "ncc")) is not None}
    if ncc:
        worst = min(ncc, key=lambda name: ncc[name])
        against = _part(maps[worst], "integrated_gradients")
        beside = "" if against is None else f"; integrated gradients {fixed(against, 2)}"
        yield Headline(fixed(ncc[worst], 2), "correlation of the worst map with the true change", words(worst) + beside)


def _part(row: object, key: str) -> float | None:
    """A figure of a row, where there is one."""
    return _middle(row.get(key)) if isinstance(row, Mapping) else None


def _section(evaluation: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = evaluation.get(name)
    return found if isinstance(found, Mapping) else {}


def _named(edits: Mapping[str, Any]) -> dict[str, str]:
    """Edits as people write them, the longest first."""
    units = {name: str(row.get("unit") or "") if isinstance(row, Mapping) else "" for name, row in edits.items()}
    return {name: edit(name, units[name]) for name in sorted(edits, key=len, reverse=True)}


def _said(name: str, named: Mapping[str, str]) -> str:
    """A name in words; the edits in it as people write them."""
    for wish, said in named.items():
        name = name.replace(wish, said)
    return words(", ".join(edit(part) for part in name.split(", ")))


def _keys(rows: Mapping[str, Any]) -> list[str]:
    """Names of columns: those known here first and in their order, then others as they come."""
    present = dict.fromkeys(key for row in rows.values() if isinstance(row, Mapping) for key in row)
    return [key for key in COLUMNS if key in present] + [key for key in present if key not in COLUMNS]


def _table(
    rows: Mapping[str, Any],
    named: Mapping[str, str] = MappingProxyType({}),
    write: Callable[[object], str] | None = None,
) -> Table:
    """The rows as text.

    Args:
        rows: By name, figures by name, or one figure each.
        named: Edits as people write them.
        write: How all of the figures are written, where they are of one kind.
    """
    keys = [key for key in _keys(rows) if key != "unit"]
    if not keys:
        told = ((_said(name, named), ((write or measured)(value),)) for name, value in rows.items())
        return Table(("Value",), tuple(told))
    body = []
    for name, row in rows.items():
        figures = row if isinstance(row, Mapping) else {}
        unit = figures.get("unit")
        cells = (write(figures.get(key)) if write else figure(key, figures.get(key), unit) for key in keys)
        body.append((_said(name, named), tuple(cells)))
    return Table(tuple(COLUMNS.get(key) or sentence(_said(key, named)) for key in keys), tuple(body))


def _edits(rows: Mapping[str, Any], named: Mapping[str, str]) -> Edits:
    """Every edit beside doing nothing, which scores an RCE of 1 by definition and is never left out."""
    known_keys = (key for key in _keys(rows) if key not in DETAILS and not key.endswith("_noop"))
    keys = ["rce", *(key for key in known_keys if key != "rce")]
    end = max([1.15, *(_middle(row.get("rce")) or 0 for row in rows.values() if isinstance(row, Mapping))])
    edits = []
    for name, row in rows.items():
        figures = row if isinstance(row, Mapping) else {}
        rce, nothing = _middle(figures.get("rce")), _middle(figures.get("rce_noop"))
        nothing = 1.0 if nothing is None else nothing
        still = {key: figures.get(f"{key}_noop") for key in keys} | {"rce": nothing}
        edits.append(
            Edit(
                name=named[name],
                figures=tuple(figure(key, figures.get(key)) for key in keys),
                nothing=tuple(figure(key, still[key]) for key in keys),
                shares=(share_of(rce, end), share_of(nothing, end) or 0.0),
                better=None if rce is None else rce < nothing,
            )
        )
    return Edits(tuple(COLUMNS.get(key) or sentence(key) for key in keys), tuple(edits))


def _details(rows: Mapping[str, Any], named: Mapping[str, str]) -> Table | None:
    """What else is known of edits: where the error lies, and the effect in the factor's unit."""
    kept = {
        name: {key: row[key] for key in DETAILS if key in row} for name, row in rows.items() if isinstance(row, Mapping)
    }
    return _table(kept, named) if any(kept.values()) else None


def _middle(value: object) -> float | None:
    return known(value.get("value") if isinstance(value, Mapping) else value)


def _heat(rows: Mapping[str, Any]) -> Heat:
    blocks = {block: row for block, row in rows.items() if isinstance(row, Mapping)}
    factors = list(dict.fromkeys(name for row in blocks.values() for name in row))
    body = []
    for block, row in blocks.items():
        cells = []
        for name in factors:
            value = _middle(row.get(name))
            text = MISSING if value is None else fixed(value, 2)
            cells.append((text, round(share_of(value, 1.0) or 0.0, 3), block == name))
        body.append((words(block), tuple(cells)))
    return Heat(tuple(words(name) for name in factors), tuple(body))


def _score(name: str, score: object) -> ScoreRow:
    figures = score if isinstance(score, Mapping) else {"value": score}
    low, high = known(figures.get("low")), known(figures.get("high"))
    decimals = min(3, max(2, decimals_for(low, high) or 0))

    def write(value: object) -> str:
        found = known(value)
        return MISSING if found is None else fixed(found, decimals)

    return ScoreRow(
        name=metric(name),
        meaning=METRICS.get(name, ""),
        value=write(figures.get("value")),
        interval=f"{write(low)} to {write(high)}" if low is not None and high is not None else MISSING,
        floor=write(figures.get("floor")),
        ceiling=write(figures.get("ceiling")),
        bar=bar(figures),
    )


def _flat(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rows, those inside of rows brought out: what an edit does to a structure is one row."""
    if not all(
        isinstance(row, Mapping) and row and all(isinstance(p, Mapping) for p in row.values()) for row in rows.values()
    ):
        return rows
    return {f"{name}: {inner}": part for name, row in rows.items() for inner, part in row.items()}


def _further(evaluation: Mapping[str, Any], named: Mapping[str, str]) -> list[tuple[str, Table]]:
    """Tables of what the evaluation holds beyond the sections that are explained here."""
    tables, single = [], {}
    for name, value in evaluation.items():
        if name in (*SECTIONS, "schema", "n"):
            continue
        if isinstance(value, Mapping) and value:
            tables.append((FURTHER.get(name, sentence(name)), _table(_flat(value), named, way(name))))
        elif isinstance(value, (str, int, float)):
            single[name] = value
    return [*tables, *([("Other figures", _table(single))] if single else [])]
