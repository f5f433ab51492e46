"""Terms of well-known methods, for comparison: beta-TCVAE, FactorVAE, DIP-VAE I and II."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from medisent.config import ObjectiveSettings
from medisent.model import Draw, PartitionedVAE
from medisent.objectives.queue import Queue, amplified
from medisent.objectives.term import Term


class StratifiedTotalCorrelation(Term):
    """The total correlation of the latents, by minibatch-stratified sampling; beta - 1 of beta-TCVAE is its weight.

    At the four scans a step of a volume it says little: independent and correlated codes both came out at 7.2 nats for
    batches of 8.

    References:
        Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al., 2018)
    """

    together = True
    needs = 64

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        size = self.model.code_size
        step = draw.together
        z, loc, scale = (values[:, :size] for values in (step.z, step.q.loc, step.q.scale))
        return stratified_total_correlation(z, loc, scale, max(self.scans, len(z)))


def stratified_total_correlation(
    z: Float[Tensor, "batch latents"],
    loc: Float[Tensor, "batch latents"],
    scale: Float[Tensor, "batch latents"],
    scans: int,
) -> Float[Tensor, " batch"]:
    """Log q(z) - sum over latents of log q(z_j) at each sample, with q(z) estimated from the batch, in nats.

    Arguments:
        z: A sample of each scan's posterior.
        loc: Means of the posteriors.
        scale: Their standard deviations.
        scans: Size of the cohort from which the batch was drawn.
    """
    batch = len(z)
    likely = torch.distributions.Normal(loc[None], scale[None]).log_prob(z[:, None])
    weights = _stratified_weights(batch, scans).to(z).log()[:, :, None]
    whole = (likely.sum(2) + weights[:, :, 0]).logsumexp(1)
    ratio: Tensor = whole - (likely + weights).logsumexp(1).sum(1)
    return ratio


def _stratified_weights(batch: int, scans: int) -> Float[Tensor, "batch batch"]:
    """How much each posterior of a batch stands for in the cohort's, seen from each row's scan; rows sum to 1."""
    if batch == 1:
        return torch.ones(1, 1)
    weights = torch.full((batch, batch), (scans - 1) / (scans * (batch - 1)))
    return weights.fill_diagonal_(1 / scans)


class DensityRatio(Term):
    """The total correlation of the latents as FactorVAE has it: a discriminator tells codes from permuted ones.

    The logarithm of the odds with which it takes a code for a true one is the cost. Its own loss, which does not reach
    the model, comes with the same weight. Permuted codes are made from a queue of recent ones: permuting four does
    nothing. Of independent codes it says up to a nat a scan all the same where a step brings only four new ones, and
    more where the cohort is small enough to be learned by heart.

    References:
        Disentangling by Factorising (Kim and Mnih, 2018)
    """

    together = True
    needs = 16

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        width = 64
        self.queue = Queue(self.options.queue, model.code_size)
        self.discriminator = nn.Sequential(
            nn.Linear(model.code_size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        fresh = draw.together.z[:, : self.model.code_size]
        kept = self.queue.joined(fresh.detach())
        if self.training:
            self.queue.push(fresh)
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        odds: Tensor = functional_call(self.discriminator, frozen, (fresh,))[:, 0]
        loss = softplus(-self.discriminator(kept)).mean() + softplus(self.discriminator(permuted(kept))).mean()
        return odds + (loss - loss.detach())


def permuted(codes: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
    """Codes in which each latent comes from a scan of its own: a sample of the product of the marginals."""
    order = torch.rand(codes.shape, device=codes.device).argsort(0)
    return codes.gather(0, order)


class DipOne(Term):
    """DIP-VAE-I: the covariance of the posterior's means over a queue, squared away from the identity.

    Ten times as much for the diagonal as for the rest, as published; counted as nats.

    References:
        Variational Inference of Disentangled Latent Concepts from Unlabeled Observations (Kumar, Sattigeri and
            Balakrishnan, 2018)
    """

    together = True
    diagonal = 10.0

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        self.queue = Queue(self.options.queue, model.code_size)

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        fresh = draw.together.q.loc[:, : self.model.code_size]
        codes = self.queue.joined(fresh)
        if self.training:
            self.queue.push(fresh)
        centred = codes - codes.mean(0)
        between = centred.T @ centred / max(1, len(codes) - 1)
        # What the spread adds is of the batch alone, and its gradient is whole already.
        covariance = amplified(between, len(fresh), len(codes)) + self.within(draw)
        return away_from_identity(covariance, self.diagonal).expand(len(fresh))

    def within(self, draw: Draw) -> Float[Tensor, "latents latents"] | float:
        """What the posteriors' own spread adds to the covariance."""
        return 0.0


class DipTwo(DipOne):
    """DIP-VAE-II: the covariance of samples, that of the means plus the mean variance, squared away from the identity.

    Diagonal and rest count alike, as published.

    References:
        Variational Inference of Disentangled Latent Concepts from Unlabeled Observations (Kumar, Sattigeri and
            Balakrishnan, 2018)
    """

    diagonal = 1.0

    def within(self, draw: Draw) -> Float[Tensor, "latents latents"] | float:
        return torch.diag(draw.together.q.scale[:, : self.model.code_size].square().mean(0))


def away_from_identity(covariance: Float[Tensor, "latents latents"], diagonal: float) -> Float[Tensor, ""]:
    """Squared distances of a covariance's entries from the identity's, those of the diagonal weighted."""
    own = covariance.diagonal()
    beside = covariance - torch.diag(own)
    return beside.square().sum() + diagonal * (own - 1).square().sum()
