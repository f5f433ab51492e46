"""DICOM: the volume that a file or a folder means, in its place, or the name of the fault why there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from medisent.errors import FormatError, MedisentError
from medisent.formats.checks import refuse_size
from medisent.formats.dicom.choice import choose
from medisent.formats.dicom.elements import UnreadableError, is_dicom_start
from medisent.formats.dicom.faults import Fault, Verdict
from medisent.formats.dicom.frames import Frame
from medisent.formats.dicom.inventory import Candidate, Inventory, take_stock
from medisent.formats.dicom.pixels import assembled
from medisent.plurals import several
from medisent.volumes import Geometry, Instance, Source, Volume

__all__ = ["Candidate", "Fault", "Inventory", "Verdict", "is_dicom", "outline_dicom", "read_dicom", "take_stock"]

_UNITS = {"BQML": "Bq/mL", "CNTS": "counts", "GML": "g/mL", "PROPCPS": "counts per second", "CPS": "counts per second"}


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does, with its preamble or, as some old scanners write, without."""
    with path.open("rb") as file:
        return is_dicom_start(file.read(132))


def read_dicom(path: Path, *, series: int | None, volume: int | None, max_voxels: int) -> Volume:
    """The volume that one DICOM series makes, slices in the order of their places, values rescaled slice by slice.

    Args:
        path: A file or a folder.
        series: Which of the candidates, counted from 0 as a refusal lists them; else the one that is clearly best.
        volume: Which of several volumes of the same places, counted from 0.
        max_voxels: More are refused before a pixel is read.

    Raises:
        FormatError: There is no image, none that is clearly meant, colour, or pixels that cannot be decoded.
        GeometryError: The images do not make an evenly spaced box; ``code`` names the fault.
    """
    stock = take_stock(path)
    frames, candidate, geometry, remarks = _meant(stock, path, series, volume)
    refuse_size(path, geometry.shape, max_voxels)
    damaged = several(
        len(stock.damaged), "damaged DICOM file in another folder is", "damaged DICOM files elsewhere are"
    )
    elsewhere = (f"{damaged} passed over.",) if stock.damaged else ()
    remarks = (*remarks, *_about_values(candidate), *elsewhere)
    try:
        voxels = assembled(frames, path, max_voxels)
    except UnreadableError as error:
        raise Fault.DAMAGED.refusal(path, error.words) from error
    return Volume(voxels, geometry, None, remarks, _source(frames))


def outline_dicom(
    path: Path, *, series: int | None, volume: int | None, max_voxels: int
) -> tuple[Geometry, tuple[str, ...], bytes, str]:
    """Where the volume of a series lies, remarks, bytes that copies of it share, and its modality; no pixel is read.

    Raises:
        FormatError: There is no image, none that is clearly meant, or colour.
        GeometryError: The images do not make an evenly spaced box; ``code`` names the fault.
    """
    frames, candidate, geometry, remarks = _meant(take_stock(path), path, series, volume)
    refuse_size(path, geometry.shape, max_voxels)
    uids = " ".join(f"{frame.image.file.elements.text('SOPInstanceUID')} {frame.index}" for frame in frames)
    return geometry, remarks, hashlib.sha256(uids.encode()).digest(), candidate.image.modality


def _meant(
    stock: Inventory, path: Path, series: int | None, volume: int | None
) -> tuple[list[Frame], Candidate, Geometry, tuple[str, ...]]:
    """The images of the volume that is meant, in order, what they are part of, where they lie, and remarks."""
    if not stock.candidates:
        _refuse_damaged(stock, path)
        raise FormatError(f"{path} holds no DICOM image. Give the folder with the images of one series.")
    try:
        choice = choose(stock, path, series)
    except MedisentError:
        _refuse_damaged(stock, path, _folders(frame for candidate in stock.candidates for frame in candidate.frames))
        raise
    candidate, verdict = choice.candidate, choice.candidate.verdict
    if verdict.affine is None or candidate.order is None:
        raise FormatError(f"{path} holds no DICOM volume. Give the folder with the images of one series.")
    _refuse_damaged(stock, path, _folders(candidate.frames))
    frames = [candidate.frames[index] for index in candidate.order[_volume_number(candidate, path, volume)]]
    geometry = Geometry(verdict.affine, (frames[0].columns, frames[0].rows, len(frames)))
    return frames, candidate, geometry, (*choice.remarks, *verdict.remarks, *_about_count(stock, candidate))


def _folders(frames: Iterable[Frame]) -> set[Path]:
    return {frame.image.file.path.parent for frame in frames}


def _refuse_damaged(stock: Inventory, path: Path, folders: set[Path] | None = None) -> None:
    """Refuse a scan that damaged files lie beside: whether they belong to it is not known."""
    words = [words for folder, words in stock.damaged if folders is None or folder in folders]
    if words and path.is_file():
        raise Fault.DAMAGED.refusal(path, words[0])
    if words:
        raise Fault.DAMAGED.refusal(path, f"has {len(words)} DICOM files of which the first {words[0]}")


def _volume_number(candidate: Candidate, path: Path, volume: int | None) -> int:
    if volume is None and candidate.volumes > 1:
        raise Fault.FOUR_D.refusal(
            path,
            f"has 4 dimensions, {candidate.volumes} images (time points or the like) of each of {candidate.slices} "
            "places, but a scan has 3. Choose one time point first: --volume 0.",
        )
    if volume is not None and not 0 <= volume < candidate.volumes:
        last = candidate.volumes - 1
        raise FormatError(f"{path} has no volume {volume}. It has {last + 1}: choose --volume 0 to {last}.")
    return volume or 0


def _source(frames: Sequence[Frame]) -> Source:
    """What objects derived from these images refer to."""
    image = frames[0].image
    instances = []
    for frame in frames:
        elements = frame.image.file.elements
        number = frame.index + 1 if elements.text("NumberOfFrames") else None
        x, y, z = frame.position or (0.0, 0.0, 0.0)
        kind, uid = elements.text("SOPClassUID"), elements.text("SOPInstanceUID")
        instances.append(Instance(kind, uid, number, (x, y, z), *frame.rescale))
    return Source(
        image.file.elements.text("Modality"), *image.series, frames[0].stack[1], tuple(instances), _lossy(frames)
    )


def _lossy(frames: Sequence[Frame]) -> bool:
    return any(frame.image.file.elements.text("LossyImageCompression") == "01" for frame in frames)


def _about_count(stock: Inventory, candidate: Candidate) -> tuple[str, ...]:
    """A sentence where the header counts more images than there are: places alone do not tell of missing ends."""
    elements, series = candidate.image.file.elements, candidate.image.alike
    told = int(elements.decimal("ImagesInAcquisition") or 0) or next(iter(elements.shorts("NumberOfSlices")), 0)
    found = sum(len(other.frames) for other in stock.candidates if other.image.alike == series)
    if told <= found:
        return ()
    return (
        f"The header counts {several(told, 'image')}, of which {found} are here: slices may be missing at the ends.",
    )


def _about_values(candidate: Candidate) -> tuple[str, ...]:
    """What has to be known about the values: no uptake values, less than was measured, or inverted."""
    elements = candidate.image.file.elements
    said = []
    if candidate.image.modality == "PT":
        unit = _UNITS.get(elements.text("Units"))
        said.append(f"Values are as the scanner rescaled them{f' ({unit})' if unit else ''}; no SUV is computed.")
    if _lossy(candidate.frames):
        said.append("The images were compressed with loss.")
    if elements.text("PhotometricInterpretation") == "MONOCHROME1":
        said.append("The images are meant to be shown inverted (MONOCHROME1); values are left as they are.")
    return tuple(said)
