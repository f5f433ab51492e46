"""The only way this package writes: whole files under their final names, or nothing; of one run, never of two.

What is being written carries a name that begins with ``.partial-medisent-`` and is locked by its writer. The lock ends
with the process, however that ends, so that the next writer in the same folder can tell what nobody needs any more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from medisent.errors import MachineError

PARTIAL = ".partial-medisent-"
_LOCK = ".medisent-lock"
_READY = ".medisent-ready"
_AT_ONCE = 16
_CANNOT_TELL = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of locks, on some network disks
_ADVICE = {
    errno.ENOSPC: "Make room, or choose another place.",
    errno.EDQUOT: "Make room, or choose another place.",
    errno.EFBIG: "Raise the limit on the size of files, or choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name once the block has ended well.

    The temporary name keeps the suffixes of ``path``, since some writers choose a format by them. Within a folder that
    is itself written whole there is nothing to guard, and the path is ``path``.

    Raises:
        MachineError: The folder cannot be written, or the disk is full.
    """
    with _told_of(path):
        target = path.resolve() if path.is_symlink() else path
        _refuse_device(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if _guarded(target):
            yield target
            return
        with _claimed(target.parent, "".join(target.suffixes[-2:])[-24:]) as temporary:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
            _sync(target.parent)


@contextmanager
def whole_folder(path: Path, record: str) -> Iterator[Path]:
    """A temporary folder whose files move into ``path`` once the block has ended well, one run's after another's.

    First the files of the run before go, its record first of all; then the new ones come, the record last. So the files
    under final names are always of one run, and all of them are there as soon as the record is. A process that dies
    between leaves the rest ready, and the next one puts it in place. Files that are not of such runs stay, unless a new
    one has their name. Within a folder that is itself written whole there is nothing to guard.

    Arguments:
        path: The folder.
        record: The file that the block writes to say what it made. Where it is JSON with ``outputs``, from name to
            SHA-256, the next run removes those that nobody has changed.

    Raises:
        MachineError: The folder cannot be written, or the disk is full.
    """
    with _told_of(path):
        path.mkdir(parents=True, exist_ok=True)
        if _guarded(path):
            yield path
            return
        with _claimed(path, "") as owner:
            ready = owner.with_name(f"{owner.name}.d")
            place = ready / "new"
            place.mkdir(parents=True)
            yield place
            (ready / "record").write_text(record, encoding="utf-8")
            _sync(*place.rglob("*"), ready / "record", place, ready)
            with _alone_in(path):
                _finish(path)
                _make_room(path, _names(place))
                ready.rename(path / _READY)  # from here on this run counts, whatever happens
                _finish(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8.

    Raises:
        MachineError: The file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its name within it."""
    return {name: file_digest(folder / name) for name in _names(folder)}


@contextmanager
def only_process(folder: Path, asked: str) -> Iterator[None]:
    """A block that one process at a time runs for a folder.

    Arguments:
        folder: It is made.
        asked: What was to be done, for the refusal.

    Raises:
        MachineError: Another process is at it, or the folder cannot be written.
    """
    with _told_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder, f"{_LOCK}-run", wait=False) as mine:
            if mine is False:
                raise MachineError(f"{folder} is in use: another process is {asked}. Wait for it, or choose another.")
            yield


def in_use(folder: Path) -> bool:
    """Whether a process runs a block for a folder that is for one process at a time; see ``only_process``."""
    try:
        handle = os.open(folder / f"{_LOCK}-run", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


def _guarded(path: Path) -> bool:
    """Whether a path lies in a folder that is being written whole."""
    return any(part.startswith(PARTIAL) for part in path.parts)


@contextmanager
def _claimed(folder: Path, suffix: str) -> Iterator[Path]:
    """A temporary file that this process holds, and beside it room for ``NAME.d``; neither is there after the block."""
    with _alone_in(folder):
        _sweep(folder.absolute())
        handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=suffix, dir=folder)
        _lock(handle, wait=False)
    try:
        yield Path(name)
    finally:
        _discard(Path(name))
        os.close(handle)


@cache
def _sweep(folder: Path) -> None:
    """Remove or finish what dead processes left in a folder; once a process, since large folders take long to list."""
    with suppress(OSError):
        _finish(folder)
    for path in sorted(folder.glob(f"{PARTIAL}*")):
        with suppress(OSError):
            if path.is_dir():
                continue  # it goes with the file beside it
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle, wait=False):
                    _discard(path)
            finally:
                os.close(handle)


def _discard(owner: Path) -> None:
    shutil.rmtree(owner.with_name(f"{owner.name}.d"), ignore_errors=True)
    owner.unlink(missing_ok=True)


def _finish(path: Path) -> None:
    """Put in place what lies ready, from wherever the last process that tried has stopped."""
    ready = path / _READY
    new, moving, before = ready / "new", ready / "moving", ready / "before"
    if new.is_dir():
        record = path / (ready / "record").read_text(encoding="utf-8")
        old = record if record.is_file() else before
        gone = [*_unchanged(path, old, new / record.name), *_names(new)]  # before anything goes, since it takes longest
        if record.is_file():
            record.replace(before)
        _remove(path, gone)
        new.rename(moving)
    if moving.is_dir():
        last = (ready / "record").read_text(encoding="utf-8")
        names = sorted(_names(moving), key=lambda name: name == last)
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (moving / name).replace(path / name)
        _sync(path, *{(path / name).parent for name in names})
        shutil.rmtree(moving)  # before the name of the record, which whoever finds it would ask for
    shutil.rmtree(ready, ignore_errors=True)


def _make_room(path: Path, names: Iterable[str]) -> None:
    """Make the folders, as long as nothing is lost by failing at it.

    Raises:
        OSError: They cannot be made, or a folder has the name of a file.
    """
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if (path / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{name} in it is a folder")


def _unchanged(path: Path, before: Path, now: Path) -> list[str]:
    """What the run before wrote, if it was of the same command, as far as it lies below ``path`` and is as it was."""
    try:
        old, new = (json.loads(record.read_text(encoding="utf-8")) for record in (before, now))
        outputs = old["outputs"].items() if old["command"] == new["command"] else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    inside = path.resolve()
    found = []
    for name, digest in outputs:
        with suppress(OSError, ValueError):
            file = path / name
            if file.resolve().is_relative_to(inside) and file.is_file() and file_digest(file) == digest:
                found.append(name)
    return found


def _remove(path: Path, names: Iterable[str]) -> None:
    for name in names:
        (path / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or the folder itself
            if (path / name).parent != path:
                (path / name).parent.rmdir()


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def _alone_in(folder: Path, name: str = _LOCK, *, wait: bool = True) -> Iterator[bool | None]:
    """Whether this process holds a folder's lock file, which it takes away in the end; see ``_lock``."""
    path = folder / name
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        mine = _lock(handle, wait=wait)
        with suppress(FileNotFoundError):
            if mine is False or os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)  # somebody took the file away between
    try:
        with suppress(OSError):  # another's file, which others could open
            os.fchmod(handle, 0o666)
        yield mine
    finally:
        if mine is not False:
            path.unlink(missing_ok=True)
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Whether this process now holds the lock of an open file; None where the disk knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT_TELL:
            raise
        return None
    return True


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turns what the system says, about any temporary file, into a refusal about ``path``."""
    try:
        yield
    except OSError as error:
        raise _machine_error(path, error) from error
    except MachineError as error:
        if isinstance(error.__cause__, OSError):
            raise _machine_error(path, error.__cause__) from error.__cause__
        raise


def _machine_error(path: Path, error: OSError) -> MachineError:
    reason = error.strerror or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "Choose another place, or make room.")
    return MachineError(f"{path} cannot be written: {reason}. {advice}")


def _refuse_device(path: Path) -> None:
    """Refuse what is there but neither file nor folder: replacing ``/dev/null`` would harm the machine.

    Raises:
        OSError: It is a device, a pipe or a socket.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "It is not a file")


def _sync(*paths: Path) -> None:
    """Wait until files or folders are on the disk; many at a time, for a disk takes ten about as fast as one."""
    if len(paths) < _AT_ONCE:
        for path in paths:
            _sync_one(path)
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
