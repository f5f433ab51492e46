"""Knows what of some latents others tell already, and which of them answer to the scanner: each is put in its place."""

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
    def fit(
        self,
        telling: Float[Tensor, "scans telling"],
        told: Float[Tensor, "scans told"],
        beside: Float[Tensor, "scans beside"],
    ) -> None:
        """Fit by ridge regression; with fewer than four scans for each term there is nothing to go by.

        Args:
            telling: The latents that tell.
            told: Those of which they tell.
            beside: Others that may go with both and explain a share that is theirs: left out of the regression, it
                would be laid to the telling latents, and what is taken off for it would make the told ones tell them.
        """
        size = self.weight.shape[0]
        if len(telling) < _FEWEST_A_TERM * (size + 2 * beside.shape[1]) or not self.weight.numel():
            return
        told_by = torch.cat([telling, beside], 1)
        centre, spread = told_by.mean(0), told_by.std(0).clamp(min=1e-6)
        own = telling.shape[1]
        self.centre.copy_(centre[:own])
        self.spread.copy_(spread[:own])
        others = _terms(beside, centre[own:], spread[own:])
        terms = torch.cat([_terms(telling, self.centre, self.spread), others], 1).double()
        terms, wanted = terms - terms.mean(0), (told - told.mean(0)).double()
        ridge = 1e-3 * len(terms) * torch.eye(terms.shape[1], dtype=torch.float64, device=terms.device)
        self.weight.copy_(torch.linalg.solve(terms.T @ terms + ridge, terms.T @ wanted)[:size])

    def forward(self, telling: Float[Tensor, "scans telling"]) -> Float[Tensor, "scans told"]:
        """How far from their mean the others are to be expected."""
        return _terms(telling, self.centre, self.spread) @ self.weight


def _terms(
    latents: Float[Tensor, "scans latents"], centre: Float[Tensor, " latents"], spread: Float[Tensor, " latents"]
) -> Float[Tensor, "scans terms"]:
    """Lines and parabolas in standardised latents."""
    steps = ((latents - centre) / spread).clamp(-_REACH, _REACH)
    return torch.cat([steps, steps.square() - 1], 1)


class Turn(nn.Module):
    """A change of coordinates that brings what answers to unwanted changes into the last latents.

    Nothing is lost: the others are deaf to the directions that answered most, and turning back is exact. Nothing is
    turned until it is fitted.

    Arguments:
        latents: How many are turned.

    References:
        Nuisance attribute projection, which drops such directions: Advances in Channel Compensation for SVM Speaker
        Recognition (Solomonoff, Campbell, Boardman, 2005)
    """

    matrix: Tensor
    inverse: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(latents))
        self.register_buffer("inverse", torch.eye(latents))

    @torch.no_grad()
    def fit(
        self,
        answers: Float[Tensor, "changes latents"],
        last: int,
        *,
        spread: Float[Tensor, "latents latents"] | None = None,
    ) -> None:
        """Choose the coordinates; with fewer than four changes for each latent there is nothing to go by.

        Args:
            answers: By how much the latents changed.
            last: How many of the last latents are to take what answers most.
            spread: Covariance of the latents among all scans. Answers then count as shares of it, and turned latents
                have unit variance; else they count as they are, and the turn is a rotation.
        """
        if not last or len(answers) < _FEWEST_A_TERM * answers.shape[1] or not answers.any():
            return
        away, home = _whitening(torch.eye(answers.shape[1]) if spread is None else spread)
        directions = torch.linalg.svd(answers.double() @ away, full_matrices=True).Vh
        strongest, others = directions[:last].T, directions[last:].T
        # The others stay as near to what they were as they can.
        left, _, right = torch.linalg.svd(others[:-last].T)
        turned = torch.cat([others @ left @ right, strongest], 1)
        self.matrix.copy_(away @ turned)
        self.inverse.copy_(turned.T @ home)

    def forward(self, latents: Float[Tensor, "scans latents"]) -> Float[Tensor, "scans latents"]:
        """The latents, turned."""
        return latents @ self.matrix

    def back(self, latents: Float[Tensor, "scans latents"]) -> Float[Tensor, "scans latents"]:
        """What was turned into these."""
        return latents @ self.inverse

    def deviations(self, scale: Float[Tensor, "scans latents"]) -> Float[Tensor, "scans latents"]:
        """The standard deviations of turned latents whose own are these."""
        return (scale.square() @ self.matrix.square()).sqrt()


def _whitening(
    spread: Float[Tensor, "latents latents"],
) -> tuple[Float[Tensor, "latents latents"], Float[Tensor, "latents latents"]]:
    """The symmetric map to unit variance and its inverse; hardly any variance counts as a thousandth of the largest."""
    variances, axes = torch.linalg.eigh(spread.double())
    deviations = variances.clamp(min=1e-3 * float(variances.max())).sqrt()
    return (axes / deviations) @ axes.T, (axes * deviations) @ axes.T
