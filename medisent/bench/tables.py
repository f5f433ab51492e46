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
from medisent.words import MISSING, fixed


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes:
        head: Above it.
        value: From the figures of one seed; None is what does not apply.
        key: Its name in ``bench.json``; without one the head.
    """

    head: str
    value: Callable[[Figures], float | None]
    key: str = ""


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
                "median": {name: value for name, value in medians.items() if value is not None},
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


def values(entry: Entry, column: Column) -> list[float]:
    """The figure of every seed that has one, by seed."""
    found = [column.value(result.figures) for result in sorted(entry.results, key=lambda r: r.seed)]
    return [value for value in found if value is not None]


def middle(entry: Entry, column: Column) -> float | None:
    """The median over seeds."""
    found = values(entry, column)
    return median(found) if found else None


def cell(entry: Entry, column: Column) -> BenchCell:
    """The median and, where they differ, the value of every seed."""
    found = values(entry, column)
    if not found:
        return BenchCell(MISSING)
    every = tuple(map(short, found))
    return BenchCell(short(median(found)), every if len(set(every)) > 1 else ())


def short(value: float) -> str:
    """Two decimals; three where two would leave little."""
    return fixed(value, 3 if abs(value) < 0.1 else 2)


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


def _r2(leak: Leak | None) -> float | None:
    return None if leak is None else leak.r2


_EDITS = {
    "brightness x1.5": ("brightness × 1.5", "brightness"),
    "contrast x1.2": ("contrast × 1.2", "contrast"),
    "ventricles x1.6": ("ventricles × 1.6", "ventricle_volume"),
    "tumour +15 mL": ("tumour + 15 mL", "tumour_volume"),
}
"""By name in ``bench.json``: as people write it, and whose edit it is."""

_FACTORS = {"tumour": "tumour_volume", "ventricles": "ventricle_volume", "head size": "head_size", "gain": "brightness"}

KINDS = (
    Kind(
        "Edits: relative counterfactual error",
        "The error after an edit, as a share of the true change; median of up to 20 scans. 0 is perfect, no edit is 1.",
        tuple(Column(head, _edit(name, lambda e: e.rce), key) for key, (head, name) in _EDITS.items()),
    ),
    Kind(
        "Edits: effect error",
        "By how much the size of the change misses the true one, relative to it, by a ruler that is not the model.",
        tuple(Column(head, _edit(name, lambda e: e.effect_error), key) for key, (head, name) in _EDITS.items()),
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
        "own block, and the worst pair of a factor's block and another factor.",
        (
            *(Column(head, _owned(name)) for head, name in (*_FACTORS.items(), ("contrast", "contrast"))),
            Column("worst other", lambda f: _r2(f.leak_between)),
        ),
    ),
    Kind(
        "Leakage between the partitions",
        "The worst pair: R² of ridge regression or boosted trees, whichever is better, cross-fitted by subject, from "
        "any block of one role to any factor of the other (tumour, ventricles, head size; gain, contrast, bias field). "
        "The site is told from all anatomy blocks together, of codes without blocks from the whole code.",
        (
            Column("nuisance to anatomy", lambda f: _r2(f.leak_to_anatomy)),
            Column("anatomy to nuisance", lambda f: _r2(f.leak_to_nuisance)),
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
        tuple(Column(head, _mapped(_FACTORS[head])) for head in ("tumour", "ventricles")),
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
