"""A first study file for a cohort: what its table and its scans say, and what to beware of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import kruskal, spearmanr

from medisent.cohorts import read_cohort, read_table
from medisent.config.reading import parse_study
from medisent.config.settings import Study
from medisent.errors import CohortError
from medisent.factors import SCANNER_FACTORS
from medisent.formats import read
from medisent.progress import Progress
from medisent.volumes import Geometry

_SCAN_NAMES = ("scan", "image", "path", "file", "filename", "t1", "t1w")
_SPACINGS_MM = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
_CELLS = 32
_SCANS_READ = 8
_NOT_FACTORS = {"session", "site", "split", "subject", "seed", "id", "index", "row", "number", "date"}
_NUISANCE_WORDS = {"brightness", "contrast", "bias", "blur", "noise", "scanner", "field", "vendor", "coil", "gain"}
_SCANNER_NAMES = {"gain": "brightness", "gamma": "contrast"}
_UNITS = {
    "ml": ("mL", "_volume"),
    "cc": ("mL", "_volume"),
    "mm": ("mm", ""),
    "years": ("years", ""),
    "deg": ("degrees", ""),
}
_MASK_WORDS = ("mask", "seg", "segmentation", "label", "roi")
_STRONG, _SAME, _SURE = 0.3, 0.97, 1e-3
_PAIRS_TOLD = 4


@dataclass(frozen=True)
class Proposal:
    """A study file to begin with.

    Attributes:
        text: The file, with comments.
        factors: The names of its factors.
        warnings: What in the cohort can mislead, one sentence each.
    """

    text: str
    factors: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    """A factor as a column of the table suggests it."""

    name: str
    role: str
    kind: str
    unit: str = ""
    column: str | None = None
    mask: str | None = None
    levels: tuple[str, ...] = ()
    offset: float = 0.0
    note: str = ""


def propose_study(table: Path, home: Path, progress: Progress) -> Proposal:
    """A study file for a cohort, to be kept in the folder ``home``.

    Raises:
        CohortError: The table cannot be read, names no scans, or names scans that are not there.
        FormatError: A scan cannot be read.
    """
    rows = read_table(table)
    scan = _scan_column(rows, table.parent)
    named = {name: name for name in ("subject", "split", "site") if name in rows.columns}
    read_cohort(table, (), scan=scan, subject=named.get("subject", "subject"))
    progress.stage("reading scans", min(len(rows), _SCANS_READ))
    geometries = list(_some_geometries(rows, scan, table.parent, progress))
    columns = list(_factor_columns(rows, scan, table.parent))
    warnings = [
        *_warnings_of_rows(rows, scan, columns),
        *_warnings_of_factors(rows, columns),
        *_warnings_of_scans(geometries),
    ]
    relative = os.path.relpath(table.resolve(), home.resolve())
    text = "\n".join(_written(Path(relative).as_posix(), scan, named, geometries, columns, warnings))
    study = parse_study(text, "the proposed study")
    _check_values(table, study)
    return Proposal(text, tuple(factor.name for factor in study.factors), tuple(warnings))


def _check_values(table: Path, study: Study) -> None:
    read_cohort(table, study.factors, scan=study.cohort.scan, subject=study.cohort.subject)


def _scan_column(rows: pd.DataFrame, folder: Path) -> str:
    """The column that holds paths of scans."""
    first = [name for name in rows.columns if name.lower() in _SCAN_NAMES]
    for name in [*first, *rows.columns]:
        if _holds_paths(rows[name], folder) and not _is_mask(name):
            return str(name)
    if first:
        return str(first[0])  # its paths lead nowhere, which the cohort's own checks tell scan by scan
    raise CohortError(f"No column of the table holds paths of scans; it has {', '.join(rows.columns)}.")


def _holds_paths(cells: pd.Series[str], folder: Path) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(len(cell) < 4096 and (folder / cell).exists() for cell in filled[:3])


def _is_mask(name: str) -> bool:
    return any(word in name.lower().split("_") for word in _MASK_WORDS)


def _some_geometries(rows: pd.DataFrame, scan: str, folder: Path, progress: Progress) -> Iterator[Geometry]:
    """The geometries of a few scans, evenly spread over the table."""
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _SCANS_READ)).round().astype(int)
    for i in chosen:
        yield read(folder / rows[scan].iloc[i]).geometry
        progress.advance(1)


def _factor_columns(rows: pd.DataFrame, scan: str, folder: Path) -> Iterator[_Column]:
    """A factor for every column that varies, with its mask where there is one."""
    masks = {n: _stem(n) for n in rows.columns if n != scan and _is_mask(n) and _holds_paths(rows[n], folder)}
    used: set[str] = set()
    taken: set[str] = set()
    for name in rows.columns:
        if name == scan or name in masks or name.lower() in _NOT_FACTORS or _holds_paths(rows[name], folder):
            continue
        column = _factor_column(name, [cell for cell in rows[name] if cell])
        if column is None or column.name in taken:
            continue
        taken.add(column.name)
        mask = next((m for m, stem in masks.items() if column.unit == "mL" and name.startswith(stem)), None)
        used |= {mask} if mask else set()
        yield replace(column, mask=mask)
    for mask, stem in masks.items():
        if mask not in used and f"{stem}_volume" not in taken:
            yield _Column(_identifier(f"{stem}_volume"), "anatomy", "positive", "mL", mask=mask)


def _factor_column(name: str, cells: Sequence[str]) -> _Column | None:
    """The factor in a column with these filled cells, or None where it holds none."""
    base, _, suffix = name.rpartition("_")
    unit, ending = _UNITS.get(suffix.lower(), ("", ""))
    factor = _SCANNER_NAMES.get(name.lower(), _identifier(base + ending if unit and base else name))
    role = "nuisance" if factor in SCANNER_FACTORS or set(factor.split("_")) & _NUISANCE_WORDS else "anatomy"
    levels = sorted(set(cells))
    if len(levels) < 2:
        return None
    numbers = _numbers(cells)
    if numbers is None:
        if len(levels) > 12 or len(levels) > len(cells) / 2:
            return None
        return _Column(factor, role, "categorical", unit, name, levels=tuple(levels))
    if len(levels) <= 6 and len(cells) > 2 * len(levels) and all(float(x).is_integer() for x in levels):
        kind = "ordinal" if len(levels) > 2 else "categorical"
        return _Column(factor, role, kind, unit, name, levels=tuple(sorted(levels, key=float)))
    if numbers.min() < 0:
        return _Column(factor, role, "real", unit, name)
    offset = 0.0 if numbers.min() > 0 else float(f"{np.median(numbers[numbers > 0]) / 10:.2g}")
    note = "zeros occur: the offset is added before the logarithm" if offset else ""
    return _Column(factor, role, "positive", unit, name, offset=offset, note=note)


def _numbers(cells: Sequence[str]) -> Float[np.ndarray, " cells"] | None:
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _stem(mask: str) -> str:
    return "_".join(word for word in mask.lower().split("_") if word not in _MASK_WORDS) or "mask"


def _identifier(name: str) -> str:
    letters = "".join(c if c.isalnum() else "_" for c in name.strip().lower()).strip("_")
    return letters if letters[:1].isalpha() else f"factor_{letters}"


def _warnings_of_rows(rows: pd.DataFrame, scan: str, columns: Sequence[_Column]) -> Iterator[str]:
    """What is odd about the table itself."""
    if "subject" not in rows.columns:
        yield "There is no column 'subject': every scan counts as a subject of its own."
    elif "split" in rows.columns:
        leaking = int((rows.groupby("subject")["split"].nunique() > 1).sum())
        if leaking:
            yield f"{leaking} subjects are in more than one split. Training refuses that; give each subject one split."
    repeated = int(rows[scan].duplicated().sum())
    if repeated:
        yield f"{repeated} rows name a scan that an earlier row names."
    if len(rows) < 50:
        yield f"{len(rows)} scans are few: expect wide intervals."
    for column in columns:
        for name in filter(None, (column.column, column.mask)):
            missing = float((rows[name] == "").mean())
            if missing:
                yield f"{missing:.0%} of column {name} is empty."


def _warnings_of_factors(rows: pd.DataFrame, columns: Sequence[_Column]) -> Iterator[str]:
    """Which factors go together, so that data alone cannot tell them apart."""
    measured = [c for c in columns if c.column and c.kind in ("real", "positive", "ordinal")]
    pairs = []
    for one, other in combinations(measured, 2):
        if one.role == other.role == "nuisance":
            continue
        both = rows[(rows[one.column] != "") & (rows[other.column] != "")]
        if len(both) >= 10:
            found = spearmanr(both[one.column].astype(float), both[other.column].astype(float))
            if abs(found.statistic) >= _STRONG and found.pvalue < _SURE:
                pairs.append((abs(found.statistic), one.name, other.name, found.statistic))
    pairs.sort(reverse=True)
    for strength, one_name, other_name, rho in pairs[:_PAIRS_TOLD]:
        advice = "keep one of them" if strength > _SAME else "each may be read for the other"
        yield f"{one_name} and {other_name} go together (Spearman {rho:.2f}): {advice}."
    if len(pairs) > _PAIRS_TOLD:
        yield f"Further pairs of factors go together, less strongly: {len(pairs) - _PAIRS_TOLD}."
    for column in (c for c in measured if c.role == "anatomy" and "site" in rows.columns):
        filled = rows[rows[column.column] != ""]
        parts = [part[column.column].astype(float) for _, part in filled.groupby("site") if len(part) >= 5]
        if len(parts) > 1 and kruskal(*parts).pvalue < _SURE:
            yield f"{column.name} differs between sites: its effect and theirs are confounded."


def _warnings_of_scans(geometries: Sequence[Geometry]) -> Iterator[str]:
    coarse = [max(g.spacing) for g in geometries]
    if max(coarse) > 2 * min(coarse):
        yield f"Voxels are between {min(coarse):.3g} and {max(coarse):.3g} mm long: thick and thin slices are mixed."


def _grid(geometries: Sequence[Geometry]) -> tuple[float, tuple[int, int, int]]:
    """Spacing in mm and shape of a grid of about 32 cells that holds every field of view."""
    extents = np.max([_extent_mm(g) for g in geometries], axis=0)
    finest = min(min(g.spacing) for g in geometries)
    wanted = max(finest, float(extents.max()) / _CELLS * 0.9) * 0.999
    spacing = next((s for s in _SPACINGS_MM if s >= wanted), float(math.ceil(wanted)))
    x, y, z = (max(8, 4 * math.ceil(extent / spacing / 4 - 1e-6)) for extent in extents)
    return spacing, (x, y, z)


def _extent_mm(geometry: Geometry) -> Float[np.ndarray, "3"]:
    """Edges of the box along the body's axes that holds the field of view, in mm."""
    edges: np.ndarray = np.abs(geometry.affine[:3, :3]) @ np.array(geometry.shape)
    return edges


def _written(
    table: str,
    scan: str,
    named: dict[str, str],
    geometries: Sequence[Geometry],
    columns: Sequence[_Column],
    warnings: Sequence[str],
) -> Iterator[str]:
    """The lines of the study file."""
    spacing, shape = _grid(geometries)
    yield "# A study file to begin with. Read the factors: their roles are guesses from the columns' names."
    yield from (f"# Beware: {warning}" for warning in warnings)
    yield from ("", "[cohort]", f"table = {json.dumps(table, ensure_ascii=False)}")
    yield f"scan = {json.dumps(scan, ensure_ascii=False)}"
    yield from (f"{setting} = {json.dumps(column)}" for setting, column in named.items())
    yield from ("", "[grid]", f"# Holds the fields of view of the {len(geometries)} scans that were looked at.")
    yield from (f"spacing_mm = {spacing}", f"shape = {list(shape)}")
    yield from ("", "[scanner]", "# Learned without labels; leave out what your scanners do not vary in.")
    yield f"factors = {json.dumps(list(SCANNER_FACTORS))}"
    for column in columns:
        yield from _factor_lines(column)
    yield from ("", "[training]", "minutes = 5                  # or epochs, or steps", "seed = 0", "")


def _factor_lines(column: _Column) -> Iterator[str]:
    yield from ("", "[[factors]]", f'name = "{column.name}"')
    yield f'role = "{column.role}"'.ljust(29) + "# anatomy: to be explained; nuisance: to be told apart"
    yield f'kind = "{column.kind}"'
    optional = {"unit": column.unit, "column": column.column, "mask": column.mask}
    yield from (f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in optional.items() if value)
    if column.levels:
        yield f"levels = {json.dumps(list(column.levels), ensure_ascii=False)}"
    if column.offset:
        yield f"offset = {column.offset}".ljust(29) + f"# {column.note}"
