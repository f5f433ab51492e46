"""Volumes without masks: neighbourhoods are sorted into kinds, and a volume is a weighted sum of how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, pad

_KINDS = 800
_DIRECTIONS = 24  # principal components of a neighbourhood
_NEIGHBOURS = 27 + 27
_DRAWN = 200  # neighbourhoods of each scan from which the kinds are found
_DEEPEST = 8.0  # voxels below the surface beyond which depth makes no difference
_AT_ONCE = 1 << 13  # neighbourhoods worked on at once
_LARGEST_SIDE = 40  # finer grids are averaged first: a kind is a matter of a few millimetres
_FEWEST = 20  # labels


@dataclass(frozen=True, eq=False)
class Patches:
    """Every neighbourhood in the inside of one image.

    Attributes:
        values: The 27 voxels of each, then 27 means over the three times larger neighbourhood.
        depth: Voxels from the surface.
        where: Which voxels of the image these are, counted along its last axis first.
    """

    values: Float[Tensor, "inside neighbours"]
    depth: Float[Tensor, " inside"]
    where: Int[Tensor, " inside"]

    @classmethod
    def of(cls, image: Float[Tensor, "x y z"]) -> Patches:
        """The neighbourhoods of an image whose brightest tissue is about one and whose outside is about zero."""
        body = np.pad(binary_fill_holes(binary_closing(image.numpy() > 0.25, iterations=2)), 1)
        depth = torch.from_numpy(distance_transform_edt(body)[1:-1, 1:-1, 1:-1]).float().flatten()
        where = torch.nonzero(depth > 1.5)[:, 0]
        wide = pad(image[None, None], [1] * 6)
        near = wide[0, 0].unfold(0, 3, 1).unfold(1, 3, 1).unfold(2, 3, 1)
        far = pad(avg_pool3d(wide, 3, 1), [3] * 6)[0, 0].unfold(0, 7, 1).unfold(1, 7, 1).unfold(2, 7, 1)
        far = far[..., ::3, ::3, ::3]
        values = torch.cat([near.reshape(-1, 27)[where], far.reshape(-1, 27)[where]], 1)
        return cls(values, depth[where], where)


@dataclass(frozen=True, eq=False)
class Line:
    """A ridge regression, and what it says of each of its own rows when that row is left out.

    Attributes:
        weights: One an input.
        offset: Its value where all inputs are zero.
        penalty: On the squared weights of inputs that were divided by their standard deviations.
        left_out: For each row the prediction of the regression, of the same penalty, on all other rows.
    """

    weights: Float[np.ndarray, " inputs"]
    offset: float
    penalty: float
    left_out: Float[np.ndarray, " rows"]

    @classmethod
    def fitted(cls, inputs: Float[np.ndarray, "rows inputs"], goal: Float[np.ndarray, " rows"]) -> Line:
        """The regression whose penalty misses rows that are left out the least.

        References:
            Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter (Golub, Heath, Wahba, 1979)
        """
        centre, spread = inputs.mean(0), inputs.std(0)
        spread = np.where(spread > 1e-9 * (1 + np.abs(centre)), spread, np.inf)
        left, singular, right = np.linalg.svd((inputs - centre) / spread, full_matrices=False)
        missed = goal - goal.mean()
        least, best, errors = math.inf, 0.0, missed
        for penalty in np.logspace(-1, 6, 29):
            shrunk = singular**2 / (singular**2 + penalty)
            lever = 1 / len(goal) + (left**2) @ shrunk
            off = (missed - left @ (shrunk * (left.T @ missed))) / (1 - lever).clip(1e-6)
            if (off**2).sum() < least:
                least, best, errors = float((off**2).sum()), float(penalty), off
        weights = right.T @ (singular / (singular**2 + best) * (left.T @ missed)) / spread
        return cls(weights, float(goal.mean() - centre @ weights), best, goal - errors)


class Counter(nn.Module):
    """Volumes from how many neighbourhoods of each kind an image has.

    The kinds are found without any label, the weights by one regression on the labels. A volume is so the integral
    of a density, which may be below zero: what usually looks like the structure but is not is taken off.

    Arguments:
        volumes: How many volumes.

    References:
        | Learning to Count Objects in Images (Lempitsky, Zisserman, 2010)
        | An Analysis of Single-Layer Networks in Unsupervised Feature Learning (Coates, Lee, Ng, 2011)
    """

    centre: Tensor
    directions: Tensor
    kinds: Tensor
    weights: Tensor
    offsets: Tensor
    bounds: Tensor
    fitted: Tensor

    def __init__(self, volumes: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(_NEIGHBOURS))
        self.register_buffer("directions", torch.zeros(_NEIGHBOURS, _DIRECTIONS))
        self.register_buffer("kinds", torch.zeros(_KINDS, _DIRECTIONS + 1))
        self.register_buffer("weights", torch.zeros(_KINDS, volumes))
        self.register_buffer("offsets", torch.zeros(volumes))
        self.register_buffer("bounds", torch.zeros(2, volumes))
        self.register_buffer("fitted", torch.zeros(volumes, dtype=torch.bool))

    @torch.no_grad()
    def fit(
        self, images: Float[Tensor, "scans 1 x y z"], volumes: Float[Tensor, "scans volumes"]
    ) -> Float[Tensor, "scans volumes"]:
        """Find the kinds and their weights; NaN is an unknown volume. On the processor.

        A volume that fewer than twenty scans know, or that counting does not predict in scans that are left out,
        stays without weights.

        Returns:
            What counting says of each scan when the scan is left out of the regression; NaN where it says nothing.
        """
        small = [coarse(image[0].cpu()) for image in images]
        self._find_kinds(small)
        counts = torch.stack([self._counted(image) for image in small])
        guesses = torch.full_like(volumes, math.nan)
        for index, goal in enumerate(volumes.T):
            known = goal.isfinite()
            if int(known.sum()) < _FEWEST:
                continue
            line = Line.fitted(counts[known].double().numpy(), goal[known].double().numpy())
            left_out = torch.from_numpy(line.left_out).float()
            if float((left_out - goal[known]).square().mean()) > 0.9 * float(goal[known].var()):
                continue
            self.weights[:, index] = torch.from_numpy(line.weights).float()
            self.offsets[index] = line.offset
            self.bounds[:, index] = torch.stack([goal[known].min(), 1.5 * goal[known].max()])
            self.fitted[index] = True
            guesses[:, index] = self._bounded(counts @ self.weights + self.offsets)[:, index]
            guesses[known, index] = left_out.clamp(*self.bounds[:, index])
        return guesses

    def _find_kinds(self, images: list[Float[Tensor, "x y z"]]) -> None:
        """Whiten neighbourhoods and cluster them; the same images give the same kinds."""
        chance = torch.Generator().manual_seed(0)
        drawn, depths = [], []
        for image in images:
            found = Patches.of(image)
            rows = torch.randint(max(1, len(found.where)), (min(_DRAWN, len(found.where)),), generator=chance)
            drawn.append(found.values[rows])
            depths.append(found.depth[rows])
        values, depth = torch.cat(drawn), torch.cat(depths)
        self.centre.copy_(values.mean(0))
        strength, along = torch.linalg.eigh(torch.cov(values.T).double())
        strength, along = strength.flip(0)[:_DIRECTIONS], along.flip(1)[:, :_DIRECTIONS]
        self.directions.copy_(along / (strength.clamp(min=0) + 0.003).sqrt())  # the floor is about the scans' noise
        code = self._code(values, depth).numpy()
        wanted = max(1, min(_KINDS, len(code) // 20))
        found_kinds = MiniBatchKMeans(wanted, random_state=0, n_init=1, batch_size=4096, max_iter=30).fit(code)
        self.kinds.fill_(1e3)  # kinds that are not needed lie where nothing is
        self.kinds[:wanted] = torch.from_numpy(found_kinds.cluster_centers_).to(self.kinds)

    def _code(
        self, values: Float[Tensor, "inside neighbours"], depth: Float[Tensor, " inside"]
    ) -> Float[Tensor, "inside code"]:
        return torch.cat([(values - self.centre) @ self.directions, depth[:, None].clamp(max=_DEEPEST) / 2 - 2], 1)

    def _sorted(self, found: Patches) -> list[Float[Tensor, "part kinds"]]:
        """To what part each neighbourhood is of each kind, a slab at a time."""
        device = self.kinds.device
        code = self._code(found.values.to(device), found.depth.to(device))
        return [torch.softmax(-torch.cdist(part, self.kinds).square(), 1) for part in code.split(_AT_ONCE)]

    def _counted(self, image: Float[Tensor, "x y z"]) -> Float[Tensor, " kinds"]:
        parts = self._sorted(Patches.of(image))
        return torch.stack([part.sum(0) for part in parts]).sum(0) if parts else torch.zeros_like(self.weights[:, 0])

    def _bounded(self, volumes: Float[Tensor, "scans volumes"]) -> Float[Tensor, "scans volumes"]:
        return torch.where(self.fitted, torch.maximum(volumes, self.bounds[0]).minimum(self.bounds[1]), torch.nan)

    @torch.no_grad()
    def density(self, image: Float[Tensor, "x y z"]) -> Float[Tensor, "volumes x y z"]:
        """What each voxel adds to the volumes, in mL; its sum and the offsets are the volumes, before any bound.

        For grids whose longest side is at most 40 voxels.
        """
        found = Patches.of(image.cpu())
        density = torch.zeros(image.numel(), self.weights.shape[1], device=self.weights.device)
        if len(found.where):
            density[found.where] = torch.cat([part @ self.weights for part in self._sorted(found)])
        return density.T.reshape(-1, *image.shape)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "scans 1 x y z"]) -> Float[Tensor, "scans volumes"]:
        """The volumes in mL, between the smallest label and one and a half times the largest; NaN before fitting."""
        if not bool(self.fitted.any()):
            return torch.full((len(images), len(self.fitted)), math.nan, device=images.device)
        counts = torch.stack([self._counted(coarse(image[0].cpu())) for image in images])
        return self._bounded(counts @ self.weights + self.offsets)


def coarse(image: Float[Tensor, "x y z"]) -> Float[Tensor, "a b c"]:
    """The image averaged over blocks until its longest side is at most forty voxels."""
    step = -(-max(image.shape) // _LARGEST_SIDE)
    return avg_pool3d(image[None, None], step, ceil_mode=True, count_include_pad=False)[0, 0] if step > 1 else image
