"""What each image of a file says of itself: classic, enhanced with many frames, or a mosaic of many slices."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import UID

from medisent.formats.dicom.elements import FLOATS, OVERLAYS, Elements, File, read_elements, tags
from medisent.formats.dicom.faults import Fault

Numbers = tuple[float, ...]

WANTED = tags(
    [
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ImageType"),
        *("PatientID", "PatientName", "PatientBirthDate", "SeriesDate", "SeriesTime"),
        *("SeriesNumber", "SeriesDescription", "ProtocolName", "InstanceNumber", "AcquisitionNumber"),
        *("TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue", "EchoTime", "EchoNumbers"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
        *("ImagesInAcquisition", "NumberOfSlices"),
        *("RepetitionTime", "InversionTime", "FlipAngle", "ScanningSequence", "ConvolutionKernel"),
        *("FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression", "Units"),
        *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "ComplexImageComponent", "FrameType"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PlanePositionSequence"),
        *("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence", "MREchoSequence"),
        *("FrameContentSequence", "MRDiffusionSequence", "EffectiveEchoTime", "TemporalPositionIndex", "StackID"),
        *("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "DimensionIndexValues"),
        *("DimensionIndexSequence", "DimensionIndexPointer", "FrameAcquisitionNumber"),
        *("MosaicCreator", "MosaicImages", "CsaCreator", "CsaHeader", "SiemensBValue", "PhilipsBValue", "GEComponent"),
        *OVERLAYS,
    ]
)
_COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}
# Of every image of a series, equal by the standard; identifiers alone are at times given to a whole study.
_ALIKE = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "ProtocolName")
_SETTINGS = ("RepetitionTime", "InversionTime", "FlipAngle", "ScanningSequence", "ConvolutionKernel")
_BEGUN = ("SeriesDate", "SeriesTime")
_ALONG_THE_STACK = ((0x0020, 0x9057), (0x0020, 0x0032))  # dimensions that count places: the others tell volumes apart


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """How the values of one file are stored.

    Attributes:
        rows: Values along a column of what is stored.
        columns: Values along a row of what is stored.
        frames: How many images are stored.
        allocated: Bits that a value takes.
        stored: Bits that count.
        high: The highest bit that counts.
        signed: Whether they hold a sign.
        overlays: The bits beyond those that hold overlays, as a mask.
    """

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    overlays: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes images of one series different pictures of the same places.

    Attributes:
        image_type: The parts of the image type.
        component: Magnitude, phase, real or imaginary, where that is told.
        echo: Which echo.
        echo_ms: Its time in ms.
    """

    image_type: tuple[str, ...] = ()
    component: str = ""
    echo: str = ""
    echo_ms: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Image:
    """What all frames of a file share.

    Attributes:
        file: Its path, elements, and where its pixels are.
        layout: How its values are stored; None where nothing is.
        series: The identifiers of study and series.
        alike: What only images of one series have in common. It is compared, never shown.
        settings: How the scanner was set, and when the series began; one series may have several. Never shown.
        number: The series' number.
        modality: Two letters, such as MR.
        instance: The number of the file in its series.
        fault: Why it cannot be part of a volume, whatever its place.
    """

    file: File
    layout: Layout | None
    series: tuple[str, str]
    alike: tuple[str, ...]
    settings: tuple[str, ...]
    number: int
    modality: str
    instance: int
    fault: Fault | None


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """One image of a volume.

    Attributes:
        image: The file it is in.
        index: Its number within the file.
        corner: First row and first column within what is stored; other than 0 in a mosaic.
        rows: Voxels along a column.
        columns: Voxels along a row.
        position: Centre of the first voxel in mm, LPS+.
        axes: Directions along a row and along a column, LPS+.
        spacing: Distance of rows and of columns in mm.
        apart: Distance to the next slice in mm, as the header tells it; where slices lie is told by their positions.
        rescale: What a stored value is multiplied by, and what is then added.
        kind: Which picture of its place it is.
        stack: The name of the stack it is of, or its frame of reference.
        moments: Numbers that may tell volumes of one place apart: time, acquisition, b-value, trigger, dimensions.
    """

    image: Image
    index: int
    corner: tuple[int, int]
    rows: int
    columns: int
    position: Numbers | None
    axes: Numbers | None
    spacing: Numbers | None
    apart: float | None
    rescale: tuple[float, float]
    kind: Kind
    stack: tuple[str, str]
    moments: tuple[object, ...]

    @property
    def spacing_mm(self) -> Numbers:
        """Distance of rows and of columns in mm, where it is known."""
        return self.spacing or (0.0, 0.0)


def read_frames(path: Path) -> list[Frame] | None:
    """The images of a file, pixels unread; None where it is no DICOM file.

    Raises:
        UnreadableError: The file is damaged.
    """
    file = read_elements(path, WANTED)
    if file is None:
        return None
    image = _image(file)
    if image is None:
        return []
    if image.fault is not None or image.layout is None:
        return [_plain(image, 0)]
    elements = file.elements
    if elements.items.get(_PER_FRAME):
        return _enhanced(image)
    if "MOSAIC" in elements.texts("ImageType"):
        return _mosaic(image)
    return [_plain(image, index) for index in range(image.layout.frames)]


(_PER_FRAME,) = tags(["PerFrameFunctionalGroupsSequence"])
(_LUT,) = tags(["ModalityLUTSequence"])


def _image(file: File) -> Image | None:
    elements = file.elements
    rows, columns = (next(iter(elements.shorts(name)), 0) for name in ("Rows", "Columns"))
    if not (rows and columns) and not _claims_image(elements):
        return None
    modality = elements.text("Modality")
    layout = _layout(elements, rows, columns)
    return Image(
        file=file,
        layout=layout,
        series=(elements.text("StudyInstanceUID"), elements.text("SeriesInstanceUID")),
        alike=tuple(elements.text(name) for name in _ALIKE),
        settings=(*(_roughly(elements.text(name)) for name in _SETTINGS), *(elements.text(name) for name in _BEGUN)),
        number=_whole(elements.decimal("SeriesNumber")),
        modality=modality if len(modality) == 2 and modality.isalpha() else "??",
        instance=_whole(elements.decimal("InstanceNumber")),
        fault=_fault(file, layout),
    )


def _claims_image(elements: Elements) -> bool:
    """Whether the file is of a class that holds images: then it is not passed over because its size is missing."""
    return "Image Storage" in UID(elements.text("SOPClassUID"), IGNORE).name


def _layout(elements: Elements, rows: int, columns: int) -> Layout | None:
    allocated = next(iter(elements.shorts("BitsAllocated")), 0)
    stored = next(iter(elements.shorts("BitsStored")), allocated)
    if not (rows and columns and allocated):
        return None
    return Layout(
        rows=rows,
        columns=columns,
        frames=max(_whole(elements.decimal("NumberOfFrames"), 1), 1),
        allocated=allocated,
        stored=stored,
        high=next(iter(elements.shorts("HighBit")), stored - 1),
        signed=next(iter(elements.shorts("PixelRepresentation")), 0) == 1,
        overlays=sum({1 << number % 64 for name in OVERLAYS for number in elements.shorts(name)[:1]}),
    )


def _fault(file: File, layout: Layout | None) -> Fault | None:
    elements = file.elements
    if file.pixels is None or layout is None:
        return Fault.NO_PIXELS
    if next(iter(elements.shorts("SamplesPerPixel")), 1) > 1 or "PALETTE" in elements.text("PhotometricInterpretation"):
        return Fault.RGB
    if elements.items.get(_LUT):
        return Fault.MODALITY_LUT
    if not elements.shorts("PixelRepresentation") and file.pixels[0] not in FLOATS:
        return Fault.BITS
    if layout.allocated not in (8, 16, 32, 64) or not 0 < layout.stored <= layout.high + 1 <= layout.allocated:
        return Fault.BITS
    per_frame = elements.items.get(_PER_FRAME)
    if (layout.frames > 1 or per_frame) and len(per_frame or ()) != layout.frames:
        return Fault.FRAMES
    return None


def _plain(image: Image, index: int) -> Frame:
    """A classic image, whose elements stand in the header itself."""
    elements = image.file.elements
    kind = Kind(
        image_type=elements.texts("ImageType"),
        component=_component(elements, elements),
        echo=elements.text("EchoNumbers"),
        echo_ms=elements.decimal("EchoTime"),
    )
    b_value = next(iter(elements.doubles("DiffusionBValue")), None)
    private = elements.decimal("SiemensBValue") if b_value is None else b_value
    return Frame(
        image=image,
        index=index,
        corner=(0, 0),
        rows=image.layout.rows if image.layout else 0,
        columns=image.layout.columns if image.layout else 0,
        position=elements.decimals("ImagePositionPatient"),
        axes=elements.decimals("ImageOrientationPatient"),
        spacing=elements.decimals("PixelSpacing"),
        apart=elements.decimal("SpacingBetweenSlices"),
        rescale=_rescale(elements),
        kind=kind,
        stack=("", elements.text("FrameOfReferenceUID")),
        moments=(
            elements.decimal("TemporalPositionIdentifier"),
            elements.decimal("AcquisitionNumber"),
            private,
            elements.decimal("TriggerTime"),
            None,
        ),
    )


def _enhanced(image: Image) -> list[Frame]:
    """The frames of an enhanced image: each is described by its own groups of elements, or by those all share."""
    elements = image.file.elements
    dimensions = [item.shorts("DimensionIndexPointer") for item in elements.items.get(_DIMENSIONS, [])]
    kept = [n for n, pointer in enumerate(dimensions) if pointer not in _ALONG_THE_STACK]
    frames = []
    for index, own in enumerate(elements.items[_PER_FRAME]):
        groups = _Groups(own, elements.first("SharedFunctionalGroupsSequence"), elements)
        content = groups.of("FrameContentSequence")
        values = content.longs("DimensionIndexValues")
        kind = groups.of("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
        echo = groups.of("MREchoSequence").doubles("EffectiveEchoTime")
        frame = _plain(image, index)
        measures = groups.of("PixelMeasuresSequence")
        frames.append(
            replace(
                frame,
                position=groups.of("PlanePositionSequence").decimals("ImagePositionPatient"),
                axes=groups.of("PlaneOrientationSequence").decimals("ImageOrientationPatient"),
                spacing=measures.decimals("PixelSpacing"),
                apart=measures.decimal("SpacingBetweenSlices"),
                rescale=_rescale(groups.of("PixelValueTransformationSequence")),
                kind=Kind(
                    image_type=kind.texts("FrameType") or frame.kind.image_type,
                    component=_component(kind, elements),
                    echo=frame.kind.echo,
                    echo_ms=echo[0] if echo else frame.kind.echo_ms,
                ),
                stack=(content.text("StackID"), frame.stack[1]),
                moments=(
                    next(iter(content.longs("TemporalPositionIndex")), frame.moments[0]),
                    next(iter(content.shorts("FrameAcquisitionNumber")), frame.moments[1]),
                    next(iter(groups.of("MRDiffusionSequence").doubles("DiffusionBValue")), frame.moments[2]),
                    frame.moments[3],
                    tuple(values[n] for n in kept) if kept and len(values) == len(dimensions) else None,
                ),
            )
        )
    return frames


(_DIMENSIONS,) = tags(["DimensionIndexSequence"])


@dataclass(frozen=True, slots=True)
class _Groups:
    """Where to look for what describes a frame: in its own groups, in the shared ones, at last in the header."""

    own: Elements
    shared: Elements | None
    header: Elements

    def of(self, *names: str) -> Elements:
        for name in names:
            found = self.own.first(name) or (self.shared.first(name) if self.shared else None)
            if found is not None:
                return found
        return self.header


def _mosaic(image: Image) -> list[Frame]:
    """The slices of a Siemens mosaic; one frame that cannot be used where its private header is gone.

    References:
        The first slice's centre and the order of tiles as in ``nibabel.nicom.dicomwrappers.MosaicWrapper``.
    """
    whole = _plain(image, 0)
    elements, layout = image.file.elements, image.layout
    count, normal = _tiles(elements)
    apart = elements.decimal("SpacingBetweenSlices")
    places = (whole.position, whole.axes, whole.spacing)
    usual = [found is not None and len(found) == n for found, n in zip(places, (3, 6, 2), strict=True)]
    unknown = [replace(whole, image=replace(image, fault=Fault.MOSAIC))]
    if layout is None or not (count and normal and apart and all(usual)):
        return unknown
    across = math.isqrt(count - 1) + 1
    rows, columns = layout.rows // across, layout.columns // across
    position, axes, spacing = (np.array(place) for place in places)
    cross = np.cross(axes[:3], axes[3:])
    if layout.rows % across or layout.columns % across or abs(abs(cross @ normal) - 1) > 1e-3:
        return unknown
    first = position + axes[:3] * spacing[1] * (layout.columns - columns) / 2
    first = first + axes[3:] * spacing[0] * (layout.rows - rows) / 2
    step = cross * math.copysign(apart, float(cross @ normal))
    frames = []
    for tile in range(count):
        place = first + tile * step
        frames.append(_tile(whole, (tile // across * rows, tile % across * columns), (rows, columns), place))
    return frames


def _tile(whole: Frame, corner: tuple[int, int], size: tuple[int, int], place: np.ndarray) -> Frame:
    position = tuple(float(mm) for mm in place)
    return replace(whole, corner=corner, rows=size[0], columns=size[1], position=position)


def _tiles(elements: Elements) -> tuple[int, Numbers | None]:
    """How many slices a mosaic holds, and the direction in which they follow each other, by Siemens' private header."""
    if elements.text("CsaCreator") != "SIEMENS CSA HEADER" or not (raw := elements.values.get(_CSA)):
        return 0, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nibabel warns of its own DICOM readers
            from nibabel.nicom import csareader

            read = csareader.read(raw)["tags"]
        count = int(read["NumberOfImagesInMosaic"]["items"][0])
        normal = tuple(float(number) for number in read["SliceNormalVector"]["items"])
        reversed_numbers = int((read.get("ProtocolSliceNumber", {}).get("items") or [0])[0]) > 0
    except Exception:  # the reader meets whatever a damaged header holds
        return 0, None
    told = elements.shorts("MosaicImages") if elements.text("MosaicCreator") == "SIEMENS MR HEADER" else ()
    if reversed_numbers or len(normal) != 3 or not 1 < count < 1000 or (told and told[0] != count):
        return 0, None
    return count, normal


(_CSA,) = tags(["CsaHeader"])


def _component(kind: Elements, header: Elements) -> str:
    """Magnitude, phase, real or imaginary; empty where nothing tells."""
    told = kind.text("ComplexImageComponent").lower()
    if told in _COMPONENTS.values():
        return told
    private = header.shorts("GEComponent")
    if private and private[0] < 4:
        return tuple(_COMPONENTS.values())[private[0]]
    parts = kind.texts("FrameType") or header.texts("ImageType")
    for part in parts[2:]:
        if part in _COMPONENTS or part in ("PHASE", "REAL", "IMAGINARY", "MAGNITUDE"):
            return _COMPONENTS[part[0]]
        if part == "PHASE MAP":
            return "phase"
    return ""


def _rescale(elements: Elements) -> tuple[float, float]:
    """Slope and intercept, 1 and 0 where there are none; NaN where one is there but is no number."""
    found = []
    for keyword, otherwise in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        number = elements.decimal(keyword) if elements.texts(keyword) else otherwise
        found.append(math.nan if number is None else number)
    return found[0], found[1]


def _roughly(text: str) -> str:
    """A number to three digits, or a text as it is."""
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text


def _whole(number: float | None, otherwise: int = 0) -> int:
    return int(number) if number is not None and math.isfinite(number) and abs(number) < 1e9 else otherwise
