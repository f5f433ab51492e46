"""What training shows in place of a scan: the same patient lying a little otherwise, seen by another scanner."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medisent.batches import Batch
from medisent.model import Change, PartitionedVAE
from medisent.scanners import Scanner, measured_scale, random_scanner
from medisent.supervision import Tie


def jittered(
    batch: Batch,
    chance: torch.Generator,
    strength: float,
    *,
    mirror: bool = False,
    leader: Int[Tensor, " batch"] | None = None,
) -> Batch:
    """The scans as if the patients had lain a little otherwise: shifted by whole voxels, every other one turned too.

    Arguments:
        batch: Scans, with masks and coverage, which move along.
        chance: The source of chance.
        strength: 1 is up to two voxels along each axis and turns of about six degrees; 0 is none.
        mirror: Whether half of the scans also change left and right.
        leader: For each scan the one with which it is moved; None moves each by itself.
    """
    count, shape = len(batch), batch.scan.shape[2:]
    shift = (torch.rand(count, 3, generator=chance) * 2 - 1) * 2 * strength
    angle = torch.randn(count, 3, generator=chance).clamp(-2, 2) * math.radians(6) * strength
    angle *= torch.rand(count, 1, generator=chance) < 0.5
    flip = 1 - 2 * (torch.rand(count, generator=chance) < 0.5).float() if mirror else torch.ones(count)
    if strength == 0 and not mirror:
        return batch
    if leader is not None:
        shift, angle, flip = shift[leader], angle[leader], flip[leader]
    # grid_sample counts axes backwards and from -1 to 1, so turns are made isotropic by the grid's sides.
    sides = torch.tensor(shape[::-1], dtype=torch.float32)
    turn = torch.linalg.matrix_exp(torch.stack([_skew(a) for a in angle])) * sides / sides[:, None]
    theta = torch.cat([turn, (2 * shift.round() / sides)[:, :, None]], 2)
    theta[:, 2] *= flip[:, None]  # the last row speaks of the first axis, from left to right
    theta = theta.to(batch.scan.device)
    masks = batch.masks.nan_to_num(nan=-1.0)
    stacked = torch.cat([batch.scan, batch.coverage, masks], 1)
    grid = affine_grid(theta, list(stacked.shape), align_corners=False)
    moved = grid_sample(stacked, grid, padding_mode="zeros", align_corners=False)
    unknown = batch.masks.isnan()
    return replace(
        batch,
        scan=moved[:, :1],
        coverage=moved[:, 1:2],
        masks=torch.where(unknown, torch.nan, moved[:, 2:].clamp(0, 1)),
    )


def _skew(vector: Tensor) -> Tensor:
    """The generator of a rotation about a vector."""
    x, y, z = vector
    zero = torch.zeros(())
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)


def changed(plain: Batch, network: PartitionedVAE, chance: torch.Generator, tie: Tie | None = None) -> Change:
    """The scans as a scanner with other settings, and a little more noise, would have shown them.

    Settings that scans of a group have in common are changed alike in all of them.
    """
    device = plain.scan.device
    settings = random_scanner(len(plain), chance).stacked()
    if tie and tie.entry.alike:
        settings = torch.where(network.chosen(tie.entry.alike), settings[tie.leader], settings)
    scanner = Scanner.unstacked(settings.to(device) * network.active)
    image = scanner.apply(plain.scan, network.basis)
    level = 0.02 * torch.rand(len(plain), 1, 1, 1, 1, generator=chance)
    noise = (level * torch.randn(plain.scan.shape, generator=chance)).to(device)
    image = (image + noise * (plain.scan > 0)) * plain.coverage
    log_rescale = torch.stack([measured_scale(scan) for scan in image]).log()
    batch = replace(
        plain, scan=image / log_rescale.exp().reshape(-1, 1, 1, 1, 1), log_scale=plain.log_scale + log_rescale
    )
    return Change(plain, batch, scanner, log_rescale)
