"""Factor maps held against the true difference, beside what gradients and occlusion make of the same readout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from medisent.batches import Batch
from medisent.checkpoints import Trained
from medisent.counterfactuals import edited, factor_map
from medisent.errors import InterventionError
from medisent.evaluation.findings import MapScore
from medisent.evaluation.material import Material, Truth, evenly
from medisent.formats import read
from medisent.grids import restore
from medisent.metrics import ncc
from medisent.model import PartitionedVAE
from medisent.readings import Reading, read_batch

SCANS, EXPLAINED = 8, 2
"""How many scans have factor maps, and how many of them gradients and occlusion, which cost ten times as much."""

STEPS = 16
"""Of integrated gradients."""

PATCH = 6
"""Side of the cubes of occlusion, in grid voxels."""

_AT_ONCE = 32


def map_scores(
    trained: Trained, material: Material, tell: Callable[[], None], *, explained: int = EXPLAINED
) -> dict[str, MapScore]:
    """For each anatomy factor with true counterfactuals, how much its map is like what truly changes.

    A few scans, evenly spread over the split. All three maps lie in the scan's own space and have the sign of the true
    change.

    Arguments:
        trained: The model.
        material: The scans and their true counterfactuals.
        tell: Called after each scan.
        explained: In how many of the scans gradients and occlusion are made.
    """
    network = trained.network
    known = [
        truth
        for truth in material.truths
        if truth.wish.name in network.factors
        and network.factors[truth.wish.name].role == "anatomy"
        and network.factors[truth.wish.name].kind in ("real", "positive")
    ]
    found: dict[str, list[tuple[float, ...]]] = {}
    rows = evenly(sorted({truth.row for truth in known}), SCANS)
    costly = set(evenly(rows, explained))
    for row in rows:
        these = {truth.wish.name: truth for truth in known if truth.row == row}
        reading = read_batch(trained, [read(material.cohort.rows[row].scan)])[0]
        batch, names = reading.abduction.sight.batch, list(these)
        others = []
        if row in costly:
            others = [integrated_gradients(network, batch, names), occlusion(network, batch, names)]
        for name, truth in these.items():
            compared = _compared(trained, reading, truth, [maps[name] for maps in others])
            if compared is not None:
                found.setdefault(name, []).append(compared)
        tell()
    result = {}
    for name, scores in found.items():
        whole = [score for score in scores if len(score) == 4]
        gradients, hidden = (_median([score[i] for score in whole]) for i in (2, 3))
        own, edit = (_median([score[i] for score in scores]) for i in (0, 1))
        result[name] = MapScore(own, edit, gradients, hidden, len(scores), len(whole))
    return result


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _compared(
    trained: Trained, reading: Reading, truth: Truth, others: Sequence[Float[np.ndarray, "x y z"]]
) -> tuple[float, ...] | None:
    """How the factor's map, the whole edit, and other maps on the model's grid correlate with the true change."""
    name, scan = truth.wish.name, reading.scan
    changed = read(truth.path).voxels.astype(np.float64) - scan.voxels
    if not changed.any():
        return None
    try:
        gained = factor_map(trained, reading, name).voxels
        made = edited(trained, reading, [truth.wish], extrapolate=True)
    except InterventionError:
        return None
    sign = -1.0 if truth.wish.operation == "*=" and float(truth.wish.value) < 1 else 1.0
    whole = made.voxels.astype(np.float64) - scan.voxels
    beside = [restore(m, reading.placed, scan.geometry) for m in others]
    return sign * ncc(gained, changed), ncc(whole, changed), *(sign * ncc(m, changed) for m in beside)


def integrated_gradients(
    network: PartitionedVAE, batch: Batch, names: list[str]
) -> dict[str, Float[np.ndarray, "x y z"]]:
    """How much each voxel of one scan on the model's grid adds to each readout, against a scan of air alone.

    ``(x - 0) * mean over t of d readout(t x) / dx``, at the middles of 16 equal steps of t.

    References:
        Axiomatic Attribution for Deep Networks (Sundararajan, Taly and Yan, 2017)
    """
    total = {name: torch.zeros_like(batch.scan) for name in names}
    for shares in ((torch.arange(STEPS) + 0.5) / STEPS).split(4):
        copies = batch[torch.zeros(len(shares), dtype=torch.long)]
        with torch.enable_grad():
            scan = (copies.scan * shares[:, None, None, None, None]).requires_grad_(True)
            told = _told(network, replace(copies, scan=scan), names)
            for name in names:
                if told[name].requires_grad:
                    (slope,) = torch.autograd.grad(told[name].sum(), scan, retain_graph=True)
                    total[name] += slope.sum(0, keepdim=True) / STEPS
    return {name: (slope * batch.scan)[0, 0].numpy() for name, slope in total.items()}


@torch.no_grad()
def occlusion(network: PartitionedVAE, batch: Batch, names: list[str]) -> dict[str, Float[np.ndarray, "x y z"]]:
    """By how much each readout of one scan falls when a cube of six grid voxels a side is painted as mean tissue.

    References:
        Visualizing and Understanding Convolutional Networks (Zeiler and Fergus, 2014)
    """
    scan = batch.scan[0, 0]
    tissue = scan > 0.3
    paint = float(scan[tissue].mean()) if bool(tissue.any()) else 0.0
    edges = [[*range(0, side, PATCH), side] for side in scan.shape]
    x, y, z = ([slice(*ends) for ends in pairwise(axis)] for axis in edges)
    cubes = [(a, b, c) for a in x for b in y for c in z if bool(tissue[a, b, c].any())]
    whole = _told(network, batch, names)
    maps = {name: np.zeros(scan.shape, np.float32) for name in names}
    for start in range(0, len(cubes), _AT_ONCE):
        some = cubes[start : start + _AT_ONCE]
        copies = batch[torch.zeros(len(some), dtype=torch.long)]
        for copy, cube in zip(copies.scan[:, 0], some, strict=True):
            copy[cube] = paint
        for name, told in _told(network, copies, names).items():
            for cube, fallen in zip(some, (whole[name] - told).tolist(), strict=True):
                maps[name][cube] = fallen
    return maps


def _told(network: PartitionedVAE, batch: Batch, names: list[str]) -> dict[str, Float[Tensor, " batch"]]:
    """What a scan says of each factor before it gets a unit: the volume of its mask, or the mean of its readout."""
    found = network.abduct(batch)
    volumes, readouts = network.volumes(found.masks), network.readouts(found.q.loc)
    told = {}
    for name in names:
        readout = readouts[name]
        if name in network.shaped:
            told[name] = volumes[:, network.shaped.index(name)]
        elif isinstance(readout, Normal):
            told[name] = readout.loc.reshape(len(batch), -1)[:, 0]
        else:
            told[name] = torch.full((len(batch),), math.nan)
    return told
