"""DICOM elements: finds the few that matter in a file's header, and where its pixels begin, and looks at no other."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.datadict import tag_for_keyword
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_FRAGMENTED = (b"OB", b"OW")  # the pixels of an icon, when their length is not told
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_ENDS, _SEQUENCE_ENDS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
FLOATS = {0x7FE00008: "f4", 0x7FE00009: "f8"}  # pixels that are no integers, and their type
_PIXELS = frozenset({*FLOATS, 0x7FE00010})
_SYNTAX = 0x00020010
_FIRST_READ = 1 << 16  # holds most headers
_LARGEST = 1 << 27  # bytes before the pixels
_DEEPEST = 32  # sequences within sequences; enhanced images have five


class Elements(NamedTuple):
    """The wanted elements of a dataset, or of an item of a sequence.

    Attributes:
        values: The bytes of each, by its tag.
        items: The items of each wanted sequence, by its tag.
        order: Byte order, ``<`` or ``>``.
    """

    values: dict[int, bytes]
    items: dict[int, list[Elements]]
    order: str

    def text(self, keyword: str) -> str:
        """A string, empty where there is none."""
        return self.values.get(tag(keyword), b"").decode("latin-1").strip(" \0")

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The parts of a string of several values."""
        text = self.text(keyword)
        return tuple(part.strip() for part in text.split("\\")) if text else ()

    def decimals(self, keyword: str) -> tuple[float, ...] | None:
        """Numbers that are written as text; None where there are none, or where one is no number."""
        texts = self.texts(keyword)
        if any("_" in text for text in texts):  # which Python allows within numbers
            return None
        try:
            return tuple(float(text) for text in texts) or None
        except ValueError:
            return None

    def decimal(self, keyword: str) -> float | None:
        """The first of the numbers that are written as text."""
        found = self.decimals(keyword)
        return found[0] if found else None

    def shorts(self, keyword: str) -> tuple[int, ...]:
        """Binary integers of two bytes, without sign."""
        return self._binary(keyword, "H", 2)

    def longs(self, keyword: str) -> tuple[int, ...]:
        """Binary integers of four bytes, without sign."""
        return self._binary(keyword, "L", 4)

    def doubles(self, keyword: str) -> tuple[float, ...]:
        """Binary numbers of eight bytes."""
        return self._binary(keyword, "d", 8)

    def _binary(self, keyword: str, kind: str, width: int) -> tuple[Any, ...]:
        value = self.values.get(tag(keyword), b"")
        count = len(value) // width
        return struct.unpack(f"{self.order}{count}{kind}", value[: count * width])

    def first(self, keyword: str) -> Elements | None:
        """The first item of a sequence."""
        items = self.items.get(tag(keyword))
        return items[0] if items else None


@dataclass(frozen=True, eq=False, slots=True)
class File:
    """What one file holds.

    Attributes:
        path: Where it is.
        syntax: The UID of its transfer syntax.
        elements: Its wanted elements.
        pixels: Tag, offset and length in bytes of its pixels; the length is None where they are in fragments.
        deflated: Where the deflated part of the file begins; offsets are those within it once it is inflated.
        swapped: Whether the bytes of the pixels come in pairs of which the second is first.
    """

    path: Path
    syntax: str
    elements: Elements
    pixels: tuple[int, int, int | None] | None
    deflated: int | None = None
    swapped: bool = False


_PRIVATE = {"MosaicCreator": 0x00190010, "MosaicImages": 0x0019100A, "CsaCreator": 0x00290010, "CsaHeader": 0x00291010}
_PRIVATE |= {"SiemensBValue": 0x0019100C, "GEComponent": 0x0043102F, "PhilipsBValue": 0x20011003}
OVERLAYS = tuple(f"OverlayBitPosition{n}" for n in range(16))  # the groups of overlays repeat
_PRIVATE |= {name: 0x60000102 + n * 0x20000 for n, name in enumerate(OVERLAYS)}
_TAGS: dict[str, int] = dict(_PRIVATE)


def tag(keyword: str) -> int:
    """The tag of an element by its name in the standard, or by ours for a private one."""
    found = _TAGS.get(keyword)
    if found is None:
        named = tag_for_keyword(keyword)
        if named is None:
            raise KeyError(keyword)
        found = _TAGS[keyword] = int(named)
    return found


def is_dicom_start(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are DICOM's: its mark, or, as some old scanners write, group 8 at once."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in (b"\x08\x00", b"\x02\x00") or head[3] or head[2] > 0x18:
        return False
    return head[4:6] in _SHORT or head[4:6] in _LONG or int.from_bytes(head[4:8], "little") < 1024


def read_elements(path: Path, wanted: frozenset[int]) -> File | None:
    """The wanted elements of a file, or None where it is not DICOM at all.

    Raises:
        UnreadableError: The file is DICOM and damaged, or nests sequences too deep.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(132)
        if not is_dicom_start(head):
            return None
        size = path.stat().st_size
        data = head + file.read(_FIRST_READ)
        while True:
            try:
                return _parsed(path, data, size, wanted)
            except _MoreNeededError as more:
                if len(data) >= size or more.end > min(size, _LARGEST):
                    raise UnreadableError from None
                left = max(more.end + _FIRST_READ, 4 * len(data)) - len(data)
                data += file.read(left)


class UnreadableError(Exception):
    """A file's bytes do not make sense; the words follow the name of what the user gave."""

    def __init__(self, words: str = "is damaged or cut short. Copy or export it again.") -> None:
        super().__init__(words)
        self.words = words


class _MoreNeededError(Exception):
    """The bytes read so far do not reach to ``end``."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


def _parsed(path: Path, data: bytes, size: int, wanted: frozenset[int]) -> File:
    at, syntax = _meta(data, size)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    deflated = None
    if syntax == DeflatedExplicitVRLittleEndian:
        if len(data) < size:
            raise _MoreNeededError(size)
        deflated, data, at = at, inflated(data[at:]), 0
        size = len(data)
    explicit = data[at + 4 : at + 6] in _SHORT or data[at + 4 : at + 6] in _LONG
    walk = _Walk(data, size, order, wanted)
    elements, _ = walk.dataset(at, size, explicit, 0)
    return File(path, syntax, elements, walk.pixels, deflated, walk.swapped)


def inflated(data: bytes, most: int = _LARGEST) -> bytes:
    """Deflated bytes made whole again, as long as they do not become too many.

    Raises:
        UnreadableError: They are damaged, or become more than ``most``.
    """
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = machine.decompress(data, most)
    except zlib.error as error:
        raise UnreadableError from error
    if machine.unconsumed_tail:
        raise UnreadableError(f"inflates to more than {most >> 20} MiB. Export it uncompressed.")
    return found


def _meta(data: bytes, size: int) -> tuple[int, str]:
    """Where the dataset begins, and its transfer syntax."""
    at, syntax = (132 if data[128:132] == b"DICM" else 0), ""
    while data[at : at + 2] == b"\x02\x00":
        if at + 12 > len(data):
            raise _MoreNeededError(at + 12)
        group, element, kind, length = struct.unpack_from("<HH2sH", data, at)
        at += 8
        if kind in _LONG:
            (length,) = struct.unpack_from("<L", data, at)
            at += 4
        if at + length > len(data):
            raise _MoreNeededError(at + length)
        if group << 16 | element == _SYNTAX:
            syntax = data[at : at + length].decode("latin-1").strip(" \0")
        at += length
    if at + 8 > len(data) and at < size:
        raise _MoreNeededError(at + 8)
    return at, syntax or str(ImplicitVRLittleEndian)


class _Walk:
    """One pass over a header. It stops at the pixels and remembers where they are."""

    def __init__(self, data: bytes, size: int, order: str, wanted: frozenset[int]) -> None:
        self.data, self.size, self.order, self.wanted = data, size, order, wanted
        self.pixels: tuple[int, int, int | None] | None = None
        self.swapped = False
        self._explicit, self._implicit = struct.Struct(order + "HH2sH"), struct.Struct(order + "HHL")
        self._mark = b"\xff\xfe\xe0\x00" if order == ">" else b"\xfe\xff\x00\xe0"

    def dataset(self, at: int, end: int, explicit: bool, depth: int) -> tuple[Elements, int]:
        """The elements from ``at`` to ``end``, or to the mark that ends an item; and where they ended."""
        values: dict[int, bytes] = {}
        items: dict[int, list[Elements]] = {}
        data, known = self.data, len(self.data)
        while at < end:
            if known < min(at + 12, self.size) or known < at + 8:
                raise _MoreNeededError(min(at + 12, self.size) if known < self.size else self.size + 1)
            group, element, kind, length = self._explicit.unpack_from(data, at)
            number = group << 16 | element
            at += 8
            if group == 0xFFFE:
                if number != _ITEM_ENDS:
                    raise UnreadableError
                return Elements(values, items, self.order), at
            if explicit and kind in _LONG:
                if at + 4 > known:
                    raise _MoreNeededError(self.size + 1)
                length = int.from_bytes(data[at : at + 4], "big" if self.order == ">" else "little")
                at += 4
            elif not (explicit and kind in _SHORT):
                length, kind = self._implicit.unpack_from(data, at - 8)[2], b""
            if number in _PIXELS and depth == 0:
                self.pixels = (number, at, None if length == _UNDEFINED else length)
                self.swapped = self.order == ">" and kind == b"OW"
                break
            if length == _UNDEFINED and kind in _FRAGMENTED:
                at = self._past_fragments(at)
                continue
            if length == _UNDEFINED or self._is_sequence(number, kind, at, length):
                inner = explicit and kind != b"UN"
                found, at = self._sequence(at, self.size if length == _UNDEFINED else at + length, inner, depth + 1)
                if number in self.wanted:
                    items[number] = found
                continue
            if (stop := at + length) > self.size or (stop > known and number in self.wanted):
                raise _MoreNeededError(min(stop, self.size + 1))
            if number in self.wanted:
                values[number] = data[at:stop]
            at = stop
        return Elements(values, items, self.order), at

    def _is_sequence(self, number: int, kind: bytes, at: int, length: int) -> bool:
        """Whether to look into an element of known length: where it is wanted, or may be nested deep."""
        if kind not in (b"SQ", b"UN", b"") or length < 8:
            return False
        stop = at + length
        if number in self.wanted or (kind == b"SQ" and length > 8 * _DEEPEST):
            if stop > len(self.data):
                raise _MoreNeededError(min(stop, self.size + 1))
            return self.data.startswith(self._mark, at) and (
                number in self.wanted or self.data.count(self._mark, at, stop) > _DEEPEST
            )
        return False

    def _past_fragments(self, at: int) -> int:
        while True:
            if at + 8 > len(self.data):
                raise _MoreNeededError(at + 8)
            group, element, length = self._implicit.unpack_from(self.data, at)
            at += 8
            if group << 16 | element == _SEQUENCE_ENDS:
                return at
            if group << 16 | element != _ITEM or at + length > self.size:
                raise UnreadableError
            at += length

    def _sequence(self, at: int, end: int, explicit: bool, depth: int) -> tuple[list[Elements], int]:
        """The items of a sequence that begins at ``at``, and where it ended."""
        if depth > _DEEPEST:
            raise UnreadableError(f"nests sequences more than {_DEEPEST} deep, as no scanner does. Export it again.")
        found: list[Elements] = []
        while at < end:
            if at + 8 > len(self.data):
                raise _MoreNeededError(at + 8)
            group, element, length = self._implicit.unpack_from(self.data, at)
            at += 8
            number = group << 16 | element
            if number == _SEQUENCE_ENDS:
                break
            if number != _ITEM:
                raise UnreadableError
            if length != _UNDEFINED and at + length > self.size:
                raise _MoreNeededError(self.size + 1)
            item, at = self.dataset(at, self.size if length == _UNDEFINED else at + length, explicit, depth)
            found.append(item)
        return found, at


def tags(keywords: Iterable[str]) -> frozenset[int]:
    """The tags of several elements."""
    return frozenset(tag(keyword) for keyword in keywords)
