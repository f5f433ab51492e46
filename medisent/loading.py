"""From files to tensors: the chain of MONAI transforms that reads a scan and its masks and lays them on the grid."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.transforms import Compose, MapTransform, Transform

from medisent.errors import MedisentError
from medisent.formats import read
from medisent.grids import Grid, coverage, sample
from medisent.scanners import measured_scale
from medisent.volumes import Geometry, Volume

Item = dict[Hashable, Any]


class Loading(Compose):  # type: ignore[misc]
    """MONAI's ``Compose``, but a refusal stays the refusal it was instead of becoming a ``RuntimeError``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the chain.

        Raises:
            MedisentError: A scan or a mask is refused.
        """
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MedisentError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None


class ReadVolumed(MapTransform):  # type: ignore[misc]
    """Puts a ``Volume`` in the place of every path; what is a ``Volume`` already, or missing, stays.

    Args:
        keys: Where the paths stand.
        constant: Whether all voxels may be equal, as in an empty mask.
    """

    def __init__(self, keys: Sequence[str], constant: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.constant = constant

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        item = dict(data)
        for key in self.key_iterator(item):
            if isinstance(item[key], str | Path):
                item[key] = read(item[key], constant=self.constant)
        return item


class Placed(Transform):  # type: ignore[misc]
    """Adds ``geometry``, where the scan lies, and ``placed``, where the grid lies over it."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        geometry = data["scan"].geometry
        return {**data, "geometry": geometry, "placed": self.grid.place(geometry)}


class SampleMasksd(MapTransform):  # type: ignore[misc]
    """The part of each grid cell that a mask fills, as a tensor (1, x, y, z); NaN where there is no mask."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        item = dict(data)
        for key in self.keys:
            mask = item.get(key)
            if isinstance(mask, Volume):
                inside = mask.with_voxels(np.clip(mask.voxels, 0, 1).astype(np.float32))
                item[key] = _tensor(sample(inside, item["placed"]))
            else:
                item[key] = torch.full((1, *item["placed"].shape), math.nan)
        return item


def above_air(
    scan: Volume, onto: Geometry, air: float
) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
    """The scan on cells, in its own unit with air at 0, and the part of each cell that it covers."""
    seen = coverage(scan.geometry, onto)
    return sample(scan, onto) - np.float32(air) * seen, seen


class SampleScan(Transform):  # type: ignore[misc]
    """The scan on the grid as a tensor (1, x, y, z), air at 0 and tissue near 1; adds ``log_scale`` and ``coverage``.

    Args:
        air: What air measures in this kind of scan, in the scan's unit: 0 in MR, -1000 in CT.
    """

    def __init__(self, air: float = 0.0) -> None:
        self.air = air

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        scan, placed = data["scan"], data["placed"]
        above, seen = above_air(scan, placed, self.air)
        image = _tensor(above)
        scale = measured_scale(image)
        return {**data, "scan": image / scale, "log_scale": scale.log(), "coverage": _tensor(seen)}


def loading(grid: Grid, masks: Sequence[str] = (), air: float = 0.0) -> Compose:
    """The chain from paths to what the model takes; wrap it in a ``monai.transforms.Compose`` to append transforms.

    It takes ``{"scan": path or Volume, MASK: path or Volume or None, ...}``. It returns ``scan``, on the grid and
    divided by its measured scale, ``log_scale``, the log of that scale, ``coverage``, and each mask as the part of each
    cell that it fills (NaN where unknown), all of them float32 tensors; ``geometry``, where the scan lies, and
    ``placed``, where the grid lies. Scan and masks may lie differently.

    Args:
        grid: The model's grid.
        masks: The keys of the masks.
        air: What air measures, in the scan's unit.
    """
    reading: list[Transform] = [ReadVolumed(["scan"]), Placed(grid)]
    if masks:
        reading += [ReadVolumed(masks, constant=True), SampleMasksd(masks)]
    return Loading([*reading, SampleScan(air)])


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]
