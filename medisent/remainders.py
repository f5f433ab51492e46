"""Knows what of some latents others tell already, and takes it out: what remains says something of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Beyond this many standard deviations nobody has looked.
_REACH = 3.0
_FEWEST_A_TERM = 4


class Remainder(nn.Module):
    """What told latents say of others, in lines and parabolas; nothing until it is fitted.

    Taking the prediction off, given the telling latents, is a triangular map: it can be undone exactly.

    Arguments:
        telling: How many latents tell.
        told: Of how many.
    """

    centre: Tensor
    spread: Tensor
    weight: Tensor

    def __init__(self, telling: int, told: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(telling))
        self.register_buffer("spread", torch.ones(telling))
        self.register_buffer("weight", torch.zeros(2 * telling, told))

    @torch.no_grad()
    def fit(self, telling: Float[Tensor, "scans telling"], told: Float[Tensor, "scans told"]) -> None:
        """Fit by ridge regression; with fewer than four scans for each term there is nothing to go by."""
        if len(telling) < _FEWEST_A_TERM * len(self.weight) or not self.weight.numel():
            return
        self.centre.copy_(telling.mean(0))
        self.spread.copy_(telling.std(0).clamp(min=1e-6))
        terms, wanted = self._terms(telling).double(), (told - told.mean(0)).double()
        terms = terms - terms.mean(0)
        ridge = 1e-3 * len(terms) * torch.eye(terms.shape[1], dtype=torch.float64, device=terms.device)
        self.weight.copy_(torch.linalg.solve(terms.T @ terms + ridge, terms.T @ wanted))

    def forward(self, telling: Float[Tensor, "scans telling"]) -> Float[Tensor, "scans told"]:
        """How far from their mean the others are to be expected."""
        return self._terms(telling) @ self.weight

    def _terms(self, telling: Float[Tensor, "scans telling"]) -> Float[Tensor, "scans terms"]:
        steps = ((telling - self.centre) / self.spread).clamp(-_REACH, _REACH)
        return torch.cat([steps, steps.square() - 1], 1)
