"""Knows how several processes share work: whoever makes the lock file first does the piece, the others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process holds the work whose lock is ``path``; gives it back when the block ends.

    A lock whose process is gone (killed, power lost) counts as none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphan(path)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield False
        return
    try:
        os.write(handle, str(os.getpid()).encode())
        os.close(handle)
        yield True
    finally:
        path.unlink(missing_ok=True)


def wait_for(path: Path, seconds: float = 0.5) -> None:
    """Return once nobody holds the lock ``path``."""
    while path.exists():
        _remove_orphan(path)
        time.sleep(seconds)


def _remove_orphan(path: Path) -> None:
    with suppress(FileNotFoundError, ValueError):
        if not _alive(int(path.read_text(encoding="utf-8"))):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
