"""The objective: a weighted sum of terms, and the table of all terms there are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medisent.config import ObjectiveSettings
from medisent.model import Draw, PartitionedVAE
from medisent.objectives.adversary import Adversary
from medisent.objectives.classic import DensityRatio, DipOne, DipTwo, StratifiedTotalCorrelation
from medisent.objectives.consistency import Consistency
from medisent.objectives.guards import Guard
from medisent.objectives.independence import Hsic, TotalCorrelation
from medisent.objectives.term import Term
from medisent.objectives.terms import Distortion, Mask, Rate, Readout, ScannerChange
from medisent.objectives.weak import Differences, Invariance, Ranks

TERMS: dict[str, type[Term]] = {
    "distortion": Distortion,
    "rate": Rate,
    "readout": Readout,
    "mask": Mask,
    "scanner": ScannerChange,
    "invariance": Invariance,
    "differences": Differences,
    "ranks": Ranks,
    "total_correlation": TotalCorrelation,
    "hsic": Hsic,
    "adversary": Adversary,
    "stratified_tc": StratifiedTotalCorrelation,
    "density_ratio": DensityRatio,
    "dip_one": DipOne,
    "dip_two": DipTwo,
    "guard": Guard,
    "consistency": Consistency,
}


class Objective(nn.Module):
    """A weighted sum of terms.

    Arguments:
        model: The model that draws.
        weights: How much a nat of each term counts; terms that are not named do not count.
        options: What terms need to know besides.
        scans: Scans that training has.
    """

    def __init__(
        self,
        model: PartitionedVAE,
        weights: Mapping[str, float],
        options: ObjectiveSettings | None = None,
        scans: int = 1000,
    ) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.terms = nn.ModuleDict({name: TERMS[name](model, options, scans) for name in self.weights})

    def forward(self, draw: Draw) -> dict[str, Float[Tensor, ""]]:
        """The mean of each term over the batch, in nats a scan, and their weighted sum as ``total``.

        Scans that were chosen for what they share are no sample of the cohort: terms that judge scans together pass
        over them, and keep none of their codes.
        """
        costs = {name: self._cost(term, draw) for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * cost for name, cost in costs.items()]).sum()
        return {**costs, "total": total}

    def _cost(self, term: nn.Module, draw: Draw) -> Float[Tensor, ""]:
        if isinstance(term, Term) and term.together and draw.tie is not None:
            return draw.z.new_zeros(())
        cost: Tensor = term(draw).mean()
        return cost


def too_few_told(weights: Mapping[str, float], batch: int) -> tuple[str, ...]:
    """What to say of terms that mean nothing with so many scans a step."""
    return tuple(
        f"What {name} says is mostly noise with {batch} scans a step; it takes {TERMS[name].needs}. "
        f"Set batch = {TERMS[name].needs} in [training], or use total_correlation, which is made for few."
        for name, weight in weights.items()
        if weight and batch < TERMS[name].needs
    )
