"""What tells that images under the names of one series are of two: other people, and numbers that are counted twice."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

from medisent.formats.dicom.elements import Elements
from medisent.formats.dicom.frames import Frame

PERSON = ("PatientID", "PatientName", "PatientBirthDate")
_MOST_WOVEN = 4


def people(frames: Sequence[Frame]) -> int:
    """How many people images name; what is empty in some of them, or written otherwise, makes no other person."""
    found = [_marks(elements) for elements in {id(f.image): f.image.file.elements for f in frames}.values()]
    return max(len({mark for mark in column if mark}) for column in zip(*found, strict=True)) or 1


def _marks(elements: Elements) -> tuple[bytes, ...]:
    """Digests of what names a person: they are compared and forgotten, so that no name is kept or shown."""
    texts = [elements.text(name).replace("^", " ") for name in PERSON]
    words = [" ".join(text.split()).upper() for text in texts]
    return tuple(blake2b(word.encode(), digest_size=16).digest() if word else b"" for word in words)


def woven(frames: Sequence[Frame]) -> int:
    """Of how many series images along a line are, by their numbers: as many as count alike, in turns; else 1."""
    numbers = _numbers(frames)
    if len(set(numbers)) in (1, len(numbers)):  # nobody has counted, or all were counted at once
        return 1
    return next((ways for ways in range(2, _MOST_WOVEN + 1) if _in_turns(numbers, ways)), 1)


def doubt(frames: Sequence[Frame]) -> str:
    """What is odd about the numbers of images along a line, in a sentence; empty if nothing is."""
    numbers = _numbers(frames)
    if 1 < len(set(numbers)) < len(numbers):
        return "Several of the images have the same number; two series may lie in one another."
    turns = [numbers[start::2] for start in (0, 1)]
    halves = sorted(turns, key=min) if len(numbers) >= 6 else []
    if halves and _in_turns(numbers, 2) and max(halves[0]) < min(halves[1]):
        return "Every second image was numbered first: they were taken so, or two series lie in one another."
    return ""


def _numbers(frames: Sequence[Frame]) -> list[int]:
    """The numbers of images, each of which has a file of its own; else zeros, since then files are what is counted."""
    alone = len({id(frame.image) for frame in frames}) == len(frames)
    return [frame.image.instance if alone else 0 for frame in frames]


def _in_turns(numbers: Sequence[int], ways: int) -> bool:
    """Whether as many rows of three numbers or more lie in one another, each of which rises or falls evenly."""
    rows = [numbers[start::ways] for start in range(ways)]
    steps = [[other - one for one, other in pairwise(row)] for row in rows]
    return all(len(row) > 1 and len(set(row)) == 1 and row[0] != 0 for row in steps)
