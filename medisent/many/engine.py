"""A batch run here: one scan after the other, while the next is being read; a scan that is refused stops no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch

from medisent.errors import MedisentError
from medisent.many.sources import Source
from medisent.many.works import Work
from medisent.volumes import Volume

Result = TypeVar("Result")


@dataclass(frozen=True)
class Item:
    """A scan of a batch.

    Attributes:
        number: Counted from 0.
        source: The scan.
        name: What the work calls its output.
    """

    number: int
    source: Source
    name: str


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of a scan.

    Attributes:
        item: The scan.
        result: What was made; None where it was refused.
        error: Why it was refused.
        remarks: What had to be decided to understand it.
    """

    item: Item
    result: Result | None = None
    error: MedisentError | None = None
    remarks: tuple[str, ...] = ()


@runtime_checkable
class Engine(Protocol):
    """Who does a work on scans."""

    def __call__(self, work: Work[Result], items: Sequence[Item], seed: int) -> Iterator[Outcome[Result]]:
        """What becomes of each scan, with this seed for each, as soon as it is done, in any order."""
        ...


def here(work: Work[Result], items: Sequence[Item], seed: int) -> Iterator[Outcome[Result]]:
    """What becomes of each scan, in their order; in another thread the next one is read."""
    with ThreadPoolExecutor(1, "reading") as pool:
        ahead: Future[Volume | Result | MedisentError] | None = None
        for index, item in enumerate(items):
            ready = ahead or pool.submit(fetched, work, item)
            ahead = pool.submit(fetched, work, items[index + 1]) if index + 1 < len(items) else None
            yield finished(work, item, ready.result(), seed)


def fetched(work: Work[Result], item: Item) -> Volume | Result | MedisentError:
    """The scan, what is known to become of it, or why it is refused."""
    try:
        return work.fetched(item.source, item.name)
    except MedisentError as error:
        return error


def finished(work: Work[Result], item: Item, ready: Volume | Result | MedisentError, seed: int) -> Outcome[Result]:
    """What becomes of a scan that was fetched; the same whichever scans came before it."""
    if isinstance(ready, MedisentError):
        return Outcome(item, error=ready)
    if not isinstance(ready, Volume):
        return Outcome(item, ready)
    torch.manual_seed(seed)
    try:
        return Outcome(item, work.made(item.source, item.name, ready), remarks=ready.remarks)
    except MedisentError as error:
        return Outcome(item, error=error, remarks=ready.remarks)
