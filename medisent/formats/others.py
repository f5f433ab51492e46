"""Every other format that SimpleITK reads (NRRD, MetaImage, ...), decoded where a crash is survived."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float, Num

from medisent.errors import FormatError, GeometryError, MachineError
from medisent.formats.checks import check_volume, is_usable, refuse_size
from medisent.formats.claims import check_claims
from medisent.formats.space import shear_remark
from medisent.volumes import Geometry, Volume

_CHILD = Path(__file__).with_name("child.py")
_SECONDS = 300  # of the clock; processor time is limited more tightly by the child itself
_SECONDS_A_FILE = 5
_OUT_OF_TIME = -signal.SIGXCPU
_LINE = 1 << 16
_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".tif", ".tiff", ".webp"}
_CLAIMING = {".nrrd", ".nhdr", ".mha", ".mhd"}  # their claims are checked, and their voxels may be in another file
_PACKING = {".mnc", ".h5", ".hdf5"}  # SimpleITK refuses these when they are cut short
_PACKED_AT_BEST = 200
_ANY = 1 << 60


@dataclass(frozen=True, eq=False)
class Decoded:
    """What SimpleITK found in one file.

    Attributes:
        sizes: Length of every axis.
        components: Values in each voxel.
        pixel: SimpleITK's name of the voxel type.
        size: Bytes of all its values.
        voxels: The values of one volume, (x, y, z); None where the file does not hold one that can be read.
        affine: Voxel index to millimetres, LPS+; None where there are no voxels.
    """

    sizes: tuple[int, ...]
    components: int
    pixel: str
    size: int
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
    remarks = check_claims(path, max_voxels)
    suffix = path.suffix.lower()
    budget = _ANY if suffix in _CLAIMING else path.stat().st_size * (_PACKED_AT_BEST if suffix in _PACKING else 1)
    found = decode([path], volume=volume or 0, max_voxels=max_voxels, max_bytes=budget)[0]
    if found is None:
        raise FormatError(
            f"{path} is not an image that can be read, or it is damaged. Give NIfTI, DICOM, NRRD or MetaImage."
        )
    voxels, affine = _one_scalar_volume(found, path, volume, max_voxels, budget)
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if not is_usable(affine):
        raise GeometryError(f"{path} gives its voxels an impossible size or place. Export it again.")
    return Volume(voxels, Geometry(affine, shape), None, (*remarks, *shear_remark(affine)))


def _one_scalar_volume(
    found: Decoded, path: Path, volume: int | None, max_voxels: int, budget: int
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
    refuse_size(path, sizes, max_voxels)  # SimpleITK decodes all volumes of a file to give one
    if found.size > budget:
        raise FormatError(
            f"{path} is truncated, or packed in a way that cannot be verified. Convert it to NIfTI first."
        )
    if found.voxels is None or found.affine is None:
        raise FormatError(
            f"{path} has one slice, but a scan has three dimensions. Give the file with the whole volume."
        )
    return found.voxels, found.affine


def decode(paths: Sequence[Path], *, volume: int = 0, max_voxels: int, max_bytes: int = _ANY) -> list[Decoded | None]:
    """What SimpleITK makes of each file, in a process of its own; None for a file that it cannot read.

    That process may take memory and processor time in proportion to what a file's header declares.

    Args:
        paths: The files.
        volume: Which volume of a 4D file.
        max_voxels: A file with more is described, but not decoded.
        max_bytes: So is one whose voxels take more.

    Raises:
        FormatError: A file made the decoder crash, or took it too long.
        MachineError: No process could be started.
    """
    found: list[Decoded | None] = []
    command = [sys.executable, "-P", str(_CHILD), str(volume), str(max_voxels), str(max_bytes)]
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise MachineError(f"No process to decode {paths[0]} could be started: {error.strerror}.") from error
    with child:
        clock = threading.Timer(_SECONDS + _SECONDS_A_FILE * len(paths), child.kill)
        clock.start()
        try:
            _send(child, paths)
            assert child.stdout is not None
            while len(found) < len(paths):
                found.append(_received(cast("BufferedReader", child.stdout), max_voxels))
        except (EOFError, ValueError, KeyError) as error:
            child.kill()
            raise _failed(paths[len(found)], busy=not clock.is_alive() or child.wait() == _OUT_OF_TIME) from error
        finally:
            clock.cancel()
    return found


def _send(child: subprocess.Popen[bytes], paths: Sequence[Path]) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it crashed before it read; what it does not answer tells
        child.stdin.write(json.dumps([str(path) for path in paths]).encode())
        child.stdin.close()


def _failed(path: Path, *, busy: bool) -> FormatError:
    if busy:
        return FormatError(f"{path} keeps its decoder busy for too long. It is damaged: export it again.")
    return FormatError(
        f"{path} makes its decoder crash. It is damaged, or of a kind that is not read: convert it to NIfTI."
    )


def _received(stream: BufferedReader, max_voxels: int) -> Decoded | None:
    """What the child says of one file.

    Raises:
        EOFError: It says no more.
        ValueError: It says what it should not.
        KeyError: So too.
    """
    line = stream.readline(_LINE)
    if not line:
        raise EOFError
    told = json.loads(line)
    if "unreadable" in told:
        return None
    voxels, affine = None, None
    if "dtype" in told:
        shape = tuple(int(n) for n in told["sizes"][:3])
        if not 0 <= math.prod(shape) <= max_voxels:
            raise ValueError("more voxels than were asked for")
        voxels = np.empty(shape, np.dtype(told["dtype"]), order="F")
        if stream.readinto(voxels.ravel(order="K").view(np.uint8).data) < voxels.nbytes:
            raise EOFError
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(told["direction"], (3, 3)) * told["spacing"]
        affine[:3, 3] = told["origin"]
    return Decoded(tuple(told["sizes"]), told["components"], told["pixel"], told["bytes"], voxels, affine)
