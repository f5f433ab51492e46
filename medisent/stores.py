"""Cohorts that were laid on a grid once, kept in memory-mapped files for whoever asks next; no name stands in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from isal import isal_zlib
from jaxtyping import Float
from torch import Tensor

from medisent.errors import CohortError
from medisent.files import file_digest, whole_file, write_text
from medisent.grids import Grid

VARIABLE = "MEDISENT_CACHE"
_LIMIT = 20 << 30  # bytes
_HEADER = 4096  # bytes
_CHUNK = 1 << 26
# Pages that somebody writes to become a copy of his own. No memory is set aside for that (MAP_NORESERVE, which Python
# names later), or Linux would refuse to map a file that is larger than memory.
_PRIVATE = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
# Their voxels lie in other files, which the header names as it likes.
_DETACHED = (".hdr", ".img", ".mhd", ".nhdr", ".par", ".rec")
_CHAIN = ("grids.py", "loading.py", "scanners.py", "volumes/volume.py", "formats")

Scans = Sequence[Sequence[Path | None]]
Sample = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Stack:
    """The scans of a cohort on a grid; see ``medisent.batches.Batch`` for what is in them."""

    scan: Float[Tensor, "batch 1 x y z"]
    coverage: Float[Tensor, "batch 1 x y z"]
    masks: Float[Tensor, "batch shapes x y z"]
    log_scale: Float[Tensor, " batch"]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Stack:
        """Samples (scan, coverage, masks, log scale) in memory."""
        return cls(*(torch.stack(parts) for parts in zip(*samples, strict=True)))


@dataclass(frozen=True)
class Store:
    """A folder of stacks, each named by the content of its scans and masks, the grid and the code that loads them.

    It may be shared by any number of processes and deleted at any time. What is damaged counts as absent.

    Attributes:
        folder: Where it is.
        grid: The model's grid.
        air: What air measures, in the scans' unit.
        limit: Bytes; beyond them the stacks that were not used for longest go.
    """

    folder: Path
    grid: Grid
    air: float = 0.0
    limit: int = _LIMIT

    def key(self, scans: Scans) -> str | None:
        """The name of the stack of these scans (each with its masks), or None where none can be kept.

        Raises:
            OSError: A file cannot be read.
        """
        paths = sorted({path for row in scans for path in row if path is not None})
        if any(map(_is_detached, paths)):
            return None
        digests = self._digests(paths)
        rows = [[digests[path] if path else "" for path in row] for row in scans]
        said = [self.grid.spacing_mm, self.grid.shape, self.air, _code(), np.__version__, sitk.Version.VersionString()]
        return hashlib.sha256(json.dumps([said, rows]).encode()).hexdigest()

    def kept(self, key: str, scans: Scans) -> Stack | None:
        """The stack of this name, memory-mapped, if there is one and every byte of it is right."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, flags=_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError):  # not there, or empty
            return None
        if len(mapped) != _HEADER + 4 * self._size(scans):
            return None
        numbers = np.frombuffer(mapped, np.float32, offset=_HEADER)
        if mapped[:_HEADER] != self._header(key, scans, numbers):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return self._stack(torch.from_numpy(numbers), scans)

    def keep(self, key: str, scans: Scans, samples: Iterable[Sample]) -> Stack:
        """Write the samples of these scans, one after the other, and the stack of them, memory-mapped.

        Raises:
            CohortError: Files changed while they were read.
            MachineError: The folder cannot be written, or the disk is full.
        """
        path = self._path(key)
        with whole_file(path) as temporary, temporary.open("r+b") as file:
            file.truncate(_HEADER + 4 * self._size(scans))
            starts = self._starts(scans)
            for sample in samples:
                for index, part in enumerate(sample):
                    file.seek(_HEADER + 4 * starts[index])
                    file.write(np.ascontiguousarray(part.numpy(), np.float32).data)
                    starts[index] += part.numel()
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            file.seek(0)
            file.write(self._header(key, scans, np.frombuffer(mapped, np.float32, offset=_HEADER)))
            if self.key(scans) != key:
                raise CohortError("Scans changed while they were read. Begin again once they are all there.")
        self._tidy(path)
        found = self.kept(key, scans)
        if found is None:
            raise CohortError(f"What was written to {self.folder} cannot be read back. Set {VARIABLE}=off.")
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.stack"

    def _parts(self, scans: Scans) -> list[tuple[int, ...]]:
        """The shapes of scans, coverage, masks and log scales."""
        count, shaped = len(scans), len(scans[0]) - 1
        return [(count, channels, *self.grid.shape) for channels in (1, 1, shaped)] + [(count,)]

    def _size(self, scans: Scans) -> int:
        return sum(math.prod(shape) for shape in self._parts(scans))

    def _starts(self, scans: Scans) -> list[int]:
        sizes = [math.prod(shape) for shape in self._parts(scans)]
        return [sum(sizes[:index]) for index in range(len(sizes))]

    def _stack(self, numbers: Float[Tensor, " numbers"], scans: Scans) -> Stack:
        shapes = self._parts(scans)
        parts = numbers.split([math.prod(shape) for shape in shapes])
        return Stack(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))

    def _header(self, key: str, scans: Scans, numbers: Float[np.ndarray, " numbers"]) -> bytes:
        data, checksum = numbers.view(np.uint8), 0
        for start in range(0, len(data), _CHUNK):
            checksum = isal_zlib.crc32(data[start : start + _CHUNK], checksum)
        said = {"kind": "medisent stack", "schema": 1, "key": key, "parts": self._parts(scans), "crc32": checksum}
        return json.dumps(said).encode().ljust(_HEADER - 1) + b"\n"

    def _digests(self, paths: Sequence[Path]) -> dict[Path, str]:
        """The digest of every scan; those of files that have not changed since are known."""
        index = self.folder / "digests.json"
        try:
            known = json.loads(index.read_text(encoding="ascii"))
            known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            known = {}
        marks = {path: _mark(path) for path in paths}
        fresh = {mark: _content(path) for path, mark in marks.items() if mark not in known}
        if fresh:
            with contextlib.suppress(Exception):  # it only saves time
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_text(index, json.dumps({**known, **fresh}))
        return {path: str(fresh.get(mark) or known[mark]) for path, mark in marks.items()}

    def _tidy(self, new: Path) -> None:
        """Remove what was not used for longest."""
        with contextlib.suppress(OSError):
            stacks = sorted(self.folder.glob("[!.]*.stack"), key=lambda path: -path.stat().st_mtime)
            room = self.limit - new.stat().st_size
            for path in stacks:
                if path != new:
                    room -= path.stat().st_size
                    if room < 0:
                        path.unlink(missing_ok=True)


def store_folder() -> Path | None:
    """Where stacks are kept: what MEDISENT_CACHE names, else the user's own folder for such; None for ``off``."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() == "off":
        return None
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medisent"


def store_bytes(folder: Path) -> int:
    """What the stacks in a folder take of the disk."""
    return sum(path.stat().st_size for path in folder.glob("[!.]*.stack"))


def usual_store(grid: Grid, air: float) -> Store | None:
    """The store of this user, if there is to be one."""
    folder = store_folder()
    return None if folder is None else Store(folder, grid, air)


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _mark(path: Path) -> str:
    """What changes whenever a file, or one in a folder, does, as a hash."""
    found = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape"))
    for file in _files(path):
        said = file.stat()
        name = str(file.relative_to(path)).encode("utf-8", "surrogateescape")
        found.update(name + f"|{said.st_size}|{said.st_mtime_ns}|{said.st_ctime_ns}|{said.st_ino}|".encode())
    return found.hexdigest()


def content_digest(path: Path) -> str | None:
    """The SHA-256 of what a scan's file, or the files of its folder, hold; None where voxels may lie in other files.

    Raises:
        OSError: They cannot be read.
    """
    return None if _is_detached(path) else _content(path)


def _is_detached(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(_DETACHED)


def _content(path: Path) -> str:
    if not path.is_dir():
        return file_digest(path)
    return hashlib.sha256("".join(file_digest(file) for file in _files(path)).encode()).hexdigest()


@cache
def _code() -> str:
    """The digest of the code that a scan passes through on its way to the grid."""
    here = Path(__file__).parent
    files = [file for name in _CHAIN for file in _files(here / name) if file.suffix == ".py"]
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()
