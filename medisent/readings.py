"""What a trained model reads from one scan: factors with intervals, the scene that mechanisms act on, and how far to trust it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from medisent.batches import Batch
from medisent.checkpoints import Card, Trained
from medisent.loading import loading
from medisent.mechanisms import Scene
from medisent.model import Abduction, PartitionedVAE
from medisent.volumes import Geometry, Volume


@dataclass(frozen=True)
class Readout:
    """One factor of one scan.

    Attributes:
        name: Of the factor.
        role: ``anatomy`` or ``nuisance``.
        unit: Of the values.
        estimate: The value.
        low: Lower end of the interval; NaN where the type has none.
        high: Upper end.
        level: How often such intervals are meant to hold the truth.
        percentile: Of the estimate among the training scans, 0 to 100.
    """

    name: str
    role: str
    unit: str
    estimate: float
    low: float
    high: float
    level: float
    percentile: float


@dataclass(frozen=True)
class Check:
    """One thing to know before trusting a reading.

    Attributes:
        ok: Whether there is nothing to worry about.
        value: What was measured.
        low: Smallest value that is ordinary.
        high: Largest value that is ordinary.
        note: A sentence.
    """

    ok: bool
    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model reads from one scan.

    Attributes:
        scan: The scan.
        placed: Where the model's grid lies over it.
        log_scale: Logarithm of what was divided out of it.
        scene: What mechanisms act on.
        abduction: All that the network inferred.
        readouts: By factor.
        checks: By name.
    """

    scan: Volume
    placed: Geometry
    log_scale: float
    scene: Scene
    abduction: Abduction
    readouts: Mapping[str, Readout]
    checks: Mapping[str, Check]

    @property
    def warnings(self) -> list[str]:
        """A sentence for each check that failed."""
        return [check.note for check in self.checks.values() if not check.ok]


def read_factors(trained: Trained, scan: Volume) -> Reading:
    """Everything that the model reads from a scan.

    Raises:
        MedisentError: The scan is refused.
    """
    network = trained.network
    batch, placed = prepared(trained, scan)
    with torch.inference_mode():
        found = _on_cpu(network, batch)
        readouts = _readouts(trained, found)
        checks = _checks(trained, found, readouts, scan)
        scene = Scene.of(network, found)
    return Reading(scan, placed, float(batch.log_scale[0]), scene, found, readouts, checks)


def prepared(trained: Trained, scan: Volume) -> tuple[Batch, Geometry]:
    """A scan on the model's grid, as a batch of one, and where the grid lies."""
    item = loading(trained.study.grid, air=trained.study.scanner.air)({"scan": scan})
    network = trained.network
    unknown = torch.full((1, len(network.factors)), math.nan)
    masks = torch.full((1, len(network.shaped), *network.shape), math.nan)
    batch = Batch(
        item["scan"][None], item["coverage"][None], item["log_scale"][None], unknown, masks, torch.tensor([-1])
    )
    return batch, item["placed"]


def estimates(network: PartitionedVAE, found: Abduction) -> dict[str, tuple[Tensor, Tensor]]:
    """For each factor the embedding of its most likely value (batch, embedding) and the standard deviation (batch).

    The deviation adds the readout's own to what the uncertainty of the latents amounts to; it is NaN for factors
    without an order.
    """
    readouts = network.readouts(found.q.loc)
    result: dict[str, tuple[Tensor, Tensor]] = {}
    for name in network.factors:
        block = found.q[name]
        if name in network.heads:
            head = network.head(name)
            embedding = head.factor.best(head.readout(block.loc))
            own = readouts[name]
            slope = head.readout.weight[0]
            spread = ((slope * block.scale) ** 2).sum(1)
            deviation = (own.stddev**2 + spread).sqrt() if isinstance(own, Normal) else torch.full_like(spread, math.nan)
        else:
            own = readouts[name]
            assert isinstance(own, Normal)
            embedding, deviation = own.loc[:, None], _setting_deviation(network, found, name)
        result[name] = embedding, deviation
    return result


def _setting_deviation(network: PartitionedVAE, found: Abduction, name: str) -> Tensor:
    block = found.q[name]
    if name != "bias_field":
        return block.scale[:, 0]
    # Of the logarithm of a length, to first order.
    return ((block.loc * block.scale) ** 2).sum(1).sqrt() / block.loc.square().sum(1).clamp(min=1e-9)


def _on_cpu(network: PartitionedVAE, batch: Batch) -> Abduction:
    device = network.pivot.device
    found = network.abduct(batch.to(device))
    return found if device.type == "cpu" else network.cpu().abduct(batch)


def _readouts(trained: Trained, found: Abduction) -> dict[str, Readout]:
    network, card = trained.network, trained.card
    result = {}
    for name, (embedding, deviation) in estimates(network, found).items():
        factor, entry = network.factors[name], card.factors[name]
        value = float(network.value(name, embedding)[0])
        low = high = math.nan
        if bool(deviation.isfinite().all()):
            reach = entry.conformal * deviation[:, None]
            low, high = (float(network.value(name, embedding + sign * reach)[0]) for sign in (-1, 1))
        result[name] = Readout(
            name, factor.role, factor.unit, value, low, high, card.level, percentile(value, entry.quantiles)
        )
    return result


def percentile(value: float, quantiles: Sequence[float]) -> float:
    """Where a value stands among quantiles at 0, 1, ... 100 percent: 0 to 100."""
    if not quantiles:
        return math.nan
    return min(100.0, (bisect_left(quantiles, value) + bisect_right(quantiles, value)) / 2 * 100 / len(quantiles))


def _checks(trained: Trained, found: Abduction, readouts: Mapping[str, Readout], scan: Volume) -> dict[str, Check]:
    network, card = trained.network, trained.card
    error = float(reconstruction_error(network, found)[0])
    distance = float(latent_distance(card, found.q.loc[:, : network.code_size])[0])
    covered = float(found.sight.batch.coverage.mean())
    result = {
        "reconstruction": _against(
            error, card.typical_error,
            "The model redraws this scan much worse than the scans it was trained on; do not rely on the readouts.",
        ),
        "similarity": _against(
            distance, card.typical_distance,
            "This scan's anatomy lies outside of what training saw; do not rely on the readouts.",
        ),
        "field_of_view": Check(
            covered > 0.5, covered, 0.5, 1.0,
            f"The scan covers {covered:.0%} of the model's field of view."
            + ("" if covered > 0.5 else " The model was trained on more; do not rely on the readouts."),
        ),
        "geometry": Check(
            not scan.remarks, float(len(scan.remarks)), 0.0, 0.0, " ".join(scan.remarks) or "Nothing odd in the header."
        ),
    }
    for name in network.scanner_names:
        entry = card.factors[name]
        value, margin = readouts[name].estimate, 1.1
        inside = entry.low / margin <= value <= entry.high * margin
        unlike = f"{name} is {value:.3g}, but training saw {entry.low:.3g} to {entry.high:.3g}: the scanner is unlike those."
        result[f"scanner_{name}"] = Check(
            inside, value, entry.low, entry.high, f"{name} is within what training saw." if inside else unlike
        )
    return result


def _against(value: float, typical: Sequence[float], warning: str) -> Check:
    """A check that a value is at most half as large again as the 99th percentile of what is typical."""
    limit = 1.5 * typical[99] if len(typical) > 99 else math.inf
    ok = value <= limit
    return Check(ok, value, 0.0, limit, "As in the scans that calibrated the model." if ok else warning)


def reconstruction_error(network: PartitionedVAE, found: Abduction) -> Float[Tensor, " batch"]:
    """Root mean squared difference between canonical scans and what their latents decode to, in the field of view."""
    seen = found.sight.batch.coverage
    difference = (network.decode(found.q.loc).mean - found.canonical) * seen
    return (difference.square().sum((1, 2, 3, 4)) / seen.sum((1, 2, 3, 4)).clamp(min=1)).sqrt()


def latent_distance(card: Card, z: Float[Tensor, "batch latents"]) -> Float[Tensor, " batch"]:
    """Mahalanobis distance of latents from the training cohort's."""
    away = z - torch.tensor(card.centre)
    return ((away @ torch.tensor(card.precision)) * away).sum(1).clamp(min=0).sqrt()


def quantiles(values: Float[np.ndarray, " n"]) -> tuple[float, ...]:
    """Quantiles at 0, 1, ... 100 percent."""
    return tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, 101)))
