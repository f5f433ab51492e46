"""The posterior over a partitioned latent: a diagonal Gaussian that knows its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from medisent.factors import Partition


@dataclass(frozen=True, eq=False)
class PartitionedNormal:
    """Independent normal latents, in named blocks.

    Attributes:
        loc: Means.
        scale: Standard deviations.
        partition: Which latents belong to whom.
    """

    loc: Float[Tensor, "batch latents"]
    scale: Float[Tensor, "batch latents"]
    partition: Partition

    def __getitem__(self, name: str) -> Normal:
        """The normal distribution of one block."""
        where = self.partition[name].where
        return Normal(self.loc[:, where], self.scale[:, where])

    def rsample(self) -> Float[Tensor, "batch latents"]:
        """One sample a scan, through which gradients pass."""
        return self.loc + self.scale * torch.randn_like(self.scale)

    def rate(self, prior: PartitionedNormal) -> dict[str, Float[Tensor, " batch"]]:
        """KL(self || prior) of each block, in nats."""
        return {name: kl_divergence(self[name], prior[name]).sum(1) for name in self.partition}

    def shared(self, group: Tensor, blocks: frozenset[str]) -> PartitionedNormal:
        """The posterior in which scans of one group agree on these blocks: the product of their posteriors.

        Arguments:
            group: One number a scan; equal numbers are one group, negative ones are alone.
            blocks: The blocks on which a group agrees; the others stay as they are.

        References:
            Multi-Level Variational Autoencoder (Bouchacourt, Tomioka, Nowozin, 2018)
        """
        together = (group[:, None] == group[None]) & (group[:, None] >= 0) | torch.eye(
            len(group), dtype=torch.bool, device=group.device
        )
        weight = together.to(self.loc.dtype)
        precision = self.scale.square().reciprocal()
        pooled = weight @ precision
        loc, scale = (weight @ (precision * self.loc)) / pooled, pooled.rsqrt()
        chosen = torch.tensor(
            [name in blocks for name, block in self.partition.items() for _ in range(block.size)], device=group.device
        )
        return PartitionedNormal(
            torch.where(chosen, loc, self.loc), torch.where(chosen, scale, self.scale), self.partition
        )
