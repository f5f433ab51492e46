"""Signals that ask a training to end: it finishes its step, writes a checkpoint and goes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from medisent.errors import Interrupted

# Control-C, what schedulers and systems send before they kill, and what SLURM is told to send before that.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ONE_PRESS = 1.0  # seconds; within them the same control-C may come a second time, from whoever started this process


@dataclass
class Stop:
    """Whether somebody has asked for the end.

    Attributes:
        patient: Whether whoever asks waits for the step's end; else the work ends at once.
        asked: Somebody has.
    """

    patient: bool = False
    asked: bool = False
    _when: float = 0.0

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal.

        Raises:
            Interrupted: There is no step to wait for.
            KeyboardInterrupt: This was the second control-C.
        """
        if self.asked and number == signal.SIGINT and time.monotonic() - self._when > _ONE_PRESS:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._when = True, time.monotonic()
            if not self.patient:
                raise Interrupted("Interrupted. The same command goes on.")


@contextmanager
def listening() -> Iterator[Stop]:
    """Signals ask for the end as long as the block lasts; in threads, which hear none, nobody does."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
