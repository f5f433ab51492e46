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
from medisent.processes import ALONE, Crew
from medisent.scanners import Scanner, measured_scale, random_scanner
from medisent.supervision import Tie


def jittered(
    batch: Batch,
    chance: torch.Generator,
    strength: float,
    *,
    mirror: bool = False,
    leader: Int[Tensor, " step"] | None = None,
    crew: Crew = ALONE,
) -> Batch:
    """The scans as if the patients had lain a little otherwise: shifted by whole voxels, every other one turned too.

    Arguments:
        batch: This process's scans, with masks and coverage, which move along.
        chance: The source of chance, the same in all processes.
        strength: 1 is up to two voxels along each axis and turns of about six degrees; 0 is none.
        mirror: Whether half of the scans also change left and right.
        leader: For each scan of the step the one with which it is moved; None moves each by itself.
        crew: Who takes the step.
    """
    count, shape = crew.size * len(batch), batch.scan.shape[2:]
    shift = (torch.rand(count, 3, generator=chance) * 2 - 1) * 2 * strength
    angle = torch.randn(count, 3, generator=chance).clamp(-2, 2) * math.radians(6) * strength
    angle *= torch.rand(count, 1, generator=chance) < 0.5
    flip = 1 - 2 * (torch.rand(count, generator=chance) < 0.5).float() if mirror else torch.ones(count)
    if strength == 0 and not mirror:
        return batch
    if leader is not None:
        shift, angle, flip = shift[leader], angle[leader], flip[leader]
    shift, angle, flip = crew.own(shift), crew.own(angle), crew.own(flip)
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


def changed(
    plain: Batch, network: PartitionedVAE, chance: torch.Generator, tie: Tie | None = None, crew: Crew = ALONE
) -> Change:
    """The scans as a scanner with other settings, and a little more noise, would have shown them.

    Settings that scans of a group have in common are changed alike in all of them. Each scan's noise comes from a
    stream of its own, so that it is drawn where the scan lies and by the process whose scan it is.
    """
    device, count = plain.scan.device, crew.size * len(plain)
    settings = random_scanner(count, chance).stacked()
    if tie and tie.entry.alike:
        settings = torch.where(network.chosen(tie.entry.alike), settings[tie.leader], settings)
    scanner = Scanner.unstacked(crew.own(settings).to(device) * network.active)
    image = scanner.apply(plain.scan, network.basis)
    level = crew.own(0.02 * torch.rand(count, 1, 1, 1, 1, generator=chance)).to(device)
    streams = crew.own(torch.randint(1 << 62, (count,), generator=chance))
    noise = torch.stack([_noise(plain.scan.shape[1:], device, int(seed)) for seed in streams])
    image = (image + level * noise * (plain.scan > 0)) * plain.coverage
    log_rescale = torch.stack([measured_scale(scan) for scan in image]).log()
    batch = replace(
        plain, scan=image / log_rescale.exp().reshape(-1, 1, 1, 1, 1), log_scale=plain.log_scale + log_rescale
    )
    return Change(plain, batch, scanner, log_rescale, crew)


def _noise(shape: torch.Size, device: torch.device, seed: int) -> Tensor:
    """Normal numbers from a stream of their own."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
