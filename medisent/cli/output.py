"""How a command speaks: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, TextIO

import typer

from medisent.cli.pace import Pace
from medisent.errors import Interrupted, MedisentError, MedisentWarning
from medisent.progress import Progress, Silence
from medisent.words import percent

_FIRST_LINE_S, _LATER, _LAST_LINE_S = 10.0, 0.1, 600.0
_REFUSAL_LINES = 6
# What is lined up at the right: numbers with what may stand around them, or a dash; no sentence, and no version.
_FIGURE = re.compile(r"[<\[−-]? ?\d(?!.*(?:[a-z]{4}|\.\d+\.))|[–-]$")


@dataclass(frozen=True)
class Output:
    """How this command was asked to speak.

    Attributes:
        as_json: One JSON object on stdout instead of text.
        quiet: Neither progress nor messages.
    """

    as_json: bool = False
    quiet: bool = False

    def say(self, message: str) -> None:
        """A message, on stderr."""
        if not self.quiet:
            print(message, file=sys.stderr)

    def warn(self, sentences: Iterable[str]) -> None:
        """Sentences that a reader must not miss, on stderr."""
        for sentence in sentences:
            self.say(f"warning: {sentence}")

    @contextmanager
    def warning(self) -> Iterator[None]:
        """A block whose own warnings are said as this command says them; those of libraries are left alone."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", MedisentWarning)
            others = warnings.showwarning

            def show(
                message: Warning | str,
                category: type[Warning],
                filename: str,
                lineno: int,
                file: TextIO | None = None,
                line: str | None = None,
            ) -> None:
                if issubclass(category, MedisentWarning):
                    self.warn([str(message)])
                else:
                    others(message, category, filename, lineno, file, line)

            warnings.showwarning = show
            yield

    def result(self, data: Mapping[str, Any], text: Sequence[str]) -> None:
        """What came out, on stdout: the object, or its text."""
        if self.as_json:
            print(printable(json.dumps(jsonable(data), ensure_ascii=False)))
        elif not self.quiet:
            print(printable("\n".join(text).replace("−", "-"), sys.stdout.encoding))

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Somebody to report progress to: a bar on a terminal, lines elsewhere, nobody where it is quiet."""
        if self.quiet:
            yield Silence()
        elif sys.stderr.isatty():
            from medisent.cli.bars import bars

            with bars() as progress:
                yield progress
        else:
            yield Lines()


class Lines:
    """Progress in plain lines on stderr: one when a stage begins, then one after ten seconds, and ever fewer.

    The longer a stage takes, the longer is the silence between two lines, a tenth of the time and ten minutes at most:
    a night fills two screens.
    """

    def __init__(self) -> None:
        self._name, self._pace = "", Pace()
        self._began = self._told = time.monotonic()

    def stage(self, name: str, total: float | None = None) -> None:
        """A line that says what begins."""
        self._name, self._pace = name, Pace(total or 0.0)
        self._began = self._told = time.monotonic()
        print(name, file=sys.stderr, flush=True)

    def advance(self, done: float, note: str = "") -> None:
        """A line with the share that is done and the time left, unless one was printed just now."""
        now = time.monotonic()
        self._pace.report(done, now)
        if now - self._told < min(_LAST_LINE_S, max(_FIRST_LINE_S, _LATER * (now - self._began))):
            return
        self._told = now
        share = percent(self._pace.share) if self._pace.total else ""
        parts = [self._name, share, self._pace.said(now), note]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def refuse(error: MedisentError | Interrupted, *, as_json: bool) -> None:
    """Print a refusal: at most six lines on stderr and, for scripts, an object on stdout."""
    lines = str(error).splitlines()
    if len(lines) > _REFUSAL_LINES:
        lines = [*lines[: _REFUSAL_LINES - 1], f"... and {len(lines) - _REFUSAL_LINES + 1} more lines."]
    print("\n".join(lines), file=sys.stderr)
    if as_json:
        fault = {"code": error.code, "message": str(error), "exit_code": error.exit_code}
        print(printable(json.dumps({"error": fault}, ensure_ascii=False)))


def end_after_result(error: MedisentError) -> Never:
    """End a command whose result stands on stdout already, where a second object would spoil the first.

    Raises:
        typer.Exit: Always, with the error's exit code.
    """
    refuse(error, as_json=False)
    raise typer.Exit(error.exit_code)


def printable(text: str, encoding: str = "utf-8") -> str:
    """The text with escapes, as JSON has them, for what is not UTF-8 in a file's name or what a terminal lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def jsonable(value: Any) -> Any:  # noqa: ANN401 - anything a result may hold
    """The value in JSON's own types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return jsonable(value.tolist())  # numpy's numbers and arrays


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines, the first being the head."""
    columns = [_aligned(column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _aligned(column: Sequence[str]) -> list[str]:
    """Cells of one length; a column of figures, below its head, stands at the right."""
    width = max(map(len, column))
    figures = len(column) > 1 and all(_FIGURE.match(cell) for cell in column[1:])
    return [cell.rjust(width) if figures else cell.ljust(width) for cell in column]
