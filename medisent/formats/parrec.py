"""Philips PAR/REC: nibabel's reader, behind checks of length and size."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
from nibabel.parrec import PARRECArrayProxy, PARRECError, PARRECHeader

from medisent.errors import FormatError, GeometryError
from medisent.formats.checks import check_volume, is_usable, refuse_size
from medisent.volumes import Geometry, Volume

_LONGEST = 1 << 26  # bytes of text; a table of 100,000 images takes a third of it
_DAMAGED = (PARRECError, ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, StopIteration)


def is_parrec(path: Path) -> bool:
    """Whether a file is one half of a pair of PAR and REC, by its name."""
    return path.suffix.lower() in (".par", ".rec")


def read_parrec(path: Path, *, volume: int | None, max_voxels: int) -> Volume:
    """The scan in a pair of a PAR and a REC file, values in the unit that the scanner displays.

    Raises:
        FormatError: A half is missing, damaged or cut short, or holds not one 3D volume.
        GeometryError: The voxels have no usable place.
    """
    par, rec = _pair(path)
    if par.stat().st_size > _LONGEST:
        raise FormatError(f"{path} has a PAR file of more than {_LONGEST:,} bytes, which no scanner writes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with par.open(encoding="latin-1") as text:
                header = PARRECHeader.from_fileobj(text)
            sizes, affine = [int(n) for n in header.get_data_shape()], np.asarray(header.get_affine(), np.float64)
            declared = math.prod(header.get_rec_shape()) * header.get_data_dtype().itemsize
    except _DAMAGED as error:
        raise FormatError(
            f"{path} has a PAR file that is damaged or tells of an incomplete series. Export it again."
        ) from error
    check_volume(path, sizes, volume)
    refuse_size(path, sizes, max_voxels)
    if len(sizes) < 3:
        raise FormatError(f"{path} has one slice, but a scan has three dimensions. Give the whole volume.")
    if rec.stat().st_size != declared:
        raise FormatError(
            f"{path} is truncated or mixed up: its PAR file declares {declared:,} bytes, its REC file has "
            f"{rec.stat().st_size:,}. Copy or export both again."
        )
    if not is_usable(affine):
        raise GeometryError(f"{path} gives its voxels an impossible size or place. Export it again.")
    stored = PARRECArrayProxy(str(rec), header, mmap=False)
    voxels = np.asarray(stored[..., volume or 0] if len(sizes) > 3 else stored[...])
    return Volume(voxels, Geometry(affine, (sizes[0], sizes[1], sizes[2])), None)


def _pair(path: Path) -> tuple[Path, Path]:
    """The PAR and the REC file that belong together, whichever of them was given."""
    other = ".rec" if path.suffix.lower() == ".par" else ".par"
    mates = (path.with_suffix(other), path.with_suffix(other.upper()))
    mate = next((mate for mate in mates if mate.is_file()), None)
    if mate is None:
        raise FormatError(
            f"{path} is half of a pair, and the {other.upper()} file beside it is missing. Put both in one folder."
        )
    return (path, mate) if other == ".rec" else (mate, path)
