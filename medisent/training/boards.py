"""The log of a training as TensorBoard shows it: ``pip install medisent[tensorboard]``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from medisent.batches import Batch
from medisent.errors import MachineError
from medisent.model import PartitionedVAE

BOARD = "tensorboard"


class Board:
    """Observes a training and hands what the log says to TensorBoard, at every checkpoint.

    Its files are streams that grow as they are read, not whole files, and carry the machine's name in theirs, as
    TensorBoard wants it; nothing reads them back.

    Arguments:
        run: The run's folder; the files go into ``tensorboard`` in it.

    Raises:
        MachineError: TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MachineError(
                "--tensorboard was asked for, but TensorBoard is not installed. "
                "Install it with: pip install 'medisent[tensorboard]'; metrics.jsonl and training.html come without it."
            ) from error
        self._make, self._folder = SummaryWriter, run / BOARD
        self._writer: SummaryWriter | None = None
        self._told = 0

    def stepped(self, step: int, seconds: float, costs: Mapping[str, Tensor]) -> None:
        """Nothing is told before it is in a checkpoint."""

    def validated(
        self, step: int, costs: Mapping[str, float], network: PartitionedVAE, held: Batch
    ) -> Mapping[str, object]:
        """Nothing is added to the log."""
        return {}

    def saved(self, share: float, records: Sequence[str]) -> None:
        if self._writer is None:  # what another start of the run told is told anew
            shutil.rmtree(self._folder, ignore_errors=True)
            self._writer = self._make(str(self._folder))
        for line in records[self._told :]:
            record = json.loads(line)
            for name, value in scalars(record):
                self._writer.add_scalar(name, value, record["step"])
        self._told = len(records)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The curves that a line of the log adds to, and its values."""
    for name, value in record.items():
        if name in ("scans_a_second", "learning_rate", "seconds"):
            yield f"pace/{name}", value
        elif name not in ("step", "validation") and isinstance(value, int | float):
            yield f"nats/{name}", value
    found = record.get("validation") or {}
    for name, value in (found.get("nats") or {}).items():
        yield f"nats_held_out/{name}", value
    for name, row in (found.get("readout") or {}).items():
        for kind in ("r2", "mae"):
            if row.get(kind) is not None:
                yield f"readout_{kind}/{name}", row[kind]
    for block, count in (found.get("active_units") or {}).items():
        yield f"active_units/{block}", count
    for block, row in (found.get("leakage") or {}).items():
        leaks = [r2 for name, r2 in row.items() if name != block and r2 is not None]
        if leaks:
            yield f"largest_leak/{block}", max(leaks)
