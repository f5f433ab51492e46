"""Guards against collapse: how much each block tells of its scan, and how many of its latents are active."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from medisent.config import ObjectiveSettings
from medisent.factors import Partition
from medisent.model import Draw, PartitionedVAE
from medisent.objectives.queue import Queue, amplified
from medisent.objectives.term import Term

ACTIVE = 0.01
"""The variance of a latent's posterior means above which the latent counts as active."""


class Guard(Term):
    """What each block lacks of the information about its scan that it should carry.

    The information is the mean KL of the posteriors from the normal with the moments of all of them, latent by latent,
    over the batch; the moments come from a queue. Blocks placed by a mask or by the scanner carry what they do and are
    left alone.

    References:
        | Understanding disentangling in beta-VAE (Burgess et al., 2018)
        | Lagging Inference Networks and Posterior Collapse in Variational Autoencoders (He et al., 2019)
    """

    together = True

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        left = {*model.shaped, *model.scanner_names}
        self.blocks = [block.where for name, block in model.partition.items() if block.size and name not in left]
        self.queue = Queue(self.options.queue, model.code_size)

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        q = draw.together.q
        loc, scale = (values[:, : self.model.code_size] for values in (q.loc, q.scale))
        rows = self.queue.joined(loc)
        # The noise is of the batch alone; only what a queue dilutes is made up for.
        told = informed(amplified(rows.var(0, unbiased=False), len(loc), len(rows)), scale)
        if self.training:
            self.queue.push(loc)
        lacking = [(self.options.guarded_nats - told[where].sum()).clamp(min=0) for where in self.blocks]
        return torch.stack(lacking).sum().expand(len(loc)) if lacking else 0 * loc.sum(1)


def information(loc: Float[Tensor, "rows latents"], scale: Float[Tensor, "batch latents"]) -> Float[Tensor, " latents"]:
    """What each latent tells of its scan, in nats: half the logarithm of its whole variance over the noise in it."""
    return informed(loc.var(0, unbiased=False), scale)


def informed(signal: Float[Tensor, " latents"], scale: Float[Tensor, "batch latents"]) -> Float[Tensor, " latents"]:
    """The same from the variance of the means."""
    noise = scale.square()
    whole = signal + noise.mean(0)
    return 0.5 * (whole.log() - noise.log().mean(0))


def active_units(loc: Float[Tensor, "rows latents"], partition: Partition) -> dict[str, int]:
    """How many latents of each block are active: their means vary by more than 0.01 over scans.

    References:
        Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2016)
    """
    active = loc.var(0, unbiased=False) > ACTIVE
    return {name: int(active[block.where].sum()) for name, block in partition.items() if block.size}
