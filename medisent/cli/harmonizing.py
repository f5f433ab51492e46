"""The work behind ``harmonize``: look at scans, ask whether sites differ, move them, tell what it came to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medisent.checkpoints import Trained
from medisent.cli.output import jsonable
from medisent.cli.scans import Failure, _each
from medisent.exports import Making, write_synthetic
from medisent.files import digests, whole_folder, write_text
from medisent.harmonisation import (
    Findings,
    Look,
    SiteTest,
    Target,
    Visit,
    harmonised_scan,
    look,
    page_of,
    tested,
)
from medisent.progress import Progress
from medisent.readings import read_factors
from medisent.version import versions
from medisent.volumes import Volume


@dataclass(frozen=True, eq=False)
class Harmonizing:
    """Scans on their way to one scanner.

    Attributes:
        trained: The model.
        visits: The scans.
        names: Of the files to write.
        to: Scans of the scanner that is imitated; none is the reference.
        read: Reads a scan.
        progress: Is told how far the work is.
    """

    trained: Trained
    visits: Sequence[Visit]
    names: Sequence[str]
    to: Sequence[Volume]
    read: Callable[[Path], Volume]
    progress: Progress

    @property
    def goal(self) -> str:
        """Where they go."""
        others = "another scan" if len(self.to) == 1 else f"{len(self.to)} other scans"
        return f"the scanner of {others}" if self.to else "the reference scanner"

    def into(
        self, folder: Path, seed: int, *, always: bool, page: bool
    ) -> tuple[dict[str, object], list[str], list[Failure]]:
        """Write what becomes of the scans, and the page if one is wanted: what is told of it, and what failed."""
        paths = [visit.scan for visit in self.visits]
        self.progress.stage("looking at scans", len(paths))
        before, failed = _each(paths, lambda number: look(self.trained, self.read(paths[number])), self.progress)
        visits, looks = [self.visits[number] for number in before], list(before.values())
        found = tested(visits, looks, seed)
        leave = isinstance(found, SiteTest) and not found.found and not always
        names = [] if leave else [self.names[number] for number in before]
        if not page:
            self._move(visits, names, looks, folder)
            return {"scans": [folder / names[0]]}, [f"Harmonized: {folder / names[0]}"], failed
        with whole_folder(folder, record="manifest.json") as place:
            after = [] if leave else self._move(visits, names, looks, place)
            findings = Findings.of(visits, looks, after, found, seed)
            self._report(findings, names, place)
        told = {"scans": [folder / name for name in names], "page": folder / "harmonisation.html", **findings.summary()}
        lines = [f"Harmonized: {folder / name}" for name in names] or [
            "No scanner effect: the scans were left as they are."
        ]
        return told, [*lines, f"Page: {folder / 'harmonisation.html'}"], failed

    def _move(self, visits: Sequence[Visit], names: Sequence[str], looks: Sequence[Look], place: Path) -> list[Look]:
        self.progress.stage("harmonizing", len(visits))
        goals = [read_factors(self.trained, scan) for scan in self.to]
        spreads = [one.spread for one in looks if one.known]
        target = Target.like(self.trained, goals) if goals else Target.reference(self.trained, spreads)
        result = []
        for visit, name in zip(visits, names, strict=True):
            scan = self.read(visit.scan)
            moved = harmonised_scan(self.trained, read_factors(self.trained, scan), target)
            write_synthetic(moved, place / name, Making(scan, self.trained.digest, (self.goal,), command="harmonize"))
            result.append(look(self.trained, moved))
            self.progress.advance(1)
        return result

    def _report(self, findings: Findings, names: Sequence[str], place: Path) -> None:
        self.progress.stage("writing")
        text = page_of(findings, [place / name for name in names], self.read, self.goal)
        write_text(place / "harmonisation.html", text)
        write_text(place / "harmonisation.json", json.dumps(jsonable(findings.summary()), indent=2) + "\n")
        said = {
            "schema": 1,
            "command": "harmonize",
            "versions": versions(),
            "inputs": {"model_sha256": self.trained.digest},
            "outputs": digests(place),
        }
        write_text(place / "manifest.json", json.dumps(said, indent=2) + "\n")
