"""What commands about many scans have in common: which scans, by whom the work is done, what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from medisent.cli.options import chosen_device
from medisent.cli.output import Output, end_after_result
from medisent.errors import MedisentError, UsageError
from medisent.plurals import several

if TYPE_CHECKING:
    from medisent.many import Engine, ModelFile, Source, Work
    from medisent.progress import Progress

PACKAGED = "This model learned from rendered heads: it shows what medisent does, but knows no real scan."
_TOLD = 4  # refusals that are told one by one when many scans are

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A scan out of several for which nothing was done.

    Attributes:
        number: Of the scan in the batch, from 0.
        scan: Its path.
        error: Why.
    """

    number: int
    scan: Path
    error: MedisentError


@dataclass(frozen=True)
class Asked:
    """Which scans a command was given.

    Attributes:
        scans: As typed.
        cohort: A table of them.
        folder: Where all of them lie.
        volume: Which volume of each.
        series: Which series of the one folder.
        max_voxels: More are refused.
        names: Whether outputs call scans by their paths.
    """

    scans: Sequence[Path]
    cohort: Path | None
    folder: Path | None
    volume: int | None
    series: int | None
    max_voxels: int | None
    names: bool

    @cached_property
    def alone(self) -> bool:
        """Whether one scan was typed, and nothing else: a file, or a folder that holds DICOM."""
        if self.cohort is not None or self.folder is not None or len(self.scans) != 1:
            return False
        if not self.scans[0].is_dir():
            return True
        from medisent.formats.folder import holds_dicom

        return holds_dicom(self.scans[0])

    def refuse_unclear(self) -> None:
        """Refuse the only scan by its header, before seconds go into loading a model.

        Raises:
            MedisentError: It is refused.
        """
        if self.alone:
            from medisent.formats import refuse_unclear

            refuse_unclear(self.scans[0], volume=self.volume, series=self.series, max_voxels=self.max_voxels)

    def sources(self) -> list[Source]:
        """The scans.

        Raises:
            UsageError: None was named, or a series of several.
            MedisentError: A table or a folder is refused.
        """
        from medisent.many import limited, sources_of

        ways = bool(self.scans) + (self.cohort is not None) + (self.folder is not None)
        if ways != 1:
            found = "No scan was named." if not ways else "Scans were named in several ways."
            raise UsageError(f"{found} Name scans, or a table of them with --cohort, or all below a --folder.")
        sources = sources_of(self.scans, self.cohort, self.folder, names=self.names)
        if self.series is None:
            return limited(sources, self.volume, self.max_voxels)
        if len(sources) > 1 or self.folder is not None:
            raise UsageError(
                f"--series was given with {len(sources)} scans, but series are counted anew in each folder. "
                "Name one scan."
            )
        return [replace(sources[0], series=self.series, volume=self.volume, max_voxels=self.max_voxels)]


@dataclass(frozen=True)
class Doing:
    """How a command is to do its work.

    Attributes:
        model: As it was named.
        device: As it was named.
        seed: Of all that is drawn, anew for each scan.
        dask: Where workers are; None is this process.
        fresh: Whether to do again what is done.
        output: How to speak.
    """

    model: str | None
    device: str
    seed: int
    dask: str | None
    fresh: bool
    output: Output

    def model_file(self) -> ModelFile:
        """The model, for this process or for workers, who choose a device of their own for ``auto``.

        Raises:
            MedisentError: There is no such model or device.
        """
        from medisent.checkpoints import PACKAGED_MODEL, find_model
        from medisent.many import ModelFile

        path = find_model(self.model)
        if path == PACKAGED_MODEL:
            self.output.say(
                "This model learned from rendered heads: it shows what medisent does, but knows no real scan."
            )
        found = ModelFile.of(path, self.device if self.dask is not None else chosen_device(self.device))
        if self.dask is None:
            _ = found.trained  # refused before a scan is read
        return found

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Who does the work: this process, or workers of Dask.

        Raises:
            MedisentError: Dask is not there, or answers not.
        """
        if self.dask is None:
            from medisent.many import here

            yield here
            return
        from medisent.many.cluster import cluster

        with cluster(self.dask) as found:
            yield found

    def reached(self, sources: Sequence[Source]) -> list[Source]:
        """The scans as whoever does the work reaches them: workers have other working folders."""
        if self.dask is None:
            return list(sources)
        return [replace(source, path=source.path.absolute()) for source in sources]


def each(
    work: Work[Result], sources: Sequence[Source], names: Sequence[str], engine: Engine, seed: int,
    progress: Progress, output: Output,
) -> tuple[dict[int, Result], list[Failure]]:  # fmt: skip
    """What became of each scan, by its number, and which ones failed; a failure does not stop the others.

    Raises:
        MedisentError: Every scan failed.
    """
    from medisent.many import Item

    items = [Item(number, source, name) for number, (source, name) in enumerate(zip(sources, names, strict=True))]
    done: dict[int, Result] = {}
    failed: list[Failure] = []
    for outcome in engine(work, items, seed):
        for remark in outcome.remarks:
            output.say(f"{outcome.item.source.words}: {remark}")
        if outcome.error is not None:
            failed.append(Failure(outcome.item.number, outcome.item.source.path, outcome.error))
        elif outcome.result is not None:
            done[outcome.item.number] = outcome.result
        progress.advance(1)
    failed.sort(key=lambda failure: failure.number)
    if not done:
        raise failure_of(failed, len(sources))
    return {number: done[number] for number in sorted(done)}, failed


def failure_of(failed: Sequence[Failure], count: int) -> MedisentError:
    """The one refusal that several amount to: that of the input, if there is one, goes before the machine's."""
    if len(failed) == count == 1:
        return failed[0].error
    lines = [
        f"{len(failed)} of {several(count, 'scan')} failed"
        + (":" if len(failed) == count else "; the others are done:")
    ]
    lines += [str(failure.error).splitlines()[0] for failure in failed[:_TOLD]]
    if len(failed) > _TOLD:
        lines.append(f"... and {len(failed) - _TOLD} more.")
    foremost = min((failure.error for failure in failed), key=lambda error: error.exit_code)
    return type(foremost)("\n".join(lines), code=foremost.code)


def told_of(failed: Sequence[Failure]) -> list[dict[str, object]]:
    """The failures for ``--json``."""
    return [{"scan": f.scan, "code": f.error.code, "message": str(f.error)} for f in failed]


def end(failed: Sequence[Failure], count: int) -> None:
    """End with the failures' exit code after the result of the other scans is out, or not at all where none failed."""
    if failed:
        end_after_result(failure_of(failed, count))
