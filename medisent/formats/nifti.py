"""NIfTI: what its bytes mean, and how a volume becomes one."""

from __future__ import annotations

import math
import os
import zlib
from contextlib import closing
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from jaxtyping import Bool, Num
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike

from medisent.errors import FormatError, UsageError
from medisent.files import whole_file
from medisent.formats.checks import check_volume, refuse_bomb, refuse_size, refuse_types
from medisent.formats.space import geometry_of, header_for, kept_header
from medisent.volumes import Geometry, Header, Stored, Volume

_KINDS: dict[tuple[int, bytes], type[Nifti1Header]] = {
    (348, b"n+1\0"): Nifti1Header,
    (348, b"ni1\0"): Nifti1PairHeader,
    (540, b"n+2\0"): Nifti2Header,
    (540, b"ni2\0"): Nifti2PairHeader,
}
_CHUNK = 1 << 22
_SAMPLE = 1 << 16  # bytes from the middle of the voxels, by which copies are suspected
_PADDING = 4096  # zeros after the voxels that are still taken for padding
_DEFLATE_AT_BEST = 1032  # deflate cannot shrink more, so a header that claims more is false
_MAX_OFFSET = 1 << 28  # extensions of a header are kilobytes, seldom megabytes
_DAMAGED_GZIP = (igzip.BadGzipFile, igzip_lib.IsalError, isal_zlib.error, zlib.error)


@dataclass(frozen=True)
class _Layout:
    """Where in the stream the voxels of one volume lie."""

    dtype: np.dtype
    shape: tuple[int, int, int]
    start: int
    end: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_nifti(path: Path, *, volume: int | None, max_voxels: int) -> Volume:
    """The scan in a ``.nii``, ``.nii.gz`` or ``.hdr``/``.img`` file, read to its last byte.

    Raises:
        FormatError: The file is damaged, truncated, not NIfTI, or not one scalar 3D volume.
        GeometryError: Neither sform nor qform gives the voxels a place.
    """
    header_path, voxel_path = _pair(path)
    header = _header(header_path, voxel_path, path)
    layout = _layout(header, path, volume, max_voxels)
    raw = _stored(voxel_path, path, layout)
    geometry, remarks = geometry_of(header, layout.shape, path)
    slope, intercept = _scale(header, path)
    stored = Stored(raw.dtype.name, slope, intercept)
    return Volume(_scaled(raw, stored), geometry, kept_header(header), remarks, stored=stored)


def outline_nifti(path: Path, *, volume: int | None, max_voxels: int) -> tuple[Geometry, tuple[str, ...], bytes]:
    """Where the scan in a NIfTI file lies, remarks, and bytes that copies of the file share; no voxel is decoded.

    A packed stream is read to its end only where its last bytes do not say that it is as long as the header declares.

    Raises:
        FormatError: The file is too short, not NIfTI, or not one scalar 3D volume.
        GeometryError: Neither sform nor qform gives the voxels a place.
    """
    header_path, voxel_path = _pair(path)
    header = _header(header_path, voxel_path, path)
    layout = _layout(header, path, volume, max_voxels)
    on_disk = voxel_path.stat().st_size
    with voxel_path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(max(0, on_disk - 8 if packed else (layout.start + layout.end) // 2))
        sample = file.read(8 if packed else _SAMPLE)  # of a packed stream, its checksum and its length
    if packed and not 0 <= int.from_bytes(sample[4:], "little") - layout.end % (1 << 32) <= _PADDING:
        _stored(voxel_path, path, layout)
    elif not packed and on_disk < layout.end:
        raise _truncated(path, layout.end)
    return *geometry_of(header, layout.shape, path), layout.end.to_bytes(8, "little") + sample


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI by its name or by its first bytes."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".nii", ".hdr", ".img")):
        return True
    with path.open("rb") as file:
        block = file.read(348)
    return block[344:348] in (b"n+1\0", b"ni1\0") or block[4:8] in (b"n+2\0", b"ni2\0")


def write_nifti(volume: Volume, path: Path, *, description: str, like: Volume | None = None) -> Stored:
    """Write a NIfTI file from zero: values and place are the volume's, nothing else is carried over.

    The same volume gives the same bytes. Voxel sizes, sform, qform, their codes and the units are those of
    ``volume.header``, or, where there is none, the geometry's, in mm.

    Args:
        volume: What to write.
        path: Where to.
        description: What the header says about it.
        like: The scan that the volume was made from. Without it all values come back equal. With it they are stored as
            that scan's were, where that holds each of them, and else in float32 under its slope and intercept: the
            values that are still the scan's come back equal, the others to single precision.

    Returns:
        How the file holds the values.

    Raises:
        UsageError: The name does not end in ``.nii`` or ``.nii.gz``.
        MachineError: The file cannot be written.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path} cannot be written: scans are written as NIfTI. Let the name end in .nii or .nii.gz.")
    stored = Stored(_storable(volume.voxels).name) if like is None else stored_like(volume.voxels, like)
    header = fresh_header(volume, stored)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    with whole_file(path) as temporary, temporary.open("wb") as file:
        if path.name.endswith(".gz"):
            with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                _write_stream(packed, header, volume.voxels, stored)
        else:
            _write_stream(file, header, volume.voxels, stored)
    return stored


def _pair(path: Path) -> tuple[Path, Path]:
    """The files with the header and with the voxels; one and the same for ``.nii``."""
    for here, there in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if path.name.lower().endswith(here + packed):
                stem = path.name[: -len(here + packed)]
                names = [there, there.upper()] if not packed else [there + packed]
                other = next((path.with_name(stem + n) for n in names if path.with_name(stem + n).is_file()), None)
                if other is None:
                    raise FormatError(
                        f"{path} is half of a pair, and the {there} file beside it is missing. Put both in one folder."
                    )
                return (path, other) if here == ".hdr" else (other, path)
    return path, path


def _open(path: Path) -> BufferedIOBase:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        unpacked: BufferedIOBase = igzip.open(path, "rb")
        return unpacked
    return path.open("rb")


def _header(header_path: Path, voxel_path: Path, path: Path) -> Nifti1Header:
    with closing(_open(header_path)) as file:
        try:
            block = file.read(540)
        except (EOFError, *_DAMAGED_GZIP) as error:
            raise _broken_gzip(path, error) from error
    for order in ("<", ">"):
        size = int(np.frombuffer(block[:4].ljust(4), f"{order}i4")[0])
        magic = block[344:348] if size == 348 else block[4:8]
        if (kind := _KINDS.get((size, magic))) is not None and len(block) >= size:
            if kind.is_single != (header_path == voxel_path):
                raise FormatError(
                    f"{path} says of its voxels that they are in another file than they are. Export it again."
                )
            # without nibabel's own check, which prints and mends in silence
            return kind(block[:size], endianness=order, check=False)
        if size == 348 and magic[:1] not in (b"n", b"N"):
            raise FormatError(
                f"{path} is an Analyze 7.5 file, which does not say left from right. Convert it to NIfTI first."
            )
    raise FormatError(f"{path} is not a NIfTI file, or its header is damaged. Check the file, or export it again.")


def _layout(header: Nifti1Header, path: Path, volume: int | None, max_voxels: int) -> _Layout:
    shape, count = _dimensions(header, path, volume)
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise FormatError(f"{path} holds values of a type that is not read. Save it as float32 or float64.") from error
    refuse_types(path, dtype)
    if int(header["bitpix"]) not in (0, dtype.itemsize * 8):
        raise FormatError(f"{path} gives two lengths of one value. Its header is false: export it again.")
    refuse_size(path, shape, max_voxels)
    offset = float(header["vox_offset"])
    least = int(header["sizeof_hdr"]) + 4 if header.is_single else 0
    if not (least <= offset <= _MAX_OFFSET and offset.is_integer()):
        raise FormatError(f"{path} says that its voxels begin where they cannot. Its header is false: export it again.")
    size = math.prod(shape) * dtype.itemsize
    start = int(offset) + (volume or 0) * size
    return _Layout(dtype, shape, start, int(offset) + count * size)


def _dimensions(header: Nifti1Header, path: Path, volume: int | None) -> tuple[tuple[int, int, int], int]:
    """The shape of one volume, and how many there are."""
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : count + 1]]
    if not 1 <= count <= 7 or min(sizes) < 1:
        raise FormatError(f"{path} has no valid dimensions in its header. It is damaged: export it again.")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    sizes += [1] * (3 - len(sizes))
    times = check_volume(path, sizes, volume)
    return (sizes[0], sizes[1], sizes[2]), times


def _stored(voxel_path: Path, path: Path, layout: _Layout) -> Num[np.ndarray, "x y z"]:
    """The stored values of one volume; the stream is read to its end, so that gzip's checksum is verified."""
    on_disk = voxel_path.stat().st_size
    with closing(_open(voxel_path)) as file:
        packed = isinstance(file, igzip.IGzipFile)
        if layout.end > on_disk * (_DEFLATE_AT_BEST if packed else 1):
            raise _truncated(path, layout.end)
        if packed:
            refuse_bomb(path, layout.end, on_disk)
        buffer = np.empty(layout.size, np.uint8)
        try:
            _skip(file, layout.start, packed)
            filled = _fill(file, buffer.data)
            position = layout.start + filled
            position += _skip(file, layout.end - position, packed)
            padded = _ends_in_padding(file)
        except (EOFError, *_DAMAGED_GZIP) as error:
            raise _broken_gzip(path, error) from error
    if filled < layout.size or position < layout.end:
        raise _truncated(path, layout.end)
    if not padded:
        raise FormatError(f"{path} holds more data than its header declares. Its header is false: export it again.")
    raw = buffer.view(layout.dtype)
    if not layout.dtype.isnative:
        raw = raw.byteswap(inplace=True).view(layout.dtype.newbyteorder("="))
    return raw.reshape(layout.shape, order="F")


def _truncated(path: Path, declared: int) -> FormatError:
    return FormatError(f"{path} is truncated: its header declares {declared:,} bytes. Copy or download it again.")


def _broken_gzip(path: Path, error: Exception) -> FormatError:
    if isinstance(error, EOFError):
        return FormatError(f"{path} is truncated: its gzip data end too early. Copy or download it again.")
    return FormatError(f"{path} is damaged: its gzip data, checksum or length are wrong. Copy or download it again.")


def _skip(file: BufferedIOBase, count: int, packed: bool) -> int:
    """Pass over bytes; returns how many there were."""
    if not packed:
        here = file.tell()
        return min(file.seek(0, os.SEEK_END), file.seek(here + count)) - here
    done = 0
    while done < count and (chunk := file.read(min(count - done, _CHUNK))):
        done += len(chunk)
    return done


def _fill(file: BufferedIOBase, view: memoryview) -> int:
    done = 0
    while done < len(view) and (read := file.readinto(view[done : done + _CHUNK])):
        done += read
    return done


def _ends_in_padding(file: BufferedIOBase) -> bool:
    """Whether the stream, read to its end, holds nothing more but a few zeros."""
    rest = file.read(_PADDING + 1)
    while rest and len(rest) <= _PADDING and (chunk := file.read(_PADDING)):
        rest += chunk
    return len(rest) <= _PADDING and not any(rest)


def _scale(header: Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept; 0 and NaN as slope mean that values are as they are stored."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise FormatError(f"{path} has a slope or intercept that is no number. Its header is damaged: export it again.")
    return slope, intercept


def _scaled(raw: Num[np.ndarray, "x y z"], stored: Stored) -> Num[np.ndarray, "x y z"]:
    if (stored.slope, stored.intercept) == (1, 0):
        return raw
    values = raw.astype(np.float64)
    values *= stored.slope
    values += stored.intercept
    return values


def _storable(voxels: Num[np.ndarray, "x y z"]) -> np.dtype:
    """The smallest of NIfTI's types that holds every value exactly, among the voxels' own type, float32 and float64."""
    if voxels.dtype.kind in "iu":
        return voxels.dtype.newbyteorder("<")
    with np.errstate(over="ignore"):
        single = voxels.dtype.itemsize <= 4 or all(
            np.array_equal(plane, plane.astype(np.float32), equal_nan=True) for plane in np.moveaxis(voxels, -1, 0)
        )
    return np.dtype("<f4" if single else "<f8")


def stored_like(voxels: Num[np.ndarray, "x y z"], scan: Volume) -> Stored:
    """How to hold voxels that were made from a scan's; see ``write_nifti``."""
    own = scan.stored or Stored(scan.voxels.dtype.name)
    single = Stored("float32", own.slope, own.intercept)
    planes = [(voxels[:, :, z], scan.voxels[:, :, z]) for z in range(voxels.shape[2])]
    if all(_holds(own, plane, np.ones(plane.shape, bool)) for plane, _ in planes):
        return own
    if all(_holds(single, plane, plane == before) for plane, before in planes):
        return single
    return Stored("float64")


def _holds(stored: Stored, values: Num[np.ndarray, "x y"], which: Bool[np.ndarray, "x y"]) -> bool:
    """Whether these of the values come back equal."""
    dtype = np.dtype(stored.dtype)
    if dtype == np.float16:  # which NIfTI does not have
        return False
    exact = _unscaled(values, stored)
    if dtype.kind in "iu" and not (np.iinfo(dtype).min <= exact.min() and exact.max() <= np.iinfo(dtype).max):
        return False
    with np.errstate(over="ignore"):
        kept = exact.astype(dtype)
    back = (
        kept
        if (stored.slope, stored.intercept) == (1, 0)
        else kept.astype(np.float64) * stored.slope + (stored.intercept)
    )
    return bool((back == values)[which].all())


def _unscaled(values: Num[np.ndarray, "..."], stored: Stored) -> Num[np.ndarray, "..."]:
    """What is to be stored for values; whole numbers where those give the values."""
    if (stored.slope, stored.intercept) == (1, 0):
        return values
    exact = (values.astype(np.float64) - stored.intercept) / stored.slope
    whole = np.rint(exact)
    found: np.ndarray = np.where(whole * stored.slope + stored.intercept == values, whole, exact)
    return found


def fresh_header(volume: Volume, stored: Stored) -> Nifti1Header:
    """A header from zero with the place that was kept, as long as it is still the volume's, else the geometry's."""
    kept = volume.header
    if kept is not None:
        header = _header_with(kept, volume, stored)
        place, _ = geometry_of(header, volume.geometry.shape, Path("the header"))
        if np.allclose(place.affine, volume.affine, rtol=1e-5, atol=1e-3):
            return header
    return _header_with(header_for(volume.geometry), volume, stored)


def _header_with(kept: Header, volume: Volume, stored: Stored) -> Nifti1Header:
    double = _needs_double([stored.slope, stored.intercept])
    if volume.header is kept:
        double |= any(_needs_double(part) for part in (kept.sform, kept.quaternion, kept.pixdim) if part is not None)
    large = max(volume.voxels.shape) > np.iinfo(np.int16).max
    header: Nifti1Header = Nifti2Header(endianness="<") if double or large else Nifti1Header(endianness="<")
    header.set_data_dtype(np.dtype(stored.dtype))
    header.set_data_shape(volume.voxels.shape)
    header["scl_slope"], header["scl_inter"] = stored.slope, stored.intercept
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    if kept.sform is not None:
        header.set_sform(kept.sform, kept.sform_code)
    if kept.qform is not None:
        header.set_qform(kept.qform, kept.qform_code, strip_shears=True)
    if kept.quaternion is not None:
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = kept.quaternion
    if kept.pixdim is not None:
        header["pixdim"][:4] = kept.pixdim
    header["sform_code"], header["qform_code"], header["xyzt_units"] = kept.sform_code, kept.qform_code, kept.units
    return header


def _needs_double(numbers: ArrayLike) -> bool:
    """Whether one of the numbers does not fit into NIfTI-1, which has single precision."""
    exact = np.asarray(numbers, np.float64)
    return not np.array_equal(exact, exact.astype(np.float32))


def _write_stream(
    file: BufferedIOBase | igzip.IGzipFile, header: Nifti1Header, voxels: Num[np.ndarray, "x y z"], stored: Stored
) -> None:
    file.write(header.binaryblock + bytes(4))
    dtype = np.dtype(stored.dtype).newbyteorder("<")
    planes = max(1, _CHUNK // (dtype.itemsize * voxels.shape[0] * voxels.shape[1]))
    for first in range(0, voxels.shape[2], planes):
        part = _unscaled(voxels[:, :, first : first + planes], stored)
        file.write(part.astype(dtype, copy=False).tobytes(order="F"))
