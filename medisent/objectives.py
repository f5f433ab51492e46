"""What training minimises: a weighted sum of terms, each in nats a scan, over one record (the draw)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from monai.losses.dice import DiceLoss
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from medisent.model import Draw, PartitionedVAE


class Term(nn.Module, ABC):
    """One cost, in nats a scan.

    Arguments:
        model: The model that draws; a term may read its factors and its partition.
    """

    def __init__(self, model: PartitionedVAE) -> None:
        super().__init__()
        self.factors = dict(model.factors)
        self.scanner_names = model.scanner_names
        self.shaped = tuple(model.shaped)
        # A tuple keeps the model out of this module's own parameters.
        self._model = (model,)

    @property
    def model(self) -> PartitionedVAE:
        """The model that draws."""
        return self._model[0]

    @abstractmethod
    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        """The cost of each scan, in nats."""


class Distortion(Term):
    """The distortion, -log p(canonical scan | z), over the voxels inside the field of view.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018)
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        likely: Tensor = draw.likelihood.log_prob(draw.canonical) * draw.batch.coverage
        return -likely.sum((1, 2, 3, 4))


class Rate(Term):
    """The rate, KL(q(z | x) || p(z | known factors)).

    References:
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017)
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        learned = draw.q.rate(draw.prior)
        scanner = kl_divergence(
            Normal(draw.before.scanner.stacked(), draw.before.scale), self.model.scanner_prior(len(draw.batch))
        )[:, self.model.active > 0].sum(1)
        return sum((cost for name, cost in learned.items() if name not in self.scanner_names), scanner)


class Readout(Term):
    """-log p(known factors | z); a factor that is not known of a scan costs nothing there."""

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        values = draw.change.plain.values
        total = torch.zeros_like(draw.batch.log_scale)
        for column, name in enumerate(self.factors):
            known = values[:, column].isfinite()
            if not known.any():
                continue
            embedding = self.model.embed(name, torch.where(known, values[:, column], 1.0))
            target = self.factors[name].target(embedding) if name in self.model.heads else embedding[:, 0]
            total = total - torch.where(known, draw.readouts[name].log_prob(target), 0.0)
        return total


class Mask(Term):
    """Soft masks against known ones: the Dice loss plus the mean cross entropy of the voxels, times a thousand.

    In equal parts the two find structures of a few voxels; the cross entropy summed over voxels drowned the Dice loss.

    References:
        | V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation (Milletari et al., 2016)
        | nnU-Net: a self-configuring method for biomedical image segmentation (Isensee et al., 2021)
    """

    def __init__(self, model: PartitionedVAE) -> None:
        super().__init__(model)
        self.dice = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        masks, logits = draw.batch.masks, draw.mask_logits
        if not self.shaped:
            return torch.zeros_like(draw.batch.log_scale)
        known = masks.isfinite().flatten(2).all(2)
        target = torch.where(known[:, :, None, None, None], masks, 0.0)
        entropy = binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3, 4))
        overlap = self.dice(logits, target).flatten(1)
        return 1000 * torch.where(known, entropy + overlap, 0.0).sum(1)


class ScannerChange(Term):
    """-log p(known change of the scanner | estimates before and after it), the scanner's self-supervision.

    Where one estimate is ``theta`` and the change ``delta``, the other has to be ``delta after theta``.
    """

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        if not self.scanner_names:
            return torch.zeros_like(draw.batch.log_scale)
        expected = draw.change.scanner.after(draw.before.scanner).stacked()
        found = draw.after.scanner.stacked()
        shift = torch.zeros_like(found)
        shift[:, 0] = draw.change.log_rescale
        spread = (draw.before.scale.square() + draw.after.scale.square()).sqrt()
        likely: Tensor = Normal(expected - shift, spread).log_prob(found)[:, self.model.active > 0]
        return -likely.sum(1)


class Objective(nn.Module):
    """A weighted sum of terms.

    Arguments:
        model: The model that draws.
        weights: How much a nat of each term counts; terms that are not named do not count.
    """

    def __init__(self, model: PartitionedVAE, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.terms = nn.ModuleDict({name: TERMS[name](model) for name in self.weights})

    def forward(self, draw: Draw) -> dict[str, Float[Tensor, ""]]:
        """The mean of each term over the batch, in nats a scan, and their weighted sum as ``total``."""
        costs = {name: term(draw).mean() for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * cost for name, cost in costs.items()]).sum()
        return {**costs, "total": total}


TERMS: dict[str, type[Term]] = {
    "distortion": Distortion,
    "rate": Rate,
    "readout": Readout,
    "mask": Mask,
    "scanner": ScannerChange,
}
