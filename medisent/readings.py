"""What a trained model reads from one scan: factors with intervals, the scene for mechanisms, how far to trust it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Normal

from medisent.batches import Batch
from medisent.checkpoints import Card, Trained
from medisent.factors import Circular, Factor, Nominal
from medisent.grids import unit_coordinates
from medisent.loading import loading
from medisent.mechanisms import Scene
from medisent.metrics import mae, r2
from medisent.model import Abduction, PartitionedVAE, Sight
from medisent.posterior import PartitionedNormal
from medisent.scanners import Scanner, air_noise, bias_basis
from medisent.volumes import Geometry, Volume
from medisent.words import number, percent, words

_SLAB = 1 << 18  # voxels worked on at once
_AT_ONCE = 16  # scans in the network at once, of large grids fewer:
_VOXELS_AT_ONCE = 1 << 20


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
        noise: Standard deviation of its noise, in its own unit (see ``air_noise``); 0 is unknown.
        scene: What mechanisms act on.
        abduction: All that the network inferred.
        readouts: By factor.
        checks: By name.
    """

    scan: Volume
    placed: Geometry
    log_scale: float
    noise: float
    scene: Scene
    abduction: Abduction
    readouts: Mapping[str, Readout]
    checks: Mapping[str, Check]

    @cached_property
    def log_bias(self) -> Float[np.ndarray, "x y z"]:
        """The log bias field of the scan's own scanner, at the scan's own voxels, float32."""
        return log_bias(self.scene.scanner.bias[0], self.scan.geometry, self.placed)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each check that failed."""
        return [check.note for check in self.checks.values() if not check.ok]


def log_bias(bias: Float[Tensor, " terms"], at: Geometry, placed: Geometry) -> Float[np.ndarray, "x y z"]:
    """A log bias field at the voxels of a scan, float32; beyond the model's grid it stays as it is at the grid's edge.

    Arguments:
        bias: Its coefficients.
        at: Where the voxels lie.
        placed: Where the model's grid lies, in whose coordinates the polynomials are written.
    """
    field = np.empty(at.shape, np.float32, order="F")
    depth = max(1, _SLAB // (at.shape[0] * at.shape[1]))
    for start in range(0, at.shape[2], depth):
        stop = min(start + depth, at.shape[2])
        affine = at.affine[:, [2, 1, 0, 3]]  # as they lie in memory
        affine[:3, 3] += affine[:3, 0] * start
        slab = Geometry(affine, (stop - start, at.shape[1], at.shape[0]))
        part = unit_coordinates(slab, placed).clip(-1, 1)
        field.T[start:stop] = torch.tensordot(bias, bias_basis(torch.from_numpy(part)), dims=1).numpy()
    return field


def read_factors(trained: Trained, scan: Volume) -> Reading:
    """Everything that the model reads from a scan.

    Raises:
        MedisentError: The scan is refused.
    """
    return read_batch(trained, [scan])[0]


def read_batch(trained: Trained, scans: Sequence[Volume]) -> list[Reading]:
    """Everything that the model reads from each of a few scans, in one pass of the network.

    Raises:
        MedisentError: A scan is refused.
    """
    network = trained.network
    single = [prepared(trained, scan) for scan in scans]
    batch = Batch(*(torch.cat([getattr(one, f.name) for one, _ in single]) for f in fields(Batch)))
    with torch.no_grad():
        found = abducted(network, batch)
        table = ranges(trained, found)
        readings = []
        for row, (scan, (one, placed)) in enumerate(zip(scans, single, strict=True)):
            own = _row(found, row)
            readouts = _readouts(trained, {name: values[row] for name, values in table.items()})
            checks = _checks(trained, own, readouts, scan)
            scene = Scene.of(network, own)
            log_scale = float(one.log_scale[0])
            noise = air_noise(scan.voxels, trained.study.scanner.air, math.exp(log_scale))
            readings.append(Reading(scan, placed, log_scale, noise, scene, own, readouts, checks))
    return readings


def _row(found: Abduction, row: int) -> Abduction:
    """What was inferred from one scan of a batch."""
    one, sight, q = torch.tensor([row]), found.sight, found.q
    scanner = Scanner.unstacked(sight.scanner.stacked()[one])
    return Abduction(
        Sight(sight.batch[one], scanner, sight.scale[one]),
        found.canonical[one],
        found.masks[one],
        PartitionedNormal(q.loc[one], q.scale[one], q.partition),
    )


def prepared(trained: Trained, scan: Volume) -> tuple[Batch, Geometry]:
    """A scan on the model's grid, as a batch of one, and where the grid lies."""
    item = loading(trained.study.grid, air=trained.study.scanner.air)({"scan": scan})
    network = trained.network
    unknown = torch.full((1, len(network.factors)), math.nan)
    masks = torch.full((1, len(network.shaped), *network.shape), math.nan)
    none = torch.zeros(1, 0)
    batch = Batch(
        item["scan"][None], item["coverage"][None], item["log_scale"][None], unknown, masks, none.long(), none
    )
    return batch, item["placed"]


def estimates(network: PartitionedVAE, q: PartitionedNormal) -> dict[str, tuple[Tensor, Tensor]]:
    """For each factor the embedding of its most likely value (batch, embedding) and the standard deviation (batch).

    The deviation adds the readout's own to what the uncertainty of the latents amounts to; it is NaN for factors
    without an order.
    """
    readouts = network.readouts(q.loc)
    result: dict[str, tuple[Tensor, Tensor]] = {}
    for name in network.factors:
        block = q[name]
        if name in network.heads:
            head = network.head(name)
            embedding = head.factor.best(head.described(block.loc))
            own = readouts[name]
            spread = ((head.slope(block.loc) * block.scale) ** 2).sum(1)
            deviation = (
                (own.stddev**2 + spread).sqrt() if isinstance(own, Normal) else torch.full_like(spread, math.nan)
            )
        else:
            own = readouts[name]
            assert isinstance(own, Normal)
            embedding, deviation = own.loc[:, None], _setting_deviation(block, name)
        result[name] = embedding, deviation
    return result


def _setting_deviation(block: Normal, name: str) -> Tensor:
    if name != "bias_field":
        return block.scale[:, 0]
    # Of the logarithm of a length, to first order.
    return ((block.loc * block.scale) ** 2).sum(1).sqrt() / block.loc.square().sum(1).clamp(min=1e-9)


def abducted(network: PartitionedVAE, batch: Batch) -> Abduction:
    """What the network infers from all scans of a batch, a few at a time, on the processor."""
    with torch.no_grad():
        parts = list(pieces(network, batch))
        settings = torch.cat([p.sight.scanner.stacked() for p in parts]).cpu()
        sight = Sight(batch, Scanner.unstacked(settings), torch.cat([p.sight.scale for p in parts]).cpu())
        q = PartitionedNormal(
            torch.cat([p.q.loc for p in parts]).cpu(), torch.cat([p.q.scale for p in parts]).cpu(), network.partition
        )
        canonical = torch.cat([p.canonical.cpu() for p in parts])
        masks = torch.cat([p.masks.cpu() for p in parts])
    network.cpu()
    return Abduction(sight, canonical, masks, q)


def pieces(network: PartitionedVAE, batch: Batch) -> Iterator[Abduction]:
    """What the network infers from a few scans of a batch after the other, on its own device."""
    device = network.pivot.device
    for rows in few_at_once(batch):
        yield network.abduct(batch[rows].to(device))


def few_at_once(batch: Batch) -> list[Int[Tensor, " few"]]:
    """The rows of a batch, so many together as the network takes at once: sixteen, of large grids fewer."""
    few = min(_AT_ONCE, max(1, _VOXELS_AT_ONCE // math.prod(batch.scan.shape[1:])))
    return list(torch.arange(len(batch)).split(few))


@torch.no_grad()
def ranges(trained: Trained, found: Abduction) -> dict[str, Float[Tensor, "batch 3"]]:
    """For each factor its estimate and the lower and upper end of its interval, in its unit; NaN without an end."""
    network = trained.network
    result = {}
    for name, (embedding, deviation) in estimates(network, found.q).items():
        value = network.value(name, embedding)
        reach = trained.card.factors[name].conformal * deviation[:, None]
        # Embeddings of several numbers have no lower and upper end.
        ends = [network.value(name, embedding + sign * reach) for sign in (-1, 1)] if embedding.shape[1] == 1 else []
        known = deviation.isfinite() & torch.tensor(bool(ends))
        low, high = (torch.where(known, end, math.nan) for end in ends or [value, value])
        result[name] = torch.stack([value, low, high], 1)
    return result


def _readouts(trained: Trained, table: Mapping[str, Float[Tensor, "3"]]) -> dict[str, Readout]:
    result = {}
    for name, values in table.items():
        factor, entry = trained.network.factors[name], trained.card.factors[name]
        value, low, high = values.tolist()
        result[name] = Readout(
            name, factor.role, factor.unit, value, low, high, trained.card.level, percentile(value, entry.quantiles)
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
            error,
            card.typical_error,
            "The model redraws this scan much worse than the scans it was trained on; do not rely on the readouts.",
        ),
        "similarity": _against(
            distance,
            card.typical_distance,
            "This scan's anatomy lies outside of what training saw; do not rely on the readouts.",
        ),
        "field_of_view": Check(
            covered > 0.5,
            covered,
            0.5,
            1.0,
            f"The scan covers {percent(covered)} of the model's field of view."
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
        unlike = (
            f"{words(name)} is {number(value)}, but training saw {number(entry.low)} to {number(entry.high)}: "
            "the scanner is unlike those."
        )
        result[f"scanner_{name}"] = Check(
            inside, value, entry.low, entry.high, f"{words(name)} is within what training saw." if inside else unlike
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


def readout_error(
    factor: Factor, estimate: Float[np.ndarray, " known"], truth: Float[np.ndarray, " known"]
) -> tuple[float | None, float]:
    """R2 and mean absolute error of estimates, in the factor's unit; the R2 is None where the truth never varies.

    Of levels without an order the error is the share that is read wrong. Of these, and of what goes round, the R2 is
    that of the embeddings; an estimate a whole turn away is no error.
    """
    if isinstance(factor, Nominal):
        error = float(np.mean(estimate != truth))
    elif isinstance(factor, Circular):
        error = mae(estimate - ((estimate - truth) / factor.period).round() * factor.period, truth)
    else:
        error = mae(estimate, truth)
    if len(truth) < 2 or np.ptp(truth) == 0:
        return None, error
    if not isinstance(factor, Circular | Nominal):
        return r2(estimate, truth), error
    there, here = (factor.embed(torch.from_numpy(values)).double().numpy() for values in (truth, estimate))
    return r2((here - there.mean(0)).ravel(), (there - there.mean(0)).ravel()), error


def latent_distance(card: Card, z: Float[Tensor, "batch latents"]) -> Float[Tensor, " batch"]:
    """Mahalanobis distance of latents from the training cohort's."""
    away = z - torch.tensor(card.centre)
    return ((away @ torch.tensor(card.precision)) * away).sum(1).clamp(min=0).sqrt()


def quantiles(values: Float[np.ndarray, " n"]) -> tuple[float, ...]:
    """Quantiles at 0, 1, ... 100 percent."""
    return tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, 101)))
