"""Every other format that SimpleITK reads (NRRD, MetaImage, ...), decoded where a crash is survived."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from medisent.errors import FormatError, MachineError
from medisent.formats.checks import check_volume, refuse_size
from medisent.volumes import Geometry, Volume

_CHILD = Path(__file__).with_name("child.py")
_SECONDS = 300
_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".tif", ".tiff", ".webp"}
_SELF_CHECKING = {
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".mnc",
    ".h5",
    ".hdf5",
}  # SimpleITK refuses these when they are cut short


@dataclass(frozen=True, eq=False)
class Decoded:
    """What SimpleITK found in one file.

    Attributes:
        sizes: Length of every axis.
        components: Values in each voxel.
        pixel: SimpleITK's name of the voxel type.
        voxels: The values of one volume, (x, y, z); None where the file does not hold one that can be read.
        affine: Voxel index to millimetres, LPS+; None where there are no voxels.
    """

    sizes: tuple[int, ...]
    components: int
    pixel: str
    voxels: Num[np.ndarray, "x y z"] | None
    affine: Float[np.ndarray, "4 4"] | None


def read_other(path: Path, *, volume: int | None, max_voxels: int) -> Volume:
    """The scan in a file of any format that SimpleITK reads.

    Raises:
        FormatError: SimpleITK cannot read the file, or it is not one scalar 3D volume, or it is cut short.
    """
    if path.suffix.lower() in _PICTURES:
        raise FormatError(
            f"{path} is a picture without a place in the patient. Give the NIfTI or DICOM scan that it shows."
        )
    found = decode([path], volume=volume or 0, max_voxels=max_voxels)[0]
    if found is None:
        raise FormatError(
            f"{path} is not an image that can be read, or it is damaged. Give NIfTI, DICOM, NRRD or MetaImage."
        )
    voxels, affine = _one_scalar_volume(found, path, volume, max_voxels)
    if path.suffix.lower() not in _SELF_CHECKING and path.stat().st_size < voxels.nbytes:
        raise FormatError(
            f"{path} is truncated, or packed in a way that cannot be verified. Convert it to NIfTI first."
        )
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    return Volume(voxels, Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, shape))


def _one_scalar_volume(
    found: Decoded, path: Path, volume: int | None, max_voxels: int
) -> tuple[Num[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    sizes = [*found.sizes, *([1] * (3 - len(found.sizes)))]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if "complex" in found.pixel:
        raise FormatError(f"{path} holds complex numbers, but a scan has real ones. Save its magnitude first.")
    if found.components > 1:
        raise FormatError(
            f"{path} holds {found.components} values (colours or a vector) in each voxel, but a scan has one."
        )
    check_volume(path, sizes, volume)
    refuse_size(path, sizes[:3], max_voxels)
    if found.voxels is None or found.affine is None:
        raise FormatError(
            f"{path} has one slice, but a scan has three dimensions. Give the file with the whole volume."
        )
    return found.voxels, found.affine


def decode(paths: Sequence[Path], *, volume: int = 0, max_voxels: int) -> list[Decoded | None]:
    """What SimpleITK makes of each file, in a process of its own; None for a file that it cannot read.

    Raises:
        FormatError: A file made the decoder crash, or took it too long.
        MachineError: No process could be started.
    """
    command = [sys.executable, "-P", str(_CHILD), str(volume), str(max_voxels), *map(str, paths)]
    try:
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise FormatError(
            f"{paths[0]} keeps its decoder busy for more than {_SECONDS} s. It is damaged: export it again."
        ) from error
    except OSError as error:
        raise MachineError(f"No process to decode {paths[0]} could be started: {error.strerror}.") from error
    if child.returncode != 0:
        raise FormatError(
            f"{paths[0]} makes its decoder crash. It is damaged, or of a kind that is not read: convert it to NIfTI."
        )
    return _parsed(child.stdout, len(paths))


def _parsed(out: bytes, count: int) -> list[Decoded | None]:
    found: list[Decoded | None] = []
    position = 0
    for _ in range(count):
        end = out.index(b"\n", position)
        told = json.loads(out[position:end])
        position = end + 1
        if "unreadable" in told:
            found.append(None)
            continue
        voxels, affine = None, None
        if "dtype" in told:
            shape = tuple(told["sizes"][:3])
            dtype = np.dtype(told["dtype"])
            voxels = np.frombuffer(out, dtype, math.prod(shape), position).reshape(shape, order="F").copy(order="F")
            position += voxels.nbytes
            affine = np.eye(4)
            affine[:3, :3] = np.reshape(told["direction"], (3, 3)) * told["spacing"]
            affine[:3, 3] = told["origin"]
        found.append(Decoded(tuple(told["sizes"]), told["components"], told["pixel"], voxels, affine))
    return found
