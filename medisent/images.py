"""Scans that other libraries hold in memory: each becomes a ``Volume``, and a ``Volume`` becomes one of its kind again.

nibabel counts millimetres RAS+ and indexes (x, y, z); SimpleITK counts them LPS+ and its arrays are (z, y, x); MONAI
puts a channel first and says in ``meta["space"]`` how it counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813 - everybody calls it so
import torch
from jaxtyping import Float, Num, Shaped
from monai.data import MetaTensor
from nibabel.analyze import AnalyzeImage
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.nifti1 import Nifti1Image, Nifti1Pair
from nibabel.spatialimages import SpatialImage

from medisent.errors import FormatError, GeometryError, UsageError
from medisent.formats import fresh_header, geometry_of, kept_header, read, refuse_types, refuse_unfit
from medisent.volumes import Geometry, Stored, Volume

ArrayInPlace: TypeAlias = tuple[Any, Any]
"""Voxels (x, y, z), and the affine from voxel index to millimetres, RAS+."""

Image: TypeAlias = SpatialImage | sitk.Image | MetaTensor | ArrayInPlace
Scan: TypeAlias = Volume | Path | str | os.PathLike[str] | Image
"""Whatever a scan may be given as."""

_THE_IMAGE = Path("The image")  # what refusals call it
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PLACE_IN_META = ("original_affine", "spatial_shape", "space", "original_channel_dim")


def volume_of(scan: object) -> Volume:
    """The scan as a volume, its values as its library means them, its place in mm, RAS+.

    Raises:
        UsageError: It is nothing that a scan can be given as.
        MedisentError: It is refused, as a file with these voxels would be.

    Example:
        >>> volume_of((np.arange(8.0).reshape(2, 2, 2), np.diag([1.0, 1.0, 3.0, 1.0]))).spacing
        (1.0, 1.0, 3.0)
    """
    match scan:
        case Volume():
            return scan
        case str() | os.PathLike():
            return read(Path(scan))
        case SpatialImage():
            found = _from_nibabel(scan)
        case sitk.Image():
            found = _from_simpleitk(scan)
        case MetaTensor():
            found = _from_monai(scan)
        case tuple() if len(scan) == 2:
            voxels, affine = (np.asarray(part) for part in scan)
            found = Volume(_checked(voxels), Geometry(_checked_affine(affine), _shape(voxels)))
        case np.ndarray() | torch.Tensor():
            raise GeometryError(
                "An array does not say where its voxels lie. Give (array, affine), the affine in mm, RAS+."
            )
        case _:
            raise UsageError(
                f"A scan cannot be a {type(scan).__name__}. Give a path, a nibabel or SimpleITK image, a MetaTensor, "
                "(array, affine), or what medisent.read returns."
            )
    refuse_unfit(found, _THE_IMAGE)
    return found


def scans_of(scans: Iterable[Scan] | Scan) -> list[Scan]:
    """The scans of a list; one that is given without a list is a list of one."""
    match scans:
        case Volume() | str() | os.PathLike() | SpatialImage() | sitk.Image() | MetaTensor() | (np.ndarray(), _):
            return [scans]
        case _:
            return list(scans)


def image_like(volume: Volume, scan: Scan, description: str) -> Scan:
    """The volume as an image of the kind and at the place of the scan it was made from; itself for a volume or a path.

    Of the scan's metadata only its place is carried over.

    Arguments:
        volume: On the voxels of the scan.
        scan: What it was made from.
        description: What the image is to say about itself, where its kind has room for that.
    """
    match scan:
        case SpatialImage():
            return _to_nibabel(volume, scan, description)
        case sitk.Image():
            made = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.T))
            made.CopyInformation(scan)
            made.SetMetaData("ITK_FileNotes", description)
            return made
        case MetaTensor():
            return _to_monai(volume, scan, description)
        case tuple():
            return volume.voxels, volume.affine
        case _:
            return volume


def _from_nibabel(image: SpatialImage) -> Volume:
    if isinstance(image, AnalyzeImage) and not isinstance(image, Nifti1Pair):
        raise FormatError("The image is of Analyze's kind, which does not say left from right. Convert it to NIfTI.")
    refuse_types(_THE_IMAGE, image.get_data_dtype())
    voxels = _checked(_without_ones(np.asanyarray(image.dataobj)))
    affine = _checked_affine(np.asarray(image.affine, np.float64))
    if isinstance(image, Nifti1Pair) and np.allclose(image.header.get_best_affine(), affine, rtol=1e-6, atol=1e-6):
        geometry, remarks = geometry_of(image.header, _shape(voxels), _THE_IMAGE)
        return Volume(voxels, geometry, kept_header(image.header), remarks)
    return Volume(voxels, Geometry(affine, _shape(voxels)))


def _to_nibabel(volume: Volume, image: SpatialImage, description: str) -> SpatialImage:
    voxels = volume.voxels.reshape(image.shape)
    if isinstance(image, Nifti1Pair) or not type(image).makeable:
        header = fresh_header(volume, Stored(volume.voxels.dtype.name))
        header["vox_offset"] = 0  # nibabel's to decide
        header["descrip"] = description.encode("ascii", "replace")[:79]
        kind = type(image) if isinstance(image, Nifti1Pair) else Nifti1Image
        return kind(voxels, header.get_best_affine(), header)
    if isinstance(image, MGHImage):
        voxels = voxels.astype(np.float32)  # it has no wider type
    return type(image)(voxels, image.affine)


def _from_simpleitk(image: sitk.Image) -> Volume:
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise FormatError("The image has several values (colours or a vector) in each voxel, but a scan has one.")
    if image.GetDimension() != 3:
        raise FormatError(f"The image has {image.GetDimension()} dimensions, but a scan has 3. Give one 3D image.")
    refuse_types(_THE_IMAGE, np.dtype(complex) if "complex" in image.GetPixelIDTypeAsString() else np.dtype(float))
    voxels = sitk.GetArrayFromImage(image).T
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(_checked(voxels), Geometry(_LPS_TO_RAS @ affine, _shape(voxels)))


def _from_monai(image: MetaTensor) -> Volume:
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        size = " x ".join(map(str, image.shape))
        raise FormatError(f"The MetaTensor has {size} values, but a scan is (1, x, y, z). Give one channel, unbatched.")
    tensor = image.as_tensor().detach().cpu()
    voxels = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    affine = _checked_affine(image.affine.detach().cpu().double().numpy())
    if str(image.meta.get("space", "RAS")) == "LPS":
        affine = _LPS_TO_RAS @ affine
    return Volume(_checked(voxels), Geometry(affine, _shape(voxels)))


def _to_monai(volume: Volume, image: MetaTensor, description: str) -> MetaTensor:
    voxels = torch.from_numpy(np.ascontiguousarray(volume.voxels)).reshape(image.shape).to(image.device)
    meta = {name: image.meta[name] for name in _PLACE_IN_META if name in image.meta}
    operations = image.applied_operations
    return MetaTensor(voxels, image.affine, {**meta, "descrip": description}, applied_operations=operations)


def _without_ones(voxels: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The array without axes of length one behind the third."""
    shape = list(voxels.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return voxels.reshape(shape)


def _checked(voxels: Shaped[np.ndarray, "..."]) -> Num[np.ndarray, "x y z"]:
    """The array in the machine's byte order, if it is one of a scan."""
    if voxels.ndim != 3:
        raise FormatError(f"The image has {voxels.ndim} dimensions, but a scan has 3. Give one volume of it.")
    refuse_types(_THE_IMAGE, voxels.dtype)
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def _checked_affine(affine: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "4 4"]:
    if affine.shape != (4, 4) or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise GeometryError("The image has no affine of four rows and columns, the last row 0, 0, 0, 1.")
    return affine.astype(np.float64)


def _shape(voxels: Shaped[np.ndarray, "..."]) -> tuple[int, int, int]:
    x, y, z = voxels.shape
    return x, y, z
