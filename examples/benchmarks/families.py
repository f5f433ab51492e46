"""Families of encoders and decoders, each as a plain VAE with as many latents, for `networks.py` to compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from monai.networks.nets.autoencoderkl import Decoder as KLDecoder
from monai.networks.nets.autoencoderkl import Encoder as KLEncoder
from monai.networks.nets.varautoencoder import VarAutoEncoder
from torch import Tensor, nn

from medisent.networks import Decoder, Encoder, Perceptron, halved

LATENTS = 32
Shape = tuple[int, int, int]


class VAE(nn.Module):
    """A picture, and the mean and log variance of the latents it was drawn from.

    Arguments:
        see: Flat features of a batch of scans.
        tell: Mean and log variance of the latents from features, side by side.
        draw: Scans from latents.
    """

    def __init__(self, see: nn.Module, tell: nn.Module, draw: nn.Module) -> None:
        super().__init__()
        self.see, self.tell, self.draw = see, tell, draw

    def forward(self, scans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.tell(self.see(scans)).chunk(2, 1)
        return self.draw(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


class Seen(nn.Module):
    """The coarsest features of medisent's encoder, which begins with space-to-depth."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, scans: Tensor) -> Tensor:
        return self.encoder(halved(scans, self.encoder.padded))[-1].flatten(1)


def medisent(shape: Shape, *, kind: str, norm: str = "group", hidden: int = 0) -> VAE:
    """Our networks; the posterior is linear, as MONAI's is, or has a hidden layer, as in our models."""
    encoder = Encoder(shape, 8, 16, family="lean" if kind == "lean" else "fine")
    tell: nn.Module = nn.Linear(encoder.bottom_size, 2 * LATENTS)
    if hidden:
        tell = Perceptron(encoder.bottom_size, hidden, 2 * LATENTS, standardised=True)
    found = VAE(Seen(encoder), tell, Decoder(encoder, LATENTS))
    if norm != "group":
        _replace_norms(found, norm)
    return found


def _replace_norms(module: nn.Module, norm: str) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            wanted = nn.Identity() if norm == "none" else nn.InstanceNorm3d(child.num_channels, affine=True)
            setattr(module, name, wanted)
        else:
            _replace_norms(child, norm)


def monai(shape: Shape, *, norm: str | tuple[str, dict[str, int]] | None = "INSTANCE", units: int = 0) -> VAE:
    """MONAI's VarAutoEncoder, taken apart; its forward pass would add a sigmoid."""
    channels = (16, 32, 64, 128)[: 3 if max(shape) <= 32 else 4]
    net = VarAutoEncoder(
        3, (1, *shape), 1, LATENTS, channels, (2,) * len(channels), norm=norm, num_res_units=units,
        use_mean_at_inference=True, use_sigmoid=False,
    )  # fmt: skip
    bottom = (channels[-1], *(int(side) for side in net.final_size))
    draw = nn.Sequential(net.decodeL, nn.ReLU(), nn.Unflatten(1, bottom), net.decode)
    tell = nn.Linear(math.prod(bottom), 2 * LATENTS)
    return VAE(nn.Sequential(net.encode, net.intermediate, nn.Flatten()), tell, draw)


def plain(shape: Shape, *, channels: Sequence[int] = (16, 32, 48, 88)) -> VAE:
    """Strided convolutions, batch norms and rectifiers, as in most VAEs for pictures (pythae's among them)."""
    channels = channels[: 3 if max(shape) <= 32 else 4]
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for fine, coarse in zip((1, *channels), channels, strict=False):
        down += [nn.Conv3d(fine, coarse, 4, 2, 1), nn.BatchNorm3d(coarse), nn.ReLU()]
        ends = [nn.BatchNorm3d(fine), nn.ReLU()] if fine > 1 else []
        up = [nn.ConvTranspose3d(coarse, fine, 4, 2, 1), *ends, *up]
    bottom = (channels[-1], *(side >> len(channels) for side in shape))
    size = math.prod(bottom)
    draw = nn.Sequential(nn.Linear(LATENTS, size), nn.Unflatten(1, bottom), *up)
    return VAE(nn.Sequential(*down, nn.Flatten()), nn.Linear(size, 2 * LATENTS), draw)


def autoencoder_kl(shape: Shape) -> VAE:
    """The blocks of MONAI's AutoencoderKL, the smallest that have its form, with flat latents and no attention."""
    channels, levels = (8, 16, 32, 64), (False,) * 4
    see = KLEncoder(3, 1, channels, 8, (1,) * 4, 4, 1e-6, levels, with_nonlocal_attn=False)
    draw = KLDecoder(3, channels, 8, 1, (1,) * 4, 4, 1e-6, levels, with_nonlocal_attn=False)
    bottom = (8, *(side >> 3 for side in shape))
    size = math.prod(bottom)
    return VAE(
        nn.Sequential(see, nn.Flatten()),
        nn.Linear(size, 2 * LATENTS),
        nn.Sequential(nn.Linear(LATENTS, size), nn.Unflatten(1, bottom), draw),
    )


@dataclass(frozen=True)
class Family:
    """A way to build a VAE.

    Attributes:
        title: Its name in tables.
        build: Makes one for a grid.
        trained: Whether its likelihood is measured too, not its step alone.
        channels_last: Whether its weights and scans lie channels last.
    """

    title: str
    build: Callable[[Shape], VAE]
    trained: bool = True
    channels_last: bool = False


REFERENCE = "monai"
FAMILIES = {
    "lean": Family("medisent, lean", partial(medisent, kind="lean")),
    "fine": Family("medisent, fine", partial(medisent, kind="fine", hidden=96)),
    REFERENCE: Family("MONAI VarAutoEncoder", monai),
    "monai-group": Family("MONAI, group norm", partial(monai, norm=("group", {"num_groups": 4}))),
    "plain": Family("plain strided", plain),
    "lean-none": Family("lean, no norm", partial(medisent, kind="lean", norm="none"), False),
    "lean-instance": Family("lean, instance norm", partial(medisent, kind="lean", norm="instance"), False),
    "lean-last": Family("lean, channels last", partial(medisent, kind="lean"), False, channels_last=True),
    "monai-residual": Family("MONAI, a residual unit", partial(monai, units=1), False),
    "autoencoder-kl": Family("MONAI AutoencoderKL blocks", autoencoder_kl, False),
}
