"""The objective: a weighted sum of terms, and the table of all terms there are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medisent.model import Draw, PartitionedVAE
from medisent.objectives.term import Term
from medisent.objectives.terms import Distortion, Mask, Rate, Readout, ScannerChange
from medisent.objectives.weak import Invariance, Ranks

TERMS: dict[str, type[Term]] = {
    "distortion": Distortion,
    "rate": Rate,
    "readout": Readout,
    "mask": Mask,
    "scanner": ScannerChange,
    "invariance": Invariance,
    "ranks": Ranks,
}


class Objective(nn.Module):
    """A weighted sum of terms.

    Arguments:
        model: The model that draws.
        weights: How much a nat of each term counts; terms that are not named do not count.
    """

    def __init__(self, model: PartitionedVAE, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.terms = nn.ModuleDict({name: TERMS[name](model) for name in self.weights})

    def forward(self, draw: Draw) -> dict[str, Float[Tensor, ""]]:
        """The mean of each term over the batch, in nats a scan, and their weighted sum as ``total``."""
        costs = {name: term(draw).mean() for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * cost for name, cost in costs.items()]).sum()
        return {**costs, "total": total}
