"""What mutant tests share: damage to files, and a worker of limited memory that reads them and outlives none of them.

Run as a program it is that worker: for each path on stdin it reads the scan and writes it again, and answers with one
line of JSON.
"""

import gzip
import json
import resource
import select
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECONDS = 10.0
BYTES = 1_500_000_000
_EXTREMES = [0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**24, 10**6]
_NUMBERS = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-38, 3e38, -1e10, 352.0, 1e9]


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        kind: ``read``, ``refused``, or what must not be: the name of an exception, ``death`` or ``hang``.
        seconds: How long it took.
        detail: The fault's code, or the message.
    """

    kind: str
    seconds: float
    detail: str

    @property
    def fine(self) -> bool:
        return self.kind in ("read", "refused")


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """The data, damaged in one of five ways; what is packed by gzip is damaged within every second time."""
    if data[:2] == b"\x1f\x8b" and rng.integers(2):
        return gzip.compress(mutant(zlib.decompress(data, 47), rng), 1)
    changed = bytearray(data)
    # half of the damage hits the first bytes, where headers are
    end = min(len(data), 700) if rng.integers(2) else len(data)
    at = int(rng.integers(end))
    match rng.integers(5):
        case 0:
            for _ in range(int(rng.integers(1, 9))):
                changed[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
        case 1:
            start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
            piece = data[start : start + length]
            changed[at : at + len(piece)] = piece
        case 2:
            at -= at % 2
            changed[at : at + 8] = _lie(rng)[: len(changed) - at]
        case 3:
            del changed[at:]
        case _:
            length = int(rng.integers(1, max(2, len(data) // 4)))
            changed[at:at] = data[at : at + length]
    return bytes(changed)


def _lie(rng: np.random.Generator) -> bytes:
    if rng.integers(2):
        return np.array(rng.choice(_NUMBERS)).astype(rng.choice(["<f4", ">f4", "<f8"])).tobytes()
    return np.array(rng.choice(_EXTREMES)).astype(rng.choice(["<i2", ">i2", "<i4"])).tobytes()


class Worker:
    """Reads mutants in a process of limited memory; where one kills it or takes too long, the next gets a new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.started = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, path: Path) -> Verdict:
        """What becomes of one file or folder."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        began = time.monotonic()
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        ready = select.select([process.stdout], [], [], SECONDS)[0]
        line = process.stdout.readline() if ready else ""
        seconds = time.monotonic() - began
        if not line:
            self._end()
            return Verdict("death" if ready else "hang", seconds, str(process.returncode))
        return _verdict(line, seconds)

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, str(self._folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.started += 1
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _verdict(line: str, seconds: float) -> Verdict:
    said = json.loads(line)
    return Verdict(said["kind"], seconds, said["detail"])


def _answers(folder: Path) -> Iterator[dict[str, str]]:
    from medisent import formats
    from medisent.errors import MedisentError

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))
    yield {}
    for line in sys.stdin:
        try:
            scan = formats.read(Path(line.rstrip("\n")))
            formats.write(scan, folder / "again.nii.gz", description="mutant")
            again = formats.read(folder / "again.nii.gz")
            same = np.array_equal(again.voxels, scan.voxels) and np.allclose(again.affine, scan.affine, 1e-4, 1e-3)
            yield {"kind": "read" if same else "other when written", "detail": ""}
        except MedisentError as error:
            yield {"kind": "refused", "detail": error.code}
        except BaseException as error:
            yield {"kind": type(error).__name__, "detail": str(error)}


if __name__ == "__main__":
    for answer in _answers(Path(sys.argv[1])):
        print(json.dumps(answer), flush=True)
