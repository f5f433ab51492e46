"""Where the scans of a step come from: memory, or a store's files; the next step's are fetched while one is taken."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from medisent.batches import Batch


@dataclass
class Feed:
    """Batches of scans that stay where they are, in memory or in a memory-mapped file, until they are shown.

    Attributes:
        shown: All scans there are to choose from.
        device: Where batches are wanted.
        waited: Seconds in which nothing was done but wait for scans.
    """

    shown: Batch
    device: torch.device
    waited: float = 0.0
    _expected: Int[Tensor, " rows"] | None = None
    _coming: Future[Batch] | None = None
    _helper: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "medisent-feed"))

    def take(self, rows: Int[Tensor, " rows"]) -> Batch:
        """The scans of these rows, at once if they were expected."""
        start = time.monotonic()
        foreseen = self._expected is not None and torch.equal(self._expected, rows)
        found = self._coming.result() if foreseen and self._coming else self._fetched(rows)
        batch = found.to(self.device)
        self.waited += time.monotonic() - start
        return batch

    def expect(self, rows: Int[Tensor, " rows"]) -> None:
        """Fetch these rows meanwhile; the next to be taken, most likely."""
        self._expected, self._coming = rows, self._helper.submit(self._fetched, rows)

    def _fetched(self, rows: Int[Tensor, " rows"]) -> Batch:
        batch = self.shown[rows]
        here = batch.scan.device.type == "cpu"
        return batch.pinned() if here and self.device.type == "cuda" else batch
