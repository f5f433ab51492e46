"""How long a stage of work still takes, by what it has told of itself; nothing is said before that can be known."""

from __future__ import annotations

from dataclasses import dataclass, field

_REPORTS, _SECONDS = 5, 5.0  # before anything is said
_MOST = 256  # reports kept; of more every other one goes
_ROUNDED = ((60, 5), (600, 10), (3600, 60))  # below so many seconds to so many
_COARSEST = 300


@dataclass
class Pace:
    """The pace of a stage, by its reports.

    What was done before the first report (by an earlier run, or in making ready) says nothing about the pace. Of the
    rest the later half counts, so that a slow start is forgotten.

    Attributes:
        total: How much there is to do; 0 where nobody knows.
        done: How much is done.
    """

    total: float = 0.0
    done: float = 0.0
    _reports: list[tuple[float, float]] = field(default_factory=list)
    _count: int = 0

    def report(self, done: float, now: float) -> None:
        """So much more is done now, in seconds of any clock."""
        self.done += done
        self._count += 1
        self._reports.append((now, self.done))
        if len(self._reports) > _MOST:
            del self._reports[1:-1:2]

    @property
    def share(self) -> float:
        """How much of the stage is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def left(self, now: float) -> float | None:
        """The seconds that the stage still takes; None while there is too little to tell it by."""
        if not self.total or self._count < _REPORTS:
            return None
        (first, _), (last, done) = self._reports[0], self._reports[-1]
        if last - first < _SECONDS:
            return None
        since, before = next(report for report in self._reports if report[0] >= (first + last) / 2)
        if since == last or done <= before:
            since, before = self._reports[0]
        if done <= before:
            return None
        gap = (last - first) / (self._count - 1)
        late = max(0.0, now - last - gap)  # the next report should have been there: the pace is slower
        return max(0.0, (self.total - done) * (last - since + late) / (done - before) - min(now - last, gap))

    def said(self, now: float) -> str:
        """The time left as people say it, such as ``3:10 min left``; empty while it is not known."""
        left = self.left(now)
        return "" if left is None else f"{duration(rounded(left))} left"


def rounded(seconds: float) -> float:
    """A time span no finer than one can foretell it: to 5 seconds below a minute, to 5 minutes above an hour."""
    step = next((step for below, step in _ROUNDED if seconds < below), _COARSEST)
    return step * round(seconds / step)


def duration(seconds: float) -> str:
    """A time span as people write it: ``45 s``, ``3:07 min``, ``2:05 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"
