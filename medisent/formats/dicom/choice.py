"""Which candidate is meant: the one that was named, the one that is clearly best, or none and a table of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medisent.errors import MedisentError
from medisent.formats.dicom.faults import Fault
from medisent.formats.dicom.inventory import Candidate, Inventory
from medisent.plurals import several
from medisent.words import words

_LINES = 4  # of a refusal, for the list of candidates
_MORE = 2  # times the slices of every other: clearly best
_LOCALISER_TYPES = {"LOCALIZER", "LOCALISER", "SCOUT", "SURVEY", "TOPOGRAM"}
_LOCALISER_WORDS = re.compile(
    r"locali[sz]er|scout|survey|topogram|(3|three)[ _-]?(plane|pl(?![a-z]))|(?<![a-z])loc(?![a-z])"
)
_PROJECTIONS = {
    "MIP",
    "MINIP",
    "MNIP",
    "PROJECTION IMAGE",
    "MAX_IP",
    "MIN_IP",
    "CSA MIP",
    "VOLUME RENDERING",
    "SCREEN SAVE",
}
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, and what begins so: its multi-frame kinds
_LESSER_FAULTS = {Fault.SINGLE_SLICE, Fault.RGB, Fault.BITS, Fault.NO_PIXELS}


@dataclass(frozen=True, eq=False)
class Choice:
    """One candidate, and what is to be said about it.

    Attributes:
        candidate: It.
        remarks: Sentences without identifiers.
    """

    candidate: Candidate
    remarks: tuple[str, ...]


def choose(stock: Inventory, path: Path, series: int | None) -> Choice:
    """The candidate that is meant.

    Raises:
        FormatError: None is clearly best, or there is none of that number.
        MedisentError: The one that is meant does not make a volume.
    """
    candidates = stock.candidates
    if series is not None and not 0 <= series < len(candidates):
        found = f"holds {_count(candidates)} and none of number {series}"
        raise _table(candidates, path, found)
    if series is not None:
        return Choice(_sound(candidates[series], path), _lesser_remark(candidates[series]))
    if len(candidates) == 1:
        return Choice(_sound(candidates[0], path), _lesser_remark(candidates[0]))
    best, why = _best(candidates)
    if best is None:
        raise _table(candidates, path, f"holds {_count(candidates)}, but a scan is one of them")
    number = next(n for n, candidate in enumerate(candidates) if candidate is best)
    said = f"Of {_count(candidates)} number {number} is taken ({described(best)}): {why}. Choose another by --series N."
    return Choice(_sound(best, path), (said, *_lesser_remark(best)))


def _best(candidates: Sequence[Candidate]) -> tuple[Candidate | None, str]:
    """The one that is clearly best, and why."""
    contenders = [c for c in candidates if is_scan(c)]
    if len(contenders) == 1:
        reasons = {lesser(c) or "a single slice or no scan" for c in candidates if c is not contenders[0]}
        return contenders[0], f"the rest is {', '.join(sorted(reasons))}"
    if not contenders:
        volumes = [c for c in candidates if not c.verdict.refused]
        return (volumes[0], "no other makes a volume") if len(volumes) == 1 else (None, "")
    if any(c.verdict.refused for c in contenders):
        return None, ""
    first, second = sorted(contenders, key=lambda c: -c.slices)[:2]
    return (first, "it has the most slices") if first.slices >= _MORE * second.slices else (None, "")


def _refused_lightly(candidate: Candidate) -> set[Fault]:
    return _LESSER_FAULTS if candidate.verdict.refused else set()


def lesser(candidate: Candidate) -> str:
    """Why a candidate is not what a scan is taken for, in a word or two; empty where it may be."""
    elements, kind = candidate.image.file.elements, candidate.frames[0].kind
    parts = {part.upper() for part in (*kind.image_type, *elements.texts("ImageType"))}
    words = f"{elements.text('SeriesDescription')} {elements.text('ProtocolName')} ".lower()
    if parts & _LOCALISER_TYPES or _LOCALISER_WORDS.search(words):
        return "a localiser"
    if parts & _PROJECTIONS or any(part.endswith("_MIP") for part in parts):
        return "a projection"
    if elements.text("SOPClassUID").startswith(_SECONDARY):
        return "a secondary capture"
    if kind.component in ("phase", "real", "imaginary"):
        return f"{kind.component} images"
    if candidate.image.modality in ("??", "OT", "SC"):
        return "no scan"
    return ""


def is_scan(candidate: Candidate) -> bool:
    """Whether a candidate is what a scan is taken for, sound or not."""
    return not lesser(candidate) and candidate.verdict.fault not in _refused_lightly(candidate)


def _lesser_remark(candidate: Candidate) -> tuple[str, ...]:
    what = lesser(candidate)
    return (
        (f"This is {what}." if what.startswith("a ") else f"These are {what}.",) if what and what != "no scan" else ()
    )


def _sound(candidate: Candidate, path: Path) -> Candidate:
    verdict = candidate.verdict
    if verdict.refused and verdict.fault is not None:
        raise verdict.fault.refusal(path, verdict.words)
    return candidate


def _count(candidates: Sequence[Candidate]) -> str:
    if len({c.image.alike for c in candidates}) == 1 and len(candidates) > 1:
        return f"{len(candidates)} kinds of images in one series"
    return f"{len(candidates)} series"


def _table(candidates: Sequence[Candidate], path: Path, found: str) -> MedisentError:
    """The refusal that lists the candidates, in at most six lines."""
    table = [f"{number}: {described(candidate)}" for number, candidate in enumerate(candidates)]
    each = -(-len(table) // _LINES)
    lines = ["; ".join(table[start : start + each]) for start in range(0, len(table), each)]
    return _table_fault(candidates).refusal(
        path, "\n".join([f"{found}:", *lines, "Choose one by its number: --series 0."])
    )


def _table_fault(candidates: Sequence[Candidate]) -> Fault:
    """What to call it that there are several: by the fault that they share, if they do."""
    faults = {c.verdict.fault if c.verdict.refused else None for c in candidates}
    shared = faults.pop() if len(faults) == 1 else None
    if shared is not None:
        return shared
    if len({c.image.alike for c in candidates}) > 1:
        return Fault.SEVERAL_SERIES
    directions = {tuple(round(n, 2) for n in c.frames[0].axes or ()) for c in candidates}
    return Fault.ORIENTATION if len(directions) > 1 else Fault.FOUR_D


def described(candidate: Candidate) -> str:
    """Modality, kind, images, matrix, spacing and fault: nothing in it tells who was scanned."""
    frame, kind = candidate.frames[0], candidate.frames[0].kind
    parts = [candidate.image.modality]
    parts += [what.removeprefix("a ")] if (what := lesser(candidate)) else []
    parts += [f"echo {kind.echo_ms:g} ms"] if kind.echo_ms else []
    parts += [
        f"{candidate.volumes} volumes of {candidate.slices} images" if candidate.volumes > 1 else _images(candidate)
    ]
    spacing = " x ".join(f"{mm:.2f}" for mm in frame.spacing_mm) + " mm" if frame.spacing else "unknown spacing"
    parts += [f"{frame.columns} x {frame.rows}", spacing]
    if candidate.verdict.refused and candidate.verdict.fault:
        parts.append(f"refused: {words(candidate.verdict.fault)}")
    return ", ".join(parts)


def _images(candidate: Candidate) -> str:
    return several(candidate.slices, "image")
