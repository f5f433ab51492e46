"""Ways to edit a scan other than by the model's mechanisms, and how any way is held against true counterfactuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from medisent.bench.figures import Edit
from medisent.bench.harmonizing import matched
from medisent.bench.linear import Linear
from medisent.checkpoints import Trained
from medisent.counterfactuals import Wish, shown, wanted_value
from medisent.errors import UsageError
from medisent.evaluation.making import missed_elsewhere
from medisent.evaluation.material import Material, Truth
from medisent.evaluation.rulers import Trio, effect_error
from medisent.formats import read
from medisent.mechanisms import MECHANISMS, Scene
from medisent.readings import Reading, read_factors
from medisent.volumes import Volume

Editor = Callable[[Volume, Truth], Volume | None]
"""From a scan and what is asked of it to the edited scan; None where the method knows no such edit."""


def score_edits(material: Material, editor: Editor) -> dict[str, Edit]:
    """For each edit that the editor knows, what it scores on the scans whose true counterfactual is known."""
    found: dict[str, list[_Scores]] = {}
    scan_of = lru_cache(maxsize=2)(lambda row: read(material.cohort.rows[row].scan))  # a scan's edits come in turn
    for truth in material.truths:
        scan = scan_of(truth.row)
        result = editor(scan, truth)
        if result is None:
            continue
        trio = Trio.of(scan.voxels, result.voxels, read(truth.path).voxels, scan.spacing)
        try:
            rce = trio.rce()
        except UsageError:  # nothing truly changes
            continue
        elsewhere = dict(missed_elsewhere(material.cohort.rows[truth.row].masks, truth.wish.name, trio))
        scores = _Scores(rce, effect_error(truth.wish.name, trio), trio.off_target(), elsewhere)
        found.setdefault(truth.edit, []).append(scores)
    return {edit: _medians(scores) for edit, scores in found.items()}


@dataclass(frozen=True)
class _Scores:
    """What one edit of one scan scores; see ``Edit``."""

    rce: float
    effect_error: float
    off_target: float
    elsewhere_ml: Mapping[str, float]


def _medians(scores: Sequence[_Scores]) -> Edit:
    structures = dict.fromkeys(name for score in scores for name in score.elsewhere_ml)
    return Edit(
        rce=float(np.median([score.rce for score in scores])),
        effect_error=_median([score.effect_error for score in scores]),
        off_target=_median([score.off_target for score in scores]),
        n=len(scores),
        elsewhere_ml={
            name: float(np.median([s.elsewhere_ml[name] for s in scores if name in s.elsewhere_ml]))
            for name in structures
        },
    )


def _median(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else None


def left_alone(scan: Volume, truth: Truth) -> Volume:
    """The scan itself: what doing nothing scores."""
    return scan


def by_decoding(trained: Trained, *, difference: bool) -> Editor:
    """Edits in the same model's latents, shown by its decoder instead of its mechanisms.

    Arguments:
        trained: The model.
        difference: Whether the scan gains the difference of two decodings, instead of being replaced by one.

    References:
        Deep Structural Causal Models for Tractable Counterfactual Inference (Pawlowski, Castro, Glocker, 2020)
    """
    network = trained.network
    read_once = lru_cache(maxsize=2)(lambda scan: read_factors(trained, scan))

    def edit(scan: Volume, truth: Truth) -> Volume | None:
        name = truth.wish.name
        if name not in network.factors:
            return None
        reading = read_once(scan)
        present = reading.readouts[name].estimate
        wanted = wanted_value(trained, reading, truth.wish, extrapolate=True)
        with torch.no_grad():
            moved = MECHANISMS["scanner" if name in network.scanner_names else "latent"].intervene(
                network, reading.scene, name, present, wanted
            )
            there = _decoded(trained, reading, moved)
            if not difference:
                return there
            here = _decoded(trained, reading, reading.scene)
        return replace(scan, voxels=scan.voxels + (there.voxels - here.voxels))

    return edit


def _decoded(trained: Trained, reading: Reading, scene: Scene) -> Volume:
    """What the decoder makes of a scene's latents, as the scene's scanner shows it, in the scan's own space."""
    canonical = trained.network.decode(scene.z).mean[0, 0]
    return shown(reading, replace(scene, canonical=canonical), trained.study.scanner.air)


@dataclass(frozen=True, eq=False)
class ByMatching:
    """Histogram matching: the scan takes the intensities of the training scan with the nearest scanner.

    Attributes:
        table: The training cohort's, with gain and exponent of every scan.
        folder: Where its paths begin.
        settings: Gain and exponent of each judged scan, before the edit.
    """

    table: pd.DataFrame
    folder: Path
    settings: Float[np.ndarray, "scans 2"]

    def __call__(self, scan: Volume, truth: Truth) -> Volume | None:
        names = ("brightness", "contrast")
        if truth.wish.name not in names:
            return None
        wanted = self.settings[truth.row].copy()
        wanted[names.index(truth.wish.name)] *= float(truth.wish.value)
        known = self.table[["gain", "gamma"]].astype(float).to_numpy()
        # Both settings in units of their spread, on a log scale.
        away = (np.log(known) - np.log(wanted)) / np.log(known).std(0)
        nearest = self.table["scan"].iloc[int((away**2).sum(1).argmin())]
        return replace(scan, voxels=matched(scan.voxels, read(self.folder / nearest).voxels))


@dataclass(frozen=True, eq=False)
class ByDirection:
    """Edits along the directions of a linear model.

    Attributes:
        linear: The model.
    """

    linear: Linear

    def __call__(self, scan: Volume, truth: Truth) -> Volume | None:
        name = truth.wish.name
        if name not in self.linear.directions:
            return None
        flat = scan.voxels.astype(np.float64).ravel()
        present = float(self.linear.read(name, flat[None])[0])
        moved = self.linear.edited(name, flat, present, _asked(present, truth.wish))
        return replace(scan, voxels=moved.reshape(scan.voxels.shape))


def _asked(present: float, wish: Wish) -> float:
    number = float(wish.value)
    return {"*=": present * number, "+=": present + number}.get(wish.operation, number)


def settings_of(table: Mapping[str, Sequence[float]]) -> Float[np.ndarray, "scans 2"]:
    """Gain and exponent of every scan of a table."""
    return np.stack([np.asarray(table[name], dtype=float) for name in ("gain", "gamma")], 1)
