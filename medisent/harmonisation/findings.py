"""What is known of scans before and after they were brought to one scanner, in figures and on a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medisent.checkpoints import Trained
from medisent.cohorts import read_table
from medisent.errors import CohortError
from medisent.harmonisation.scanner import known, log_spread
from medisent.harmonisation.sites import SiteTest, Sketch, site_test, sketch, why_not
from medisent.readings import Reading, Readout, read_factors
from medisent.volumes import Volume

Verdict = Literal["yes", "mostly", "no"]
_DRIFT = 0.5  # of a half width
NO_SITES = "No sites were given, so that nobody can tell whether the scanners differed, nor whether they still do."


@dataclass(frozen=True)
class Visit:
    """A scan, and where and of whom it was made.

    Attributes:
        scan: Where it is.
        site: Where it was made; empty is unknown.
        subject: Whose it is.
        label: What outputs call it: its number in the order given, from 1, unless names are asked for.
    """

    scan: Path
    site: str
    subject: str
    label: str


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of a scan once it was looked at.

    Attributes:
        sketch: What a sceptic sees.
        readouts: What the model reads, by factor.
        known: Whether the model knows such scans.
        spread: See ``log_spread``.
    """

    sketch: Sketch
    readouts: Mapping[str, Readout]
    known: bool
    spread: float


def look(trained: Trained, scan: Volume, reading: Reading | None = None) -> Look:
    """What is kept of a scan.

    Raises:
        MedisentError: The scan is refused.
    """
    found = reading or read_factors(trained, scan)
    return Look(sketch(scan.voxels), found.readouts, known(found), log_spread(trained, found))


def visits_of(table: Path | None, scans: Sequence[Path], site: str, subject: str) -> list[Visit]:
    """The scans that were named, or all of a table, with what the table says of them.

    Arguments:
        table: Of the cohort; paths in it are relative to its folder.
        scans: Which of its scans; none is all.
        site: Its column with the sites.
        subject: Its column with the subjects; without it every scan is of another subject.

    Raises:
        CohortError: The table is none, lacks a column, or says nothing of a scan that was named.
    """
    if table is None:
        return [Visit(scan, "", f"scan {number}", str(number)) for number, scan in enumerate(scans, 1)]
    rows = read_table(table)
    absent = [name for name in ("scan", site) if name not in rows.columns]
    if absent:
        raise CohortError(
            f"The columns scan and {site} were asked for, but {table.name} has {', '.join(rows.columns)}. "
            "Name the column with the sites: --site COLUMN."
        )
    people = list(rows[subject]) if subject in rows.columns else [f"row {i}" for i in range(len(rows))]
    every = [
        Visit(table.parent / path, at.strip(), who, str(number))
        for number, (path, at, who) in enumerate(zip(rows["scan"], rows[site], people, strict=True), 1)
    ]
    if not scans:
        return every
    of_scan = {visit.scan.resolve(): visit for visit in every}
    strangers = [scan for scan in scans if scan.resolve() not in of_scan]
    if strangers:
        raise CohortError(f"{table.name} says nothing of {len(strangers)} of the scans, such as {strangers[0].name}.")
    return [replace(of_scan[scan.resolve()], label=str(number)) for number, scan in enumerate(scans, 1)]


def tested(visits: Sequence[Visit], looks: Sequence[Look], seed: int) -> SiteTest | str:
    """Whether sites can be told from these scans, or why nobody can say."""
    where = [i for i, visit in enumerate(visits) if visit.site]
    sites, subjects = [visits[i].site for i in where], [visits[i].subject for i in where]
    if not where:
        return NO_SITES
    return why_not(sites, subjects) or site_test([looks[i].sketch for i in where], sites, subjects, seed)


@dataclass(frozen=True)
class Moved:
    """A factor's readouts before and after, over all scans.

    Attributes:
        unit: Of the values.
        before: Median readout.
        after: The same afterwards.
        spread_before: Standard deviation over the scans.
        spread_after: The same afterwards.
        change: Median size of a scan's change.
        half_width: Median half width of the readout's interval.
        beyond: Share of scans that changed by more than that of their own.
    """

    unit: str
    before: float
    after: float
    spread_before: float
    spread_after: float
    change: float
    half_width: float
    beyond: float


@dataclass(frozen=True)
class Kept:
    """Whether the anatomy is read as it was, over the scans that the model knows.

    A readout that does not depend on the scanner stays where it was. One that does is put right by harmonising, and
    even if each came to lie on the truth some would leave their interval: a 90 % interval misses the truth in one scan
    of ten. So the anatomy counts as it was while no readout leaves its interval; mostly, while no more do than would on
    their way to the truth; and not at all where more do, or where all of them drift by half of a half width.

    Attributes:
        scans: How many scans the model knows.
        level: How often intervals are meant to hold the truth.
        left: By factor, how many readouts left the interval that the scan itself had given.
        drift: By factor, the median change in half widths, with its sign.
    """

    scans: int
    level: float
    left: Mapping[str, int]
    drift: Mapping[str, float]

    @property
    def allowed(self) -> int:
        """How many readouts of a factor would leave their intervals if each came to lie on the truth."""
        return math.ceil((1 - self.level) * self.scans - 1e-9)

    @property
    def verdict(self) -> Verdict:
        """Whether the anatomy is as it was."""
        if any(count > self.allowed for count in self.left.values()) or any(
            abs(d) > _DRIFT for d in self.drift.values()
        ):
            return "no"
        return "mostly" if any(self.left.values()) else "yes"


@dataclass(frozen=True, eq=False)
class Findings:
    """Scans before and, where they were moved, after.

    Attributes:
        visits: Where and of whom the scans were made.
        before: Each of them.
        after: Each of them, afterwards; none where they were left as they are.
        sites_before: Whether sites could be told, or why nobody can say.
        sites_after: The same afterwards; None where the scans were left as they are.
    """

    visits: Sequence[Visit]
    before: Sequence[Look]
    after: Sequence[Look]
    sites_before: SiteTest | str
    sites_after: SiteTest | str | None

    @classmethod
    def of(
        cls, visits: Sequence[Visit], before: Sequence[Look], after: Sequence[Look], first: SiteTest | str, seed: int
    ) -> Findings:
        """The findings, with sites told anew from what became of the scans."""
        return cls(visits, before, after, first, tested(visits, after, seed) if after else None)

    @property
    def unknown(self) -> int:
        """How many scans the model does not know, so that their brightness alone is moved."""
        return sum(not one.known for one in self.before)

    def of_role(self, role: str) -> list[str]:
        """The ordered factors of a role."""
        rows = self.before[0].readouts.values()
        return [row.name for row in rows if row.role == role and math.isfinite(row.low)]

    def moved(self, name: str) -> Moved:
        """How far a factor's readouts moved."""
        one, two = ([look.readouts[name] for look in looks] for looks in (self.before, self.after or self.before))
        first, second = (np.array([row.estimate for row in rows]) for rows in (one, two))
        half = np.array([(row.high - row.low) / 2 for row in one])
        change = np.abs(second - first)
        return Moved(
            unit=one[0].unit,
            before=float(np.median(first)),
            after=float(np.median(second)),
            spread_before=float(np.std(first)),
            spread_after=float(np.std(second)),
            change=float(np.median(change)),
            half_width=float(np.median(half)),
            beyond=float((change > half).mean()),
        )

    def half_widths(self, index: int, name: str) -> float:
        """By how much a scan's readout changed, in half widths of its interval, with its sign."""
        one, two = self.before[index].readouts[name], (self.after or self.before)[index].readouts[name]
        return 2 * (two.estimate - one.estimate) / max(one.high - one.low, 1e-12)

    def kept(self) -> Kept | None:
        """Whether the anatomy is read as it was; None where nothing was moved, or where nobody can say."""
        names = self.of_role("anatomy")
        known = [index for index, one in enumerate(self.before) if one.known]
        if not (self.after and names and known):
            return None
        left = dict.fromkeys(names, 0)
        for index in known:
            for name in names:
                one, two = (looks[index].readouts[name] for looks in (self.before, self.after))
                left[name] += not one.low <= two.estimate <= one.high
        drift = {name: float(np.median([self.half_widths(index, name) for index in known])) for name in names}
        return Kept(len(known), self.before[0].readouts[names[0]].level, left, drift)

    def table(self) -> str:
        """Every readout of every scan before and after, in full digits, tab-separated."""
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        names = [*self.of_role("anatomy"), *self.of_role("nuisance")]
        parts = ("before", "low", "high", *(["after"] if self.after else []))
        writer.writerow(["scan", "site", "known", *(f"{name}_{part}" for name in names for part in parts)])
        for index, (visit, one) in enumerate(zip(self.visits, self.before, strict=True)):
            cells: list[object] = [visit.label, visit.site, "yes" if one.known else "no"]
            for name in names:
                found = one.readouts[name]
                cells += [found.estimate, found.low, found.high]
                cells += [self.after[index].readouts[name].estimate] if self.after else []
            writer.writerow(cells)
        return stream.getvalue()

    def summary(self) -> dict[str, object]:
        """The content of ``harmonisation.json`` but for the names of files."""
        names, kept = [*self.of_role("anatomy"), *self.of_role("nuisance")], self.kept()
        return {
            "schema": 1,
            "n": len(self.visits),
            "unknown_scans": self.unknown,
            "moved": bool(self.after),
            "sites_before": _told(self.sites_before),
            "sites_after": _told(self.sites_after),
            "readouts": {name: asdict(self.moved(name)) for name in names},
            "anatomy_kept": {**asdict(kept), "allowed": kept.allowed, "verdict": kept.verdict} if kept else None,
        }


def _told(found: SiteTest | str | None) -> dict[str, object] | str | None:
    if isinstance(found, SiteTest):
        return {**asdict(found), "found": found.found, "chance": 1 / found.sites}
    return found
