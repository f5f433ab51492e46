"""The posterior over a partitioned latent: a diagonal Gaussian that knows its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from medisent.factors import Partition

Pool = Literal["product", "mean"]


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

    def latents(self, blocks: frozenset[str]) -> Bool[Tensor, " latents"]:
        """Which latents belong to these blocks."""
        return torch.tensor(
            [name in blocks for name, block in self.partition.items() for _ in range(block.size)],
            device=self.loc.device,
        )

    def shared(self, group: Int[Tensor, " batch"], blocks: frozenset[str], pool: Pool = "product") -> PartitionedNormal:
        """The posterior in which scans of one group agree on these blocks.

        Arguments:
            group: One number a scan; equal numbers are one group, negative ones are alone.
            blocks: The blocks on which a group agrees; the others stay as they are.
            pool: ``product`` of their posteriors, so that precisions add up, or ``mean`` of their means and variances.

        References:
            | Multi-Level Variational Autoencoder (Bouchacourt, Tomioka, Nowozin, 2018), the product
            | Group-based Learning of Disentangled Representations with Generalizability for Novel Contents (Hosoya,
              2019), the mean
        """
        return self._where(self.latents(blocks), self._pooled(group, pool))

    def adapted(
        self, group: Int[Tensor, " batch"], blocks: frozenset[str], pool: Pool = "product"
    ) -> PartitionedNormal:
        """The posterior in which pairs agree on those latents, of these blocks, that hardly tell the two apart.

        How far a latent tells a pair apart is the symmetric divergence of its two posteriors. Shared is what lies below
        the middle between the least and the most of them.

        Arguments:
            group: One number a scan; two scans of one number are a pair, negative ones are alone.
            blocks: The blocks that a pair may share.
            pool: As ``shared`` has it.

        References:
            Weakly-Supervised Disentanglement Without Compromises (Locatello et al., 2020), Ada-GVAE and Ada-ML-VAE
        """
        may = self.latents(blocks)
        if not may.any():
            return self
        mates = together(group) & ~torch.eye(len(group), dtype=torch.bool, device=group.device)
        with torch.no_grad():
            mate = torch.where(mates.any(1), mates.int().argmax(1), torch.arange(len(group), device=group.device))
            mine, other = Normal(self.loc, self.scale), Normal(self.loc[mate], self.scale[mate])
            apart = kl_divergence(mine, other) + kl_divergence(other, mine)
            candidates = apart[:, may]
            middle = (candidates.amin(1) + candidates.amax(1)) / 2
            agreed = may & (apart < middle[:, None])
        return self._where(agreed, self._pooled(group, pool))

    def clamped(self, group: Int[Tensor, " batch"], blocks: frozenset[str]) -> PartitionedNormal:
        """The posterior in which these blocks are, in all scans of a group, the group's mean, and pass no gradient.

        References:
            Deep Convolutional Inverse Graphics Network (Kulkarni, Whitney, Kohli, Tenenbaum, 2015)
        """
        pooled = self._pooled(group, "mean")
        still = PartitionedNormal(pooled.loc.detach(), pooled.scale.detach(), self.partition)
        alone = (at_one(group).sum(1) == 1)[:, None]
        return self._where(self.latents(blocks) & ~alone, still)

    def _pooled(self, group: Int[Tensor, " batch"], pool: Pool) -> PartitionedNormal:
        """For each scan what its group, or it alone, agrees on, of all latents."""
        weight = at_one(group).to(self.loc.dtype)
        if pool == "mean":
            weight = weight / weight.sum(1, keepdim=True)
            return PartitionedNormal(weight @ self.loc, (weight @ self.scale.square()).sqrt(), self.partition)
        precision = self.scale.square().reciprocal()
        pooled = weight @ precision
        return PartitionedNormal((weight @ (precision * self.loc)) / pooled, pooled.rsqrt(), self.partition)

    def _where(self, chosen: Bool[Tensor, "*rows latents"], other: PartitionedNormal) -> PartitionedNormal:
        """The other posterior where chosen, this one elsewhere."""
        return PartitionedNormal(
            torch.where(chosen, other.loc, self.loc), torch.where(chosen, other.scale, self.scale), self.partition
        )


def together(group: Int[Tensor, " batch"]) -> Bool[Tensor, "batch batch"]:
    """Which scans are of one group; those without a group are not even their own mates."""
    return (group[:, None] == group[None]) & (group[:, None] >= 0)


def at_one(group: Int[Tensor, " batch"]) -> Bool[Tensor, "batch batch"]:
    """Which scans are of one group; each that has none is of one with itself."""
    return together(group) | torch.eye(len(group), dtype=torch.bool, device=group.device)
