"""The findings in words and tables: whether scanners differed, whether they still do, whether anatomy is as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medisent.harmonisation.findings import Findings, Kept
from medisent.harmonisation.sites import VIEWS, SiteTest
from medisent.plurals import several
from medisent.reports import Answer, Columns, Pair, Window, harmonisation_page, planes
from medisent.volumes import Volume
from medisent.volumes.pictures import robust_window
from medisent.words import MISSING, fixed, number, percent, readout_decimals, sentence, words

_PICTURES = 4
METHODS = (
    "Each scan was taken apart by the model into a scanner (gain, exponent of the contrast, quadratic bias field) and "
    "an anatomy, and the scanner's equation applied at full resolution, in the scan's own space. Sites and labels "
    "have no part in that: nothing that differs between the patients of two sites is averaged away. The exponent was "
    "held against the model's redraw of the named anatomy. Blur, noise and bias fields of higher order stay.",
    "Of a scan that the model does not know only the brightness was moved, by the scan's own measured scale.",
    "Sites: ridge regression on the sites, ten folds of subjects, balanced accuracy; 499 times with sites dealt out "
    "anew (within subjects who were at several sites, else between subjects). The test before anything is done takes "
    "the best of three views against the best of three by chance; scans are left as they are where p exceeds 0.05.",
)


def page(
    findings: Findings, before: Sequence[Callable[[], Volume]], after: Sequence[Callable[[], Volume]], goal: str
) -> str:
    """The page of the findings.

    Args:
        findings: What was found.
        before: What reads each scan, in the order of the visits.
        after: What reads each harmonised scan; none where scans were left as they are.
        goal: The scanner that scans were brought to, in words.
    """
    pictures, windows = _pictures(findings, before, after)
    kept = findings.kept()
    heads = ("Median", "Spread over scans", "Change of a scan, median", "Interval's half width")
    return harmonisation_page(
        _headline(findings, goal),
        answers=[_effect(findings), _still(findings), _kept(findings, kept)],
        warnings=list(_warnings(findings)),
        sites=_sites(findings),
        anatomy=Columns(
            (*heads, "Left their interval"), [_anatomy(findings, name, kept) for name in findings.of_role("anatomy")]
        ),
        scanner=Columns(heads, [_moved(findings, name) for name in findings.of_role("nuisance")]),
        pictures=pictures,
        windows=windows,
        scans=_scans(findings),
        methods=METHODS,
    )


def _headline(findings: Findings, goal: str) -> str:
    n = len(findings.visits)
    if not findings.after:
        return f"No scanner effect was found in {several(n, 'scan')}: left as {'it is' if n == 1 else 'they are'}."
    if findings.unknown == n:
        return f"{several(n, 'scan')} given the brightness of {goal}; nothing else was moved."
    found, now = findings.sites_before, findings.sites_after
    text = f"{several(n, 'scan')} brought to {goal}"
    if isinstance(found, SiteTest) and isinstance(now, SiteTest):
        text += f": the site is told for {percent(found.best.accuracy)} before, {percent(now.best.accuracy)} after"
        text += f", where guessing gives {percent(1 / found.sites)}"
    return text + "."


def _effect(findings: Findings) -> Answer:
    question, found = "Did the scanners differ?", findings.sites_before
    if not isinstance(found, SiteTest):
        return Answer(question, "Cannot be told", found, "info")
    best = found.best
    detail = (
        f"By {VIEWS[best.view]} the site is told for {percent(best.accuracy)} of the scans; "
        f"by chance up to {percent(best.chance)} (p {_p(found.p)})."
    )
    if not found.found:
        return Answer(question, "Not that it shows", detail + " Harmonising could only harm.", "ok")
    return Answer(question, "Yes", detail, "info")


def _still(findings: Findings) -> Answer:
    question, now = "Do they still?", findings.sites_after
    if now is None:
        return Answer(question, "Left as they are", "Nothing was done to the scans.", "info")
    if not isinstance(now, SiteTest):
        return Answer(question, "Cannot be told", now, "info")
    best = now.best
    detail = f"By {VIEWS[best.view]} the site is told for {percent(best.accuracy)}; by chance {percent(best.chance)}."
    return Answer(question, "Yes" if now.found else "Not that it shows", detail, "warn" if now.found else "ok")


def _kept(findings: Findings, kept: Kept | None) -> Answer:
    question = "Is the anatomy as it was?"
    names = findings.of_role("anatomy")
    if not findings.after or not names:
        return Answer(question, "Untouched" if names else "Cannot be told", "No readout moved.", "info")
    if findings.unknown == len(findings.visits):
        detail = "The model does not know such scans, and what it reads from them means nothing."
        return Answer(question, "Cannot be told", detail, "warn")
    if kept is None:
        return Answer(question, "Cannot be told", "No scan is known to the model.", "warn")
    answer, mark = {"yes": ("Yes", "ok"), "mostly": ("Mostly", "info"), "no": ("No", "warn")}[kept.verdict]
    return Answer(question, answer, _kept_because(kept, len(findings.visits)), mark)


def _kept_because(kept: Kept, total: int) -> str:
    """The figures by which it was judged whether the anatomy is as it was."""
    every = f"{percent(kept.level)} interval"
    scans = several(kept.scans, "scan") + (" that the model knows" if kept.scans < total else "")
    if not any(kept.left.values()):
        detail = f"No readout of the anatomy left its {every} in {scans}"
    else:
        most = max(kept.left, key=lambda name: kept.left[name])
        share = percent(kept.left[most] / kept.scans, 1)
        more = kept.left[most] > kept.allowed
        detail = f"{sentence(most)} left its {every} in {kept.left[most]} of {scans} ({share}), " + (
            f"more than the {kept.allowed} that would" if more else f"where up to {kept.allowed} would"
        )
        detail += " if every readout were moved onto the truth"
    furthest = max(kept.drift, key=lambda name: abs(kept.drift[name]))
    return f"{detail}. {sentence(furthest)} drifted most, by {percent(abs(kept.drift[furthest]))} of its half width."


def _warnings(findings: Findings) -> list[str]:
    result = []
    n = len(findings.visits)
    if findings.unknown:
        done = "their brightness alone was moved" if findings.after else "its readouts of them mean nothing"
        who = "these scans" if findings.unknown == n else f"{findings.unknown} of {n} scans"
        result.append(f"The model does not know {who}: {done}.")
    now = findings.sites_after
    if isinstance(now, SiteTest) and now.found:
        result.append(
            f"Sites can still be told by {VIEWS[now.best.view]}. Keep the site as a covariate in what you compute next."
        )
    return result


def _sites(findings: Findings) -> Columns | None:
    first, now = findings.sites_before, findings.sites_after
    if not isinstance(first, SiteTest):
        return None
    rows = []
    for i, told in enumerate(first.views):
        cells: tuple[str, ...] = (percent(told.accuracy), percent(told.chance), _p(told.p))
        if isinstance(now, SiteTest):
            after = now.views[i]
            cells += (percent(after.accuracy), percent(after.chance), _p(after.p))
        rows.append((VIEWS[told.view], cells))
    heads = ("Before", "By chance", "p")
    return Columns((*heads, "After", "By chance", "p") if isinstance(now, SiteTest) else heads, rows)


def _moved(findings: Findings, name: str) -> tuple[str, tuple[str, ...]]:
    it = findings.moved(name)
    decimals = readout_decimals(it.before, it.before - it.half_width, it.before + it.half_width)
    pairs = ((it.before, it.after), (it.spread_before, it.spread_after))
    told = [_arrow(one, two if findings.after else None, decimals) for one, two in pairs]
    unit = f" ({it.unit})" if it.unit else ""
    return words(name) + unit, (*told, number(it.change, 2), number(it.half_width, 2))


def _anatomy(findings: Findings, name: str, kept: Kept | None) -> tuple[str, tuple[str, ...]]:
    title, cells = _moved(findings, name)
    return title, (*cells, f"{kept.left[name]} of {kept.scans}" if kept else MISSING)


def _arrow(before: float, after: float | None, decimals: int) -> str:
    """What was and what became of it, with equally many decimals."""
    return fixed(before, decimals) + ("" if after is None else f" → {fixed(after, decimals)}")


def _scans(findings: Findings) -> Columns:
    """A row a scan, those first whose anatomy is read most unlike before."""
    anatomy, nuisance = findings.of_role("anatomy"), findings.of_role("nuisance")
    most = {
        index: max(((abs(findings.half_widths(index, name)), name) for name in anatomy), default=(0.0, ""))
        for index in range(len(findings.visits))
    }
    heads = ("Site", "Anatomy that moved most", "Half widths", *map(sentence, nuisance), "Known")
    rows = []
    for index in sorted(most, key=lambda index: -most[index][0]):
        visit, one = findings.visits[index], findings.before[index]
        size, name = most[index]
        shown = f"{words(name)} {_reading(findings, index, name)}" if name and findings.after else MISSING
        figures = (_reading(findings, index, name) for name in nuisance)
        known = "yes" if one.known else "no"
        rows.append((visit.label, (visit.site or MISSING, shown, fixed(size, 2), *figures, known)))
    return Columns(heads, rows)


def _reading(findings: Findings, index: int, name: str) -> str:
    one = findings.before[index].readouts[name]
    after = findings.after[index].readouts[name].estimate if findings.after else None
    decimals = readout_decimals(one.estimate, one.low, one.high)
    if after is not None and after != one.estimate and fixed(after, decimals) == fixed(one.estimate, decimals):
        decimals += 1
    text = _arrow(one.estimate, after, decimals)
    return f"{text} {one.unit}".rstrip()


def _pictures(
    findings: Findings, before: Sequence[Callable[[], Volume]], after: Sequence[Callable[[], Volume]]
) -> tuple[list[Pair], str]:
    """The first scan of each of four sites at most; all before in one window, all after in another."""
    sites = [visit.site for visit in findings.visits]
    chosen = [i for i, site in enumerate(sites) if not site or sites.index(site) == i][:_PICTURES]
    one, two = (_window([robust_window(reads[i]().voxels) for i in chosen]) for reads in (before, after or before))
    pairs = []
    for i in chosen:
        then = planes(after[i](), window=two, height=190) if after else None
        title = sites[i] or f"Scan {findings.visits[i].label}"
        pairs.append(Pair(title, planes(before[i](), window=one, height=190), then))
    said = f"All scans before: black {number(one.low, 2)}, white {number(one.high, 2)}"
    if after:
        said += f"; all after: black {number(two.low, 2)}, white {number(two.high, 2)}"
    return pairs, said + ", in the scans' own units."


def _window(windows: Sequence[Window]) -> Window:
    return Window(min(it.low for it in windows), max(it.high for it in windows))


def _p(value: float) -> str:
    return fixed(value, 3)
