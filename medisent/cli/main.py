"""The commands put together, and how each of them may end."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from medisent import __version__
from medisent.cli.benchmark import bench
from medisent.cli.cohorts import init, phantom, schema
from medisent.cli.journey import demo
from medisent.cli.machine import check, info
from medisent.cli.output import refuse
from medisent.cli.runs import evaluate, runs, train
from medisent.cli.scans import counterfactual, encode, explain, harmonize
from medisent.errors import Interrupted, MachineError, MedisentError, UsageError, short_of_memory

INTERRUPTED = 130
_MACHINE_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR),
}
_READERS = ("pydicom", "highdicom", "nibabel", "nibabel.global", "SimpleITK")

# Typer's own panels and tracebacks cost start-up time and hide what is plain.
app = typer.Typer(
    name="medisent", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
_ON_COHORTS = (demo, phantom, init, schema, train, runs, evaluate)
for command in (*_ON_COHORTS, explain, counterfactual, harmonize, encode, bench, info, check):
    app.command()(command)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Explain 3D medical scans by known factors, each moved alone, in the scan's own space.

    Begin with: medisent demo
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done; 1 a bug; 2 wrong usage; 3 the input was refused; 4 the machine; 5 a quality gate; 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in words, "--json" in words
    if not debug:
        warnings.simplefilter("ignore")
    for library in _READERS:
        logging.getLogger(library).disabled = True  # their warnings quote headers
    try:
        return int(app(words, prog_name="medisent", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # another process of the same training says why
        return end.code if isinstance(end.code, int) else 1
    except Interrupted as error:
        refuse(error, as_json=as_json)
        return error.exit_code
    except Exception as error:
        if debug:
            print("".join(trace(error)), file=sys.stderr, end="")
        return _ended_by(error, as_json=as_json)


def trace(error: BaseException) -> Iterator[str]:
    """A traceback, without what was said while a file was read: that may quote a name or a date from its header."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from (*trace(cause), "\nwhich led to\n\n")
    frames = traceback.extract_tb(error.__traceback__)
    quoted = not isinstance(error, MedisentError) and any(_reads(Path(frame.filename).parts) for frame in frames)
    yield from ("Traceback (most recent call last):\n", *traceback.format_list(frames))
    yield f"{type(error).__name__}: {'(withheld: it may quote the file)' if quoted else error}\n"


def _reads(file: tuple[str, ...]) -> bool:
    """Whether the code in a file reads scans or tables."""
    return file[-2:] == ("medisent", "cohorts.py") or bool({"formats", *_READERS} & set(file))


def _ended_by(error: Exception, *, as_json: bool) -> int:
    """Say why the command ended and return its exit code."""
    refusal = _refusal_of(error)
    if refusal is None:
        print(
            f"medisent failed by a fault of its own ({type(error).__name__}). "
            "Run the command again with --debug and report what it prints.",
            file=sys.stderr,
        )
        return 1
    refuse(refusal, as_json=as_json)
    return refusal.exit_code


def _refusal_of(error: Exception) -> MedisentError | None:
    """The refusal that an error amounts to, or None for a bug."""
    if isinstance(error, MedisentError):
        return error
    if isinstance(error, typer.TyperException):
        return UsageError(f"{error.format_message()} The command's --help lists what it takes.")
    if short_of_memory(error):
        return MachineError("There is not enough memory for this. Close other programs, or choose a smaller grid.")
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
        what = error.filename if isinstance(error.filename, str) else "A file"
        return MachineError(f"{what} cannot be used: {error.strerror}. Choose another place, or make room.")
    return None
