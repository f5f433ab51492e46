"""The page that explains one scan: what it shows, what would change it, and whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from medisent.errors import GeometryError
from medisent.reports.copies import copies
from medisent.reports.figures import Strip, strip
from medisent.reports.films import Film, LightTable, Picture, Scale, colour_scale
from medisent.reports.pages import rendered
from medisent.reports.traversals import Passages, Traversal, passages
from medisent.reports.viewing import PAGE, Viewer, packed_program, program, viewer
from medisent.volumes import Volume, pictures
from medisent.words import known, measured, number, ordinal, readout, sentence, words


@dataclass(frozen=True, eq=False)
class Comparison:
    """One counterfactual beside the scan.

    Attributes:
        factor: What was moved.
        role: Its role, ``anatomy`` or ``nuisance``.
        title: What was asked, such as ``tumour volume 9.6 → 19.2 mL``.
        after: The counterfactual, in the scan's own voxels.
        file: Where it was exported, relative to the page.
    """

    factor: str
    role: str
    title: str
    after: Num[np.ndarray, "x y z"]
    file: str


@dataclass(frozen=True, eq=False)
class FactorMap:
    """What the scan gains per unit of a factor.

    Attributes:
        factor: Its name.
        role: Its role, ``anatomy`` or ``nuisance``.
        unit: Its unit.
        change: Signed, in the scan's own voxels and intensities.
        file: Where it was exported, relative to the page.
    """

    factor: str
    role: str
    unit: str
    change: Float[np.ndarray, "x y z"]
    file: str


@dataclass(frozen=True)
class Answer:
    """One of the questions that a reader has first, answered.

    Attributes:
        question: In a few words.
        answer: In a few words.
        detail: A sentence.
        mark: ``ok``, ``warn`` or ``info``.
    """

    question: str
    answer: str
    detail: str
    mark: str


@dataclass(frozen=True)
class EditCheck:
    """An edited scan that was read again.

    Attributes:
        factor: What was moved.
        role: Its role, ``anatomy`` or ``nuisance``.
        asked: From which value to which.
        read: What the model reads from the edited scan.
        ruled: What a ruler that is no model reads, or nothing.
        moved: The other factor that moved most, or nothing.
        found: Whether the model finds what was asked for.
        kept: Whether all other factors stayed within their intervals.
    """

    factor: str
    role: str
    asked: str
    read: str
    ruled: str
    moved: str
    found: bool
    kept: bool


@dataclass(frozen=True)
class Panel:
    """What is shown for one comparison or one map."""

    factor: str
    role: str
    title: str
    file: str
    before: Film
    after: Film | None
    change: Film
    scale: Scale | None
    at: tuple[int, int, int]
    limit: float


@dataclass(frozen=True)
class Row:
    """A row of the factor table, in words."""

    factor: str
    role: str
    estimate: str
    unit: str
    interval: str
    calibrated: bool
    level: str
    percentile: str
    outside: bool
    strip: Strip | None


@dataclass(frozen=True)
class Check:
    """A row of "can I trust this?": ``mark`` is ``ok``, ``warn`` or ``info``."""

    name: str
    mark: str
    value: str
    note: str


@dataclass(frozen=True)
class ExplanationPage:
    """Everything the template shows."""

    headline: str
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]
    viewer: Viewer
    film: Film | None
    remarks: tuple[str, ...]
    comparisons: tuple[Panel, ...]
    maps: tuple[Panel, ...]
    passages: Passages
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    level: str
    checks: tuple[Check, ...]
    edit_checks: tuple[EditCheck, ...]
    methods: str
    citations: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]
    album: tuple[Picture, ...]

    def count(self, mark: str) -> int:
        """How many checks bear this mark."""
        return sum(check.mark == mark for check in self.checks)

    @property
    def uncalibrated(self) -> bool:
        """Whether there is an interval that nothing has calibrated."""
        return not all(row.calibrated for _, rows in self.groups for row in rows)


def explanation_page(
    *,
    headline: str,
    scan: Volume,
    factors: Sequence[Mapping[str, object]],
    maps: Sequence[FactorMap],
    comparisons: Sequence[Comparison],
    quality: Mapping[str, object],
    warnings: Sequence[str],
    methods: str,
    citations: Sequence[str],
    provenance: Mapping[str, str],
    answers: Sequence[Answer] = (),
    edit_checks: Sequence[EditCheck] = (),
    traversals: Sequence[Traversal] = (),
) -> str:
    """One HTML page about one scan.

    Args:
        headline: One plain sentence: the value, its interval, its place in the training cohort.
        scan: The scan.
        factors: Rows of factors.json. ``percentile`` runs from 0 to 100. With ``cohort_low`` and ``cohort_high`` (5th
            and 95th percentiles of the training cohort, in the factor's unit) the strip shows the factor itself.
        maps: What the scan gains per unit of each factor.
        comparisons: The counterfactuals.
        quality: Checks. True or False become a mark, numbers and text stand as they are, and a mapping may hold
            ``value``, ``unit``, ``ok`` and ``note``.
        warnings: What a reader must know first.
        methods: A paragraph to copy into a paper.
        citations: References to copy.
        provenance: Versions and hashes, in the order in which they are shown.
        answers: What a reader asks first; whether to trust it is answered last, by the checks.
        edit_checks: Edited scans that were read again.
        traversals: Factors on their way through their range.

    Raises:
        GeometryError: A map or a counterfactual is not on the scan's grid.
    """
    table = LightTable(scan)
    panels, shown = _comparison_panels(table, comparisons)
    mapped = tuple(_map_panel(table, item, shown.get(item.factor)) for item in maps)
    places = {**{panel.factor: panel.at for panel in mapped}, **shown}
    ranges = passages(table, [(one, places.get(one.factor, table.middle)) for one in traversals])
    checks = tuple(_check(name, value) for name, value in quality.items())
    facts = ExplanationPage(
        headline=headline,
        answers=(*answers, *_trust(checks, edit_checks)),
        warnings=tuple(warnings),
        viewer=_viewer(table, len(ranges.frames), panels, comparisons, mapped, maps),
        film=None if comparisons else table.scan_film(table.middle),
        remarks=table.remarks,
        comparisons=panels,
        maps=mapped,
        passages=ranges,
        groups=_groups(factors),
        level=_common_level(factors),
        checks=checks,
        edit_checks=tuple(edit_checks),
        methods=methods,
        citations=tuple(citations),
        provenance=tuple(provenance.items()),
        album=tuple(table.album.values()),
    )
    return rendered("explanation", ("script", "viewer", "passages"), facts, admitted=(program(),))


def scan_page(scan: Volume, edited: Volume | None = None) -> str:
    """One HTML page that shows a scan in the viewer, and an edited scan beside it, with nothing said of either.

    Raises:
        GeometryError: The edited scan is not on the scan's grid.
    """
    if edited is not None and not np.allclose(edited.affine, scan.affine, atol=1e-3):
        raise GeometryError("The edited scan lies elsewhere than the scan. Show scans on the same voxels.")
    table = LightTable(scan)
    beside = [] if edited is None else [Comparison("", "", "edited scan", edited.voxels, "")]
    panels, _ = _comparison_panels(table, beside)
    facts = ExplanationPage(
        headline="",
        answers=(),
        warnings=scan.remarks,
        viewer=_viewer(table, 0, panels, beside, (), ()),
        film=None if beside else table.scan_film(table.middle),
        remarks=table.remarks,
        comparisons=panels,
        maps=(),
        passages=passages(table, ()),
        groups=(),
        level="",
        checks=(),
        edit_checks=(),
        methods="",
        citations=(),
        provenance=(),
        album=tuple(table.album.values()),
    )
    return rendered("scan", ("script", "viewer"), facts, admitted=(program(),))


def _viewer(
    table: LightTable,
    taken: int,
    panels: Sequence[Panel],
    comparisons: Sequence[Comparison],
    mapped: Sequence[Panel],
    maps: Sequence[FactorMap],
) -> Viewer:
    room = PAGE - taken - len(packed_program()) - sum(len(picture.source) for picture in table.album.values())
    found = copies(
        table.upright.volume,
        table.window,
        [item.after for item in comparisons],
        [(item.change, panel.limit) for item, panel in zip(maps, mapped, strict=True)],
        max(room, 0),
    )
    edited = [(panel.factor, table.millimetres(panel.at)) for panel in panels]
    return viewer(found, edited, {panel.factor: panel.title for panel in mapped}, table.millimetres(table.middle))


def _trust(checks: Sequence[Check], edits: Sequence[EditCheck]) -> tuple[Answer, ...]:
    """Whether to trust the page, as far as its checks tell: of the reading first, of the edits second."""
    odd = [check.name for check in checks if check.mark == "warn"]
    counted = sum(check.mark == "ok" for check in checks) + len(odd)
    if not counted:
        return ()
    missed = [words(edit.factor) for edit in edits if not (edit.found and edit.kept)]
    said = f"All {counted} checks of the reading passed"
    if odd:
        said = f"{len(odd)} of {counted} checks of the reading failed: {', '.join(odd).lower()}"
    if missed:
        said += f"; edits of {', '.join(missed)} miss what was asked or move other factors"
    elif edits:
        said += "; edited scans, read again, show what was asked"
    answer = (
        "Not the reading"
        if len(odd) > 1
        else "With care"
        if odd
        else "The reading, as far as checks tell"
        if missed
        else "As far as checks tell"
    )
    return (Answer("Can I trust it?", answer, said + ".", "warn" if odd or missed else "ok"),)


def _comparison_panels(
    table: LightTable, comparisons: Sequence[Comparison]
) -> tuple[tuple[Panel, ...], dict[str, tuple[int, int, int]]]:
    """The panels in the order given, and the planes chosen for each factor: its edits share planes and colours."""
    scan = table.upright.volume.voxels
    shown: dict[str, tuple[int, int, int]] = {}
    limits: dict[str, float] = {}
    colours: dict[int, list[np.ndarray]] = {}
    for factor in dict.fromkeys(item.factor for item in comparisons):
        members = [i for i, item in enumerate(comparisons) if item.factor == factor]
        at = pictures.busiest([table.profile(comparisons[i].after, scan) for i in members]) or table.middle
        for i in members:
            colours[i] = table.change_planes(comparisons[i].after, scan, at)
        limits[factor] = pictures.robust_limit([plane for i in members for plane in colours[i]])
        shown[factor] = at
    panels = []
    for i, item in enumerate(comparisons):
        at, limit = shown[item.factor], limits[item.factor]
        before, after = table.scan_film(at), table.film(item.after, at)
        change = table.change_film(colours[i], limit, at, before)
        scale = colour_scale(limit, "edited minus scan, in the scan's own units")
        panels.append(Panel(item.factor, item.role, item.title, item.file, before, after, change, scale, at, limit))
    return tuple(panels), shown


def _map_panel(table: LightTable, item: FactorMap, at: tuple[int, int, int] | None) -> Panel:
    at = at or pictures.busiest([table.profile(item.change, None)]) or table.middle
    planes = table.change_planes(item.change, None, at)
    limit = pictures.robust_limit(planes)
    before = table.scan_film(at)
    film = table.change_film(planes, limit, at, before)
    scale = colour_scale(limit, f"scan units gained per {item.unit or 'unit'}")
    return Panel(item.factor, item.role, sentence(item.factor), item.file, before, None, film, scale, at, limit)


def _groups(factors: Sequence[Mapping[str, object]]) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    roles = dict.fromkeys(["anatomy", "nuisance", *(str(row.get("role")) for row in factors)])
    groups = [(role, tuple(_row(row) for row in factors if str(row.get("role")) == role)) for role in roles]
    return tuple(group for group in groups if group[1])


def _row(row: Mapping[str, object]) -> Row:
    text, interval = readout(row.get("estimate"), row.get("low"), row.get("high"))
    percentile = known(row.get("percentile"))
    level = known(row.get("level"))
    return Row(
        factor=words(row.get("name", "")),
        role=str(row.get("role")),
        estimate=text,
        unit=str(row.get("unit") or ""),
        interval=interval,
        calibrated=bool(row.get("calibrated", True)),
        level=_level(level),
        percentile=ordinal(percentile),
        outside=percentile is not None and not 0 < percentile < 100,
        strip=strip(row),
    )


def _common_level(factors: Sequence[Mapping[str, object]]) -> str:
    levels = {known(row.get("level")) for row in factors} - {None}
    level = levels.pop() if len(levels) == 1 else None
    return f"{_level(level)} ".lstrip()


def _level(level: float | None) -> str:
    return "" if level is None else f"{number(100 * level)} %"


def _check(name: str, value: object) -> Check:
    if not isinstance(value, Mapping):
        if isinstance(value, bool):
            return Check(sentence(name), "ok" if value else "warn", "yes" if value else "no", "")
        return Check(sentence(name), "info", measured(value), "")
    ok, unit = value.get("ok"), str(value.get("unit") or "")
    mark = "info" if ok is None else "ok" if ok else "warn"
    shown = measured(value) if "value" in value else ""
    said = {"ok", "unit", "value", "note", "low", "high"}
    rest = [f"{words(key)} {measured(item)}" for key, item in value.items() if key not in said]
    note = "; ".join([*([str(value["note"])] if value.get("note") else []), *rest])
    return Check(sentence(name), mark, f"{shown} {unit}".strip(), note)
