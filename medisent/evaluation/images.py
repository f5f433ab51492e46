"""What becomes of scans on their way through the network, and what of readouts when only the scanner changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from medisent.batches import Batch
from medisent.checkpoints import Trained
from medisent.evaluation.findings import Disturbance, Reconstruction
from medisent.evaluation.material import Material
from medisent.factors import Factor
from medisent.formats import read
from medisent.metrics import psnr, ssim
from medisent.model import Abduction, PartitionedVAE
from medisent.readings import abducted, prepared, ranges
from medisent.scanners import measured_scale

BRIGHTER, STEEPER = 1.5, 1.2
_AT_ONCE = 16


def reconstruction_of(network: PartitionedVAE, found: Abduction) -> Reconstruction:
    """How near the decoded scans come to the canonical ones."""
    peaks, alikes = [], []
    for rows in torch.arange(len(found.canonical)).split(_AT_ONCE):
        seen = found.sight.batch.coverage[rows]
        with torch.no_grad():
            decoded = network.decode(found.q.loc[rows]).mean * seen
        parts = (part[:, 0].double().numpy() for part in (decoded, found.canonical[rows], seen))
        for image, truth, inside in zip(*parts, strict=True):
            view = inside > 0.5
            if view.any():
                peaks.append(psnr(image[view], truth[view], data_range=1.0))
            alikes.append(ssim(image, truth, data_range=1.0))
    return Reconstruction(float(np.mean(peaks)) if peaks else math.nan, float(np.mean(alikes)))


def robustness_of(
    trained: Trained, material: Material, found: Abduction, tell: Callable[[], None]
) -> dict[str, tuple[Disturbance, ...]]:
    """How far the readouts of anatomy move when the voxels are made brighter or steeper by a plain formula.

    Arguments:
        trained: The model.
        material: The scans.
        found: What the model infers from the scans as they are.
        tell: Called after each scan.
    """
    anatomy = {n: f for n, f in trained.network.factors.items() if f.role == "anatomy"}
    air = trained.study.scanner.air
    before = ranges(trained, found)
    bright, steep = [], []
    for row in material.cohort.rows:
        scan = read(row.scan)
        bright.append(prepared(trained, scan.with_voxels(brighter(scan.voxels, air)))[0])
        steep.append(prepared(trained, scan.with_voxels(steeper(scan.voxels, air)))[0])
        tell()
    moved: dict[str, list[Disturbance]] = {name: [] for name in anatomy}
    for edit, parts in ((f"brightness*={BRIGHTER:g}", bright), (f"contrast*={STEEPER:g}", steep)):
        batch = Batch(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Batch)))
        after = ranges(trained, abducted(trained.network, batch))
        for name, factor in anatomy.items():
            moved[name].append(Disturbance(edit, _moved(factor, before[name][:, 0], after[name][:, 0])))
    return {name: tuple(found) for name, found in moved.items()}


def brighter(voxels: Num[np.ndarray, "x y z"], air: float = 0.0) -> Float[np.ndarray, "x y z"]:
    """The scan with half as much gain again."""
    return air + BRIGHTER * (voxels.astype(np.float32) - np.float32(air))


def steeper(voxels: Num[np.ndarray, "x y z"], air: float = 0.0) -> Float[np.ndarray, "x y z"]:
    """The scan with its exponent a fifth larger; the typical intensity of tissue stays."""
    above = np.clip(voxels.astype(np.float32) - np.float32(air), 0, None)
    scale = float(measured_scale(torch.from_numpy(np.ascontiguousarray(above))))
    curved: np.ndarray = air + scale * (above / scale) ** np.float32(STEEPER)
    return curved


def _moved(factor: Factor, before: Float[Tensor, " scans"], after: Float[Tensor, " scans"]) -> float:
    if factor.kind in ("categorical", "ordinal"):
        return float((before != after).double().mean())
    if factor.kind == "circular":
        half = factor.period / 2  # type: ignore[attr-defined]
        return float((((after - before + half) % (2 * half) - half).abs() / half).median())
    shares = (after - before).abs() / before.abs().clamp(min=1e-9)
    return float(shares.double().quantile(0.5))
