"""How numbers, names and edits read to people: short, honest in their digits, a dash where nothing was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Real

MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ABBREVIATIONS = {
    **{name: name.upper() for name in ("mig", "mcc", "dci", "sap", "svm", "irs", "tc", "vae")},
    **{"infom": "InfoM", "infoc": "InfoC", "infoe": "InfoE", "r2": "R²", "gaussian": "Gaussian"},
}
_EDIT = re.compile(r"\s*([^=*+\s]+)\s*(\*=|\+=|=)\s*(\S.*?)\s*")


def known(value: object) -> float | None:
    """The value as a finite number; None where it is missing, not a number or infinite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: object, digits: int = 3) -> str:
    """A number with up to so many significant digits and a true minus; text as it is; yes or no; else a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    found = known(value)
    if found is None:
        return MISSING
    if found == 0:
        return "0"
    mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
    power = int(exponent)
    if not -4 <= power < 7:
        return f"{fixed(float(mantissa), digits - 1)} × 10{str(power).translate(_RAISED)}"
    text = fixed(found, max(0, digits - 1 - power))
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, thousands parted by commas, a true minus, but never one before zero."""
    text = f"{value:,.{decimals}f}"
    if text.startswith("-"):
        return "−" + text[1:] if text.strip("-0.,") else text[1:]
    return text


def percent(value: object, decimals: int = 0) -> str:
    """A share as percent, as it is written everywhere.

    Example:
        >>> percent(0.9), percent(0.046, 1)
        ('90 %', '4.6 %')
    """
    found = known(value)
    return MISSING if found is None else f"{fixed(100 * found, decimals)} %"


def decimals_for(low: float | None, high: float | None) -> int | None:
    """Decimals that an interval deserves: the first digit of its half width, two where that is below 2."""
    if low is None or high is None or high <= low:
        return None
    half = (high - low) / 2
    power = math.floor(math.log10(half))
    return min(6, max(0, (1 if half < 2 * 10.0**power else 0) - power))


def decimals_of(*values: float, digits: int = 3) -> int:
    """Decimals to write values alike: the largest gets so many significant digits, the smallest one at least.

    Example:
        >>> decimals_of(13.3, 26.63), decimals_of(120, 0.4)
        (1, 1)
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return 0
    first, last = (int(f"{size:.{kept}e}".split("e")[1]) for size, kept in ((max(sizes), digits - 1), (min(sizes), 0)))
    return min(6, max(0, digits - 1 - first, -last))


def readout_decimals(estimate: float, low: float, high: float) -> int:
    """Decimals of an estimate and both ends of its interval: no more than the interval deserves.

    One more where the estimate would read as zero; without an interval three significant digits.

    Example:
        >>> readout_decimals(21.3, 10.9, 41.7), readout_decimals(76.9, 76.3, 77.6)
        (0, 1)
    """
    decimals = decimals_for(low, high) if math.isfinite(low) and math.isfinite(high) else None
    if decimals is None:
        return decimals_of(estimate)
    return decimals + (estimate != 0 and float(f"{estimate:.{decimals}f}") == 0)


def readout(estimate: object, low: object, high: object) -> tuple[str, str]:
    """What was read and its interval, with equally many decimals; a level has no interval.

    Example:
        >>> readout(21.3, 10.9, 41.7), readout("left", None, None)
        (('21', '11 to 42'), ('left', '–'))
    """
    value, start, end = known(estimate), known(low), known(high)
    if value is None or start is None or end is None:
        return number(estimate), MISSING
    decimals = readout_decimals(value, start, end)
    return fixed(value, decimals), f"{fixed(start, decimals)} to {fixed(end, decimals)}"


def edit_decimals(before: float, after: float, decimals: int) -> int:
    """Decimals of both ends of an edit: those of the readout, and as many as it takes to tell the ends apart.

    Example:
        >>> edit_decimals(13.3, 26.63, 0), edit_decimals(0.4, 0.8, 0), edit_decimals(76.9, 76.6, 0)
        (0, 2, 1)
    """
    return max(decimals, decimals_of(before, after, digits=2), decimals_of(after - before, digits=1))


def amount(value: float, unit: str, decimals: int) -> str:
    """A value with its unit."""
    return f"{fixed(value, decimals)} {unit}".rstrip()


def small(value: object, decimals: int) -> str:
    """A number with so many decimals; below half of the last one, that it is smaller.

    Example:
        >>> small(0.00002, 3), small(0.0534, 3), small(0, 3)
        ('< 0.001', '0.053', '0')
    """
    found = known(value)
    if found is None:
        return number(value)
    least = 10.0**-decimals
    if not found:
        return "0"
    return f"< {fixed(least, decimals)}" if 0 < found < least / 2 else fixed(found, decimals)


def edit(wish: str, unit: str = "") -> str:
    """An edit as people write it.

    Args:
        wish: What was asked, as on the command line and in tables of counterfactuals.
        unit: Of the factor.

    Example:
        >>> edit("contrast*=1.2"), edit("tumour_volume+=15", "mL"), edit("site=north_2")
        ('contrast × 1.2', 'tumour volume + 15 mL', 'site = north_2')
    """
    found = _EDIT.fullmatch(wish)
    if not found:
        return words(wish)
    name, operation, text = found.groups()
    try:
        value = float(text)
    except ValueError:
        return f"{words(name)} {operation.replace('*=', '×').replace('+=', '+')} {text}"
    sign = "×" if operation == "*=" else "=" if operation == "=" else "−" if value < 0 else "+"
    shown = number(abs(value) if operation == "+=" else value, 6)
    return f"{words(name)} {sign} {shown}{' ' + unit if unit and operation != '*=' else ''}"


def measured(value: object, least: int = 0) -> str:
    """A figure with its interval, such as ``0.93 [0.90, 0.95]``, from a number or from value, low and high.

    Args:
        value: The figure.
        least: Decimals at least.
    """
    if not isinstance(value, Mapping):
        return number(value)
    low, high, middle = known(value.get("low")), known(value.get("high")), known(value.get("value"))
    decimals = decimals_for(low, high)
    if middle is None or low is None or high is None or decimals is None:
        return number(value.get("value"))
    decimals = max(least, min(decimals, 3))
    return f"{fixed(middle, decimals)} [{fixed(low, decimals)}, {fixed(high, decimals)}]"


def words(name: object) -> str:
    """A name of a file or a table as words."""
    return str(name).replace("_", " ").strip()


def listed(names: Iterable[object]) -> str:
    """Names of files or tables as words, with commas between."""
    return ", ".join(map(words, names))


def metric(name: object) -> str:
    """A metric as papers write it.

    Example:
        >>> metric("dci_completeness"), metric("sap_r2"), metric("irs")
        ('DCI completeness', 'SAP R²', 'IRS')
    """
    return " ".join(_ABBREVIATIONS.get(part, part) for part in words(name).split(" "))


def sentence(name: object) -> str:
    """The words with a capital."""
    text = words(name)
    return text[:1].upper() + text[1:]


def ordinal(percentile: object) -> str:
    """Where a value lies among the training scans, such as ``96th``."""
    found = known(percentile)
    if found is None:
        return MISSING
    if found <= 0:
        return "below all"
    if found >= 100:
        return "above all"
    rank = min(99, max(1, round(found)))
    ending = "th" if 10 < rank % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"
