"""What a scan's header says: where the scan lies and what made it. Voxels are decoded only where no header tells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from medisent.formats.dicom import is_dicom, outline_dicom
from medisent.formats.nifti import is_nifti, outline_nifti
from medisent.volumes import Geometry


@dataclass(frozen=True, eq=False)
class Outline:
    """A scan without its voxels.

    Attributes:
        geometry: Where it lies.
        modality: Two letters, such as MR, where the header tells; else empty.
        remarks: What had to be decided to understand the header, in sentences.
        likeness: The same for copies of a scan, and for hardly any others. It is compared, never shown.
    """

    geometry: Geometry
    modality: str
    remarks: tuple[str, ...]
    likeness: str


def header_outline(
    path: Path, max_voxels: int, *, volume: int | None = None, series: int | None = None
) -> Outline | None:
    """The outline of a NIfTI or DICOM scan; None for other formats, whose headers are not read apart from the voxels.

    Arguments:
        path: As for ``medisent.formats.read``.
        max_voxels: More are refused.
        volume: As for ``read``.
        series: As for ``read``.

    Raises:
        FormatError: It is not one scalar 3D scan, or shorter than its header declares.
        GeometryError: The voxels have no trustworthy place in space.
    """
    if not path.is_dir() and (not path.is_file() or path.stat().st_size == 0):
        return None  # which reading refuses
    if path.is_dir() or is_dicom(path):
        geometry, remarks, uids, modality = outline_dicom(path, series=series, volume=volume, max_voxels=max_voxels)
        return Outline(geometry, modality, remarks, _likeness(uids))
    if is_nifti(path):
        geometry, remarks, sample = outline_nifti(path, volume=volume, max_voxels=max_voxels)
        return Outline(geometry, "", remarks, _likeness(sample))
    return None


def _likeness(sample: bytes) -> str:
    return hashlib.sha256(sample).hexdigest()
