"""The terms that say how well a draw fits: reconstruction, rate, readouts, masks and the scanner's own supervision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from medisent.config import ObjectiveSettings
from medisent.model import Draw, PartitionedVAE
from medisent.objectives.term import Term
from medisent.processes import ALONE, Crew


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

    A block's rate counts ``beta`` times. With ``free_nats`` a block whose mean rate over the batch is below that costs
    just that, and is not pushed further down; with ``capacity`` each block costs the distance of its mean rate from
    there. The scanner's blocks have no such bounds.

    References:
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017)
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), free bits
        | Understanding disentangling in beta-VAE (Burgess et al., 2018), capacity
    """

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        self.said = {name: self.options.rate_of(name, block.role) for name, block in model.partition.items()}

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        crew, learned = draw.change.crew, draw.q.rate(draw.prior)
        if draw.tie:  # what a group shares is said once for all of it
            learned = {name: cost * crew.own(draw.tie.counted(name)) for name, cost in learned.items()}
        settings = kl_divergence(
            Normal(draw.before.scanner.stacked(), draw.before.scale), self.model.scanner_prior(len(draw.batch))
        )
        for name in self.scanner_names:
            own = self.model.chosen(frozenset([name])).to(settings.device)
            settings = torch.where(own, self.said[name].beta * settings, settings)
        scanner = settings[:, self.model.active > 0].sum(1)
        blocks = (
            self.said[name].beta * bounded_rate(cost, self.said[name].capacity, self.said[name].free_nats, crew)
            for name, cost in learned.items()
            if name not in self.scanner_names and draw.q.partition[name].size
        )
        return sum(blocks, scanner)


def bounded_rate(
    rate: Float[Tensor, " batch"], capacity: float, free: float, crew: Crew = ALONE
) -> Float[Tensor, " batch"]:
    """What a block's rate costs; its mean is |mean rate - capacity|, or the larger of mean rate and free nats."""
    if not capacity and not free:
        return rate
    mean = crew.mean(rate.mean())
    if capacity:
        return (rate - capacity) * torch.sign(mean - capacity)
    return torch.where(mean < free, free, rate)


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
    """Soft masks against known ones: the Dice loss plus a hundred times the mean cross entropy, times a thousand.

    At the edge of a structure a mask is the part of a voxel that it fills. The usual Dice loss is not least where such
    masks agree, and pushes every voxel to one side; the form for soft labels is. It finds structures of a few voxels,
    but a voxel counts for the less the larger its structure is; the cross entropy treats all alike. Summed over voxels
    instead of a hundredfold mean it drowned the Dice loss.

    References:
        | Dice Semimetric Losses: Optimizing the Dice Score with Soft Labels (Wang et al., 2023)
        | V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation (Milletari et al., 2016)
        | nnU-Net: a self-configuring method for biomedical image segmentation (Isensee et al., 2021)
    """

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        self.dice = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0, soft_label=True)

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        masks, logits = draw.batch.masks, draw.mask_logits
        if not self.shaped:
            return torch.zeros_like(draw.batch.log_scale)
        known = masks.isfinite().flatten(2).all(2)
        target = torch.where(known[:, :, None, None, None], masks, 0.0)
        entropy = binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3, 4))
        overlap = self.dice(logits, target).flatten(1)
        return 1000 * torch.where(known, 100 * entropy + overlap, 0.0).sum(1)


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
