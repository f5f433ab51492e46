"""The networks: what turns voxels into features, features into masks and latents into scans. Know no factor, no file.

All of them work on the grid halved by a space-to-depth step, at an eighth of the cost of full-resolution
convolutions; the last layer convolves before it goes back to full resolution. Any grid shape is padded to fit.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.upsample import UpSample
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate, pad

from medisent.processes import ALONE, Crew

# Group normalisation would hide brightness and contrast, so only networks that see canonical scans have it.
_NORM = ("group", {"num_groups": 4})
_ACT = ("leakyrelu", {"inplace": True, "negative_slope": 0.1})
# Below this share of a scan's scale lie air and noise.
_DARK = 0.2
# Channels at half resolution that the lean mask decoder adds to the voxels.
_LAST = 8
# Units of each of the two hidden layers of a decoder that has no nonlinearity of its own.
_HIDDEN = 256

Family = Literal["fine", "lean"]
"""Which networks: with features at half the grid's resolution, or with fewer convolutions, at coarser ones."""


class Encoder(nn.Module):
    """Features of a scan at every resolution, from half of the grid's down to a few voxels.

    Arguments:
        shape: Of the grid.
        channels: Of the input, which is at half resolution already (see ``halved``).
        width: Channels at half resolution; twice as many at each coarser one, up to four times (lean: six).
        family: The lean one begins at a quarter of the resolution and has one convolution a resolution, not three.
        normalised: Whether features are group-normalised.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        width: int,
        *,
        family: Family = "fine",
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.family = shape, family
        self.levels = max(1, round(math.log2(max(shape) / 8)))
        self.padded = padded_shape(shape, self.levels)
        norm = _NORM if normalised else None
        stages: list[nn.Module]
        if family == "lean":
            self.widths = [min(6, 2 << level) * width for level in range(self.levels)]
            self.stem = Convolution(3, channels, self.widths[0], strides=2, kernel_size=3, act=_ACT, norm=norm)
            stages = [
                Convolution(3, fine, coarse, strides=2, kernel_size=3, act=_ACT, norm=norm)
                for fine, coarse in pairwise(self.widths)
            ]
        else:
            self.widths = [min(4, 1 << level) * width for level in range(self.levels + 1)]
            self.stem = Convolution(3, channels, width, kernel_size=3, act=_ACT, norm=norm)
            stages = [
                nn.Sequential(
                    Convolution(3, fine, coarse, strides=2, kernel_size=3, act=_ACT, norm=norm),
                    ResidualUnit(3, coarse, coarse, subunits=2, kernel_size=3, act=_ACT, norm=norm),
                )
                for fine, coarse in pairwise(self.widths)
            ]
        self.stages = nn.ModuleList(stages)

    @property
    def bottom(self) -> tuple[int, int, int]:
        """Shape of the coarsest features."""
        step = 1 << (self.levels + 1)
        x, y, z = (side // step for side in self.padded)
        return x, y, z

    @property
    def bottom_size(self) -> int:
        """Numbers in the coarsest features."""
        x, y, z = self.bottom
        return self.widths[-1] * x * y * z

    def forward(self, image: Float[Tensor, "batch channels _ _ _"]) -> list[Float[Tensor, "batch _ _ _ _"]]:
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class MaskDecoder(nn.Module):
    """Logits of soft masks from an encoder's features, with skip connections up to the voxels themselves.

    References:
        U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger, Fischer, Brox, 2015)
    """

    def __init__(self, encoder: Encoder, masks: int) -> None:
        super().__init__()
        self.shape, self.padded = encoder.shape, encoder.padded
        widths = encoder.widths
        self.rises = nn.ModuleList(
            UpSample(3, coarse, fine, scale_factor=2, mode="deconv")
            for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.joins = nn.ModuleList(
            nn.Sequential(
                Convolution(3, 2 * fine, fine, kernel_size=3, act=_ACT, norm=_NORM),
                ResidualUnit(3, fine, fine, subunits=1, kernel_size=3, act=_ACT, norm=_NORM),
            )
            for fine in widths[-2::-1]
        )
        finest = widths[0]
        self.finest: nn.Module = nn.Identity()
        if encoder.family == "lean":  # which has no features at half resolution
            finest = _LAST
            self.finest = UpSample(3, widths[0], finest, scale_factor=2, mode="deconv")
        self.last = nn.Conv3d(finest + 8, masks * 8, kernel_size=3, padding=1)

    def forward(
        self, features: list[Float[Tensor, "batch _ _ _ _"]], image: Float[Tensor, "batch 1 x y z"]
    ) -> Float[Tensor, "batch masks x y z"]:
        current = features[-1]
        for rise, join, skip in zip(self.rises, self.joins, features[-2::-1], strict=True):
            current = join(torch.cat([rise(current), skip], 1))
        voxels = halved(image, self.padded)
        return fitted(pixelshuffle(self.last(torch.cat([self.finest(current), voxels], 1)), 3, 2), self.shape)


class Decoder(nn.Module):
    """A scan from latents: linear, then up to half resolution, then depth-to-space.

    The lean family rises by transposed convolutions of overlapping cubes, also to half resolution, where it computes
    nothing else. On a grid so small that it does not rise before that, hidden layers stand between the latents and the
    bottom: without them it would be linear, and a linear decoder draws a mean head plus fixed patterns.
    """

    def __init__(self, encoder: Encoder, latents: int) -> None:
        super().__init__()
        self.shape = encoder.shape
        self.bottom = encoder.bottom
        widths = encoder.widths
        self.first: nn.Module = nn.Linear(latents, encoder.bottom_size)
        if encoder.family == "lean" and len(widths) == 1:
            self.first = nn.Sequential(
                *(nn.Linear(latents, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU()),
                nn.Linear(_HIDDEN, encoder.bottom_size),
            )
        rise = _lean_rise if encoder.family == "lean" else _fine_rise
        self.rises = nn.ModuleList(
            rise(coarse, fine) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.last: nn.Module = nn.Conv3d(widths[0], 8, kernel_size=3, padding=1)
        if encoder.family == "lean":
            self.last = nn.ConvTranspose3d(widths[0], 8, kernel_size=4, stride=2, padding=1)

    def forward(self, latents: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch 1 x y z"]:
        current = self.first(latents).reshape(len(latents), -1, *self.bottom)
        for rise in self.rises:
            current = rise(current)
        return fitted(pixelshuffle(self.last(current), 3, 2), self.shape)


def _fine_rise(coarse: int, fine: int) -> nn.Module:
    """To twice the resolution, then a convolution there."""
    return nn.Sequential(
        UpSample(3, coarse, fine, scale_factor=2, mode="deconv"),
        Convolution(3, fine, fine, kernel_size=3, act=_ACT, norm=_NORM),
    )


def _lean_rise(coarse: int, fine: int) -> nn.Module:
    """To twice the resolution, each voxel from eight of its neighbours' cubes."""
    return nn.Sequential(
        nn.ConvTranspose3d(coarse, fine, kernel_size=4, stride=2, padding=1),
        nn.GroupNorm(4, fine),
        nn.LeakyReLU(0.1, inplace=True),
    )


def with_local_contrast(
    image: Float[Tensor, "batch 1 x y z"], coverage: Float[Tensor, "batch 1 x y z"], padded: tuple[int, int, int]
) -> Float[Tensor, "batch 19 _ _ _"]:
    """What an encoder gets to see, at half resolution: an image, its coverage and its local contrast.

    Local contrast is by how much the image exceeds its mean over neighbourhoods about 3, 5 and 9 voxels wide; the
    narrowest at the voxels themselves, as the image, the wider ones as means over eight.
    Small bright or dark structures are what these show and what an encoder takes longest to find by itself: without
    them a tumour's mask stayed near empty for a thousand steps, with them for a few hundred.

    Arguments:
        image: Canonical scans.
        coverage: The part of each voxel that is inside the field of view.
        padded: Shape that can be halved; the scans are padded to it.
    """
    contrasts, mean = [], image
    means = [_box_mean(side).to(image) for side in image.shape[2:]]
    for repeats in (1, 1, 2):
        for _ in range(repeats):
            mean = torch.einsum("bcxyz,xi,yj,zk->bcijk", mean, *means)
        contrasts.append(3 * (image - mean))
    fine, coarse = torch.cat([image, contrasts[0]], 1), torch.cat([*contrasts[1:], coverage], 1)
    return torch.cat([halved(fine, padded), avg_pool3d(fitted(coarse, padded), 2)], 1)


def halved(
    image: Float[Tensor, "batch channels x y z"], padded: tuple[int, int, int]
) -> Float[Tensor, "batch _ _ _ _"]:
    """An image at half resolution that has lost nothing: eight channels for each of its own."""
    channels: Tensor = pixelunshuffle(fitted(image, padded), 3, 2)
    return channels


def _box_mean(side: int) -> Float[Tensor, "side side"]:
    """The matrix that takes the mean of each voxel and its two neighbours along an axis; fewer at the ends."""
    near = (torch.arange(side)[:, None] - torch.arange(side)).abs() <= 1
    return near / near.sum(0, keepdim=True)


class Standardised(nn.Module):
    """Features less their mean over recent scans, divided by their standard deviation.

    Bottom features are alike in all scans but for a tenth of their size; a network whose hidden layer is normalised
    for each scan by itself would see little of what sets scans apart. A batch of a few scans is too small to
    normalise by, so running moments serve, in training as later.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("seen", torch.zeros(()))
        self.latest: Tensor | None = None

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        if self.training and self.latest is None:  # not what a term of the objective encodes again
            self.latest = features.detach()
        return (features - self.mean) / (self.variance + 0.1 * self.variance.mean() + 1e-8).sqrt()

    def learn(self, crew: Crew = ALONE) -> None:
        """Let the moments take in the batch that was seen first, of all processes; none is taken in twice."""
        if self.latest is None:
            return
        rate = 1 / (1 + self.seen.clamp(max=99))
        steps = self.latest - self.mean
        if self.seen > 0:  # about the mean before this batch, as few scans lie nearer to their own
            self.variance.lerp_(crew.mean(steps.square().mean(0)), rate)
        self.mean.add_(rate * crew.mean(steps.mean(0)))
        self.seen.add_(1)
        self.latest = None


class Perceptron(nn.Module):
    """A network of two linear maps with a rectifier between.

    The hidden layer is normalised over its units: from thousands of inputs a few steps of Adam would else drive it so
    far down that no gradient ever passed again.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, standardised: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *([Standardised(inputs)] if standardised else []),
            nn.Linear(inputs, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            *([Standardised(hidden)] if standardised else []),
            nn.Linear(hidden, outputs),
        )

    def forward(self, inputs: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        outputs: Tensor = self.layers(inputs)
        return outputs


class ScannerEncoder(nn.Module):
    """Settings of the scanner from how intensities are spread (quantiles) and where (a small encoder without norms).

    It sees nothing below a fifth of a scan's scale: a change made for training moves the noise of air along, a true
    exponent does not, and the estimate would go by that. It sees up to 32 voxels along the longest axis: in voxels
    of 12 mm no tissue is left unmixed, by whose intensity gain and bias field could be told.

    Arguments:
        shape: Of the grid.
        width: Of the encoder.
        settings: How many numbers to estimate; as many log standard deviations follow them.
    """

    QUANTILES = 32
    LONGEST = 32

    def __init__(self, shape: tuple[int, int, int], width: int, settings: int) -> None:
        super().__init__()
        share = min(1.0, self.LONGEST / max(shape))
        x, y, z = (max(8, math.ceil(side * share)) for side in shape)
        self.encoder = Encoder((x, y, z), 16, width, normalised=False)
        self.head = Perceptron(self.encoder.bottom_size + self.QUANTILES, 128, 2 * settings)
        last = self.head.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.weight.mul_(0.1)

    def forward(
        self, scan: Float[Tensor, "batch 1 x y z"], coverage: Float[Tensor, "batch 1 x y z"]
    ) -> Float[Tensor, "batch outputs"]:
        seen = torch.cat([scan.clamp(min=_DARK), coverage], 1)
        if seen.shape[2:] != self.encoder.shape:
            seen = interpolate(seen, self.encoder.shape, mode="area")
        features = self.encoder(halved(seen, self.encoder.padded))
        spread = torch.cat([tissue_quantiles(s, self.QUANTILES) for s in scan])
        outputs: Tensor = self.head(torch.cat([features[-1].flatten(1), spread], 1))
        return outputs


def tissue_quantiles(scan: Float[Tensor, "1 x y z"], count: int) -> Float[Tensor, "1 count"]:
    """Quantiles, evenly spaced, of the intensities above a fifth of the scan's scale (1 after normalisation)."""
    tissue = scan[scan > _DARK]
    if tissue.numel() < count:
        tissue = scan.flatten()
    levels = torch.linspace(0.01, 0.99, count, device=scan.device)
    return torch.quantile(tissue[:: max(1, tissue.numel() // 4096)], levels)[None]


def padded_shape(shape: tuple[int, int, int], levels: int) -> tuple[int, int, int]:
    """The smallest shape at least as large that can be halved ``levels + 1`` times."""
    step = 2 ** (levels + 1)
    x, y, z = (-(-side // step) * step for side in shape)
    return x, y, z


def fitted(
    image: Float[Tensor, "batch channels _ _ _"], shape: tuple[int, int, int]
) -> Float[Tensor, "batch channels x y z"]:
    """The image padded with zeros, or cropped, about its centre."""
    margins: list[int] = []
    for have, want in zip(reversed(image.shape[2:]), reversed(shape), strict=True):
        before = (want - have) // 2
        margins += [before, want - have - before]
    return pad(image, margins)
