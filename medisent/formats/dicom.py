"""DICOM: which images make one volume, where its planes lie, and why a folder is not a volume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float
from pydicom.dataset import Dataset

from medisent.errors import FormatError, GeometryError, MedisentError
from medisent.formats.checks import refuse_size
from medisent.formats.pixels import assembled
from medisent.volumes import Geometry, Instance, Source, Volume

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "LossyImageCompression"),
    *("SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames"),
    *(
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
    ),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_MAX_FILES = 100_000
_GAP = 0.05  # slice distances may differ by this part of their median
_UNEVEN = 0.01  # from here on it is remarked
_TILT = 0.01  # drift within the plane for each step along the normal: 0.6 degrees
_PARALLEL = 1e-3
_LINES = 4  # of a refusal, for the list of series


@dataclass(frozen=True, eq=False)
class Plane:
    """One image of a volume.

    Attributes:
        path: Its file.
        frame: Its number within the file.
        columns: Voxels along a row.
        rows: Voxels along a column.
        position: Centre of the first voxel in mm, LPS+.
        steps: One voxel on along a row, and along a column, in mm, LPS+.
        slope: What a stored value is multiplied by.
        intercept: What is then added.
    """

    path: Path
    frame: int
    columns: int
    rows: int
    position: Float[np.ndarray, "3"]
    steps: Float[np.ndarray, "3 2"]
    slope: float
    intercept: float

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """The direction across the plane, of length 1, right-handed with its rows and columns."""
        normal = np.cross(self.steps[:, 0], self.steps[:, 1])
        unit: np.ndarray = normal / np.linalg.norm(normal)
        return unit


@dataclass(frozen=True, eq=False)
class Image:
    """One DICOM file that holds an image: its path and the few header elements that matter."""

    path: Path
    header: Dataset

    @property
    def frames(self) -> int:
        """How many planes the file holds."""
        return int(self.header.get("NumberOfFrames") or 1)


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does, with its preamble or, as some old scanners write, without."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or (head[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00"))


def read_dicom(path: Path, *, series: int | None, max_voxels: int) -> Volume:
    """The volume that one DICOM series makes, slices in the order of their places, values rescaled slice by slice.

    Raises:
        FormatError: There is no image, more than one series, colour, or pixels that cannot be decoded.
        GeometryError: The images do not make an evenly spaced box.
    """
    with _understood(path):
        images = _inventory(path)
        if not images:
            raise FormatError(f"{path} holds no DICOM image. Give the folder with the images of one series.")
        chosen = _chosen(images, path, series)
        _refuse_kinds(chosen, path)
        planes = [plane for image in chosen for plane in _planes(image, path)]
    planes, affine, remarks = _stacked(planes, path)
    shape = (planes[0].columns, planes[0].rows, len(planes))
    refuse_size(path, shape, max_voxels)
    with _understood(path):
        voxels = assembled([(p.path, p.frame, p.slope, p.intercept) for p in planes], shape, path)
    return Volume(voxels, Geometry(affine, shape), None, remarks, _source(chosen, planes))


def _source(images: Sequence[Image], planes: Sequence[Plane]) -> Source:
    """What objects derived from these planes refer to."""
    headers = {image.path: image.header for image in images}
    first = headers[planes[0].path]

    def told(header: Dataset, keyword: str) -> str:
        return str(header.get(keyword) or "")

    instances = []
    for plane in planes:
        header = headers[plane.path]
        x, y, z = (float(mm) for mm in plane.position)
        frame = plane.frame + 1 if header.get("NumberOfFrames") else None
        kind, uid = told(header, "SOPClassUID"), told(header, "SOPInstanceUID")
        instances.append(Instance(kind, uid, frame, (x, y, z), plane.slope, plane.intercept))
    names = ("Modality", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    modality, study, series, frame_of_reference = (told(first, name) for name in names)
    lossy = any(told(header, "LossyImageCompression") == "01" for header in headers.values())
    return Source(modality, study, series, frame_of_reference, tuple(instances), lossy)


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Turns what pydicom and its decoders raise, and warn of, on damaged data into one refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MedisentError, OSError, MemoryError):
        raise
    except Exception as error:
        raise FormatError(
            f"{path} cannot be read as DICOM: its data are damaged ({type(error).__name__}). Export it again."
        ) from error


def _inventory(path: Path) -> list[Image]:
    """Every image below ``path``, headers only, in the order of their names."""
    if path.is_file():
        header = _header(path)
        return [] if header is None else [Image(path, header)]
    files = []
    for file in path.rglob("*"):
        if file.is_file() and file.name.upper() != "DICOMDIR":
            files.append(file)
        if len(files) > _MAX_FILES:
            raise FormatError(f"{path} holds more than {_MAX_FILES:,} files. Give the folder of one series.")
    images = []
    for file in sorted(files):
        if is_dicom(file):
            header = _header(file)
            if header is not None:
                images.append(Image(file, header))
    return images


def _header(file: Path) -> Dataset | None:
    """The elements that matter, or None where the file holds no image."""
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    return header if header.get("Rows") and header.get("Columns") else None


def _chosen(images: Sequence[Image], path: Path, series: int | None) -> list[Image]:
    groups: dict[str, list[Image]] = {}
    for image in images:
        groups.setdefault(str(image.header.get("SeriesInstanceUID")), []).append(image)
    ordered = sorted(groups.values(), key=lambda group: (int(group[0].header.get("SeriesNumber") or 0), group[0].path))
    if series is None and len(ordered) == 1:
        return ordered[0]
    if series is not None and 0 <= series < len(ordered):
        return ordered[series]
    table = [f"{number}: {_described(group)}" for number, group in enumerate(ordered)]
    each = -(-len(table) // _LINES)
    lines = ["; ".join(table[start : start + each]) for start in range(0, len(table), each)]
    found = f"{path} holds {len(ordered)} series" + ("" if series is None else f" and none of number {series}")
    raise FormatError(
        "\n".join([f"{found}, but a scan is one of them:", *lines, "Choose one by its number: --series 0."])
    )


def _described(group: Sequence[Image]) -> str:
    """Modality, images, matrix and spacing of a series: nothing in it tells who was scanned."""
    header = group[0].header
    try:
        spacing = " x ".join(f"{float(mm):.2f}" for mm in _measures(header, 0).PixelSpacing) + " mm"
    except (AttributeError, TypeError, ValueError):
        spacing = "unknown spacing"
    modality = str(header.get("Modality") or "??")
    kind = modality if len(modality) == 2 and modality.isalpha() else "??"
    return f"{kind}, {sum(i.frames for i in group)} images, {header.Columns} x {header.Rows}, {spacing}"


def _refuse_kinds(images: Sequence[Image], path: Path) -> None:
    for image in images:
        header = image.header
        if int(header.get("SamplesPerPixel") or 1) > 1 or "PALETTE" in str(header.get("PhotometricInterpretation")):
            raise FormatError(
                f"{path} holds colour images (RGB), but a scan has one value in each voxel. Give the original series."
            )
        if "MOSAIC" in (header.get("ImageType") or []):
            raise FormatError(
                f"{path} holds mosaics, many slices tiled into one image. Convert it with dcm2niix first."
            )
        if header.get("ModalityLUTSequence"):
            raise FormatError(f"{path} maps its values through a table, which is not read. Convert it to NIfTI first.")


def _group(header: Dataset, frame: int, name: str) -> Dataset | None:
    """A functional group of an enhanced image: the frame's own, else the shared one."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        sequence = header.get(groups)
        if sequence and index < len(sequence) and (items := sequence[index].get(name)):
            found: Dataset = items[0]
            return found
    return None


def _measures(header: Dataset, frame: int) -> Dataset:
    return _group(header, frame, "PixelMeasuresSequence") or header


def _planes(image: Image, path: Path) -> list[Plane]:
    header = image.header
    enhanced = bool(header.get("PerFrameFunctionalGroupsSequence"))
    if image.frames > 1 and not enhanced:
        raise GeometryError(
            f"{path} holds several frames in one file without the place of each. Convert it to NIfTI first."
        )
    if enhanced and len(header.PerFrameFunctionalGroupsSequence) != image.frames:
        raise GeometryError(f"{path} describes another number of frames than it holds. Export it again.")
    return [_plane(image, frame, path) for frame in range(image.frames)]


def _plane(image: Image, frame: int, path: Path) -> Plane:
    header = image.header
    # outside enhanced images the elements stand in the header itself
    position = _numbers(_group(header, frame, "PlanePositionSequence") or header, "ImagePositionPatient", 3, path)
    axes = _numbers(_group(header, frame, "PlaneOrientationSequence") or header, "ImageOrientationPatient", 6, path)
    spacing = _numbers(_measures(header, frame), "PixelSpacing", 2, path)
    row, column = axes[:3], axes[3:]
    square = abs(np.linalg.norm(row) - 1) < 1e-2 and abs(np.linalg.norm(column) - 1) < 1e-2 and abs(row @ column) < 1e-2
    if not square or min(spacing) <= 0:
        raise GeometryError(
            f"{path} has an image whose axes or spacing are impossible. Export it from the scanner again."
        )
    rescale = _group(header, frame, "PixelValueTransformationSequence") or header
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    return Plane(
        path=image.path,
        frame=frame,
        columns=int(header.Columns),
        rows=int(header.Rows),
        position=position,
        steps=np.stack([row / np.linalg.norm(row) * spacing[1], column / np.linalg.norm(column) * spacing[0]], axis=1),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def _numbers(dataset: Dataset, keyword: str, count: int, path: Path) -> Float[np.ndarray, " n"]:
    value = dataset.get(keyword)
    words = {
        "ImagePositionPatient": "position",
        "ImageOrientationPatient": "orientation",
        "PixelSpacing": "pixel spacing",
    }[keyword]
    if value is None or isinstance(value, str) or len(value) != count:
        raise GeometryError(
            f"{path} has an image without {words}, so its place is unknown. Export it from the scanner again."
        )
    numbers = np.array([float(v) for v in value])
    if not np.isfinite(numbers).all():
        raise GeometryError(f"{path} has an image whose {words} is not a number. Export it from the scanner again.")
    return numbers


def _stacked(planes: list[Plane], path: Path) -> tuple[list[Plane], Float[np.ndarray, "4 4"], tuple[str, ...]]:
    """The planes in their order along the normal, the affine in RAS+, and what had to be decided."""
    first = planes[0]
    if len(planes) == 1:
        raise GeometryError(f"{path} has one slice, but a scan has three dimensions. Give the folder of its series.")
    if any((p.columns, p.rows) != (first.columns, first.rows) for p in planes):
        raise GeometryError(f"{path} mixes images of different size. Give a folder with one series of equal images.")
    directions = np.array([p.steps / np.linalg.norm(p.steps, axis=0) for p in planes])
    if np.abs(directions - directions[0]).max() > _PARALLEL:
        raise GeometryError(
            f"{path} mixes images of different orientation. Give a folder with one series of parallel slices."
        )
    if not np.allclose([p.steps for p in planes], first.steps, rtol=1e-3, atol=1e-3):
        raise GeometryError(
            f"{path} mixes images of different pixel spacing. Give a folder with one series of equal images."
        )
    planes = sorted(planes, key=lambda p: float(p.position @ first.normal))
    positions = np.array([p.position for p in planes])
    step, remarks = _step(positions, first.normal, path)
    lps = np.eye(4)
    lps[:3, :2], lps[:3, 2], lps[:3, 3] = first.steps, step, positions[0]
    return planes, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, remarks


def _step(
    positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, "3"], path: Path
) -> tuple[Float[np.ndarray, "3"], tuple[str, ...]]:
    """From one slice to the next, in mm, LPS+, once the slices are found to be even and straight above one another."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if (twice := int((gaps <= 0.01 * max(usual, 0.01)).sum())) > 0:
        raise GeometryError(
            f"{path} has {twice} of {len(positions)} slices at the place of another: copies, echoes or time points. "
            "Give a folder with one image of each place."
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    drift = np.linalg.norm(step - normal * (step @ normal)) / (step @ normal)
    if drift > _TILT:
        angle = np.degrees(np.arctan(drift))
        raise GeometryError(
            f"{path} was scanned with a tilted gantry ({angle:.1f} degrees). Resample it to upright slices first."
        )
    uneven = float(np.abs(gaps / usual - 1).max())
    if uneven > _GAP:
        raise GeometryError(
            f"{path} has slices {gaps.min():.2f} to {gaps.max():.2f} mm apart: "
            "some are missing, or they are uneven. Give the whole series."
        )
    if np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1).max() > 0.1 * usual:
        raise GeometryError(
            f"{path} has slices that do not lie on a straight line. Export the series from the scanner again."
        )
    if uneven > _UNEVEN:
        return step, (
            f"The slices' distances differ by up to {100 * uneven:.1f} %; {np.linalg.norm(step):.3f} mm is used.",
        )
    return step, ()
