"""Units and words as codes: UCUM for units, a scheme of our own for what no public scheme has."""

from __future__ import annotations

from highdicom.sr import CodedConcept

SCHEME = "99MEDISENT"
_UCUM = {
    "": "1",
    "ml": "mL",
    "l": "L",
    "cm3": "cm3",
    "cc": "cm3",
    "mm3": "mm3",
    "mm2": "mm2",
    "cm2": "cm2",
    "mm": "mm",
    "cm": "cm",
    "%": "%",
    "percent": "%",
    "year": "a",
    "years": "a",
    "month": "mo",
    "months": "mo",
    "week": "wk",
    "weeks": "wk",
    "day": "d",
    "days": "d",
    "s": "s",
    "ms": "ms",
    "kg": "kg",
    "g": "g",
    "deg": "deg",
    "degree": "deg",
    "degrees": "deg",
    "rad": "rad",
    "hu": "[hnsf'U]",
    "mmhg": "mm[Hg]",
    "t": "T",
    "db": "dB",
}


def ucum(unit: str) -> str:
    """The UCUM code of a factor's unit; a unit that UCUM does not know stands in braces, as its annotations do.

    Example:
        >>> ucum("years"), ucum("mL"), ucum("points")
        ('a', 'mL', '{points}')
    """
    known = _UCUM.get(unit.strip().lower())
    if known is not None:
        return known
    plain = "".join(c for c in unit if c.isascii() and c.isprintable() and c not in "{}").strip()
    return "{" + (plain or "unit") + "}"


def unit_code(unit: str) -> CodedConcept:
    """A factor's unit, coded."""
    return CodedConcept(ucum(unit), "UCUM", unit or "no units")


def per_unit(unit: str | None, modality: str) -> CodedConcept:
    """The unit of intensity, coded, or of intensity for each unit of a factor."""
    base, word = ("[hnsf'U]", "Hounsfield units") if modality == "CT" else ("[arb'U]", "arbitrary units")
    if unit is None:
        return CodedConcept(base, "UCUM", word)
    code = ucum(unit)
    return CodedConcept(base if code == "1" else f"{base}/{code}", "UCUM", f"{word} per {unit or 'unit'}")


def own_concept(name: str, words: str) -> CodedConcept:
    """Something that medisent or the study has named, coded in a scheme of our own."""
    return CodedConcept(name, SCHEME, words[:64])
