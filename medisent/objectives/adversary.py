"""Adversarial leakage: probes read from each block what it must not tell, and the model unlearns what they find."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from medisent.config import ObjectiveSettings
from medisent.factors import Partition
from medisent.model import Draw, PartitionedVAE
from medisent.objectives.queue import Queue
from medisent.objectives.term import Term

_FEWEST = 32


class Adversary(Term):
    """What probes read of known factors from blocks that must not tell them, in nats a scan.

    For each such pair a small network reads the factor from the block's means. It learns from a queue of recent codes
    and their labels; the model is taught to make it fail, at the scans of the batch. A probe that does no better than
    one constant answer costs nothing, so that there is no reward for leading it astray.

    References:
        Domain-Adversarial Training of Neural Networks (Ganin et al., 2016)
    """

    together = True

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        self.fewest = min(_FEWEST, self.options.queue)
        self.pairs = forbidden_pairs(model.partition, list(self.factors), self.options.between)
        self.queue = Queue(self.options.queue, model.partition.size + len(self.factors))
        parameters = {name: factor.parameter_size for name, factor in self.factors.items()}
        self.probes = nn.ModuleDict(
            {
                f"{block}__{name}": nn.Sequential(
                    nn.Linear(model.partition[block].size, 32), nn.SiLU(), nn.Linear(32, parameters[name])
                )
                for block, name in self.pairs
            }
        )
        self.constants = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(parameters[name])) for name in dict.fromkeys(n for _, n in self.pairs)}
        )

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        fresh, values = draw.together.q.loc, draw.together.values
        rows = self.queue.joined(torch.cat([fresh, values], 1))
        kept, labels = rows[:, : fresh.shape[1]].detach(), rows[:, fresh.shape[1] :].detach()
        if self.training:
            self.queue.push(torch.cat([fresh, values], 1))
        if len(kept) < self.fewest:
            return 0 * fresh.sum(1)
        centre, spread = kept.mean(0), kept.std(0) + 1e-4
        kept, fresh = (kept - centre) / spread, (fresh - centre) / spread
        found = [self._pair(block, name, fresh, kept, values, labels) for block, name in self.pairs]
        return torch.stack(found).sum(0) if found else 0 * fresh.sum(1)

    def _pair(
        self, block: str, name: str, fresh: Tensor, kept: Tensor, values: Tensor, labels: Tensor
    ) -> Float[Tensor, " batch"]:
        """What one probe reads; the gradient teaches the probe by the queue, and the model by the batch."""
        where, column = self.model.partition[block].where, list(self.factors).index(name)
        probe, constant = self.probes[f"{block}__{name}"], self.constants[name]
        known = labels[:, column].isfinite()
        if int(known.sum()) < self.fewest:
            return 0 * fresh.sum(1)
        own = self._likely(name, probe(kept[known][:, where]), labels[known, column])
        none = self._likely(name, constant.expand(int(known.sum()), -1), labels[known, column])
        loss = -(own.mean() + none.mean())
        there = values[:, column].isfinite()
        frozen = {key: p.detach() for key, p in probe.named_parameters()}
        told = functional_call(probe, frozen, (fresh[:, where],))
        value = torch.where(there, values[:, column], labels[known, column][0])
        gained = self._likely(name, told, value) - self._likely(name, constant.detach().expand_as(told), value)
        better = (own.mean() > none.mean()).detach()
        return torch.where(there & better, gained.clamp(min=-3), 0.0) + (loss - loss.detach())

    def _likely(self, name: str, parameters: Tensor, values: Tensor) -> Tensor:
        """Log likelihood of values under what a probe says."""
        embedding = self.model.embed(name, values)
        factor = self.factors[name]
        likely: Tensor = factor.likelihood(parameters).log_prob(factor.target(embedding))
        return likely


def forbidden_pairs(partition: Partition, factors: list[str], between: str) -> list[tuple[str, str]]:
    """Which block must not tell which factor.

    Arguments:
        partition: The blocks.
        factors: All factors.
        between: ``unlabelled``: an unlabelled block no factor; ``roles``: a block none of the other role; ``blocks``: a
            block none but its own.
    """

    def forbidden(block: str, name: str) -> bool:
        if between == "unlabelled":
            return block not in factors
        return partition[block].role != partition[name].role if between == "roles" else block != name

    return [(b, n) for b in partition if partition[b].size for n in factors if forbidden(b, n)]
