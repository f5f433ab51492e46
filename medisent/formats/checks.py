"""What no format may be: the refusals that all readers share, in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from medisent.errors import FormatError

_LARGE = 1 << 30  # bytes
_PACKS = 200  # no scan of that size packs better, and hardly a mask
_SPACING_MM = (1e-6, 1e4)  # from light microscopes, or headers in metres, to far beyond any scanner
_FARTHEST_MM = 1e7  # single precision keeps no millimetres beyond


def check_volume(path: Path, sizes: Sequence[int], volume: int | None) -> int:
    """How many volumes a file of these sizes holds, once it is clear which of them is meant.

    Raises:
        FormatError: The file has more than three dimensions and no volume of it is chosen, or one that it has not.
    """
    if len(sizes) > 4:
        raise FormatError(f"{path} has {len(sizes)} dimensions, but a scan has 3. Save one scalar volume of it first.")
    times = sizes[3] if len(sizes) == 4 else 1
    if times > 1 and volume is None:
        raise FormatError(f"{path} has 4 dimensions, but a scan has 3. Choose one time point first: --volume 0.")
    if volume is not None and not 0 <= volume < times:
        raise FormatError(f"{path} has no volume {volume}. It has {times}: choose --volume 0 to {times - 1}.")
    return times


def refuse_types(path: Path, dtype: np.dtype) -> None:
    """Refuse everything but real numbers of at most 64 bits.

    Raises:
        FormatError: The voxels are colours, complex numbers or of an unusual type.
    """
    if dtype.fields is not None:
        raise FormatError(
            f"{path} holds colours (RGB), but a scan has one value in each voxel. Give the scan it was made from."
        )
    if dtype.kind == "c":
        raise FormatError(f"{path} holds complex numbers, but a scan has real ones. Save its magnitude first.")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise FormatError(f"{path} holds values of a type that is not read. Save it as float32 or float64.")


def refuse_size(path: Path, shape: Sequence[int], max_voxels: int) -> None:
    """Refuse more voxels than wanted, before memory is asked for.

    Raises:
        FormatError: There are more than ``max_voxels``.
    """
    if math.prod(shape) > max_voxels:
        size = " x ".join(map(str, shape))
        raise FormatError(
            f"{path} claims {size} voxels, more than the {max_voxels:,} that are read. "
            "Crop it first, or allow more: --max-voxels."
        )


def refuse_bomb(path: Path, size: int, packed: int) -> None:
    """Refuse what unpacks to very much from very little, before memory is asked for.

    Raises:
        FormatError: It does.
    """
    if size > max(_LARGE, packed * _PACKS):
        raise FormatError(
            f"{path} unpacks to {size / max(packed, 1):,.0f} times its size, {size / 1e9:.1f} GB. "
            "If that is meant, save it unpacked first."
        )


def is_usable(affine: Float[np.ndarray, "4 4"]) -> bool:
    """Whether an affine is finite, its axes span space, its voxels of a size and at a place that a scan can have."""
    if not np.isfinite(affine).all():
        return False
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        span = abs(np.linalg.det(affine[:3, :3] / lengths))
    possible = lengths.min() >= _SPACING_MM[0] and lengths.max() <= _SPACING_MM[1]
    return bool(possible and span > 1e-3 and np.abs(affine[:3, 3]).max() <= _FARTHEST_MM)
