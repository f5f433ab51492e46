"""Which scans a batch is of: as they were typed, of a table, or all below a folder; what each is called in outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medisent.cohorts import read_table
from medisent.errors import CohortError
from medisent.formats import read
from medisent.formats.folder import holds_dicom, scans_in
from medisent.plurals import several
from medisent.stores import content_digest
from medisent.volumes import Volume

_SUFFIXES = (".nii", ".gz", ".dcm", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr", ".par", ".rec")


@dataclass(frozen=True)
class Source:
    """A scan of a batch, not yet read.

    Attributes:
        path: Where it is.
        label: What outputs call it: its number in the batch, from 1, or its path where names were asked for.
        series: Which series of a DICOM folder.
        volume: Which volume of a 4D file.
        max_voxels: More are refused; None is the usual limit.
    """

    path: Path
    label: str
    series: int | None = None
    volume: int | None = None
    max_voxels: int | None = None

    def read(self) -> Volume:
        """The scan.

        Raises:
            MedisentError: It is refused.
        """
        return read(self.path, volume=self.volume, series=self.series, max_voxels=self.max_voxels)

    def content(self) -> str | None:
        """The SHA-256 of what its files hold and which part of them is meant; None where they cannot tell.

        Raises:
            OSError: They cannot be read.
        """
        digest = content_digest(self.path)
        return None if digest is None else f"{digest} {self.series} {self.volume} {self.max_voxels}"

    @property
    def words(self) -> str:
        """What messages call it."""
        return f"{self.path.name}, series {self.series}" if self.series is not None else self.path.name


def sources_of(
    scans: Sequence[Path] = (), table: Path | None = None, folder: Path | None = None, *, names: bool = False
) -> list[Source]:
    """The scans that are meant, in their order.

    Arguments:
        scans: Files, and folders of one DICOM scan each; of a folder without DICOM, every scan below it.
        table: A cohort table, whose column ``scan`` names the scans, relative to its folder.
        folder: Every scan below it, each DICOM series one.
        names: Label scans by their paths, as typed or as in the table; else by their numbers.

    Raises:
        CohortError: The table is none, or names no scan in some row.
        FormatError: A folder holds no scan.
    """
    found: list[tuple[Path, str, int | None]] = []
    for scan in scans:
        if scan.is_dir() and not holds_dicom(scan):
            found += [(one.path, str(one.path), one.series) for one in scans_in(scan)]
        else:
            found.append((scan, str(scan), None))
    if table is not None:
        found += [(table.parent / cell, cell, None) for cell in _cells(table)]
    if folder is not None:
        for one in scans_in(folder):
            part = "" if one.series is None else f" series {one.series}"
            found.append((one.path, f"{one.path}{part}", one.series))
    return [
        Source(path, label if names else str(number), series) for number, (path, label, series) in enumerate(found, 1)
    ]


def _cells(table: Path) -> list[str]:
    rows = read_table(table)
    if "scan" not in rows.columns:
        raise CohortError(
            f"{table.name} has the columns {', '.join(rows.columns)}, but none called scan. Call the one with the "
            "scans so."
        )
    cells = [str(cell).strip() for cell in rows["scan"]]
    empty = [number for number, cell in enumerate(cells, 2) if not cell]
    if empty:
        raise CohortError(
            f"{several(len(empty), 'row')} of {table.name} without a scan, the first of them row {empty[0]}."
        )
    return cells


def limited(sources: Sequence[Source], volume: int | None, max_voxels: int | None) -> list[Source]:
    """The sources with which volume is taken of each, and how many voxels it may have."""
    return [replace(source, volume=volume, max_voxels=max_voxels) for source in sources]


def stem(scan: Path) -> str:
    """The name of a scan without its folder and its format's endings."""
    name = scan.resolve().name if scan.name in ("", "..") else scan.name
    while Path(name).suffix.lower() in _SUFFIXES:
        name = Path(name).stem
    return name


def unique_names(sources: Sequence[Source]) -> list[str]:
    """A name for each scan by its file; by as many of the folders above as it takes to tell all apart.

    A series of a folder with several adds its number. What cannot be told apart adds its number in the batch.
    """
    parts = [
        [*source.path.absolute().parent.parts[1:], stem(source.path)]
        + ([] if source.series is None else [f"series-{source.series}"])
        for source in sources
    ]
    least = [1 if source.series is None else 2 for source in sources]
    for more in range(max(map(len, parts), default=0)):
        names = ["_".join(part[-(count + more) :]) for part, count in zip(parts, least, strict=True)]
        if len(set(names)) == len(names):
            return names
    names = ["_".join(part[-count:]) for part, count in zip(parts, least, strict=True)]
    often = Counter(names)
    return [f"{name}_{number}" if often[name] > 1 else name for number, name in enumerate(names, 1)]
