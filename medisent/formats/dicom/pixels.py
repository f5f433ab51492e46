"""DICOM pixels: stored values of any transfer syntax that is read, rescaled and stacked."""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Num
from pydicom.config import IGNORE
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    generate_uid,
)

from medisent.formats.checks import refuse_size
from medisent.formats.dicom.elements import FLOATS, UnreadableError, inflated
from medisent.formats.dicom.faults import Fault
from medisent.formats.dicom.frames import Frame, Image, Layout
from medisent.formats.others import decode

PLAIN = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian})
PACKED = frozenset(
    {
        *(RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless),
        *(JPEGLSNearLossless, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit),  # with loss, unless JPEG 2000 says not
    }
)
_ITEM, _ENDS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_AT_MOST = 1 << 33  # bytes of one file inflated
_PADDING = 4096  # zeros after the pixels that are still taken for padding
_CODESTREAM, _SIGN = b"\xff\x4f\xff\x51", 42  # how one of JPEG 2000 begins, and where it tells of a sign


def assembled(frames: Sequence[Frame], path: Path, max_voxels: int) -> Num[np.ndarray, "x y z"]:
    """The values of a stack, ``stored * slope + intercept``; integers where all slopes and intercepts are whole.

    Args:
        frames: The images in order, all of one size.
        path: What the user gave, for refusals.
        max_voxels: Packed files of more are refused before they are unpacked.

    Raises:
        FormatError: They are in a transfer syntax that is not read.
        UnreadableError: They are missing, or cannot be decoded.
    """
    planes = _planes(frames, path, max_voxels)
    dtype = _common_dtype(frames, [plane.dtype for plane in planes])
    voxels = np.empty((frames[0].columns, frames[0].rows, len(frames)), dtype, order="F")
    for z, (frame, plane) in enumerate(zip(frames, planes, strict=True)):
        if frame.rescale == (1.0, 0.0):
            voxels[:, :, z] = plane.T
        elif dtype.kind == "i":
            voxels[:, :, z] = plane.T.astype(np.int64) * int(frame.rescale[0]) + int(frame.rescale[1])
        else:
            voxels[:, :, z] = plane.T * np.float64(frame.rescale[0]) + frame.rescale[1]
    return voxels


def equal_pixels(one: Frame, other: Frame) -> bool:
    """Whether two images store the same values in the same way."""
    if one.image is other.image and one.index == other.index:
        return one.corner == other.corner
    layouts = [(f.image.file.syntax, f.corner, f.index, *_words(f.image.layout)) for f in (one, other)]
    return layouts[0] == layouts[1] and _pixel_bytes(one.image) == _pixel_bytes(other.image)


def _words(layout: Layout | None) -> tuple[object, ...]:
    if layout is None:
        return ()
    return (layout.rows, layout.columns, layout.frames, layout.allocated, layout.stored, layout.high, layout.signed)


def _planes(frames: Sequence[Frame], path: Path, max_voxels: int) -> list[Num[np.ndarray, "rows columns"]]:
    """The stored values of every image, before any rescaling; each file is opened once."""
    images = list({id(frame.image.file): frame.image for frame in frames}.values())
    packed = [image for image in images if image.file.syntax not in PLAIN]
    for image in packed:
        if image.file.syntax not in PACKED:
            syntax = UID(image.file.syntax, IGNORE)
            name = syntax.name if syntax.is_transfer_syntax else "an unknown one"
            raise Fault.TRANSFER_SYNTAX.refusal(
                path, f"has pixels in a transfer syntax that is not read ({name}). Export it uncompressed."
            )
        if image.layout is not None:
            refuse_size(path, (image.layout.columns, image.layout.rows, image.layout.frames), max_voxels)
    unpacked = _unpacked(packed, max_voxels)
    planes = []
    last: tuple[int, int, np.ndarray] | None = None
    for frame in frames:
        key = id(frame.image.file)
        if last is None or last[:2] != (key, frame.index):
            stored = unpacked[key][frame.index] if key in unpacked else _plain(frame)
            last = (key, frame.index, _within_bits(stored, frame.image.layout, path))
        row, column = frame.corner
        planes.append(last[2][row : row + frame.rows, column : column + frame.columns])
    return planes


def _plain(frame: Frame) -> Num[np.ndarray, "rows columns"]:
    """One image of a file that stores its values as they are."""
    file, layout = frame.image.file, frame.image.layout
    if file.pixels is None or layout is None:
        raise UnreadableError
    tag, offset, length = file.pixels
    order = ">" if file.syntax == ExplicitVRBigEndian else "<"
    dtype = np.dtype(order + FLOATS.get(tag, f"{'i' if layout.signed else 'u'}{layout.allocated // 8}"))
    size = layout.rows * layout.columns * dtype.itemsize
    start = frame.index * size
    if length is None or start + size > length:
        raise UnreadableError
    if file.swapped and dtype.itemsize == 1:
        data = (
            np.frombuffer(_pixel_bytes(frame.image)[: length // 2 * 2], np.uint16).byteswap().tobytes()[start:][:size]
        )
    elif file.syntax == DeflatedExplicitVRLittleEndian:
        data = _pixel_bytes(frame.image)[start:][:size]
    else:
        with file.path.open("rb", buffering=0) as opened:
            data = os.pread(opened.fileno(), size, offset + start)
    if len(data) < size:
        raise UnreadableError
    if _holds_more(frame.image, size * layout.frames, length):
        raise UnreadableError("has more pixels than its header declares. Its header is false: export it again.")
    values = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
    return values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def _holds_more(image: Image, wanted: int, length: int) -> bool:
    """Whether there are more pixels than the header declares, beyond a little padding: then any of it may be false."""
    if length <= wanted + 1:
        return False
    return length > wanted + _PADDING or any(_pixel_bytes(image)[wanted:])


def _pixel_bytes(image: Image) -> bytes:
    """The pixels of a file as they are stored, packed or plain."""
    if image.file.pixels is None:
        return b""
    _, offset, length = image.file.pixels
    with image.file.path.open("rb", buffering=0) as opened:
        if image.file.syntax != DeflatedExplicitVRLittleEndian:
            opened.seek(offset)
            data = opened.read() if length is None else opened.read(length)
            return data if length is not None else data[: _fragments_end(data)]
        opened.seek(image.file.deflated or 0)
        return inflated(opened.read(), _AT_MOST)[offset:]


def _fragments_end(data: bytes) -> int:
    """Where the fragments of packed pixels end; the mark behind them is left out."""
    at = 0
    while data[at : at + 4] == _ITEM:
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if data[at : at + 4] != _ENDS:
        raise UnreadableError
    return at


def _within_bits(
    pixels: Num[np.ndarray, "rows columns"], layout: Layout | None, path: Path
) -> Num[np.ndarray, "rows columns"]:
    """The values without what some scanners keep in the bits above or below the stored ones.

    Raises:
        FormatError: There is something in them that the header does not tell of, so that values may have been cut.
    """
    width = pixels.dtype.itemsize * 8
    if layout is None or pixels.dtype.kind == "f" or layout.stored >= width:
        return pixels
    below = layout.high + 1 - layout.stored
    signed = pixels.dtype.kind == "i"
    low, high = (-(1 << layout.stored - 1), (1 << layout.stored - 1) - 1) if signed else (0, (1 << layout.stored) - 1)
    if not below and low <= pixels.min() and pixels.max() <= high:
        return pixels
    told = layout.overlays | (1 << layout.high + 1) - (1 << below)
    bits = pixels.view(f"u{pixels.dtype.itemsize}")
    shifted: np.ndarray = (pixels << width - 1 - layout.high) >> width - layout.stored
    extended = shifted << below == pixels  # a negative value's sign goes on above it
    if np.any(bits[~extended] & np.array(~told % (1 << width), bits.dtype)):
        raise Fault.BITS.refusal(
            path, f"has values of more than the {layout.stored} bits that its header tells of. Export it again."
        )
    return shifted


def _unpacked(images: Sequence[Image], max_voxels: int) -> dict[int, Integer[np.ndarray, "frames rows columns"]]:
    """The stored values of packed files, by the id of each.

    Run lengths are undone here, in Python; all else by native code that hostile files have been known to break.
    """
    plain = [image for image in images if image.file.syntax == RLELossless]
    native = [image for image in images if image.file.syntax != RLELossless]
    found = {id(image.file): _by_pydicom(image) for image in plain}
    if native:
        decoded = _by_gdcm(native, max_voxels)
        found |= {id(image.file): pixels for image, pixels in zip(native, decoded, strict=True)}
    return found


def _by_pydicom(image: Image) -> Integer[np.ndarray, "frames rows columns"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = pixel_array(_pixels_alone(image), raw=True, decoding_plugin="pydicom")
    except (ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError, struct.error) as error:
        raise UnreadableError from error
    stacked: np.ndarray = pixels.reshape(-1, *pixels.shape[-2:])
    return stacked


def _by_gdcm(images: Sequence[Image], max_voxels: int) -> list[Integer[np.ndarray, "frames rows columns"]]:
    """Stored values by SimpleITK's GDCM, in a process of its own, from copies that hold pixels and nothing else."""
    with tempfile.TemporaryDirectory(prefix="medisent-") as folder:
        copies = [Path(folder) / f"{number}.dcm" for number in range(len(images))]
        for image, copy in zip(images, copies, strict=True):
            _pixels_alone(image).save_as(copy, enforce_file_format=True)
        decoded = decode(copies, max_voxels=max_voxels)
    found = []
    for image, result in zip(images, decoded, strict=True):
        layout = image.layout
        if result is None or result.voxels is None or layout is None:
            raise UnreadableError("has pixels that cannot be decoded: they are damaged. Export it again.")
        pixels = result.voxels.transpose(2, 1, 0)
        if pixels.shape != (layout.frames, layout.rows, layout.columns):
            raise UnreadableError
        if _hides_sign(image):
            raise UnreadableError("has pixels with a sign that its header denies. Export it again.")
        found.append(pixels)
    return found


def _hides_sign(image: Image) -> bool:
    """Whether JPEG 2000 has values with a sign, of which the header says that they have none."""
    if image.layout is None or image.layout.signed or image.file.syntax not in (JPEG2000, JPEG2000Lossless):
        return False
    data = _pixel_bytes(image)
    begins = data.find(_CODESTREAM)
    return begins < 0 or data[begins + _SIGN :][:1] >= b"\x80"


def _pixels_alone(image: Image) -> Dataset:
    """The pixels of a file as an image without patient, place or scale."""
    layout = image.layout
    if layout is None:
        raise UnreadableError
    ds = Dataset()
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.NumberOfFrames = layout.rows, layout.columns, layout.frames
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = layout.allocated, layout.stored, layout.high
    ds.PixelRepresentation = int(layout.signed)
    ds.PixelData = _pixel_bytes(image)
    ds["PixelData"].is_undefined_length = True
    narrow = layout.allocated == 8
    ds.SOPClassUID = (
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage
        if narrow
        else MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    )
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["pixels"])
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(image.file.syntax)
    return ds


def _common_dtype(frames: Sequence[Frame], stored: Sequence[np.dtype]) -> np.dtype:
    """A type that holds every rescaled value exactly, or float64."""
    together = np.result_type(*stored)
    scales = {frame.rescale for frame in frames}
    if scales == {(1.0, 0.0)}:
        return together
    whole = all(float(slope).is_integer() and float(intercept).is_integer() for slope, intercept in scales)
    if not whole or together.kind not in "iu":
        return np.dtype(np.float64)
    bits = max(frame.image.layout.stored for frame in frames if frame.image.layout)
    limits = (-(1 << bits - 1), (1 << bits - 1) - 1) if together.kind == "i" else (0, (1 << bits) - 1)
    ends = [limit * slope + intercept for slope, intercept in scales for limit in limits]
    for kind in (np.int16, np.int32):
        if min(ends) >= np.iinfo(kind).min and max(ends) <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float64)
