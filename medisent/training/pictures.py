"""Small pictures of a few held-out scans as a network redraws and edits them while it learns."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from medisent.batches import Batch
from medisent.errors import InterventionError
from medisent.factors import Factor
from medisent.mechanisms import Scene, mechanism_of
from medisent.model import Abduction, PartitionedVAE
from medisent.readings import estimates
from medisent.words import amount, decimals_of, words

MOST_SCANS, _MOST_FACTORS, _MOST_PIXELS = 3, 6, 128
_LEAST_KNOWN = 5  # values from which a low and a high one are told
# Settings of the scanner of which no value is known, relative to what a scan shows.
_RELATIVE = {"brightness": (0.7, 1.4), "contrast": (0.8, 1.25), "bias_field": (0.3, 2.0)}


@dataclass(frozen=True)
class Edit:
    """A factor at a value, in its unit, or relative to what a scan shows.

    Attributes:
        name: Of the factor.
        value: The value, or what multiplies it.
        relative: Which of them.
        asked: The same in words.
    """

    name: str
    value: float
    relative: bool
    asked: str


@dataclass(frozen=True, eq=False)
class Album:
    """A few held-out scans, and what is asked of them again and again.

    Attributes:
        scans: At most three.
        slices: Of each, which axial slice is shown.
        edits: A low and a high value of each factor that can be moved, six factors at most.
    """

    scans: Batch
    slices: tuple[int, ...]
    edits: tuple[Edit, ...]

    @classmethod
    def of(cls, network: PartitionedVAE, shown: Batch, held: Batch) -> Album:
        """Scans low, middle and high in the first labelled factor, moved to what is low and high in training."""
        values = held.values.cpu()
        known = next((column for column in values.T if int(column.isfinite().sum()) > 2), None)
        order = torch.arange(len(held)) if known is None else known.nan_to_num(nan=torch.inf).argsort(stable=True)
        most = len(held) if known is None else int(known.isfinite().sum())
        rows = order[torch.linspace(0, most - 1, min(MOST_SCANS, most)).round().long()]
        scans = held[rows.to(held.scan.device)].to(torch.device("cpu"))
        return cls(scans, tuple(_slice(mask, shown.scan.shape[-1]) for mask in scans.masks), _edits(network, shown))

    def originals(self) -> UInt8[np.ndarray, "scans rows columns"]:
        """The scans themselves."""
        return np.stack([self._grey(row, self.scans.scan[row, 0]) for row in range(len(self.scans))])

    @property
    def moved(self) -> int:
        """The scan that is edited, the one in the middle: edits take longer than all else."""
        return len(self.scans) // 2

    def asked(self) -> tuple[str, ...]:
        """What each edit asks for, in words."""
        return tuple(words(edit.asked) for edit in self.edits)

    @torch.no_grad()
    def drawn(self, network: PartitionedVAE) -> UInt8[np.ndarray, "cells rows columns"]:
        """Each scan as the network redraws it from its latents, then one of them after each edit.

        An edit that finds nothing to move leaves black.

        Arguments:
            network: In its eval mode; it stays as it is.
        """
        here = network if network.pivot.device.type == "cpu" else deepcopy(network).cpu()
        found = [here.abduct(self.scans[torch.tensor([row])]) for row in range(len(self.scans))]
        cells = []
        for row, one in enumerate(found):
            redrawn = replace(Scene.of(here, one), canonical=here.decode(one.q.loc).mean[0, 0])
            cells.append(self._grey(row, _image(here, redrawn)))
        return np.stack([*cells, *(self._edited(here, found[self.moved], edit) for edit in self.edits)])

    def _edited(self, network: PartitionedVAE, found: Abduction, edit: Edit) -> UInt8[np.ndarray, "rows columns"]:
        row = self.moved
        present = float(network.value(edit.name, estimates(network, found.q)[edit.name][0])[0])
        wanted = edit.value * (present if edit.relative else 1)
        try:
            mechanism = mechanism_of(network, edit.name)
            scene = mechanism.intervene(network, Scene.of(network, found), edit.name, present, wanted)
        except InterventionError:
            return np.zeros_like(self._grey(row, self.scans.scan[row, 0]))
        return self._grey(row, _image(network, scene))

    def _grey(self, row: int, image: Float[Tensor, "x y z"]) -> UInt8[np.ndarray, "rows columns"]:
        """The axial slice in radiological convention; the scan itself says what is white."""
        at = self.slices[row]
        own = self.scans.scan[row, 0, :, :, at]
        white = 1.15 * float(torch.quantile(own[own > 0.05], 0.99)) if bool((own > 0.05).any()) else 1.0
        plane = image[:, :, at].flip(0, 1).T / white
        step = -(-max(plane.shape) // _MOST_PIXELS)
        grey: np.ndarray = (255 * plane[::step, ::step].nan_to_num().clamp(0, 1)).round().byte().numpy()
        return grey


def _image(network: PartitionedVAE, scene: Scene) -> Float[Tensor, "x y z"]:
    """A scene as its scanner shows it."""
    image: Tensor = scene.scanner.apply(scene.canonical[None, None], network.basis)[0, 0]
    return image


def _slice(masks: Float[Tensor, "shapes x y z"], depth: int) -> int:
    """Where most of the known structures lies, each counting the same, else the middle."""
    areas = masks.nan_to_num(nan=0.0).sum((1, 2))
    shares = (areas / areas.sum(1, keepdim=True).clamp(min=1e-6)).sum(0) if len(masks) else torch.zeros(depth)
    return int(shares.argmax()) if bool(shares.any()) else depth // 2


def _edits(network: PartitionedVAE, shown: Batch) -> tuple[Edit, ...]:
    """A low and a high value of each factor: the 10th and 90th percentile of training's, where enough are known."""
    found: list[Edit] = []
    for name, column in zip(network.factors, shown.values.cpu().T, strict=True):
        known = column[column.isfinite()]
        if len(known) >= _LEAST_KNOWN and float(known.max()) > float(known.min()):
            low, high = map(float, np.quantile(known.numpy(), (0.1, 0.9), method="nearest"))
            found += [
                Edit(name, v, False, f"{name} {_shown(network.factors[name], v, low, high)}") for v in (low, high)
            ]
        elif name in _RELATIVE and name in network.scanner_names:
            found += [Edit(name, times, True, f"{name} × {times:g}") for times in _RELATIVE[name]]
    return tuple(found[: 2 * _MOST_FACTORS])


def _shown(factor: Factor, value: float, low: float, high: float) -> str:
    """One of two values, in equally many decimals."""
    if factor.kind in ("ordinal", "categorical"):
        return factor.show(value)
    return amount(value, factor.unit, decimals_of(low, high))
