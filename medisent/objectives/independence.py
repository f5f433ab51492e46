"""Dependence between blocks of latents, measured over a queue of recent codes: Gaussian total correlation and HSIC."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from medisent.config import ObjectiveSettings
from medisent.factors import Partition
from medisent.model import Draw, PartitionedVAE
from medisent.objectives.guards import ACTIVE
from medisent.objectives.queue import Queue, amplified
from medisent.objectives.term import Term

_RIDGE = 1e-4
_MOST = 0.999


class _Between(Term):
    """A dependence of the posterior's means between groups of blocks.

    A latent whose means hardly vary (see ``ACTIVE``) tells the decoder nothing. Measured by correlations alone it would
    have the largest gradient of all, so it counts as if noise of that variance lay over all means.
    """

    together = True
    unit: Tensor

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        labelled = labelled_blocks(model)
        self.groups = independent_groups(model.partition, labelled, self.options.between)
        self.fixed: list[int] = []
        if self.options.between == "unlabelled":
            self.fixed = [c for name in labelled for c in latents_of(model.partition, name)]
        self.queue = Queue(self.options.queue, model.partition.size)
        settings = model.scanner_prior(1).scale[0, model.active > 0]
        self.register_buffer("unit", torch.cat([torch.ones(model.code_size, device=settings.device), settings]))

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        fresh = draw.together.q.loc.clone()
        fresh[:, self.fixed] = fresh[:, self.fixed].detach()  # taught by their labels; the others have to give way
        codes = (self.queue.joined(fresh) / self.unit).double()
        # Two steps of four scans say nothing yet.
        enough = len(codes) >= min(64, self.options.queue)
        cost = self.dependence(codes) if enough else 0 * fresh.double().sum()
        if self.training:
            self.queue.push(fresh)
        return amplified(cost, len(fresh), len(codes)).to(fresh.dtype).expand(len(fresh))

    def dependence(self, codes: Float[Tensor, "rows latents"]) -> Float[Tensor, ""]:
        """The dependence between the groups, in nats."""
        raise NotImplementedError


class TotalCorrelation(_Between):
    """The Gaussian total correlation between groups of blocks, KL(N(codes) || product over groups of N(group)).

    Half the sum of the groups' log determinants less the joint one's. What a group knows of itself costs nothing, and
    no invertible linear map within a group changes the cost.

    References:
        | Information Theoretical Analysis of Multivariate Correlation (Watanabe, 1960)
        | Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al., 2018)
    """

    def dependence(self, codes: Float[Tensor, "rows latents"]) -> Float[Tensor, ""]:
        return gaussian_total_correlation(
            codes, [[c for block in group for c in block] for group in self.groups], ACTIVE
        )


class Hsic(_Between):
    """The normalised HSIC of each pair of blocks from different groups, as the nats of a Gaussian pair that has it.

    Sees dependence of any form, but in a block of many latents weakly.

    References:
        | Measuring Statistical Dependence with Hilbert-Schmidt Norms (Gretton et al., 2005)
        | Feature Selection via Dependence Maximization (Song et al., 2012), the estimate without bias
        | Information Constraints on Auto-Encoding Variational Bayes (Lopez et al., 2018)
    """

    def dependence(self, codes: Float[Tensor, "rows latents"]) -> Float[Tensor, ""]:
        kernels = [[_kernel(codes[:, block], ACTIVE) for block in group] for group in self.groups]
        total = codes.new_zeros(())
        for ours, theirs in combinations(kernels, 2):
            for one in ours:
                for other in theirs:
                    total = total - 0.5 * (1 - _normalised_hsic(one, other).clamp(max=_MOST)).log()
        return total


def independent_groups(partition: Partition, labelled: Sequence[str], between: str) -> list[list[list[int]]]:
    """Groups of blocks that have to be independent of each other; each block as its latents.

    Arguments:
        partition: The blocks.
        labelled: The blocks of factors with labels.
        between: ``unlabelled``: the labelled blocks together, each other one alone; ``roles``; ``blocks``: each alone.
    """
    groups: dict[str, list[list[int]]] = {}
    for name, block in partition.items():
        if block.size:
            own = "" if name in labelled else name
            key = {"unlabelled": own, "roles": block.role, "blocks": name}[between]
            groups.setdefault(key, []).append(latents_of(partition, name))
    return list(groups.values())


def labelled_blocks(model: PartitionedVAE) -> tuple[str, ...]:
    """The blocks of factors that a column or a mask tells."""
    return tuple(name for name, factor in model.factors.items() if factor.column or factor.mask)


def latents_of(partition: Partition, name: str) -> list[int]:
    """The latents of a block."""
    return list(range(partition.size))[partition[name].where]


def gaussian_total_correlation(
    codes: Float[Tensor, "rows latents"], groups: Sequence[Sequence[int]], floor: float = 1e-8
) -> Float[Tensor, ""]:
    """The total correlation between groups of columns if the rows were normal, in nats.

    Each group is whitened; then the correlations between groups are shrunk by as much as chance makes of them,
    latents / (rows + latents), so that it is defined however few rows there are.

    Arguments:
        codes: The latents.
        groups: Columns of each group.
        floor: Variance of noise in each latent.
    """
    columns = [column for group in groups for column in group]
    codes = _standardised(codes[:, columns], floor)
    eye = torch.eye(len(columns), dtype=codes.dtype, device=codes.device)
    joint = codes.T @ codes / len(codes)
    joint = joint + torch.diag(1 - joint.diagonal()) + _RIDGE * eye
    sizes = [len(group) for group in groups]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    white = torch.block_diag(
        *(
            torch.linalg.inv(torch.linalg.cholesky(joint[start : start + size, start : start + size]))
            for start, size in zip(starts, sizes, strict=True)
        )
    )
    shrink = len(columns) / (len(codes) + len(columns))
    total: Tensor = -0.5 * torch.linalg.slogdet((1 - shrink) * white @ joint @ white.T + shrink * eye).logabsdet
    return total


def _standardised(codes: Float[Tensor, "rows latents"], floor: float) -> Float[Tensor, "rows latents"]:
    centred = codes - codes.mean(0)
    return centred / (centred.square().mean(0) + floor).sqrt()


def _kernel(codes: Float[Tensor, "rows latents"], floor: float = 1e-8) -> Float[Tensor, "rows rows"]:
    """Gaussian kernel of the standardised rows, as wide as their median distance, with zeros along the diagonal."""
    codes = _standardised(codes, floor)
    size = codes.square().sum(1)
    distance = (size[:, None] + size[None] - 2 * codes @ codes.T).clamp(min=0)
    apart = ~torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    width = distance.detach()[apart].median().clamp(min=1e-6)
    return torch.where(apart, (-distance / width).exp(), 0.0)


def _hsic(one: Float[Tensor, "rows rows"], other: Float[Tensor, "rows rows"]) -> Float[Tensor, ""]:
    """HSIC without bias (zero on average where nothing depends on anything), of kernels without their diagonals."""
    n = len(one)
    total: Tensor = (
        (one * other).sum() + one.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 * (one.sum(0) @ other.sum(0)) / (n - 2)
    )
    return total / (n * (n - 3))


def _normalised_hsic(one: Float[Tensor, "rows rows"], other: Float[Tensor, "rows rows"]) -> Float[Tensor, ""]:
    scale = (_hsic(one, one).clamp(min=1e-12) * _hsic(other, other).clamp(min=1e-12)).sqrt()
    return _hsic(one, other) / scale
