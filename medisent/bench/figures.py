"""What one row of the benchmark measures with one seed, as typed parts and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medisent.errors import UsageError
from medisent.files import write_text

SCHEMA = 1


@dataclass(frozen=True)
class Leak:
    """The most that any block tells of a factor that is not its own.

    Attributes:
        r2: Held-out R2.
        block: Which block.
        factor: Which factor.
        labels: Held-out R2 of that factor from the true values of the block's own factor: so much of the leak is the
            cohort's. None for a block without a factor, or where it was not measured.
    """

    r2: float
    block: str
    factor: str
    labels: float | None = None


@dataclass(frozen=True)
class Edit:
    """What an edit scores; medians over the scans whose true counterfactual is known.

    Attributes:
        rce: Relative counterfactual error; 1 is doing nothing.
        effect_error: By how much the size of the change misses the true one, relative to it.
        off_target: Mean absolute error outside of what truly changes, relative to the mean true change inside.
        n: How many scans.
        elsewhere_ml: By other structure, how much more or less of it there is than there should be, where the truth
            does not change.
        composition: Largest voxel difference, over all scans, of an edit that asks for nothing.
        reversibility: What is left after editing there and back, relative to the edit.
    """

    rce: float
    effect_error: float | None
    off_target: float | None
    n: int
    elsewhere_ml: Mapping[str, float] = field(default_factory=dict)
    composition: float | None = None
    reversibility: float | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All that is measured of a row; a part that does not apply is empty or None.

    Attributes:
        readout: R2 by factor, of the method's own estimates.
        coverage: By factor, the share of truths inside the 90 % interval.
        probe: R2 by factor, read from the whole code by ridge or boosted trees, cross-fitted by subject.
        own: R2 by factor, read from its own block alone in the same way.
        leak_between: From a factor's block to any other factor.
        leak_to_anatomy: From nuisance blocks to anatomy factors.
        leak_to_nuisance: From anatomy blocks to nuisance factors.
        site: Share of scans whose site a logistic regression tells from the anatomy blocks, cross-fitted.
        site_chance: What the most frequent site would give.
        separation: Metrics of separation on the latents.
        edits: By edit.
        commutativity: By two edits, what lies between their two orders, relative to both together.
        maps: By factor, correlation of its map with the true difference.
        mapped: In how many scans.
    """

    readout: Mapping[str, float] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    probe: Mapping[str, float] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)
    leak_between: Leak | None = None
    leak_to_anatomy: Leak | None = None
    leak_to_nuisance: Leak | None = None
    site: float | None = None
    site_chance: float | None = None
    separation: Mapping[str, float] = field(default_factory=dict)
    edits: Mapping[str, Edit] = field(default_factory=dict)
    commutativity: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, float] = field(default_factory=dict)
    mapped: int | None = None


@dataclass(frozen=True)
class Result:
    """The figures of one row with one seed.

    Attributes:
        row: Name of the row.
        seed: Of training.
        steps: Of training; 0 is none.
        seconds: That it took, training included.
        figures: What was measured.
    """

    row: str
    seed: int
    steps: int
    seconds: float
    figures: Figures

    def save(self, path: Path) -> None:
        """Write it as JSON; what is not finite is null.

        Raises:
            MachineError: The file cannot be written.
        """
        write_text(path, json.dumps({"schema": SCHEMA, **_plain(asdict(self))}, indent=2) + "\n")


def read_result(path: Path) -> Result:
    """A result that ``save`` has written.

    Raises:
        UsageError: The file is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts = found["figures"]
        for name in ("leak_between", "leak_to_anatomy", "leak_to_nuisance"):
            parts[name] = Leak(**parts[name]) if parts[name] else None
        parts["edits"] = {edit: Edit(**scores) for edit, scores in parts["edits"].items()}
        return Result(found["row"], found["seed"], found["steps"], found["seconds"], Figures(**parts))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no result of this benchmark. Remove it, and it is made anew.") from error


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
