"""What a folder holds: every DICOM image below it, sorted into candidates, each of which may be one volume."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from medisent.errors import FormatError
from medisent.formats.dicom.elements import UnreadableError
from medisent.formats.dicom.faults import Fault, Verdict
from medisent.formats.dicom.frames import Frame, Image, read_frames
from medisent.formats.dicom.geometry import judge
from medisent.formats.dicom.mixtures import doubt, people, woven
from medisent.formats.dicom.pixels import equal_pixels
from medisent.plurals import several

_MAX_FILES = 100_000
_PARALLEL = 1e-3  # as in geometry: directions that count as one
_TIME, _B_VALUE = 0, 2  # of a frame's moments
_MOST_COPIES = 2000  # images that are compared byte for byte


@dataclass(frozen=True, eq=False)
class Candidate:
    """Images that may be one volume, or several of the same places.

    Attributes:
        frames: They, in the order of their names.
        verdict: Whether they are.
        order: Which of them lies where, volume by volume; volumes in the order of their times. None where unknown.
    """

    frames: tuple[Frame, ...]
    verdict: Verdict
    order: Integer[np.ndarray, "volumes places"] | None

    @property
    def image(self) -> Image:
        """The file of the first."""
        return self.frames[0].image

    @property
    def slices(self) -> int:
        """How many places there are, as far as that is known."""
        return len(self.frames) if self.order is None else self.order.shape[1]

    @property
    def volumes(self) -> int:
        """How many images there are of each place."""
        return 1 if self.order is None else len(self.order)


@dataclass(frozen=True, eq=False)
class Inventory:
    """What was found.

    Attributes:
        candidates: In the order of their series' numbers.
        damaged: The folders of DICOM files that cannot be read, one for each, and what is wrong with it.
    """

    candidates: tuple[Candidate, ...]
    damaged: tuple[tuple[Path, str], ...]


def take_stock(path: Path) -> Inventory:
    """The candidates in a file, or in all files of a folder and the folders in it; links to folders are not followed.

    Raises:
        FormatError: There are too many files.
    """
    frames: list[Frame] = []
    broken, others, names = [], [], set()
    for file in [path] if path.is_file() else _files(path):
        try:
            found = _frames(file)
        except UnreadableError as error:
            broken.append((file.parent, error.words))
            continue
        if found is None:
            others.append(file)
        else:
            frames += found
            names.add(_form(file))
    broken += [(file.parent, _NO_MORE) for file in others if _form(file) in names or _is_named_dicom(file)]
    return Inventory(_candidates(frames), tuple(broken))


_NO_MORE = "is named as DICOM files are, but is none any more: it is damaged. Copy or export it again."


def _frames(file: Path) -> list[Frame] | None:
    try:
        return read_frames(file)
    except (ValueError, ArithmeticError, LookupError, struct.error) as error:
        raise UnreadableError from error


def _form(file: Path) -> tuple[Path, str]:
    """What the names of the files of one series have in common: all but their digits."""
    return file.parent, re.sub(r"[0-9]+", "0", file.name)


def _is_named_dicom(file: Path) -> bool:
    """Whether a file's name says DICOM; those that begin with a dot are what macOS keeps beside a file."""
    return file.suffix.lower() in (".dcm", ".ima") and not file.name.startswith(".")


def _files(folder: Path) -> list[Path]:
    """Every file below a folder by name; a DICOMDIR points elsewhere and is never followed."""
    files: list[Path] = []

    def stop(error: OSError) -> None:
        raise error

    for here, _, names in os.walk(folder, onerror=stop):
        files += [Path(here, name) for name in names if name.upper() != "DICOMDIR"]
        if len(files) > _MAX_FILES:
            raise FormatError(f"{folder} holds more than {_MAX_FILES:,} files. Give the folder of one series.")
    return sorted(file for file in files if file.is_file())


def _candidates(frames: Sequence[Frame]) -> tuple[Candidate, ...]:
    joined = [series for series in _grouped(frames, lambda f: f.image.alike) if people(series) > 1]
    found = [Candidate(tuple(series), Verdict("refused", Fault.SEVERAL_PEOPLE, _PEOPLE), None) for series in joined]
    mixed = {series[0].image.alike for series in joined}
    sound = [frame for frame in frames if frame.image.alike not in mixed]
    for picture in _grouped(sound, lambda f: (f.image.alike, replace(f.kind, image_type=()))):
        parts = [picture]
        if judge(picture).refused or _volumes_of(picture) > 1:
            parts = _grouped(picture, lambda f: f.kind.image_type)
        for part in parts:
            found += _settled(part)
    return tuple(sorted(found, key=lambda c: (c.image.number, c.image.file.path, c.frames[0].index)))


def _volumes_of(frames: Sequence[Frame]) -> int:
    order = judge(frames).order
    return 1 if order is None else len(order)


def _grouped(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    groups: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(key(frame), []).append(frame)
    return list(groups.values())


def _settled(frames: Sequence[Frame]) -> list[Candidate]:
    """One candidate; several where images differ in what their places are told by, and each kind makes a volume."""
    verdict = judge(frames)
    if verdict.fault in _PARTS:
        return _split(frames, verdict, _PARTS[verdict.fault](frames))
    if verdict.fault in (Fault.DUPLICATE, Fault.SINGLE_SLICE) or (verdict.order is not None and len(verdict.order) > 1):
        once, copies = _without_copies(frames, verdict)
        if copies:
            passed = several(
                copies, "image is an exact copy of another and is", "images are exact copies of others and are"
            )
            said = f"{passed} passed over."
            return [_with_remark(candidate, said) for candidate in _settled(once)]
    if verdict.fault is Fault.DUPLICATE:
        return _split(frames, verdict, _grouped(frames, lambda f: f.moments[1]))
    order = verdict.order
    if order is not None and len(order) == 1:  # not of time points, which settings may tell apart
        parts = _split(frames, verdict, _grouped(frames, lambda f: f.image.settings))
        return parts if len(parts) > 1 else _by_their_numbers(frames, verdict, order)
    if order is not None and (volumes := len(order)) > 1:
        order = in_time(frames, order)
        if order is None:
            verdict = Verdict("refused", Fault.FOUR_D, _UNTOLD.format(volumes))
    return [Candidate(tuple(frames), verdict, order)]


def _by_their_numbers(
    frames: Sequence[Frame], verdict: Verdict, order: Integer[np.ndarray, "1 places"]
) -> list[Candidate]:
    """One volume; several where images that lie between each other were counted apart."""
    line = [frames[index] for index in order[0]]
    ways = woven(line)
    parts = _split(frames, verdict, [line[start::ways] for start in range(ways)]) if ways > 1 else []
    if len(parts) > 1:
        return parts
    whole, said = Candidate(tuple(frames), verdict, order), doubt(line)
    return [_with_remark(whole, said, Fault.SEVERAL_SERIES) if said else whole]


_PEOPLE = "joins images of several patients under the names of one series. Give the folder of one patient's series."
_UNTOLD = "holds {} images of each place, and nothing in them tells time points or echoes apart. Give one of them."


def _with_remark(candidate: Candidate, said: str, fault: Fault = Fault.DUPLICATE) -> Candidate:
    verdict = candidate.verdict
    if verdict.refused:
        return candidate
    level = replace(verdict, level="warned", fault=verdict.fault or fault, remarks=(*verdict.remarks, said))
    return replace(candidate, verdict=level)


def _split(frames: Sequence[Frame], verdict: Verdict, parts: Sequence[Sequence[Frame]]) -> list[Candidate]:
    """The parts as candidates where each makes a volume; else the whole with its fault."""
    settled = [candidate for part in parts for candidate in _settled(part)] if 1 < len(parts) <= 64 else []
    if settled and not any(candidate.verdict.refused for candidate in settled):
        return settled
    return [Candidate(tuple(frames), verdict, None)]


def _by_orientation(frames: Sequence[Frame]) -> list[list[Frame]]:
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if np.abs(np.array(frame.axes) - np.array(group[0].axes)).max() < _PARALLEL:
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


_PARTS: dict[Fault | None, Callable[[Sequence[Frame]], list[list[Frame]]]] = {
    Fault.SIZE: lambda frames: _grouped(frames, lambda f: (f.rows, f.columns)),
    Fault.ORIENTATION: _by_orientation,
    Fault.SPACING: lambda frames: _grouped(frames, lambda f: tuple(round(mm, 3) for mm in f.spacing_mm)),
    Fault.FRAME_OF_REFERENCE: lambda frames: _grouped(frames, lambda f: f.stack),
}


def _without_copies(frames: Sequence[Frame], verdict: Verdict) -> tuple[list[Frame], int]:
    """The images without those that repeat another of the same place, value for value.

    Where every place has the same number of images, only those are compared whose identifiers are equal too: time
    points are not copies.
    """
    uniform = verdict.order is not None
    once: list[Frame] = []
    copies = 0
    for group in _grouped(frames, lambda f: (f.position, f.axes, f.rescale, _uid(f) if uniform else "")):
        kept = group[:1]
        for frame in group[1:]:
            if len(frames) <= _MOST_COPIES and any(equal_pixels(frame, other) for other in kept):
                copies += 1
            else:
                kept.append(frame)
        once += kept
    return once, copies


def _uid(frame: Frame) -> tuple[str, int]:
    return frame.image.file.elements.text("SOPInstanceUID"), frame.index


def in_time(
    frames: Sequence[Frame], order: Integer[np.ndarray, "volumes places"]
) -> Integer[np.ndarray, "volumes places"] | None:
    """The same volumes, each of images that belong together, by the first of their moments that tells them apart.

    None where nothing does: neither time, acquisition, b-value, trigger and dimension, nor an order of their numbers
    that goes place by place or volume by volume; and where a volume would have images of different times or b-values.
    """
    found = _by_moment(frames, order)
    found = _by_number(frames, order) if found is None else found
    if found is None:
        return None
    for kind in (_TIME, _B_VALUE):
        told = [[frames[index].moments[kind] for index in volume] for volume in found]
        known = all(moment is not None for volume in told for moment in volume)
        if known and any(len(set(volume)) > 1 for volume in told):
            return None
    return found


def _by_moment(
    frames: Sequence[Frame], order: Integer[np.ndarray, "volumes places"]
) -> Integer[np.ndarray, "volumes places"] | None:
    for kind in range(len(frames[0].moments)):
        moments = [[frames[index].moments[kind] for index in place] for place in order.T]
        if any(moment is None for place in moments for moment in place):
            continue
        ranks = [sorted(range(len(place)), key=lambda n: place[n]) for place in moments]
        values = [[place[n] for n in rank] for place, rank in zip(moments, ranks, strict=True)]
        if len(set(values[0])) == len(values[0]) and all(place == values[0] for place in values):
            return np.stack([place[rank] for place, rank in zip(order.T, ranks, strict=True)], axis=1)
    return None


def _by_number(
    frames: Sequence[Frame], order: Integer[np.ndarray, "volumes places"]
) -> Integer[np.ndarray, "volumes places"] | None:
    numbers = [(frame.image.instance, frame.index, frame.corner) for frame in frames]
    if len(set(numbers)) < len(numbers):
        return None
    ranks = np.empty(len(numbers), int)
    ranks[sorted(range(len(numbers)), key=lambda n: numbers[n])] = np.arange(len(numbers))
    ranked = np.take_along_axis(order, np.argsort(ranks[order], axis=0), axis=0)
    volumes, places = order.shape
    by_volume = ranks[ranked] // places == np.arange(volumes)[:, None]
    by_place = np.ptp(ranks[ranked] // volumes, axis=0) == 0
    return ranked if by_volume.all() or by_place.all() else None
