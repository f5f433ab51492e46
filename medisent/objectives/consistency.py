"""Counterfactual consistency: an edited scan, encoded again, tells the asked value and nothing else new."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from medisent.factors import Circular, Nominal, Ordinal
from medisent.model import Draw, Sight
from medisent.objectives.term import Term
from medisent.scanners import Scanner

_SCANS = 2


class Consistency(Term):
    """What encoding edited scans again gets wrong, for two scans of the batch.

    One factor that acts through its latents is moved to a value drawn by chance; the canonical scan takes the
    difference of both decodings. Encoded again, it should tell that value, at the price of a readout, and its other
    latents should be where they were, in units of their posterior. The scanner is edited by the layer itself: the
    scans before and after its known change should have the same anatomy.

    References:
        | Deep Structural Causal Models for Tractable Counterfactual Inference (Pawlowski, Castro, Glocker, 2020)
        | High Fidelity Image Counterfactuals with Probabilistic Causal Models (Ribeiro et al., 2023)
    """

    together = True

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        step = draw.change.crew.size * len(draw.batch)
        count = min(_SCANS, step)
        places = draw.change.crew.own(torch.arange(step, device=draw.z.device))
        rows = torch.nonzero(places < count)[:, 0]
        movable = [name for name in self.model.heads if name not in self.shaped]
        name = movable[int(torch.randint(len(movable), ()))] if movable else None
        wanted = self._drawn(name, count).to(draw.z)[places[rows]] if name else None
        costs = 0 * draw.z.sum(1)
        if len(rows):
            cost = self._scanner(draw, rows)
            if name and wanted is not None:
                cost = cost + self._factor(draw, rows, name, wanted)
            costs = costs.index_add(0, rows, cost * (step / count))
        return costs

    def _scanner(self, draw: Draw, rows: Tensor) -> Float[Tensor, " rows"]:
        """How far the anatomy moves when the scanner changes."""
        sight = seen(draw.before, rows)
        canonical = self.model.canonical(sight.batch.scan, still(sight.scanner), sight.batch.coverage)
        before = self.model.encode(canonical, sight).loc
        return self._moved(draw, rows, before, slice(0, 0))

    def _factor(self, draw: Draw, rows: Tensor, name: str, wanted: Tensor) -> Float[Tensor, " rows"]:
        """What a factor's edit to wanted values gets wrong."""
        model, where = self.model, self.model.partition[name].where
        head, factor, z = model.head(name), self.factors[name], draw.q.loc[rows].detach()
        present = head.value(factor.best(head.described(z[:, where]))).detach()
        moved = z.clone()
        moved[:, where] += (head.located(wanted) - head.located(present)).detach()
        change = model.decode(moved).mean - model.decode(z).mean
        coverage = draw.batch.coverage[rows]
        edited = (draw.canonical[rows].detach() + change).clamp(0, 3) * coverage
        again = model.encode(edited, seen(draw.after, rows)).loc
        told = head(again[:, where]).log_prob(factor.target(head.embed(wanted)))
        cost: Tensor = self._moved(draw, rows, again, where) - told
        return cost

    def _moved(self, draw: Draw, rows: Tensor, again: Tensor, own: slice) -> Float[Tensor, " rows"]:
        """How far all latents but the factor's own have moved, in nats."""
        size = self.model.code_size
        away = (again - draw.q.loc[rows].detach())[:, :size] / draw.q.scale[rows, :size].detach()
        others = torch.ones(size, dtype=torch.bool, device=away.device)
        others[own] = False
        return 0.5 * away[:, others].square().sum(1)

    def _drawn(self, name: str, count: int) -> Float[Tensor, " count"]:
        """Values of a factor, by chance."""
        factor = self.factors[name]
        if isinstance(factor, Ordinal | Nominal):
            return torch.randint(len(factor.levels), (count,)).float()
        if isinstance(factor, Circular):
            return torch.rand(count) * factor.period
        return self.model.head(name).value(torch.randn(count, 1).to(self.model.pivot.device))


def seen(sight: Sight, rows: Tensor) -> Sight:
    """What is seen of some of the scans."""
    return replace(
        sight,
        batch=sight.batch[rows],
        scanner=Scanner.unstacked(sight.scanner.stacked()[rows]),
        scale=sight.scale[rows],
    )


def still(scanner: Scanner) -> Scanner:
    """The same settings, through which no gradient passes."""
    return Scanner.unstacked(scanner.stacked().detach())
