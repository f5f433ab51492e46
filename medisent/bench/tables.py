"""How the benchmark reads: medians over seeds with every value behind them, as JSON, as a page, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from medisent.bench.figures import SCHEMA, Edit, Figures, Leak, Result, read_result
from medisent.files import write_text
from medisent.reports import BenchCell, BenchTable, bench_page
from medisent.version import versions
from medisent.words import MISSING, fixed, small, words


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes:
        head: Above it.
        value: From the figures of one seed; None is what does not apply.
        key: Its name in ``bench.json``; without one the head.
        beside: The figure that it tells more of, of the seed for which that is the median.
    """

    head: str
    value: Callable[[Figures], float | str | None]
    key: str = ""
    beside: Callable[[Figures], float | None] | None = None


@dataclass(frozen=True)
class Kind:
    """A table of the page.

    Attributes:
        title: Above it.
        says: What its columns mean.
        columns: In order.
    """

    title: str
    says: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Entry:
    """One row of the benchmark with all of its results.

    Attributes:
        name: Of the row.
        title: As tables show it.
        note: What a reader must know.
        results: By seed.
    """

    name: str
    title: str
    note: str
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Standing:
    """All that has been measured so far.

    Attributes:
        entries: Every row, measured or not.
        size: Heads and steps, in words.
    """

    entries: tuple[Entry, ...]
    size: str

    def tables(self) -> list[BenchTable]:
        """The page's tables; a row stands in a table where it has a figure, and in the last one always."""
        tables = []
        for kind in KINDS:
            rows = [(entry.title, [cell(entry, column) for column in kind.columns]) for entry in self.entries]
            rows = [(title, cells) for title, cells in rows if any(c.text != MISSING for c in cells)]
            if rows:
                tables.append(BenchTable(kind.title, kind.says, ("method", *(c.head for c in kind.columns)), rows))
        return [*tables, _about(self.entries)]

    def to_json(self) -> dict[str, Any]:
        """Every figure of every seed, and the medians that the tables show."""
        rows = {}
        for entry in self.entries:
            medians = {
                f"{kind.title}: {column.key or column.head}": middle(entry, column)
                for kind in KINDS
                for column in kind.columns
            }
            rows[entry.name] = {
                "title": entry.title,
                "note": entry.note,
                "median": {
                    n: value for n, value in medians.items() if value is not None and not isinstance(value, str)
                },
                "seeds": {str(result.seed): asdict(result) for result in entry.results},
            }
        return {"schema": SCHEMA, "size": self.size, "versions": versions(), "rows": rows}

    def markdown(self) -> str:
        """The page for ``docs``."""
        parts = ["# Benchmark", "", *_INTRODUCTION, "", f"Size: {self.size}.", ""]
        for table in self.tables():
            parts += [f"## {table.title}", "", table.says, ""] if table.says else [f"## {table.title}", ""]
            lines = [
                table.heads,
                tuple("---" for _ in table.heads),
                *((t, *map(str, cells)) for t, cells in table.rows),
            ]
            parts += ["| " + " | ".join(line) + " |" for line in lines]
            parts.append("")
        return "\n".join(parts)


def write_standing(out: Path, rows: Sequence[Any], size: str) -> Standing:
    """Write ``bench.json``, ``bench.html`` and ``bench.md`` from what has been measured; what it was.

    Raises:
        MachineError: The folder cannot be written.
    """
    found = [read_result(path) for path in sorted((out / "results").glob("*.json"))]
    entries = tuple(Entry(row.name, row.title, row.note, tuple(r for r in found if r.row == row.name)) for row in rows)
    standing = Standing(entries, size)
    write_text(out / "bench.json", json.dumps(standing.to_json(), indent=2, ensure_ascii=False) + "\n")
    write_text(out / "bench.md", standing.markdown())
    write_text(out / "bench.html", bench_page("Benchmark", (_ON_THE_PAGE, f"Size: {size}."), standing.tables()))
    return standing


def values(entry: Entry, column: Column) -> list[float | str]:
    """The figure of every seed that has one, by seed; beside another column, of the seed that is the median there."""
    figures = [result.figures for result in sorted(entry.results, key=lambda r: r.seed)]
    if column.beside is not None:
        sizes = [(size, i) for i, f in enumerate(figures) if (size := column.beside(f)) is not None]
        figures = [figures[sorted(sizes)[(len(sizes) - 1) // 2][1]]] if sizes else []
    found = [column.value(f) for f in figures]
    return [value for value in found if value not in (None, "")]


def middle(entry: Entry, column: Column) -> float | str | None:
    """The median over seeds; of names and counts the first."""
    found = values(entry, column)
    numbers = [value for value in found if not isinstance(value, str)]
    return median(numbers) if numbers else found[0] if found else None


def cell(entry: Entry, column: Column) -> BenchCell:
    """The median and, where they differ, the value of every seed."""
    found = values(entry, column)
    every = tuple(map(short, found))
    return BenchCell(short(middle(entry, column)), every if len(set(every)) > 1 else ())


def short(value: float | str | None) -> str:
    """Two decimals, three where two would leave little; names and counts as they are, a dash for nothing."""
    if value is None or isinstance(value, str):
        return value or MISSING
    return small(value, 3) if 0 <= value < 0.1 else fixed(value, 3 if abs(value) < 0.1 else 2)


def _about(entries: Sequence[Entry]) -> BenchTable:
    rows = []
    for entry in entries:
        steps = sorted({result.steps for result in entry.results})
        time = _minutes(median(r.seconds for r in entry.results)) if entry.results else MISSING
        seeds = str(len(entry.results)) if entry.results else "not measured"
        cells = (entry.note, ", ".join(f"{count:,}" for count in steps) or MISSING, time, seeds)
        rows.append((entry.title, [BenchCell(text) for text in cells]))
    heads = ("method", "what it is", "steps", "time, median", "seeds")
    return BenchTable("What each row is", "", heads, rows, sentences=1)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _read(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.readout.get(name)


def _inside(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.coverage.get(name)


def _probed(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.probe.get(name)


def _owned(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.own.get(name)


def _metric(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.separation.get(name)


def _mapped(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.maps.get(name)


def _edit(name: str, part: Callable[[Edit], float | None]) -> Callable[[Figures], float | None]:
    """The edit of a factor; the step of a volume depends on the size of the heads, so its name is its beginning."""

    def value(figures: Figures) -> float | None:
        found = next((score for edit, score in figures.edits.items() if edit.startswith(name)), None)
        return None if found is None else part(found)

    return value


def _elsewhere(name: str, structure: str) -> Callable[[Figures], float | None]:
    return _edit(name, lambda e: e.elsewhere_ml.get(structure))


def _leak(head: str, leak: Callable[[Figures], Leak | None]) -> tuple[Column, ...]:
    """What leaks most, which pair that is, and what the labels alone say of it."""

    def r2(figures: Figures) -> float | None:
        found = leak(figures)
        return None if found is None else found.r2

    def pair(figures: Figures) -> str | None:
        found = leak(figures)
        return None if found is None else " → ".join(_HEADS.get(n, words(n)) for n in (found.block, found.factor))

    def labels(figures: Figures) -> float | None:
        found = leak(figures)
        return None if found is None else found.labels

    return (
        Column(head, r2),
        Column("which pair", pair, f"{head}, pair", beside=r2),
        Column("its labels alone", labels, f"{head}, labels alone", beside=r2),
    )


def _in_two_orders(figures: Figures) -> float | None:
    return max(figures.commutativity.values(), default=None)


def _worst_two(figures: Figures) -> str | None:
    shares = figures.commutativity
    if not shares:
        return None
    wishes = max(shares, key=lambda pair: shares[pair]).split(", ")
    return " and ".join(head for head, name in _EDITS.values() if any(wish.startswith(name) for wish in wishes))


def _moved_by_nothing(figures: Figures) -> float | None:
    found = [score.composition for score in figures.edits.values() if score.composition is not None]
    return max(found, default=None)


_EDITS = {
    "brightness x1.5": ("brightness × 1.5", "brightness"),
    "contrast x1.2": ("contrast × 1.2", "contrast"),
    "ventricles x1.6": ("ventricles × 1.6", "ventricle_volume"),
    "tumour +15 mL": ("tumour + 15 mL", "tumour_volume"),
}
"""By name in ``bench.json``: as people write it, and whose edit it is."""

_FACTORS = {"tumour": "tumour_volume", "ventricles": "ventricle_volume", "head size": "head_size", "gain": "brightness"}
_HEADS = {name: head for head, name in _FACTORS.items()}

_OF_PAIRS = (
    "Beside it stand block and factor of the seed with the median, and how well the true values of the block's own "
    "factor alone tell that other factor: what they tell is the cohort's, and no leak of the block."
)

KINDS = (
    Kind(
        "Edits: relative counterfactual error",
        "The error after an edit, as a share of the true change; median over scans. 0 is perfect, no edit is 1.",
        (
            *(Column(head, _edit(name, lambda e: e.rce), key) for key, (head, name) in _EDITS.items()),
            Column("scans", lambda f: ", ".join(sorted({str(score.n) for score in f.edits.values()}))),
        ),
    ),
    Kind(
        "Edits: effect error",
        "By how much the size of the change misses the true one, relative to it, by a ruler that is not the model.",
        tuple(Column(head, _edit(name, lambda e: e.effect_error), key) for key, (head, name) in _EDITS.items()),
    ),
    Kind(
        "Edits: off target",
        "Where the truth does not change (by less than 2 % of its largest change), medians over scans. In mL: how much "
        "of the other structure there is too much or too little, which is the absolute error within 9 mm of its mask "
        "over the contrast of the structure. The other columns: mean absolute error, relative to the mean true change "
        "where it does change.",
        (
            Column("tumour + 15 mL: ventricles, mL", _elsewhere("tumour_volume", "ventricle_volume"), "ventricles, mL"),
            Column("ventricles × 1.6: tumour, mL", _elsewhere("ventricle_volume", "tumour_volume"), "tumour, mL"),
            *(Column(head, _edit(name, lambda e: e.off_target), key) for key, (head, name) in _EDITS.items()),
        ),
    ),
    Kind(
        "Edits: there and back, and in either order",
        "Back: the edited scan is read afresh and the factor moved back; what is left, relative to the edit, is the "
        "median over scans. Either order: what lies between the two orders of two edits, relative to both together, is "
        "the median of up to 6 scans, of the two edits for which it is largest. Nothing asked: the largest voxel "
        "difference that an edit for nothing makes in any scan. Edits that do nothing are perfect here: it takes the "
        "error above to tell.",
        (
            *(
                Column(f"back, {head}", _edit(name, lambda e: e.reversibility), f"back, {key}")
                for key, (head, name) in _EDITS.items()
            ),
            Column("either order", _in_two_orders),
            Column("which two", _worst_two, "either order, which two", beside=_in_two_orders),
            Column("nothing asked", _moved_by_nothing),
        ),
    ),
    Kind(
        "Readouts",
        "R² of the method's own estimates, and the share of truths inside their 90 % intervals.",
        (
            *(Column(f"{head}, R²", _read(name), f"{head}, R2") for head, name in _FACTORS.items()),
            *(Column(f"{head}, inside", _inside(name)) for head, name in _FACTORS.items()),
        ),
    ),
    Kind(
        "What the whole code tells",
        "R² of ridge regression or boosted trees on all latents, whichever is better, cross-fitted by subject. For "
        "codes without blocks this takes the place of a readout.",
        tuple(Column(head, _probed(name)) for head, name in (*_FACTORS.items(), ("contrast", "contrast"))),
    ),
    Kind(
        "Blocks and their factors",
        "R² of ridge regression or boosted trees, whichever is better, cross-fitted by subject: of a factor from its "
        f"own block, and the worst pair of a factor's block and another factor. {_OF_PAIRS}",
        (
            *(Column(head, _owned(name)) for head, name in (*_FACTORS.items(), ("contrast", "contrast"))),
            *_leak("worst other", lambda f: f.leak_between),
        ),
    ),
    Kind(
        "Leakage between the partitions",
        "The worst pair: R² of ridge regression or boosted trees, whichever is better, cross-fitted by subject, from "
        "any block of one role to any factor of the other (tumour, ventricles, head size; gain, contrast, bias field). "
        f"{_OF_PAIRS} The site is told from all anatomy blocks together, of codes without blocks from the whole code.",
        (
            *_leak("nuisance to anatomy", lambda f: f.leak_to_anatomy),
            *_leak("anatomy to nuisance", lambda f: f.leak_to_nuisance),
            Column("site told", lambda f: f.site),
            Column("site by chance", lambda f: f.site_chance),
        ),
    ),
    Kind(
        "Separation of single latents",
        "InfoM, InfoC and InfoE (cross-fitted), DCI (held-out permutation importance) and MCC over six factors.",
        (
            Column("InfoM", _metric("infom")),
            Column("InfoC", _metric("infoc")),
            Column("InfoE", _metric("infoe")),
            Column("DCI disentanglement", _metric("dci_disentanglement")),
            Column("DCI completeness", _metric("dci_completeness")),
            Column("DCI informativeness", _metric("dci_informativeness")),
            Column("MCC", _metric("mcc")),
        ),
    ),
    Kind(
        "Factor maps",
        "Correlation of a factor's map with the true difference that the factor makes, median over scans.",
        (
            *(Column(head, _mapped(_FACTORS[head])) for head in ("tumour", "ventricles")),
            Column("scans", lambda f: str(f.mapped or "")),
        ),
    ),
)

_ON_THE_PAGE = (
    "Made by medisent bench on rendered heads, whose truth is known. A figure is the median over the seeds of "
    "training; below it, where they differ, stand the values of all seeds. Methods are judged on other heads and other "
    "scanners of the same kind than those they learned from, unless the row says more. A dash is what does not apply."
)
_INTRODUCTION = (
    "Made by `medisent bench` on rendered heads, whose truth is known: medians over the seeds of training, the value "
    "of every seed in brackets. Methods are judged on other heads and other scanners of the same kind than those they "
    "learned from, unless the row says more. A dash is what does not apply.",
)
