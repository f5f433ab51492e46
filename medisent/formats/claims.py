"""What NRRD and MetaImage headers claim, held against the data they speak of; SimpleITK checks little of it."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

from medisent.errors import FormatError, GeometryError
from medisent.formats.checks import refuse_bomb, refuse_size

_HEADER = 1 << 20  # bytes within which a header ends
_CHUNK = 1 << 20
_PADDING = 4096  # zeros behind the data that are still taken for padding
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t", "double"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
}
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_DOUBLE", "MET_LONG_LONG", "MET_ULONG_LONG"), 8),
}
_META_PLACE = ("Offset", "TransformMatrix", "ElementSpacing", "ElementSize")
_META_NAMES = {
    **dict.fromkeys(("Position", "Origin"), "Offset"),
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
}
_NRRD_NAMES = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}
_PATIENT = {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "LPS", "RAS", "LAS"),
    *("left-posterior-superior-time", "right-anterior-superior-time", "left-anterior-superior-time"),
    *("LPST", "RAST", "LAST"),
}
_UNORIENTED = "The header does not say how the patient lies; its axes are taken to point left, posterior and superior."


@dataclass(frozen=True)
class Claim:
    """What a header says of its data.

    Attributes:
        sizes: Values along each axis.
        data: The file with the data.
        start: Where in it they begin; None where they are written so that nothing tells whether they are whole.
        size: How many bytes they are once unpacked.
        packed: Whether they are packed, by gzip or zlib.
        oriented: Whether the axes have a meaning in the patient.
    """

    sizes: tuple[int, ...]
    data: Path
    start: int | None
    size: int
    packed: bool
    oriented: bool


def check_claims(path: Path, max_voxels: int) -> tuple[str, ...]:
    """Remarks about a NRRD or MetaImage file; none about any other.

    Raises:
        FormatError: The data are too many, too few, more than declared, or damaged; or that cannot be told.
        GeometryError: Places are not numbers, or in another unit than millimetres.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER)
    try:
        if head.startswith(b"NRRD000"):
            claim = _nrrd(head, path)
        elif path.suffix.lower() in (".mha", ".mhd"):
            claim = _meta(head, path)
        else:
            return ()
    except (ValueError, KeyError, IndexError) as error:
        raise FormatError(f"{path} has a header that cannot be understood. It is damaged: export it again.") from error
    refuse_size(path, claim.sizes, max_voxels)
    if claim.start is None:
        raise FormatError(
            f"{path} holds its voxels as text, in several files, or behind what has no fixed length: nothing tells "
            "whether they are whole. Save it as NIfTI."
        )
    if not claim.data.is_file():
        raise FormatError(f"{path} has its voxels in another file, which is missing. Put both in one folder.")
    _check_data(claim, claim.start, path)
    return () if claim.oriented else (_UNORIENTED,)


def _nrrd(head: bytes, path: Path) -> Claim:
    text, fields = head.replace(b"\r\n", b"\n"), dict[str, str]()
    end = text.find(b"\n\n")
    for line in text[: end if end >= 0 else None].decode("latin1").splitlines()[1:]:
        name, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            _set_once(fields, _NRRD_NAMES.get(name.strip().lower(), name.strip().lower()), value)
    sizes = tuple(int(n) for n in fields["sizes"].split())
    if len(sizes) == 3 and "none" in fields.get("space directions", ""):
        raise GeometryError(f"{path} has an axis without a direction in space. Save it as a scalar volume.")
    units = {unit.strip().lower() for unit in fields.get("space units", "").split('"') if unit.strip()}
    if not units <= {"mm", "millimeter", "millimetre", "s", "ms"}:
        raise GeometryError(f"{path} has lengths in another unit than millimetres. Save it in millimetres.")
    detached = fields.get("data file")
    encoding = fields.get("encoding", "raw").lower()
    several = detached is not None and (detached.startswith("LIST") or "%" in detached)
    skipped, lines = int(fields.get("byte skip", "0")), int(fields.get("line skip", "0"))
    plain = encoding == "raw" and skipped >= 0
    simple = not several and not lines and (plain or (encoding in ("gzip", "gz") and not skipped))
    # the header's end as it is stored, carriage returns and all
    within = next((at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := head.find(mark)) >= 0), len(head))
    return Claim(
        sizes=sizes,
        data=path if detached is None or several else path.parent / detached,
        start=(within if detached is None else 0) + skipped if simple else None,
        size=math.prod(sizes) * _NRRD_BYTES.get(fields["type"].lower(), 0),
        packed=encoding in ("gzip", "gz"),
        oriented=fields.get("space") in _PATIENT,
    )


def _meta(head: bytes, path: Path) -> Claim:
    fields: dict[str, str] = {}
    within = 0
    for line in head.splitlines(keepends=True):
        name, equals, value = line.decode("latin1").partition("=")
        within += len(line)
        if equals:
            _set_once(fields, _META_NAMES.get(name.strip(), name.strip()), value)
        if name.strip() == "ElementDataFile":
            break
    if not all(math.isfinite(float(n)) for name in _META_PLACE for n in fields.get(name, "").split()):
        raise GeometryError(f"{path} gives its voxels a size or place that is no number. Export it again.")
    sizes = tuple(int(n) for n in fields["DimSize"].split())
    data = fields["ElementDataFile"]
    several = data.startswith("LIST") or "%" in data or (len(data.split()) > 1 and not (path.parent / data).is_file())
    scale = fields.get("ElementToIntensityFunctionSlope", "1"), fields.get("ElementToIntensityFunctionOffset", "0")
    if [float(number) for number in scale] != [1, 0]:
        raise FormatError(f"{path} has values that are to be rescaled, which is not done. Save it as NIfTI.")
    local, packed = data.lower() == "local", fields.get("CompressedData", "False").lower() == "true"
    skipped = int(fields.get("HeaderSize", "0"))
    binary = fields.get("BinaryData", "True").lower() == "true"
    simple = binary and not several and (not skipped or (skipped > 0 and not local and not packed))
    return Claim(
        sizes=sizes,
        data=path if local or several else path.parent / data,
        start=(within if local else skipped) if simple else None,
        size=math.prod(sizes)
        * _META_BYTES.get(fields["ElementType"].removesuffix("_ARRAY"), 0)
        * int(fields.get("ElementNumberOfChannels", "1")),
        packed=packed,
        oriented="TransformMatrix" in fields,
    )


def _set_once(fields: dict[str, str], name: str, value: str) -> None:
    """Note a field.

    Raises:
        ValueError: The header tells it twice, differently; readers take one or the other.
    """
    if name != "Comment" and fields.setdefault(name, value.strip()) != value.strip():
        raise ValueError(name)


def _check_data(claim: Claim, start: int, path: Path) -> None:
    """Refuse data that are not exactly as many as declared, or whose checksum is wrong."""
    stored = claim.data.stat().st_size - start
    if claim.packed:
        refuse_bomb(path, claim.size, stored)
        found, rest = _unpacked(claim.data, start, claim.size, path)
    else:
        found, rest = stored, _behind(claim.data, start + claim.size)
    if claim.size == 0:
        return  # of a type that is refused elsewhere
    if found < claim.size:
        raise FormatError(f"{path} is truncated: its header declares {claim.size:,} bytes. Copy or download it again.")
    if len(rest) > _PADDING or any(rest) or (claim.packed and found > claim.size):
        raise FormatError(f"{path} holds more data than its header declares. Its header is false: export it again.")


def _unpacked(data: Path, start: int, limit: int, path: Path) -> tuple[int, bytes]:
    """How many bytes a packed stream gives, a few more than the limit at most, and what lies behind it."""
    stream = zlib.decompressobj(wbits=47)  # gzip and zlib alike, their checksums verified
    found, rest = 0, b""
    with data.open("rb") as file:
        file.seek(start)
        try:
            while not stream.eof and found <= limit and (chunk := rest or file.read(_CHUNK)):
                found += len(stream.decompress(chunk, _CHUNK))
                rest = stream.unconsumed_tail
        except zlib.error as error:
            raise FormatError(f"{path} is damaged: its packed data or checksum are wrong. Export it again.") from error
        behind = stream.unused_data + file.read(_PADDING + 1)
    if not stream.eof and found <= limit:
        raise FormatError(f"{path} is truncated: its packed data end too early. Copy or download it again.")
    return found, behind


def _behind(data: Path, end: int) -> bytes:
    with data.open("rb") as file:
        file.seek(end)
        return file.read(_PADDING + 1)
