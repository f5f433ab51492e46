"""Looks on while a network learns: figures and pictures of held-out scans every so often, and a page about them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from medisent.batches import Batch
from medisent.config import Study
from medisent.files import write_text
from medisent.model import PartitionedVAE
from medisent.reports import Block, Ending, Film, training_page
from medisent.training.pictures import Album
from medisent.training.validating import some, validated

PAGE = "training.html"
_PRICE = 15  # scans are learned from for each that is looked at, which keeps looking on at about two hundredths
_FURTHER = 2.5  # times as many steps lie before the next picture
_PAGE_SECONDS = 60.0


class Watch:
    """Observes a training; draws nothing by chance, so that the same model comes out with it and without it.

    Arguments:
        study: What is learned.
        run: Where the page goes.
        network: Fitted to the training scans; it is not kept.
        shown: The training scans, whose labels say what is low and high; they are not kept.
        held: The validation scans, if there are any.
        subjects: Whose these are.
    """

    def __init__(
        self,
        study: Study,
        run: Path,
        network: PartitionedVAE,
        shown: Batch,
        held: Batch | None,
        subjects: Sequence[str],
    ) -> None:
        self._study, self._run = study, run
        self._few = some(held, subjects) if held is not None else None
        self._album = Album.of(network, shown, self._few[0]) if self._few else None
        units = {name: factor.unit for name, factor in network.factors.items()}
        self._blocks = [Block(n, b.role, b.size, units.get(n, "")) for n, b in network.partition.items() if b.size]
        self._since = 0
        self._drawn: dict[int, Tensor] = {}
        self._page_due = 0.0

    def stepped(self, step: int, seconds: float, costs: Mapping[str, Tensor]) -> None:
        self._since += self._study.training.scans_a_step

    def validated(
        self, step: int, costs: Mapping[str, float], network: PartitionedVAE, held: Batch
    ) -> Mapping[str, object]:
        if self._few is None or self._since < _PRICE * len(self._few[0]):
            return {}
        self._since = 0
        self._page_due = 0.0
        if step >= _FURTHER * max(self._drawn, default=0):
            self._draw(step, network)
        return validated(network, *self._few, batch=self._study.training.batch).record()

    def saved(self, share: float, lines: Sequence[str]) -> None:
        if time.monotonic() >= self._page_due:
            self._page_due = time.monotonic() + _PAGE_SECONDS
            self._write(share, lines)

    def finished(self, step: int, network: PartitionedVAE) -> Mapping[str, object]:
        """Look once more, at the finished network; what the log is to say of it, in terms of JSON."""
        if self._few is None:
            return {}
        self._draw(step, network)
        return validated(network, *self._few, batch=self._study.training.batch, calibrated=True).record()

    def conclude(self, share: float, lines: Sequence[str], ending: Ending) -> None:
        """Write the page for the last time.

        Raises:
            MachineError: It cannot be written.
        """
        why = ending.why.replace(str(self._run), self._run.name)  # whoever is shown the page need not know where it lay
        self._write(share, lines, replace(ending, why=why))

    def state(self) -> dict[str, Tensor]:
        return {"since": torch.tensor(self._since), **{f"drawn.{step}": cells for step, cells in self._drawn.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if not state:  # nobody looked on when it was taken
            return
        self._since = int(state["since"])
        self._drawn = {int(name.removeprefix("drawn.")): cells for name, cells in state.items() if name != "since"}
        if any(cells.dtype != torch.uint8 or cells.ndim != 3 for cells in self._drawn.values()):
            raise ValueError("these are no pictures")

    def _draw(self, step: int, network: PartitionedVAE) -> None:
        if self._album is not None:
            self._drawn[step] = torch.from_numpy(self._album.drawn(network))

    def _write(self, share: float, lines: Sequence[str], ending: Ending | None = None) -> None:
        page = training_page(
            [json.loads(line) for line in lines],
            title=self._study.cohort.about or "Cohort not described in the study",
            share=share,
            written=time.strftime("%Y-%m-%d %H:%M"),
            blocks=self._blocks,
            ending=ending,
            film=self._film(),
            gate=self._study.gate.leakage if self._study.gate else None,
        )
        write_text(self._run / PAGE, page)

    def _film(self) -> Film | None:
        if self._album is None or not self._drawn:
            return None
        return Film(
            originals=self._album.originals(),
            edits=self._album.asked(),
            moved=self._album.moved,
            moments=[(step, cells.numpy()) for step, cells in sorted(self._drawn.items())],
        )
