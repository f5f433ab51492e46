"""The terms of weak supervision: what clamped batches and ranks cost. Without them they cost nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.nn.functional import logsigmoid

from medisent.model import Draw
from medisent.objectives.term import Term

# In a clamped batch the published gradient of an inactive latent is its distance from the batch's mean over this.
_PATIENCE = 100.0
# Standard deviations of a factor, over which an order that is right is still thought to be barely so.
_BARELY = 0.1


class Invariance(Term):
    """Half the squared distance of inactive latents from their group's mean, over a hundred, in clamped batches.

    Its gradient with respect to a latent's mean is ``(z - mean) / 100``, which is what teaches inactive latents not to
    follow what varies.

    References:
        Deep Convolutional Inverse Graphics Network (Kulkarni, Whitney, Kohli, Tenenbaum, 2015)
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        if draw.tie is None or draw.tie.entry.kind != "clamp":
            return torch.zeros_like(draw.batch.log_scale)
        away = draw.encoded.loc - draw.q.loc.detach()
        return away.square()[:, draw.q.latents(draw.tie.entry.blocks)].sum(1) / (2 * _PATIENCE)


class Ranks(Term):
    """-log p(a scan's factor is larger than its mate's), the mean over those mates with whom it can be compared.

    The probability is a logistic function of how far the two readouts, standardised, are apart.

    References:
        | Rank Analysis of Incomplete Block Designs: The Method of Paired Comparisons (Bradley, Terry, 1952)
        | Learning to Rank using Gradient Descent (Burges et al., 2005)
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        total = torch.zeros_like(draw.batch.log_scale)
        if draw.tie is None or draw.tie.entry.kind != "ranks":
            return total
        crew, order = draw.change.crew, draw.tie.order
        above = crew.own(torch.sign(order[:, None] - order[None]))
        compared = crew.own(draw.tie.together) & (above.abs() == 1)
        mates = compared.sum(1).clamp(min=1)
        for name in draw.tie.entry.factors:
            own = standing(draw.readouts[name])
            costs = -logsigmoid(above * (own[:, None] - crew.whole(own)[None]) / _BARELY)
            total = total + torch.where(compared, costs, 0.0).sum(1) / mates
        return total


def standing(readout: Distribution) -> Float[Tensor, " batch"]:
    """Where a readout says a scan stands on a factor's scale: its mean, of levels their mean number, from -1 to 1."""
    if isinstance(readout, Categorical):
        levels = torch.linspace(-1, 1, readout.probs.shape[1], device=readout.probs.device)
        return readout.probs @ levels
    mean: Tensor = readout.mean
    return mean
