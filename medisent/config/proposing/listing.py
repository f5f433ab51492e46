"""What the columns of a cohort table are: scans, subjects, sites, splits, masks, and the rest, which may be factors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medisent.cohorts import SPLITS, unnamed_subjects
from medisent.errors import CohortError
from medisent.formats.folder import MASK_WORDS

_SCANS = ("scan", "image", "img", "path", "file", "filename", "t1", "t1w", "volume_path")
_SUBJECTS = (
    "subject",
    "subject_id",
    "participant_id",
    "participant",
    "patient",
    "patient_id",
    "sub",
    "case",
    "case_id",
)
_SITES = ("site", "site_id", "center", "centre", "hospital", "institution", "scanner", "scanner_id")
_SPLITS = ("split", "set", "partition", "fold")
_LONGEST_PATH = 4096
_UNKNOWN = ("", "nan", "na", "n/a")


@dataclass(frozen=True, eq=False)
class Listing:
    """A cohort table and what its columns are.

    Attributes:
        rows: Its cells as text.
        folder: What paths in it are relative to.
        scan: Column with the scans.
        subject: Column with the subjects, if there is one.
        site: Column with the sites, if there is one.
        split: Column with the splits, if there is one.
        masks: Columns with masks.
    """

    rows: pd.DataFrame
    folder: Path
    scan: str
    subject: str | None
    site: str | None
    split: str | None
    masks: tuple[str, ...]

    @classmethod
    def of(cls, rows: pd.DataFrame, folder: Path) -> Listing:
        """A table, its columns told by their names and by what is in them.

        Raises:
            CohortError: No column holds paths of scans.
        """
        scan = _scan_column(rows, folder)
        masks = tuple(n for n in rows.columns if n != scan and is_mask(n) and holds_paths(rows[n], folder))
        subject, site, split = (_named(rows, names) for names in (_SUBJECTS, _SITES, _SPLITS))
        if split is not None and split != "split" and not set(rows[split]) <= set(SPLITS):
            split = None
        return cls(rows, folder, scan, subject, site, split, masks)

    def path(self, row: int, column: str | None = None) -> Path:
        """Where the scan of a row is, or what else a column names."""
        return self.folder / str(self.rows[column or self.scan].iloc[row]).strip()

    @property
    def subjects(self) -> list[str]:
        """Whose each scan is; without a column every scan is a subject of its own."""
        return list(self.rows[self.subject]) if self.subject else unnamed_subjects(len(self.rows))

    @property
    def others(self) -> list[str]:
        """Columns that are none of these and hold no paths."""
        taken = {self.scan, self.subject, self.site, self.split, *self.masks}
        return [n for n in self.rows.columns if n not in taken and not holds_paths(self.rows[n], self.folder)]


def known(cells: Iterable[str]) -> list[bool]:
    """Which cells are filled in."""
    return [cell.strip().lower() not in _UNKNOWN for cell in cells]


def words(name: str) -> list[str]:
    """The words of a name: ``TumourVolume (mL)`` is tumour, volume, ml."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name)
    return [word.lower() for word in re.split(r"[^0-9A-Za-zµ³^%]+|_", parted) if word]


def is_mask(name: str) -> bool:
    """Whether a name is that of masks."""
    return not MASK_WORDS.isdisjoint(words(name))


def holds_paths(cells: Sequence[str] | pd.Series[str], folder: Path) -> bool:
    """Whether cells name files or folders that are there."""
    filled = [cell.strip() for cell, there in zip(cells, known(cells), strict=True) if there]
    return any(len(cell) < _LONGEST_PATH and _is_there(folder / cell, cell) for cell in filled[:5])


def _is_there(path: Path, cell: str) -> bool:
    """Whether there is a file, or a folder whose name is not also a number or a mark for what is missing."""
    try:
        return path.is_file() or (path.is_dir() and not re.fullmatch(r"[\d.+-]+", cell))
    except (OSError, ValueError):  # a name that no file can have
        return False


def _named(rows: pd.DataFrame, names: Sequence[str]) -> str | None:
    found = {name.strip().lower().replace(" ", "_"): name for name in reversed(list(rows.columns))}
    return next((str(found[name]) for name in names if name in found), None)


def _scan_column(rows: pd.DataFrame, folder: Path) -> str:
    """The column that holds paths of scans."""
    first = [name for name in rows.columns if name.lower() in _SCANS]
    for name in [*first, *rows.columns]:
        if holds_paths(rows[name], folder) and not is_mask(name):
            return str(name)
    if first:
        return str(first[0])  # its paths lead nowhere, which is then told scan by scan
    raise CohortError(f"No column of the table holds paths of scans; it has {', '.join(rows.columns)}.")
