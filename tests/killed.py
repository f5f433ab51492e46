"""A server of commands (see ``forked``) whose checkpoints come after every step and take long to be written."""

from __future__ import annotations

import time
from pathlib import Path

import forked

_PIECES = 4
_PAUSE = 0.01  # seconds


def slowly(path: Path, data: bytes) -> int:
    """Write a file piece by piece, so that a process can be killed while one is half written."""
    with path.open("wb") as file:
        for piece in range(_PIECES):
            file.write(data[piece * len(data) // _PIECES : (piece + 1) * len(data) // _PIECES])
            file.flush()
            time.sleep(_PAUSE)
    return len(data)


if __name__ == "__main__":
    from medisent.training import loop

    loop._CHECKPOINT_SECONDS = -1.0
    Path.write_bytes = slowly  # type: ignore[method-assign, assignment]
    forked.serve()
