"""DICOM pixels: stored values of any lossless transfer syntax, rescaled and stacked."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Integer, Num
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGTransferSyntaxes,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    generate_uid,
)

from medisent.errors import FormatError
from medisent.formats.others import decode

_LAYOUT = [
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
]


def assembled(
    planes: Sequence[tuple[Path, int, float, float]], shape: tuple[int, int, int], path: Path
) -> Num[np.ndarray, "x y z"]:
    """The values of a stack, ``stored * slope + intercept``; integers where all slopes and intercepts are whole.

    Args:
        planes: File, frame, slope and intercept of each plane, in order.
        shape: Columns, rows, planes.
        path: What the user gave, for refusals.

    Raises:
        FormatError: Pixels are missing, or cannot be decoded.
    """
    files = list(dict.fromkeys(file for file, *_ in planes))
    frames = stored(files, path)
    if any(frames[file].shape[1:] != shape[1::-1] for file in files):
        raise FormatError(f"{path} has an image whose pixels do not fill its matrix. It is damaged: export it again.")
    dtype = _common_dtype([frames[file].dtype for file in files], [(s, i) for *_, s, i in planes])
    voxels = np.empty(shape, dtype, order="F")
    for z, (file, frame, slope, intercept) in enumerate(planes):
        values = frames[file][frame].T
        voxels[:, :, z] = values if (slope, intercept) == (1, 0) else values.astype(np.float64) * slope + intercept
    return voxels


def stored(files: Sequence[Path], path: Path) -> dict[Path, Num[np.ndarray, "frames rows columns"]]:
    """The stored values of each file, before any rescaling.

    Raises:
        FormatError: Pixels are missing, or cannot be decoded.
    """
    found: dict[Path, np.ndarray] = {}
    left = []
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_LAYOUT, force=True)
        syntax = header.file_meta.get("TransferSyntaxUID")
        # JPEG, lossless or not: what decodes it for pydicom is under the GPL, and GDCM comes with SimpleITK
        if syntax in JPEGTransferSyntaxes and syntax not in JPEG2000TransferSyntaxes:
            left.append(file)
            continue
        pixels = pixel_array(_readable(file, syntax), raw=True)
        found[file] = _within_bits(pixels.reshape(-1, *pixels.shape[-2:]), header)
    if left:
        found |= _by_gdcm(left, path)
    return found


def _readable(file: Path, syntax: str | None) -> Path | Dataset:
    """The path itself, or the whole dataset where the file lacks the header that pydicom asks for."""
    if syntax is not None:
        return file
    dataset = pydicom.dcmread(file, force=True)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return dataset


def _within_bits(
    pixels: Num[np.ndarray, "frames rows columns"], header: Dataset
) -> Num[np.ndarray, "frames rows columns"]:
    """The values without what some scanners keep in the bits above the stored ones."""
    if pixels.dtype.kind == "f":
        return pixels
    unused = int(header.BitsAllocated) - int(header.BitsStored)
    if unused <= 0 or int(header.HighBit) != int(header.BitsStored) - 1:
        return pixels
    bits = pixels.dtype.itemsize * 8 - int(header.BitsStored)
    shifted: np.ndarray = (pixels << bits) >> bits
    return shifted


def _by_gdcm(files: Sequence[Path], path: Path) -> dict[Path, Integer[np.ndarray, "frames rows columns"]]:
    """Stored values by SimpleITK's GDCM, in a process of its own, from copies that hold pixels and nothing else."""
    with tempfile.TemporaryDirectory(prefix="medisent-") as folder:
        copies = [Path(folder) / f"{number}.dcm" for number in range(len(files))]
        sizes = [_copy_pixels(file, copy) for file, copy in zip(files, copies, strict=True)]
        decoded = decode(copies, max_voxels=max(sizes))
    found = {}
    for file, image in zip(files, decoded, strict=True):
        if image is None or image.voxels is None:
            raise FormatError(
                f"{path} has pixels that cannot be decoded. Convert it to uncompressed DICOM or NIfTI first."
            )
        found[file] = image.voxels.transpose(2, 1, 0)
    return found


def _copy_pixels(file: Path, copy: Path) -> int:
    """Write the pixels of a file as an image without patient, place or scale; returns the number of voxels."""
    source = pydicom.dcmread(file)
    image = Dataset()
    for keyword in [*_LAYOUT, "PixelData"]:
        if keyword in source:
            image[keyword] = source[keyword]
    image.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=[copy.name])
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
    image.save_as(copy, enforce_file_format=True)
    return int(source.Rows) * int(source.Columns) * int(source.get("NumberOfFrames") or 1)


def _common_dtype(dtypes: Sequence[np.dtype], scales: Sequence[tuple[float, float]]) -> np.dtype:
    """A type that holds every rescaled value exactly, or float64."""
    stored_as = np.result_type(*dtypes)
    if all(scale == (1, 0) for scale in scales):
        return stored_as
    whole = all(float(slope).is_integer() and float(intercept).is_integer() for slope, intercept in scales)
    if not whole or stored_as.kind not in "iu":
        return np.dtype(np.float64)
    limits = np.iinfo(stored_as)
    ends = [limit * slope + intercept for slope, intercept in scales for limit in (int(limits.min), int(limits.max))]
    narrow = np.iinfo(np.int32)
    return np.dtype(np.int32) if min(ends) >= narrow.min and max(ends) <= narrow.max else np.dtype(np.float64)
