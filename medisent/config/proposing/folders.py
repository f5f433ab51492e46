"""A cohort table for a folder without one: which files or folders in it are scans, of whom, with which masks."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medisent.cohorts import read_table
from medisent.config.proposing.listing import is_mask, words
from medisent.errors import CohortError, MedisentError
from medisent.formats import outline
from medisent.formats.dicom import is_dicom
from medisent.formats.dicom.elements import UnreadableError, read_elements, tags
from medisent.formats.folder import LEFT_OUT, MASK_WORDS, SUFFIXES
from medisent.plurals import several

_MOST_FILES = 200_000
_KINDS = {
    *("t1w", "t2w", "flair", "t1", "t2", "t1c", "t1ce", "t1gd", "t1n", "t2f", "pd", "pdw", "dwi", "adc", "swi", "bold"),
    *("ct", "pet", "mr", "cbct", "t2star", "t2starw", "mp2rage", "unit1", "inplanet2", "fla", "angio"),
}
_FILLERS = MASK_WORDS | {"image", "img", "scan", "synthetic"}
_PARTICIPANTS = "participants.tsv"
_WHOSE = tags(["PatientID", "StudyInstanceUID"])


@dataclass(frozen=True, eq=False)
class Found:
    """What a folder holds.

    Attributes:
        rows: A cohort table.
        notes: What was decided, in sentences without anybody's name.
    """

    rows: pd.DataFrame
    notes: tuple[str, ...]


def table_of(folder: Path) -> Found:
    """The cohort table of a folder, with whole paths; subjects are numbered.

    Raises:
        CohortError: There is no scan in the folder, or too many files.
    """
    scans, masks, loose = _sorted_out(folder.resolve())
    scans, notes = _of_one_kind(scans)
    if not scans:
        raise CohortError(
            f"{folder} holds no scan that can be read: no NIfTI, NRRD or MetaImage file, no DICOM series."
        )
    keys, said = _whose(scans, folder.resolve())
    numbers = {key: f"s{number:04}" for number, key in enumerate(dict.fromkeys(keys), 1)}
    rows = pd.DataFrame({"scan": [str(scan) for scan in scans], "subject": [numbers[key] for key in keys]})
    paired = _paired(scans, masks)
    for name, column in paired.items():
        rows[name] = [str(mask) if mask else "" for mask in column]
    rows = _with_participants(rows, folder, keys)
    used = sum(mask is not None for column in paired.values() for mask in column)
    if used < len(masks):
        left = several(len(masks) - used, "mask belongs", "masks belong")
        notes.append(f"{left} to no scan by name, left out.")
    if loose:
        notes.append(f"{loose} DICOM files lie beside folders with DICOM series and are left out.")
    return Found(rows, (*notes, *said))


def _sorted_out(folder: Path) -> tuple[list[Path], list[Path], int]:
    """Scans, masks, and how many DICOM files are neither."""
    scans: list[Path] = []
    masks: list[Path] = []
    series: list[tuple[Path, list[Path]]] = []
    count = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("."))
        count += len(names)
        if count > _MOST_FILES:
            raise CohortError(f"{folder} holds more than {_MOST_FILES:,} files. Give a smaller folder, or a table.")
        files = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        images = [file for file in files if _stem(file) != file.name and file.is_file()]
        for file in images:
            masked = is_mask(_stem(file)) or is_mask(file.parent.name)
            (masks if masked else scans).append(file)
        dicom = [file for file in files if file not in set(images) and _is_dicom(file)]
        if dicom:
            series.append((Path(here), dicom))
    above = {parent for place, _ in series for parent in place.parents}
    for place, files in series:
        scans += [] if place in above else _scans_of(place, files)
    return sorted(scans), masks, sum(len(files) for place, files in series if place in above)


def _is_dicom(file: Path) -> bool:
    try:
        return file.is_file() and file.name.upper() != "DICOMDIR" and is_dicom(file)
    except OSError:
        return False


def _scans_of(place: Path, files: Sequence[Path]) -> list[Path]:
    """The folder, if it is one series or its files make none alone; else the files that are volumes by themselves."""
    try:
        outline(place)
    except MedisentError as error:
        if error.code == "format.several_series" and len(files) <= 64:
            return [file for file in files if _is_volume(file)] or [place]
    return [place]


def _is_volume(file: Path) -> bool:
    try:
        outline(file)
    except MedisentError:
        return False
    return True


def _of_one_kind(scans: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The scans of the kind that there are most of, where names end in kinds such as T1w; others as they are."""
    kinds = [next((word for word in reversed(words(_stem(scan))) if word in _KINDS), "") for scan in scans]
    counts = Counter(kind for kind in kinds if kind)
    if len(counts) < 2 or sum(counts.values()) < len(scans) / 2:
        return list(scans), []
    best = max(counts, key=lambda kind: counts[kind])
    others = ", ".join(f"{number} of {kind}" for kind, number in counts.items() if kind != best)
    note = f"Names tell several kinds of scans: the {counts[best]} of {best} are taken; left out are {others}."
    return [scan for scan, kind in zip(scans, kinds, strict=True) if kind == best], [note]


def _whose(scans: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Something that scans of one subject share, for each; it is compared, never written."""
    named = [_subject_in(scan.relative_to(folder)) for scan in scans]
    if all(named):
        return named, []
    if all(scan.is_dir() or _stem(scan) == scan.name for scan in scans):
        headers = [_header_of(scan) for scan in scans]
        for part, what in enumerate(("patient IDs", "study UIDs")):
            keys = [header[part] for header in headers]
            if all(keys) and (len(set(keys)) > 1 or part == 1):
                return keys, [f"Subjects are told by the {what} in the headers, which are not written anywhere."]
    tops = [scan.relative_to(folder).parts[0] for scan in scans]
    if all(len(scan.relative_to(folder).parts) > 1 for scan in scans) and len(set(tops)) > max(1, len(scans) // 4):
        return tops, ["Subjects are told by the folders that scans are in."]
    return [str(number) for number in range(len(scans))], [
        "Nothing tells whose scans these are: every scan counts as a subject of its own. If somebody was scanned "
        "twice, correct column subject, or figures will flatter."
    ]


def _subject_in(path: Path) -> str:
    """The subject that a path names, such as BIDS's sub-01 or a folder patient_7; empty where there is none."""
    bids = re.search(r"(?:^|[/_])(sub-[0-9A-Za-z]+)", path.as_posix())
    if bids:
        return bids[1]
    named = re.compile(
        r"(sub|subj|subject|patient|pat|case|person|participant)[-_ ]?[0-9A-Za-z]*[0-9][0-9A-Za-z]*", re.I
    )
    return next((part for part in path.parts[:-1] if named.fullmatch(part)), "")


def _header_of(scan: Path) -> tuple[str, str]:
    """Patient ID and study UID of a DICOM scan, as far as there are any."""
    file = scan if scan.is_file() else next((f for f in sorted(scan.iterdir()) if _is_dicom(f)), None)
    try:
        found = read_elements(file, _WHOSE) if file else None
    except (UnreadableError, ValueError, ArithmeticError, LookupError, OSError):
        found = None
    return (found.elements.text("PatientID"), found.elements.text("StudyInstanceUID")) if found else ("", "")


def _paired(scans: Sequence[Path], masks: Sequence[Path]) -> dict[str, list[Path | None]]:
    """By column, the mask of each scan: that of its name but for words such as mask, or what lies beside it alone."""
    columns: dict[str, list[Path | None]] = {}
    indices = [(bare, _index(scans, bare)) for bare in (_bare, _barest)]
    beside = _index(scans, lambda scan: str(scan.parent))
    for mask in masks:
        place, what = _scan_of(mask, scans, indices)
        if place is None:
            place, *others = beside.get(str(mask.parent), [None])
            place = None if others else place
        if place is not None:
            column = columns.setdefault(f"{what}_mask" if what else "mask", [None] * len(scans))
            column[place] = column[place] or mask
    return columns


def _index(scans: Sequence[Path], key: Callable[[Path], str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, scan in enumerate(scans):
        found.setdefault(key(scan), []).append(place)
    return found


def _scan_of(
    mask: Path, scans: Sequence[Path], indices: Sequence[tuple[Callable[[Path], str], dict[str, list[int]]]]
) -> tuple[int | None, str]:
    """Which scan a mask belongs to by its name, and what is masked, where its name is longer by that."""
    for bare, places in indices:
        parts = bare(mask).split("_")
        for end in range(len(parts), 0, -1):
            same = places.get("_".join(parts[:end]), [])
            same = same if len(same) < 2 else [place for place in same if scans[place].parent == mask.parent]
            if len(same) == 1:
                return same[0], "_".join(parts[end:])
    return None, ""


def _bare(path: Path) -> str:
    """A file's name without its suffix and without words that name masks or scans."""
    parts = [word for word in re.split(r"[_\s]+|-(?=label|seg|mask)", _stem(path)) if word.lower() not in _FILLERS]
    return "_".join(parts).lower()


def _barest(path: Path) -> str:
    """The same without the kind of scan."""
    return "_".join(word for word in _bare(path).split("_") if word not in _KINDS)


def _stem(path: Path) -> str:
    """A file's name without the suffix of a scan; the whole name where it has none."""
    low = path.name.lower()
    suffix = next((suffix for suffix in SUFFIXES if low.endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)] if suffix else path.name


def _with_participants(rows: pd.DataFrame, folder: Path, keys: Sequence[str]) -> pd.DataFrame:
    """The table with what BIDS's ``participants.tsv`` says of each subject, if the folder has one."""
    path = folder / _PARTICIPANTS
    if not path.is_file():
        return rows
    known = read_table(path)
    if "participant_id" not in known.columns:
        return rows
    known = known.drop_duplicates("participant_id").set_index("participant_id")
    known.index = pd.Index([f"sub-{str(name).removeprefix('sub-')}" for name in known.index])
    extra = known.reindex(list(keys)).fillna("").reset_index(drop=True)
    return rows.join(extra[[name for name in extra.columns if name not in rows.columns]])
