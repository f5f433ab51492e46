"""The terms of weak supervision: what clamped batches, ranks and likeness cost. Without them they cost nothing."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.nn.functional import logsigmoid

from medisent.model import Draw
from medisent.objectives.term import Term

# In a clamped batch the published gradient of an inactive latent is its distance from the batch's mean over this.
_PATIENCE = 100.0
# The least mean square of differences, in canonical white squared: copies of one scan may differ in nothing.
_SPECK = 1e-8
# Standard deviations of a factor, over which an order that is right is still thought to be barely so.
_BARELY = 0.1


class Invariance(Term):
    """Half the squared distance of inactive latents from their group's mean, over a hundred, in clamped batches.

    Its gradient with respect to a latent's mean is ``(z - mean) / 100``, which is what teaches inactive latents not to
    follow what varies. Settings of the scanner that a group shares are compared in the scans as they are, since each
    scan's scanner is changed while training; a change of one setting moves others.

    References:
        Deep Convolutional Inverse Graphics Network (Kulkarni, Whitney, Kohli, Tenenbaum, 2015)
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        if draw.tie is None or draw.tie.entry.kind != "clamp":
            return torch.zeros_like(draw.batch.log_scale)
        entry, settings = draw.tie.entry, self.model.settings(draw.before)
        shared = self.model.chosen(entry.alike).to(settings.device)
        still = torch.cat([draw.encoded.loc[:, draw.q.latents(entry.blocks)], settings[:, shared]], 1)
        return _apart(draw, still).square().sum(1) / (2 * _PATIENCE)


class Differences(Term):
    """-log p(what a scan differs in from its group's mean | z) in clamped batches, whose noise is the batch's own.

    The likelihood of scans has one noise for all they differ in, folds and pose too, beside which a factor that changes
    a few voxels is nothing. Here the noise is as large as makes the differences of this batch likeliest, so that the
    mean cost is half the number of voxels times the log of the share of them, squared, that is left: a factor
    that changes little is worth as much as one that changes much.
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        if draw.tie is None or draw.tie.entry.kind != "clamp":
            return torch.zeros_like(draw.batch.log_scale)
        coverage, crew = draw.batch.coverage.flatten(1), draw.change.crew
        scans = (draw.canonical.detach(), draw.likelihood.mean)
        true, drawn = (_apart(draw, images.flatten(1) * coverage) for images in scans)
        left = (true - drawn).square().sum(1)
        voxels = coverage.sum(1) * crew.own(draw.tie.group >= 0)
        there = crew.whole(voxels).sum().clamp(min=1)
        before, after = (crew.whole(sums.detach()).sum() + _SPECK * there for sums in (true.square().sum(1), left))
        variance = after / there
        return (voxels * ((after / before).log() - 1) + left / variance) / 2


def _apart(draw: Draw, values: Float[Tensor, "batch some"]) -> Float[Tensor, "batch some"]:
    """How far each scan's values lie from the mean of its group; zero without a group.

    What is left of a group has no mean, so that a gradient through the mean would be none.
    """
    assert draw.tie is not None
    crew, share = draw.change.crew, draw.tie.together.to(values.dtype)
    share = crew.own(share / share.sum(1, keepdim=True).clamp(min=1))
    return (values - share @ crew.whole(values.detach())) * share.sum(1, keepdim=True)


class Ranks(Term):
    """-log p(a scan's factor is larger than its mate's), the mean over those mates with whom it can be compared.

    The probability is a logistic function of how far the two readouts, standardised, are apart. Scans of which it is
    known that a factor is the same (groups that share it) cost what both orders do, above the least that is.

    References:
        | Rank Analysis of Incomplete Block Designs: The Method of Paired Comparisons (Bradley, Terry, 1952)
        | Learning to Rank using Gradient Descent (Burges et al., 2005)
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        total = torch.zeros_like(draw.batch.log_scale)
        if draw.tie is None or not draw.tie.entry.factors:
            return total
        crew, tie, ranked = draw.change.crew, draw.tie, draw.tie.entry.kind == "ranks"
        above = torch.sign(tie.order[:, None] - tie.order[None])
        others = ~torch.eye(len(above), dtype=torch.bool, device=above.device)
        compared = crew.own(tie.together & ((above.abs() == 1) if ranked else others))
        for name in tie.entry.factors:
            own = standing(draw.readouts[name] if ranked else self._alone(draw, name))
            apart = (own[:, None] - crew.whole(own)[None]) / _BARELY
            costs = -logsigmoid(crew.own(above) * apart) if ranked else unlike(apart)
            total = total + torch.where(compared, costs, 0.0).sum(1) / compared.sum(1).clamp(min=1)
        return total

    def _alone(self, draw: Draw, name: str) -> Distribution:
        """What each scan says of a factor by itself, before its group has agreed on it."""
        found: Distribution = self.model.head(name)(draw.encoded.loc[:, self.model.partition[name].where])
        return found


def unlike(apart: Float[Tensor, "batch step"]) -> Float[Tensor, "batch step"]:
    """What two readouts cost that should be one: both orders are as likely, where they are the same."""
    return -logsigmoid(apart) - logsigmoid(-apart) - 2 * math.log(2)


def standing(readout: Distribution) -> Float[Tensor, " batch"]:
    """Where a readout says a scan stands on a factor's scale: its mean, of levels their mean number, from -1 to 1."""
    if isinstance(readout, Categorical):
        levels = torch.linspace(-1, 1, readout.probs.shape[1], device=readout.probs.device)
        return readout.probs @ levels
    mean: Tensor = readout.mean
    return mean
