"""Progress as bars on a terminal: the stage, its share that is done, the time left, and below it what to say of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from medisent.cli.pace import Pace
from medisent.progress import Progress


@contextmanager
def bars(console: Console | None = None) -> Iterator[Progress]:
    """Bars for as long as the block lasts, one a stage; on stderr unless another console is given."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn("[progress.percentage]{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        _Left(),
    )
    with _Noted(*columns, console=console or Console(stderr=True)) as progress:
        stages = _Stages(progress)
        yield stages
        stages.end()


class _Left(ProgressColumn):
    """The time left, once it can be told."""

    def render(self, task: Task) -> Text:
        return Text("" if task.finished else task.fields["pace"].said(task.get_time()), style="progress.remaining")


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
        self._current = self._progress.add_task(name, total=total, note="", pace=Pace(total or 0.0))

    def advance(self, done: float, note: str = "") -> None:
        if self._current is not None:
            self._task.fields["pace"].report(done, self._progress.get_time())
            self._progress.advance(self._current, done)
            if note:
                self._progress.update(self._current, note=note)

    def end(self) -> None:
        """The current stage is done, whatever was expected of it."""
        if self._current is not None:
            total = self._task.completed if self._task.total is None else self._task.total
            self._progress.update(self._current, total=total or 1, completed=total or 1)

    @property
    def _task(self) -> Task:
        return next(task for task in self._progress.tasks if task.id == self._current)
