"""Progress as bars on a terminal: the stage, its share that is done, the time left, and below it what to say of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from medisent.progress import Progress


@contextmanager
def bars(console: Console | None = None) -> Iterator[Progress]:
    """Bars for as long as the block lasts, one a stage; on stderr unless another console is given."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[left]}", style="progress.remaining"),
    )
    with _Noted(*columns, console=console or Console(stderr=True)) as progress:
        stages = _Stages(progress)
        yield stages
        stages.end()


class _Noted(RichProgress):
    """Bars with a line below them that says what the last of them is about; cut where the terminal ends."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.tasks and self.tasks[-1].fields["note"]:
            yield Text(f"  {self.tasks[-1].fields['note']}", style="dim", no_wrap=True, overflow="ellipsis")


class _Stages:
    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._current = None if not progress.task_ids else progress.task_ids[-1]

    def stage(self, name: str, total: float | None = None) -> None:
        self.end()
        self._current = self._progress.add_task(name, total=total, note="", left="left" if total else "")

    def advance(self, done: float, note: str = "") -> None:
        if self._current is not None:
            self._progress.advance(self._current, done)
            if note:
                self._progress.update(self._current, note=note)

    def end(self) -> None:
        """The current stage is done, whatever was expected of it."""
        if self._current is not None:
            task = next(t for t in self._progress.tasks if t.id == self._current)
            total = task.completed if task.total is None else task.total
            self._progress.update(self._current, total=total or 1, completed=total or 1, left="")
