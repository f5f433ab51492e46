"""Looks at the validation split while a network learns: what it costs there, and which weights did best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medisent.augmentation import changed
from medisent.batches import Batch
from medisent.model import PartitionedVAE
from medisent.objectives import Objective


@contextmanager
def aside(network: PartitionedVAE, objective: Objective) -> Iterator[None]:
    """A block after which training goes on as if it had not been: it learns, remembers and draws nothing."""
    device = network.pivot.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        network.eval()
        objective.eval()
        try:
            yield
        finally:
            network.train()
            objective.train()


def costs_of(network: PartitionedVAE, objective: Objective, held: Batch, batch: int, seed: int) -> dict[str, float]:
    """The mean cost of each term over held-out scans, in nats a scan, and their weighted sum as ``total``.

    Every look shows the same scans, their scanners changed in the same way, so that two looks differ by what was
    learned between them and by nothing else.

    Arguments:
        network: What learns; see ``aside``.
        objective: What it costs.
        held: The scans, wherever they are.
        batch: How many of them at once.
        seed: Of the changes, and of the samples.
    """
    chance = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    sums: dict[str, float] = {}
    for rows in torch.arange(len(held)).split(batch):
        shown = held[rows.to(held.scan.device)].to(network.pivot.device)
        for name, cost in objective(network(changed(shown, network, chance))).items():
            sums[name] = sums.get(name, 0.0) + float(cost) * len(rows)
    return {name: total / len(held) for name, total in sums.items()}


@dataclass
class Best:
    """Which weights did best on the validation split.

    Attributes:
        looks: Looks so far.
        nats: What the best of them cost.
        misses: Looks since then, none of them better.
        weights: With which it was.
    """

    looks: int = 0
    nats: float = math.inf
    misses: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def judge(self, nats: float, network: PartitionedVAE) -> None:
        """Remember the network's weights if they are the best so far."""
        if nats < self.nats:
            self.nats, self.misses = nats, 0
            self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        else:
            self.misses += 1

    def state(self) -> dict[str, Tensor]:
        clock = {"looks": torch.tensor(self.looks), "misses": torch.tensor(self.misses)}
        weights = {f"weights.{name}": tensor for name, tensor in self.weights.items()}
        return {**clock, "nats": torch.tensor(self.nats, dtype=torch.float64), **weights}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.looks, self.misses, self.nats = int(state["looks"]), int(state["misses"]), float(state["nats"])
        prefix = "weights."
        self.weights = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
