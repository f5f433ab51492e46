"""Every scan below a folder: files by their suffixes, and each DICOM series that is one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medisent.errors import FormatError
from medisent.formats.dicom import is_dicom, take_stock
from medisent.formats.dicom.choice import is_scan

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".par", ".hdr.gz", ".hdr")
"""Of files that are taken for scans when a folder is searched; DICOM is told by its content."""

MASK_WORDS = frozenset({"mask", "masks", "seg", "segs", "segmentation", "segmentations", "label", "labels", "roi"})
"""What names of masks, and of folders with masks, hold."""

LEFT_OUT = frozenset({"derivatives", "sourcedata", "code", "counterfactuals"})
"""Folders that hold no scans, as BIDS and phantom name them."""

_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Found:
    """A scan below a folder.

    Attributes:
        path: A file, or the folder of a DICOM series.
        series: Which series of that folder, where it holds several.
    """

    path: Path
    series: int | None = None


def scans_in(folder: Path) -> list[Found]:
    """Every scan below a folder, in the order of their paths; links to folders are not followed.

    A folder with DICOM images is taken with all below it, and each of its series that may be a scan is one: localisers,
    projections, secondary captures and single slices are left out; a series with a fault is kept, for whoever reads it
    to be told. Folders over which one series is spread are taken together. Hidden files are left out, folders that
    BIDS keeps results in, and files whose name, or whose folder's, is that of masks.

    Raises:
        FormatError: There is none, or there are too many files.
        MachineError: The folder cannot be read.
    """
    files: list[Path] = []
    places: list[Path] = []
    count = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("."))
        count += len(names)
        if count > _MOST_FILES:
            raise FormatError(f"{folder} holds more than {_MOST_FILES:,} files. Name a smaller folder, or a table.")
        inside = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        if any(_starts_as_dicom(file) for file in inside):
            places.append(Path(here))
            folders[:] = []
        else:
            files += [file for file in inside if _is_named_as_scan(file) and file.is_file()]
    found = [Found(file) for file in files] + list(_series(places))
    if not found:
        raise FormatError(f"{folder} holds no scan: no NIfTI, NRRD or MetaImage file, no DICOM series. Check the path.")
    return sorted(found, key=lambda one: (one.path, one.series or 0))


def holds_dicom(folder: Path) -> bool:
    """Whether there is a DICOM file in a folder or below it."""
    return any(_starts_as_dicom(Path(here, name)) for here, _, names in os.walk(folder) for name in sorted(names))


def _is_named_as_scan(file: Path) -> bool:
    said = re.split(r"[^a-z]+", f"{file.parent.name} {file.name}".lower())
    return file.name.lower().endswith(SUFFIXES) and MASK_WORDS.isdisjoint(said)


def _starts_as_dicom(file: Path) -> bool:
    if file.name.lower().endswith(SUFFIXES) or file.name.upper() == "DICOMDIR" or not file.is_file():
        return False
    try:
        return is_dicom(file)
    except OSError:
        return False  # who reads it is told


def _series(places: list[Path]) -> Iterator[Found]:
    """The series of folders; those that share one are taken as the folder that holds both."""
    stocks = {place: take_stock(place) for place in places}
    while True:
        owners: dict[object, Path] = {}
        for place, stock in stocks.items():
            named = [one.image.series for one in stock.candidates if one.image.series[1]]
            shared = {owners.setdefault(series, place) for series in named} - {place}
            if shared:
                above = Path(os.path.commonpath([place, *shared]))
                break
        else:
            break
        stocks = {other: kept for other, kept in stocks.items() if not other.is_relative_to(above)}
        stocks[above] = take_stock(above)
    for place, stock in stocks.items():
        numbers = [number for number, candidate in enumerate(stock.candidates) if is_scan(candidate)]
        if len(stock.candidates) == 1 or (not stock.candidates and stock.damaged):
            yield from [Found(place)] if numbers or stock.damaged else []
        else:
            yield from (Found(place, number) for number in numbers)
