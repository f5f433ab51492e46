"""How numbers and names read on a page: short, honest in their digits, a dash where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

MISSING = "–"


def known(value: object) -> float | None:
    """The value as a finite number; None where it is missing, not a number or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
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
        return fixed(float(mantissa), digits - 1) + f" × 10^{power}".replace("-", "−")
    text = fixed(found, max(0, digits - 1 - power))
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, thousands parted by thin spaces, never a minus before zero."""
    text = f"{value:,.{decimals}f}".replace(",", "\u202f")
    if text.startswith("-"):
        return "−" + text[1:] if text.strip("-0.\u202f") else text[1:]
    return text


def percent(value: object, decimals: int = 0) -> str:
    """A share as percent."""
    found = known(value)
    return MISSING if found is None else f"{fixed(100 * found, decimals)}\u202f%"


def decimals_for(low: float | None, high: float | None) -> int | None:
    """Decimals that an interval deserves: the first digit of its half width, two where that is below 2."""
    if low is None or high is None or high <= low:
        return None
    half = (high - low) / 2
    power = math.floor(math.log10(half))
    return min(6, max(0, (1 if half < 2 * 10.0**power else 0) - power))


def measured(value: object) -> str:
    """A figure with its interval, such as ``0.93 [0.90, 0.95]``, from a number or from value, low and high."""
    if not isinstance(value, Mapping):
        return number(value)
    low, high, middle = known(value.get("low")), known(value.get("high")), known(value.get("value"))
    decimals = decimals_for(low, high)
    if middle is None or low is None or high is None or decimals is None:
        return number(value.get("value"))
    decimals = min(decimals, 3)
    return f"{fixed(middle, decimals)} [{fixed(low, decimals)}, {fixed(high, decimals)}]"


def words(name: object) -> str:
    """A name of a file or a table as words."""
    return str(name).replace("_", " ").strip()


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
