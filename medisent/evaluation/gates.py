"""Whether a model is as separate as its study demands, and which pair of block and factor is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medisent.config import Gate
from medisent.errors import GateError
from medisent.words import words

Table = Mapping[str, Mapping[str, float]]
"""Block, factor, R2."""


def check_gate(gate: Gate | None, leakage: Table, by_labels: Table | None = None, wanted: Sequence[str] = ()) -> None:
    """Hold what was measured against a study's gate; a gate that could not be checked is not met.

    Every block is held to it but a factor's own. Where factors go together in the cohort itself, a block that knows
    nothing but its own factor tells the other one too: such a pair still fails, and the refusal says what the labels
    alone give.

    Arguments:
        gate: The study's; None is met by everything.
        leakage: How well each block predicts each factor.
        by_labels: How well the labels of a block's own factor predict the other one, where that was asked.
        wanted: The factors that must have been measured.

    Raises:
        GateError: A factor can be read from a block that is not its own, more than the gate allows, or nobody knows.
    """
    if gate is None:
        return
    measured = {name for row in leakage.values() for name in row}
    unknown = [name for name in wanted if name not in measured]
    if unknown or not measured:
        raise GateError(
            f"The study allows leakage up to R² {gate.leakage:g}, but leakage could not be measured"
            f"{' of ' + ', '.join(unknown) if unknown and measured else ''}: that takes at least five subjects with "
            "values that are known and differ. Give the split more labelled scans, or take [gate] out of the study."
        )
    over = list(_over(gate.leakage, leakage, by_labels or {}))
    if over:
        raise GateError(f"The study allows leakage up to R² {gate.leakage:g}, but there is: {', '.join(over)}.")


def _over(most: float, leakage: Table, by_labels: Table) -> Iterator[str]:
    for block, row in leakage.items():
        for name, r2 in row.items():
            if name == block or r2 <= most:
                continue
            alone = by_labels.get(block, {}).get(name)
            labels = "" if alone is None else f"; the labels alone give {alone:.2f}"
            yield f"{words(name)} from {words(block)} (R² {r2:.2f}{labels})"
