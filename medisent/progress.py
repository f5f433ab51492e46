"""How long work tells how far it is: a stage with a name and, where it is known, a total."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Somebody who is told how far the work is. One stage follows the other; the last one told is the current one."""

    def stage(self, name: str, total: float | None = None) -> None:
        """Begin a stage.

        Args:
            name: What is being done, in a few words: ``"training"``.
            total: How much there is to do, in any unit (steps, seconds, scans), or None where nobody knows.
        """
        ...

    def advance(self, done: float, note: str = "") -> None:
        """Report on the current stage.

        Args:
            done: How much has been done since the last report, in the unit of the stage's total.
            note: What is worth saying about it now, such as a loss. Empty: nothing new.
        """
        ...


class Silence:
    """Progress told to nobody."""

    def stage(self, name: str, total: float | None = None) -> None:
        """Nothing is said."""

    def advance(self, done: float, note: str = "") -> None:
        """Nothing is said."""
