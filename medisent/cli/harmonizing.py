"""The work behind ``harmonize``: look at scans, ask whether sites differ, move them, tell what it came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medisent.cli.batches import Failure, each
from medisent.cli.output import Output, jsonable
from medisent.exports import sidecar_name
from medisent.files import digests, whole_folder, write_text
from medisent.formats import read
from medisent.harmonisation import Findings, Look, SiteTest, Target, Visit, page_of, tested
from medisent.many import Engine, Journal, Looking, ModelFile, Moving, Source
from medisent.progress import Progress
from medisent.readings import read_factors
from medisent.version import versions
from medisent.volumes import Volume

Told = tuple[dict[str, object], list[str], list[Failure]]
"""What is told: for scripts, in lines, and of failures."""


@dataclass(frozen=True, eq=False)
class Harmonizing:
    """Scans on their way to one scanner.

    Attributes:
        model: By which.
        sources: The scans.
        visits: Where and of whom they were made.
        names: Of the files to write.
        to: Scans of the scanner that is imitated; none is the reference.
        engine: Who does the work.
        seed: Of all that is drawn.
        progress: Is told how far the work is.
        output: Is told of oddities.
    """

    model: ModelFile
    sources: Sequence[Source]
    visits: Sequence[Visit]
    names: Sequence[str]
    to: Sequence[Volume]
    engine: Engine
    seed: int
    progress: Progress
    output: Output

    @property
    def goal(self) -> str:
        """Where they go."""
        others = "another scan" if len(self.to) == 1 else f"{len(self.to)} other scans"
        return f"the scanner of {others}" if self.to else "the reference scanner"

    def into_file(self, target: Path) -> Told:
        """Write what becomes of the only scan.

        Raises:
            MedisentError: It is refused.
        """
        looks, _ = self._look(Journal())
        self._move(Journal(), target.parent, looks)
        return {"scans": [target]}, [f"Harmonized: {target}"], []

    def into(self, folder: Path, always: bool, fresh: bool) -> Told:
        """Write what becomes of the scans, and the page: what is told of it, and what failed.

        What is done is noted beside the folder until all of it is, so that a run that was killed is gone on with.
        """
        journal = Journal.beside(folder)
        if fresh:
            journal.close()
        before, failed = self._look(journal)
        found = tested([self.visits[number] for number in before], list(before.values()), self.seed)
        leave = isinstance(found, SiteTest) and not found.found and not always
        moved = journal.folder / "scans" if journal.folder is not None else folder
        after: dict[int, Look] = {}
        if not leave:
            after, lost = self._move(journal, moved, before)
            failed = [*failed, *lost]
        kept = after if after else before
        looks, visits = [before[number] for number in kept], [self.visits[number] for number in kept]
        findings = Findings.of(visits, looks, list(after.values()), found, self.seed)
        names = [self.names[number] for number in after]
        with whole_folder(folder, record="manifest.json") as place:
            for path in (part for name in names for part in (moved / name, moved / sidecar_name(moved / name))):
                try:
                    (place / path.name).hardlink_to(path)
                except OSError:  # a disk without second names
                    path.rename(place / path.name)
            self._report(findings, [self.sources[number] for number in kept], names, place)
        journal.close()
        told = {"scans": [folder / name for name in names], "page": folder / "harmonisation.html", **findings.summary()}
        lines = [f"Harmonized: {folder / name}" for name in names] or [
            "No scanner effect: the scans were left as they are."
        ]
        return told, [*lines, f"Page: {folder / 'harmonisation.html'}"], failed

    def _look(self, journal: Journal) -> tuple[dict[int, Look], list[Failure]]:
        self.progress.stage("looking at scans", len(self.sources))
        return self._each(Looking(self.model, journal), range(len(self.sources)))

    def _move(self, journal: Journal, place: Path, looks: dict[int, Look]) -> tuple[dict[int, Look], list[Failure]]:
        self.progress.stage("harmonizing", len(looks))
        trained = self.model.trained
        goals = [read_factors(trained, scan) for scan in self.to]
        spreads = [one.spread for one in looks.values() if one.known]
        target = Target.like(trained, goals) if goals else Target.reference(trained, spreads)
        return self._each(Moving(self.model, journal, place, target, self.goal), list(looks))

    def _each(self, work: Looking | Moving, numbers: Sequence[int]) -> tuple[dict[int, Look], list[Failure]]:
        """What becomes of some of the scans, by their numbers in the batch."""
        sources, names = [self.sources[n] for n in numbers], [self.names[n] for n in numbers]
        done, failed = each(work, sources, names, self.engine, self.seed, self.progress, self.output)
        return {numbers[n]: result for n, result in done.items()}, failed

    def _report(self, findings: Findings, sources: Sequence[Source], names: Sequence[str], place: Path) -> None:
        self.progress.stage("writing")
        text = page_of(
            findings, [one.read for one in sources], [partial(read, place / name) for name in names], self.goal
        )
        write_text(place / "harmonisation.html", text)
        write_text(place / "harmonisation.tsv", findings.table())
        write_text(place / "harmonisation.json", json.dumps(jsonable(findings.summary()), indent=2) + "\n")
        said = {
            "schema": 1,
            "command": "harmonize",
            "versions": versions(),
            "inputs": {"model_sha256": self.model.digest},
            "outputs": digests(place),
        }
        write_text(place / "manifest.json", json.dumps(said, indent=2) + "\n")
