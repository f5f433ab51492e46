"""Our reading of scans for MONAI's own loaders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num
from monai.data import ImageReader

from medisent.formats import read
from medisent.volumes import Volume

PathLike = str | os.PathLike[str]


class ScanReader(ImageReader):  # type: ignore[misc]
    """MONAI's image reader for whatever ``medisent.formats.read`` reads.

    ``monai.transforms.LoadImaged(keys, reader=ScanReader(), dtype=None)`` loads with it. MONAI's loader hands a file
    that one reader refuses on to the next, so a damaged scan may still be read there; the chain of ``medisent.loading``
    does not.

    Args:
        volume: Which volume of a 4D file, counted from 0.
        series: Which series of a DICOM folder, counted from 0.
    """

    def __init__(self, volume: int | None = None, series: int | None = None) -> None:
        super().__init__()
        self.volume = volume
        self.series = series

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether there is something at every path; what it is shows when it is read."""
        return all(path.exists() for path in _paths(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: object) -> list[Volume]:
        """The scan at each path.

        Raises:
            MedisentError: A scan is refused.
        """
        return [read(path, volume=self.volume, series=self.series) for path in _paths(data)]

    def get_data(self, img: Sequence[Volume] | Volume) -> tuple[Num[np.ndarray, "*channels_x_y_z"], dict[str, object]]:
        """Voxels and MONAI's words for their place; several scans become channels.

        Raises:
            ValueError: The scans are of different shape or place.
        """
        volumes = [img] if isinstance(img, Volume) else list(img)
        first = volumes[0]
        if any(volume.geometry != first.geometry for volume in volumes):
            raise ValueError("Scans that are loaded as channels of one image need one shape and one place.")
        place: dict[str, object] = {
            "affine": first.affine,
            "original_affine": first.affine,
            "spatial_shape": np.array(first.geometry.shape),
            "space": "RAS",
            "original_channel_dim": 0 if len(volumes) > 1 else "no_channel",
        }
        return np.stack([v.voxels for v in volumes]) if len(volumes) > 1 else first.voxels, place


def _paths(given: Sequence[PathLike] | PathLike) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]
