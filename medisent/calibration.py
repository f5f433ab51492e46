"""What a finished network learns about itself: how far its readouts stray, and what ordinary scans look like to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from medisent.augmentation import changed
from medisent.batches import Batch
from medisent.checkpoints import Card, FactorCard
from medisent.counts import coarse
from medisent.metrics import conformal_quantile, r2
from medisent.model import PartitionedVAE
from medisent.posterior import PartitionedNormal
from medisent.readings import estimates, few_at_once, latent_distance, pieces, quantiles, reconstruction_error
from medisent.scanners import BIAS_TERMS, Scanner
from medisent.supervision import Entry

LEVEL = 0.9

# Scanners by which each validation scan is seen once more, where settings are judged.
_OTHERS = 3


@torch.no_grad()
def calibrate(
    network: PartitionedVAE,
    training: Batch,
    validation: Batch | None,
    *,
    subjects: Sequence[str],
    validation_subjects: Sequence[str],
    steps: int,
    entries: Sequence[Entry] = (),
) -> Card:
    """The card of a trained network, whose readouts, remainders and turn are fitted first.

    Intervals are split-conformal by subject: the validation split, which no step of training saw, says how many
    standard deviations of the readout hold the truth in 90 percent of subjects. Gain and exponent are judged as other
    scanners would have shown these scans, for a cohort has few scanners and a new scan may come from another.

    References:
        Distribution-Free Predictive Inference for Regression (Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, 2018)
    """
    device = network.eval().pivot.device
    found = _inferred(network, training, answering=network.separating and not any(e.about_rests for e in entries))
    network.cpu()
    inferred = _counted(network, found.q, found.images, training)
    _turn(network, found, training, entries)
    network.fit_remainders(inferred)
    seen = network.parted(inferred)
    network.to(device)
    held, error = _judged(network, *((training, seen) if validation is None else (validation,)))
    elsewhere = {} if validation is None else _elsewhere(network, validation)
    network.cpu()
    factors, figures = {}, {}
    truths = validation.values if validation is not None else torch.zeros(0, len(network.factors))
    read = estimates(network, seen)
    read_held = estimates(network, held) if validation is not None else {}
    for column, name in enumerate(network.factors):
        values = network.value(name, read[name][0]).double().numpy()
        labels = training.values[:, column]
        known = labels[labels.isfinite()].double().numpy()
        bounds = known if len(known) else values
        reach, used = 1.645, 0
        if name in read_held:
            read_there, wanted = elsewhere.get(name, (read_held[name], network.embed(name, truths[:, column])))
            reach, used = _reach(read_there, wanted, validation_subjects)
            held_known = truths[:, column].isfinite().numpy()
            if held_known.sum() > 1:
                estimate = network.value(name, read_held[name][0]).double().numpy()[held_known]
                figures[f"{name}_r2"] = r2(estimate, truths[:, column].double().numpy()[held_known])
        factors[name] = FactorCard(quantiles(values), float(bounds.min()), float(bounds.max()), reach, used)
    centre, precision = _spread(seen.loc[:, : network.code_size])
    card = Card(factors, LEVEL, len(training), len(set(subjects)), steps, (), (), centre, precision, figures)
    distance = latent_distance(card, held.loc[:, : network.code_size])
    return replace(
        card, typical_error=quantiles(error.double().numpy()), typical_distance=quantiles(distance.double().numpy())
    )


@dataclass(frozen=True)
class _Inferred:
    """What the network infers from scans.

    Attributes:
        q: The posterior.
        images: The canonical scans as coarse as they are counted in, where volumes are counted.
        answers: How the rest answers to errors of the scanner's estimate; None where that was not asked.
    """

    q: PartitionedNormal
    images: Float[Tensor, "scans 1 _ _ _"] | None
    answers: Float[Tensor, "scans resting"] | None


def _inferred(network: PartitionedVAE, batch: Batch, *, answering: bool) -> _Inferred:
    """What the network infers from scans, a few at a time."""
    parts, images, answers = [], [], []
    chance = torch.Generator().manual_seed(0)
    for found in pieces(network, batch):
        parts.append(found.q)
        if network.counter is not None:
            images += [coarse(image[0].cpu())[None] for image in found.canonical]
        if answering:
            answers.append(network.answers(found, chance).cpu())
    return _Inferred(_together(parts), torch.stack(images) if images else None, torch.cat(answers) if answers else None)


def _turn(network: PartitionedVAE, found: _Inferred, batch: Batch, entries: Sequence[Entry]) -> None:
    """Turn what is no anatomy out of the anatomy's rest.

    Scans of one person say best what that is: all that they differ in. Without such groups it is what answers to
    errors of the scanner's estimate, unless the nuisance's rest has been taught something else.
    """
    last = network.partition["nuisance_rest"].size
    persons = [
        e for e in entries if e.kind == "groups" and "anatomy_rest" in e.blocks and "nuisance_rest" not in e.blocks
    ]
    if network.separating and persons:
        rest = found.q.loc[:, network.resting]
        answers = _deviations(rest, batch.group[:, persons[0].column].cpu())
        network.turn.fit(answers, last, spread=torch.cov(rest.T))
    elif found.answers is not None:
        network.turn.fit(found.answers, last)


def _deviations(rest: Float[Tensor, "scans resting"], group: Int[Tensor, " scans"]) -> Float[Tensor, "several resting"]:
    """How far scans are from the mean of their group, of all that have company."""
    known = group >= 0
    _, place, company = group[known].unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(company), rest.shape[1]).index_add(0, place, rest[known])
    apart: Tensor = rest[known] - (sums / company[:, None])[place]
    return apart[company[place] > 1]


def _judged(
    network: PartitionedVAE, batch: Batch, known: PartitionedNormal | None = None
) -> tuple[PartitionedNormal, Float[Tensor, " scans"]]:
    """The posterior behind scans, unless it is known, and how far what it decodes to is from them."""
    parts, errors, start = [], [], 0
    for found in pieces(network, batch):
        rows = slice(start, start := start + len(found.canonical))
        if known is not None:
            loc, scale = (numbers[rows].to(found.q.loc) for numbers in (known.loc, known.scale))
            found = replace(found, q=PartitionedNormal(loc, scale, known.partition))
        parts.append(found.q)
        errors.append(reconstruction_error(network, found).cpu())
    return _together(parts), torch.cat(errors)


def _together(parts: Sequence[PartitionedNormal]) -> PartitionedNormal:
    loc, scale = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("loc", "scale"))
    return PartitionedNormal(loc, scale, parts[0].partition)


def _counted(
    network: PartitionedVAE,
    seen: PartitionedNormal,
    images: Float[Tensor, "scans 1 _ _ _"] | None,
    training: Batch,
) -> PartitionedNormal:
    """What the network infers from the training scans, once its readouts and its counts of volumes are fitted.

    A training scan's volume is what the counts of all others say of it, or all that follows would be too sure.
    """
    labels = {name: training.values[:, column] for column, name in enumerate(network.factors)}
    for name in network.heads:
        network.head(name).refit(seen[name].loc, labels[name])
    if network.counter is None or images is None:
        return seen
    guesses = network.counter.fit(images, torch.stack([labels[name] for name in network.counted], 1))
    for name, guess in zip(network.counted, guesses.T, strict=True):
        if guess.isfinite().any():
            network.head(name).trust(guess, labels[name])
    return network.placed(seen, guesses)


def _elsewhere(network: PartitionedVAE, batch: Batch) -> dict[str, tuple[tuple[Tensor, Tensor], Tensor]]:
    """Gain and exponent as read from scans that other scanners show, and as they truly are there.

    Returns:
        Of each that is a factor: estimates and their deviations, as ``estimates`` has them, and true embeddings, NaN
        where there is no label; several rounds of all scans, one after the other.
    """
    device, labels = network.pivot.device, dict(zip(network.factors, batch.values.T, strict=True))
    scale = batch.log_scale - network.reference.cpu()
    unknown = torch.full_like(scale, math.nan)
    gain, gamma = (labels.get(name, unknown).log() for name in ("brightness", "contrast"))
    first = torch.cat([torch.stack([gain - scale, gamma], 1), torch.zeros(len(batch), BIAS_TERMS)], 1)
    chance = torch.Generator().manual_seed(0)
    loc, deviation, truth = [], [], []
    for rows in few_at_once(batch) * _OTHERS:
        change = changed(batch[rows].to(device), network, chance)
        sight = network.see(change.changed)
        loc.append(network.settings(sight)[:, :2].cpu())
        deviation.append(sight.scale[:, :2].cpu())
        there = Scanner.unstacked(change.scanner.stacked().cpu()).after(Scanner.unstacked(first[rows]))
        truth.append(torch.stack([there.log_gain + scale[rows], there.log_gamma], 1))
    return {
        name: ((torch.cat(loc)[:, [index]], torch.cat(deviation)[:, index]), torch.cat(truth)[:, [index]])
        for index, name in enumerate(("brightness", "contrast"))
        if name in network.factors and name in network.scanner_names
    }


def _reach(
    read: tuple[Tensor, Tensor], wanted: Float[Tensor, "scans embedding"], subjects: Sequence[str]
) -> tuple[float, int]:
    """How many standard deviations an interval has to reach out, and on how many subjects that was measured.

    Arguments:
        read: Embeddings and their deviations.
        wanted: The true ones, NaN where they are not known.
        subjects: Whose each scan is; where there are more scans, these repeat.
    """
    embedding, deviation = read
    known = wanted.isfinite().all(1)
    if not known.any() or not bool(deviation.isfinite().all()) or embedding.shape[1] != 1:
        return 1.645, 0
    scores = ((wanted - embedding)[known, 0].abs() / deviation[known]).double().numpy()
    groups = np.resize(np.array(subjects), len(wanted))[known.numpy()]
    reach = conformal_quantile(scores, LEVEL, groups)
    count = len(set(groups.tolist()))
    # With fewer than nine subjects no finite interval can promise the level: the largest score, doubled, is left.
    return (reach, count) if math.isfinite(reach) else (2 * float(scores.max()), 0)


def _spread(z: Float[Tensor, "scans latents"]) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Mean and inverse covariance of latents, shrunk so that few scans still give one."""
    centre = z.mean(0)
    covariance = torch.cov(z.T).reshape(z.shape[1], z.shape[1]) if len(z) > 1 else torch.eye(z.shape[1])
    shrunk = 0.9 * covariance + 0.1 * torch.diag(covariance.diagonal()) + 1e-4 * torch.eye(z.shape[1])
    inverse = torch.linalg.inv(shrunk.double())
    return tuple(centre.tolist()), tuple(tuple(row) for row in inverse.tolist())
