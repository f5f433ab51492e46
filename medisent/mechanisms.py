"""How a factor shows in a scan: from a wish ("tumour 20 mL") to a new canonical scan or new settings of the scanner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medisent.errors import InterventionError
from medisent.model import Abduction, PartitionedVAE
from medisent.scanners import Scanner, bias_strength
from medisent.shapes import Structure, averaged, divided, room
from medisent.words import listed, words

# On cells finer than the grid's: sub-voxels along each edge, and how far around a place the image speaks for a surface.
_FINE, _NEAR = 2, 1.2


@dataclass(frozen=True, eq=False)
class CloseUp:
    """The canonical scan on cells that divide the grid's, about as fine as the scan's own voxels.

    Attributes:
        image: Before any edit.
        times: Cells along each edge of a grid cell.
        gained: What edits of structures have added since; None is nothing.
    """

    image: Float[np.ndarray, "fx fy fz"]
    times: int
    gained: Float[np.ndarray, "fx fy fz"] | None = None

    @cached_property
    def shown(self) -> Float[np.ndarray, "fx fy fz"]:
        """The image after these edits."""
        return self.image if self.gained is None else self.image + self.gained


@dataclass(frozen=True, eq=False)
class Scene:
    """One scan as the model sees it, taken apart; what mechanisms act on.

    Attributes:
        canonical: The scan with the scanner removed, on the model's grid.
        masks: Soft masks, one channel a factor with a mask.
        z: Latents without the scanner's.
        scanner: Its settings, for scans of scale one.
        close: The scan seen closer, where it is finer than the grid; structures are edited there.
    """

    canonical: Float[Tensor, "x y z"]
    masks: Float[Tensor, "shapes x y z"]
    z: Float[Tensor, "1 latents"]
    scanner: Scanner
    close: CloseUp | None = None

    @classmethod
    def of(cls, network: PartitionedVAE, found: Abduction) -> Scene:
        """The scene of an abduction of one scan."""
        return cls(found.canonical[0, 0], found.masks[0], found.q.loc[:, : network.code_size], found.sight.scanner)


class Mechanism(ABC):
    """How one kind of factor acts. The present value as the wish changes nothing."""

    @abstractmethod
    def serves(self, network: PartitionedVAE, name: str) -> bool:
        """Whether factor ``name`` of this network acts by this mechanism."""

    @abstractmethod
    def intervene(self, network: PartitionedVAE, scene: Scene, name: str, present: float, wanted: float) -> Scene:
        """The scene in which factor ``name`` has gone from its present to a wanted value, in the factor's unit.

        Raises:
            InterventionError: There is nothing in the scene that could take the value.
        """


class Setting(Mechanism):
    """A setting of the scanner: brightness multiplies the gain, contrast the exponent, bias_field the whole field."""

    def serves(self, network: PartitionedVAE, name: str) -> bool:
        return name in network.scanner_names

    def intervene(self, network: PartitionedVAE, scene: Scene, name: str, present: float, wanted: float) -> Scene:
        scanner = scene.scanner
        if wanted == present:
            return scene
        if name == "bias_field":
            strength = float(bias_strength(scanner.bias))
            if strength < 1e-6:
                raise InterventionError("This scan has no bias field to strengthen. Ask for another factor.")
            return replace(scene, scanner=replace(scanner, bias=scanner.bias * (wanted / present)))
        if wanted <= 0:
            raise InterventionError(f"{name} was asked to be {wanted:g}, but has to be above zero.")
        step = torch.tensor(wanted / present, dtype=torch.float64).log().to(scanner.log_gain)
        if name == "brightness":
            return replace(scene, scanner=replace(scanner, log_gain=scanner.log_gain + step))
        return replace(scene, scanner=replace(scanner, log_gamma=scanner.log_gamma + step))


class Shape(Mechanism):
    """A volume whose mask is known in training: the predicted mask's surface moves until it holds the wanted volume."""

    def serves(self, network: PartitionedVAE, name: str) -> bool:
        return name in network.shaped

    def intervene(self, network: PartitionedVAE, scene: Scene, name: str, present: float, wanted: float) -> Scene:
        if wanted == present:
            return scene
        index = network.shaped.index(name)
        times = scene.close.times if scene.close else 1
        voxel_ml = network.voxel_ml / times**3
        margin = times * room(scene.masks[index].double().numpy(), wanted - present, network.voxel_ml)
        try:
            change = _structure(scene, index, voxel_ml, margin).regrown(wanted - present)
        except ValueError as error:
            raise InterventionError(
                f"{name} was asked to be {wanted:g}, but nothing of it was found in this scan that could be changed."
            ) from error
        masks = scene.masks.clone()
        masks[index] = torch.from_numpy(averaged(change.mask, times)).to(masks)
        moved = replace(_moved(network, scene, name, present, wanted), masks=masks)
        if scene.close is None:
            return replace(moved, canonical=scene.canonical + torch.from_numpy(change.image).to(scene.canonical))
        before = scene.close.gained
        gained = change.image if before is None else before + change.image
        return replace(moved, close=replace(scene.close, gained=gained))


@lru_cache(maxsize=4)  # a factor moves through its range in one scene
def _structure(scene: Scene, index: int, voxel_ml: float, margin: int) -> Structure:
    """What a mask of the scene shows in it, as close as the scene is seen."""
    mask = scene.masks[index].double().numpy()
    if scene.close is None:
        return Structure.of(scene.canonical.double().numpy(), mask, voxel_ml, margin)
    return Structure.of(scene.close.shown, divided(mask, scene.close.times), voxel_ml, margin, _FINE, _NEAR)


class Latent(Mechanism):
    """Any other factor: its block is shifted by what the wish and the present value differ, and both are decoded.

    The shift keeps whatever else of the scan the block holds.

    References:
        Deep Structural Causal Models for Tractable Counterfactual Inference (Pawlowski, Castro, Glocker, 2020)
    """

    def serves(self, network: PartitionedVAE, name: str) -> bool:
        return name in network.heads

    def intervene(self, network: PartitionedVAE, scene: Scene, name: str, present: float, wanted: float) -> Scene:
        if wanted == present:
            return scene
        moved = _moved(network, scene, name, present, wanted)
        change = network.decode(moved.z).mean - network.decode(scene.z).mean
        return replace(moved, canonical=scene.canonical + change[0, 0])


def _moved(network: PartitionedVAE, scene: Scene, name: str, present: float, wanted: float) -> Scene:
    """The scene with the factor's block shifted."""
    here, there = network.head(name).located(torch.tensor([present, wanted], device=scene.z.device))
    z = scene.z.clone()
    z[:, network.partition[name].where] += there - here
    return replace(scene, z=z)


def mechanism_of(network: PartitionedVAE, name: str) -> Mechanism:
    """The mechanism by which a factor acts.

    Raises:
        InterventionError: The model has no such factor.
    """
    for mechanism in MECHANISMS.values():
        if mechanism.serves(network, name):
            return mechanism
    raise InterventionError(f"This model has no factor {name!r}. It has {', '.join(network.factors)}.")


def cautions(network: PartitionedVAE, names: Iterable[str]) -> list[str]:
    """A sentence on edits and maps that are hardly to be relied on: those of volumes whose masks training never saw.

    On rendered heads the error after such edits was 1.13 and 1.11 times the true change (``docs/bench.md``).
    """
    coarse = [
        words(name)
        for name in names
        if isinstance(mechanism_of(network, name), Latent) and network.factors[name].is_volume
    ]
    if not coarse:
        return []
    return [
        f"Training had no masks of {listed(coarse)}, so these edits and maps are differences of two decodings: on "
        "rendered heads these were no nearer to what truly changes than no edit at all."
    ]


# The first that serves a factor acts.
MECHANISMS: dict[str, Mechanism] = {"scanner": Setting(), "shape": Shape(), "latent": Latent()}
