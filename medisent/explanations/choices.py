"""What is worth showing of one scan: which values of a factor, which voxels of a soft mask."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from medisent.checkpoints import Trained
from medisent.factors import Factor
from medisent.readings import Reading, percentile
from medisent.words import percent

LEVELED = ("ordinal", "categorical")
"""Kinds of factors whose values are levels."""


def likeliest(soft: Float[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Where a soft mask is largest, as many voxels as it amounts to."""
    count = round(float(soft.sum(dtype=np.float64)))
    if count < 1:
        return np.zeros(soft.shape, bool)
    level = np.partition(soft, soft.size - count, axis=None)[soft.size - count]
    inside: np.ndarray = soft >= max(float(level), 1e-3)
    return inside


def shown_values(trained: Trained, factor: Factor, present: float) -> list[float]:
    """Values worth showing: double and half, or the 10th and 90th percentile, or the other levels."""
    entry = trained.card.factors[factor.name]
    if factor.kind in LEVELED:
        return [float(v) for v in range(len(getattr(factor, "levels", ()))) if v != present]
    if factor.kind == "positive":
        steps = (min(present * 2, entry.high), max(present / 2, entry.low))
        # Where training saw nothing like the present value, its nearest end may be far off.
        return [v for v in steps if abs(v - present) > 0.05 * abs(present) and present / 2 <= v <= present * 2]
    return [v for v in (entry.quantiles[10], entry.quantiles[90]) if v != present]


def standing(percentile: float) -> str:
    """Where a value stands among the training scans, in words."""
    if 0 < percentile < 100:
        return f"larger than in {percent(percentile / 100)} of the training scans"
    return f"{'smaller' if percentile <= 0 else 'larger'} than in any of the training scans"


def percentile_rows(trained: Trained, reading: Reading) -> pd.DataFrame:
    """A row a factor: factor, role, shown, and the percentiles of its estimate and of the ends of its interval."""
    rows = []
    for name, readout in reading.readouts.items():
        quantiles = trained.card.factors[name].quantiles
        rows.append(
            {
                "factor": name,
                "role": readout.role,
                "shown": trained.network.factors[name].show(readout.estimate),
                "percentile": readout.percentile,
                "low": percentile(readout.low, quantiles) if np.isfinite(readout.low) else np.nan,
                "high": percentile(readout.high, quantiles) if np.isfinite(readout.high) else np.nan,
            }
        )
    return pd.DataFrame(rows)
