"""The page of a training: how it goes, curves over its steps, and the same scans redrawn and edited as it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from medisent.plurals import several
from medisent.reports.curves import Chart, chart
from medisent.reports.evaluated import Headline, Heat
from medisent.reports.pages import data_uri, rendered
from medisent.volumes.pictures import Window, grey_png
from medisent.words import MISSING, fixed, known, number, percent, words

_GREYS = Window(0.0, 255.0)
_MOST_COLUMNS = 8
_NOT_TERMS = ("step", "seconds", "learning_rate", "scans_a_second", "validation")
_WELL, _HARDLY = 0.5, 0.2
_PATIENCE, _RISE = 3, 0.02  # looks without a better one, and by what share of all that was gained costs rose since


@dataclass(frozen=True)
class Block:
    """A block of latents: its name, ``anatomy`` or ``nuisance``, how many latents, and its factor's unit, if any."""

    name: str
    role: str
    size: int
    unit: str = ""


@dataclass(frozen=True)
class Ending:
    """How a training ended: after which step, and, where it failed, why, in a sentence or a few."""

    how: Literal["done", "stopped", "failed"]
    step: int
    why: str = ""


@dataclass(frozen=True, eq=False)
class Film:
    """The same slices at several moments of a training; greys from 0 to 255.

    Attributes:
        originals: The scans themselves.
        edits: What each edit asks for.
        moved: The scan that is edited.
        moments: Step, and after it each scan redrawn, followed by the one scan after each edit.
    """

    originals: UInt8[np.ndarray, "scans rows columns"]
    edits: tuple[str, ...]
    moved: int
    moments: Sequence[tuple[int, UInt8[np.ndarray, "cells rows columns"]]]


@dataclass(frozen=True)
class Strip:
    """A row of pictures: what it is, the scan itself, and one picture a moment, empty where nothing was found."""

    name: str
    original: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Filled:
    """How many of a block's latents are active at some steps: text and share."""

    name: str
    role: str
    cells: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TrainedPage:
    """Everything the template shows."""

    title: str
    headline: str
    state: str
    refresh: bool
    tiles: tuple[Headline, ...]
    warnings: tuple[str, ...]
    written: str
    scans: str
    readouts: tuple[Chart, ...]
    terms: tuple[Chart, ...]
    leaks: tuple[Chart, ...]
    heat: Heat | None
    units: tuple[Filled, ...]
    unit_steps: tuple[str, ...]
    film: tuple[Strip, ...]
    edited: tuple[Strip, ...]
    moments: tuple[str, ...]
    gate: str


def training_page(
    records: Sequence[Mapping[str, Any]],
    *,
    title: str,
    share: float,
    written: str,
    blocks: Sequence[Block],
    ending: Ending | None = None,
    film: Film | None = None,
    gate: float | None = None,
) -> str:
    """One HTML page about a training; while it goes on the page loads itself again every minute.

    Arguments:
        records: The lines of metrics.jsonl.
        title: What is learned.
        share: How much is done, 0 to 1.
        written: When this was written.
        blocks: The blocks of latents.
        ending: How it ended, if it did.
        film: Pictures of a few held-out scans.
        gate: The largest R2 with which a factor may be read from a block that is not its own.
    """
    seen = [record for record in records if "validation" not in record]
    looks = [record for record in records if "validation" in record]
    last = records[-1] if records else {}
    found: dict[str, Any] = {}  # a look may tell costs alone: then the last of each
    for record in looks:
        found |= record["validation"]
    step = int(last.get("step", 0)) if ending is None else ending.step
    seconds = float(last.get("seconds", 0.0))
    done = ending is not None and ending.how == "done"
    end = step if done else step / max(share, 1e-6) if step else 1
    units = _units(looks, blocks)
    facts = TrainedPage(
        title=title,
        headline=_headline(found, step, seconds, share, ending),
        state="done" if done else f"{percent(min(share, 1.0))} of the training done",
        refresh=ending is None,
        tiles=tuple(_tiles(found, seen)),
        warnings=((ending.why,) if ending and ending.why else ()) + tuple(_warnings(looks, found, blocks, share, gate)),
        written=written,
        scans=number(found.get("scans")),
        readouts=tuple(_readouts(looks, blocks, end)),
        terms=tuple(_terms(seen, looks, end)),
        leaks=tuple(_leaks(looks, blocks, end, gate)),
        heat=_heat(found.get("leakage") or {}),
        units=units[1],
        unit_steps=units[0],
        film=tuple(_film(film, edited=False)) if film else (),
        edited=tuple(_film(film, edited=True)) if film else (),
        moments=tuple(fixed(at, 0) for at, _ in film.moments) if film else (),
        gate="" if gate is None else number(gate),
    )
    return rendered("training", (), facts)


def _headline(found: Mapping[str, Any], step: int, seconds: float, share: float, ending: Ending | None) -> str:
    """How it goes, or went, in a sentence or two."""
    begun = _begun(step, seconds, share, ending)
    told = [
        f"{words(name)} {fixed(r2, 2)}"
        for name, row in (found.get("readout") or {}).items()
        if (r2 := known(row.get("r2"))) is not None
    ]
    if not told:
        return begun
    listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    return f"{begun} R² of readouts on {several(found['scans'], 'held-out scan')}: {listed}."


def _begun(step: int, seconds: float, share: float, ending: Ending | None) -> str:
    """How far it is, or came."""
    if ending is not None and ending.how != "done":
        begun = f"{ending.how.capitalize()} at step {fixed(step, 0)}"
        return f"{begun}; the same command goes on." if ending.how == "stopped" else f"{begun}."
    spent = f"{fixed(step, 0)} {'step' if step == 1 else 'steps'} in {_span(seconds)}"
    if ending is not None:
        return f"Done: {spent}."
    if not step:
        return "Training has begun."
    return f"Training: {spent}, about {_span(seconds * (1 - share) / share)} left." if share else f"{spent}."


def _tiles(found: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> Iterator[Headline]:
    """The few figures that matter most."""
    r2 = {name: v for name, row in (found.get("readout") or {}).items() if (v := known(row.get("r2"))) is not None}
    if r2:
        worst = min(r2, key=lambda name: r2[name])
        yield Headline(fixed(r2[worst], 2), "R² of the least well read factor", words(worst))
    leak = max(_foreign(found.get("leakage") or {}), default=None)
    if leak:
        yield Headline(fixed(leak[0], 2), "R² of the largest leak, linear probe", f"{words(leak[2])} from {leak[1]}")
    nats = known((found.get("nats") or {}).get("total"))
    if nats is not None:
        yield Headline(fixed(nats, 0), "held-out cost, nats a scan", "the weighted sum of all terms")
    pace = known(seen[-1].get("scans_a_second")) if seen else None
    if pace is not None:
        yield Headline(number(pace), "scans a second", "in training")


def _warnings(
    looks: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    blocks: Sequence[Block],
    share: float,
    gate: float | None,
) -> Iterator[str]:
    """What is wrong, or will be."""
    if not looks:
        if share > 0.2:
            yield "There is no validation split, or it was never looked at: nothing is known of scans not learned from."
        return
    costs = [(int(r["step"]), v) for r in looks if (v := known((r["validation"].get("nats") or {}).get("total")))]
    if len(costs) > _PATIENCE:
        best = min(range(len(costs)), key=lambda i: costs[i][1])
        gained = max(value for _, value in costs) - costs[best][1]
        if best < len(costs) - _PATIENCE and costs[-1][1] - costs[best][1] > _RISE * gained:
            yield (
                f"The held-out cost has been rising since step {fixed(costs[best][0], 0)}: the network learns the "
                'training scans by heart. More scans help, or [training] keep = "best".'
            )
    active = found.get("active_units") or {}
    for block in blocks:
        if share > 0.3 and block.name != "nuisance_rest" and active.get(block.name) == 0:
            yield f"No latent of {words(block.name)} moves from scan to scan: the block has collapsed."
    for name, row in (found.get("readout") or {}).items():
        r2 = known(row.get("r2"))
        if share > 0.5 and r2 is not None and r2 < _HARDLY:
            yield f"{words(name)} is hardly read: R² {fixed(r2, 2)} on held-out scans."
    over = [pair for pair in _foreign(found.get("leakage") or {}) if gate is not None and pair[0] > gate]
    if over and share > 0.3:
        told = ", ".join(f"{words(name)} from {words(block)} ({fixed(r2, 2)})" for r2, block, name in over[:3])
        yield f"The study allows leakage up to R² {number(gate)}, but a linear probe reads {told}."
    if int(found.get("scans", 0)) < 10:
        yield f"Only {several(int(found.get('scans', 0)), 'held-out scan')}: the figures are rough."


def _foreign(leakage: Mapping[str, Mapping[str, float]]) -> list[tuple[float, str, str]]:
    """R2, block and factor of all pairs that do not belong together, the largest first."""
    pairs = [
        (v, b, n) for b, row in leakage.items() for n, r2 in row.items() if n != b and (v := known(r2)) is not None
    ]
    return sorted(pairs, reverse=True)


def _readouts(looks: Sequence[Mapping[str, Any]], blocks: Sequence[Block], end: float) -> Iterator[Chart]:
    known_blocks = {block.name: block for block in blocks}
    for name in dict.fromkeys(name for record in looks for name in record["validation"].get("readout") or {}):
        points = _points(looks, lambda found, name=name: ((found.get("readout") or {}).get(name) or {}).get("r2"))
        block = known_blocks.get(name, Block(name, "", 0))
        errors = _points(looks, lambda found, name=name: ((found.get("readout") or {}).get(name) or {}).get("mae"))
        if points:
            now = f"off by {number(errors[-1][1], 2)} {block.unit}".rstrip() if errors else ""
            last = ("", fixed(points[-1][1], 2))
            yield chart(words(name), [], points, end=end, now=now, ends=last, between=(-0.1, 1.0), kind=block.role)


def _terms(seen: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]], end: float) -> Iterator[Chart]:
    names = dict.fromkeys(name for record in seen[-1:] for name in record if name not in _NOT_TERMS)
    for name in sorted(names, key=lambda name: name != "total"):
        line = [(float(r["step"]), v) for r in seen if (v := known(r.get(name))) is not None]
        held = _points(looks, lambda found, name=name: (found.get("nats") or {}).get(name))
        if any(value for _, value in (*line, *held)):
            title = "total, weighted" if name == "total" else words(name)
            now = f"{number((held or line)[-1][1])} nats"
            yield chart(title, line, held, end=end, now=now, ends=("training", "held-out"))


def _leaks(
    looks: Sequence[Mapping[str, Any]], blocks: Sequence[Block], end: float, gate: float | None
) -> Iterator[Chart]:
    for block in blocks:
        points, now, last = [], "", ""
        for record in looks:
            row = (record["validation"].get("leakage") or {}).get(block.name) or {}
            pairs = _foreign({block.name: row})
            if pairs:
                points.append((float(record["step"]), pairs[0][0]))
                now, last = words(pairs[0][2]), fixed(pairs[0][0], 2)
        if points:
            yield chart(
                words(block.name),
                [],
                points,
                end=end,
                now=now,
                ends=("", last),
                between=(0.0, 1.0),
                limit=gate,
                kind=block.role,
            )


def _points(looks: Sequence[Mapping[str, Any]], value: Any) -> list[tuple[float, float]]:  # noqa: ANN401
    found = [(float(record["step"]), known(value(record["validation"]))) for record in looks]
    return [(step, there) for step, there in found if there is not None]


def _heat(leakage: Mapping[str, Mapping[str, float]]) -> Heat | None:
    names = list(dict.fromkeys(name for row in leakage.values() for name in row))
    rows = []
    for block, row in leakage.items():
        values = [known(row.get(name)) for name in names]
        cells = tuple(
            (MISSING if v is None else fixed(v, 2), round(min(1.0, max(0.0, v or 0.0)), 3), block == name)
            for v, name in zip(values, names, strict=True)
        )
        rows.append((words(block), cells))
    return Heat(tuple(words(name) for name in names), tuple(rows)) if names else None


def _units(looks: Sequence[Mapping[str, Any]], blocks: Sequence[Block]) -> tuple[tuple[str, ...], tuple[Filled, ...]]:
    """Steps, and how many latents of each block were active after them."""
    told = [record for record in looks if record["validation"].get("active_units")]
    places = sorted({round(i) for i in np.linspace(0, len(told) - 1, min(_MOST_COLUMNS, len(told)))}) if told else []
    shown = [told[place] for place in places]
    rows = []
    for block in blocks:
        if block.size and shown and block.name in shown[-1]["validation"]["active_units"]:
            counts = [int(record["validation"]["active_units"].get(block.name, 0)) for record in shown]
            cells = tuple((f"{count} of {block.size}", round(count / block.size, 3)) for count in counts)
            rows.append(Filled(words(block.name), block.role, cells))
    return tuple(fixed(record["step"], 0) for record in shown), tuple(rows) if shown else ()


def _film(film: Film, *, edited: bool) -> Iterator[Strip]:
    scans = len(film.originals)
    if not edited:
        for row in range(scans):
            pictures = tuple(_picture(cells[row]) for _, cells in film.moments)
            yield Strip(f"scan {row + 1}", _picture(film.originals[row]), pictures)
        return
    for index, asked in enumerate(film.edits):
        pictures = tuple(_picture(cells[scans + index]) for _, cells in film.moments)
        yield Strip(asked, _picture(film.originals[film.moved]), pictures)


def _picture(grey: UInt8[np.ndarray, "rows columns"]) -> str:
    return data_uri(grey_png(grey.astype(np.float32), _GREYS)) if grey.any() else ""


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{fixed(seconds, 0)} seconds"
    if seconds < 5400:
        return f"{fixed(seconds / 60, 0)} minutes"
    return f"{fixed(seconds / 3600, 1)} hours"
