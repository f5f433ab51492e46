"""Files in, files out: a scan of any format becomes one ``Volume``, and a ``Volume`` becomes a NIfTI file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from medisent.errors import FormatError, GeometryError, MachineError
from medisent.formats.checks import is_usable, refuse_types
from medisent.formats.dicom import is_dicom, read_dicom
from medisent.formats.nifti import fresh_header, is_nifti, read_nifti, write_nifti
from medisent.formats.others import read_other
from medisent.formats.outlines import Outline, header_outline
from medisent.formats.parrec import is_parrec, read_parrec
from medisent.formats.space import geometry_of, kept_header
from medisent.volumes import Geometry, Stored, Volume

__all__ = [
    "MAX_VOXELS",
    "Outline",
    "fresh_header",
    "geometry_of",
    "kept_header",
    "outline",
    "read",
    "reading_at_most",
    "refuse_types",
    "refuse_unclear",
    "refuse_unfit",
    "write",
]

MAX_VOXELS = 1 << 29
_most: ContextVar[int] = ContextVar("most voxels", default=MAX_VOXELS)


@contextmanager
def reading_at_most(voxels: int | None) -> Iterator[None]:
    """Within it ``read`` refuses scans of more voxels, in this thread, unless it is told otherwise; None as before."""
    token = _most.set(_most.get() if voxels is None else voxels)
    try:
        yield
    finally:
        _most.reset(token)


def read(
    path: Path | str,
    *,
    volume: int | None = None,
    series: int | None = None,
    max_voxels: int | None = None,
    constant: bool = False,
) -> Volume:
    """The scan at ``path``, its values as the file means them, its place in mm, RAS+.

    Args:
        path: A NIfTI file, a DICOM file or folder, or any format that SimpleITK reads.
        volume: Which volume of a 4D file, counted from 0.
        series: Which series of a DICOM folder, counted from 0 as the refusal lists them.
        max_voxels: More are refused before memory is asked for; without it ``MAX_VOXELS``, or what
            ``reading_at_most`` says.
        constant: Whether all voxels may be equal, as in the mask of something that is not there.

    Raises:
        FormatError: There is no such file, or it is not one intact scalar 3D scan.
        GeometryError: The voxels have no trustworthy place in space.
        MachineError: The file may not be read, or memory does not suffice.
    """
    path = Path(path)
    with _refusing(path):
        found = _dispatch(path, volume, series, _most.get() if max_voxels is None else max_voxels)
        refuse_unfit(found, path, constant=constant)
    return found


def outline(path: Path, *, constant: bool = False) -> Outline:
    """What the header of the scan at ``path`` says; scans of formats other than NIfTI and DICOM are read for it.

    Args:
        path: As for ``read``.
        constant: As for ``read``.

    Raises:
        FormatError: There is no such file, or it is seen from outside that it is not one intact scalar 3D scan.
        GeometryError: The voxels have no trustworthy place in space.
        MachineError: The file may not be read, or memory does not suffice.
    """
    with _refusing(path):
        found = header_outline(path, _most.get())
        if found is not None:
            _refuse_flat(found.geometry, path)
    if found is None:
        volume = read(path, constant=constant)
        likeness = hashlib.sha256(np.ascontiguousarray(volume.voxels).data).hexdigest()
        found = Outline(volume.geometry, "", volume.remarks, likeness)
    return found


def refuse_unclear(
    path: Path, *, volume: int | None = None, series: int | None = None, max_voxels: int | None = None
) -> None:
    """Refuse a scan of which the header alone tells that ``read`` would refuse it; that takes no voxel and no torch.

    Args:
        path: As for ``read``.
        volume: As for ``read``.
        series: As for ``read``.
        max_voxels: As for ``read``.

    Raises:
        FormatError: There is no such file, it is not one scalar 3D scan, or several series may be meant.
        GeometryError: The voxels have no trustworthy place in space.
        MachineError: The file may not be read.
    """
    with _refusing(path):
        header_outline(path, _most.get() if max_voxels is None else max_voxels, volume=volume, series=series)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """The faults of the machine while a file is read, as refusals."""
    try:
        if not path.exists():
            raise FormatError(f"{path} does not exist. Check the path.")
        yield
    except OSError as error:
        raise MachineError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}. Check disk and permissions."
        ) from error
    except MemoryError as error:
        raise MachineError(f"{path} does not fit into memory. Crop or resample it first.") from error


def write(volume: Volume, path: Path, *, description: str, like: Volume | None = None) -> Stored:
    """Write a volume as NIfTI, and say how its values are stored; see ``medisent.formats.nifti.write_nifti``.

    Raises:
        UsageError: The name does not end in ``.nii`` or ``.nii.gz``.
        MachineError: The file cannot be written.
    """
    return write_nifti(volume, path, description=description, like=like)


def _dispatch(path: Path, volume: int | None, series: int | None, max_voxels: int) -> Volume:
    if path.is_dir() or (path.is_file() and is_dicom(path)):
        return read_dicom(path, series=series, volume=volume, max_voxels=max_voxels)
    if not path.is_file():
        raise FormatError(f"{path} is neither a file nor a folder. Give a NIfTI file, or a DICOM file or folder.")
    if path.stat().st_size == 0:
        raise FormatError(f"{path} is empty. Copy or download it again.")
    if is_nifti(path):
        return read_nifti(path, volume=volume, max_voxels=max_voxels)
    if is_parrec(path):
        return read_parrec(path, volume=volume, max_voxels=max_voxels)
    return read_other(path, volume=volume, max_voxels=max_voxels)


def refuse_unfit(volume: Volume, path: Path, *, constant: bool = False) -> None:
    """Refuse what has the form of a scan but cannot be worked on.

    Raises:
        FormatError: It has one slice, voxels that are no numbers, or but one value.
        GeometryError: Its voxels have no place.
    """
    _refuse_flat(volume.geometry, path)
    low, high = volume.voxels.min(), volume.voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FormatError(f"{path} holds voxels that are NaN or infinite. Replace them first, for example by 0.")
    if low == high and not constant:
        raise FormatError(f"{path} has the value {low} in every voxel, so it shows nothing. Check how it was exported.")


def _refuse_flat(geometry: Geometry, path: Path) -> None:
    """Refuse what has one slice, or no place.

    Raises:
        FormatError: It has one slice.
        GeometryError: Its voxels have no place.
    """
    if min(geometry.shape) == 1:
        size = " x ".join(map(str, geometry.shape))
        raise FormatError(
            f"{path} has one slice ({size} voxels), but a scan has three dimensions. Give the whole volume."
        )
    if not is_usable(geometry.affine):
        raise GeometryError(
            f"{path} has a singular or non-finite affine, so its voxels have no place. Export it again."
        )
