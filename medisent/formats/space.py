"""Where a NIfTI header says that its voxels lie: sform, qform, units, and the rule by which one of them is taken."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike

from medisent.errors import GeometryError
from medisent.formats.checks import is_usable
from medisent.volumes import Geometry, Header

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre and micrometre; everything else is millimetres
_PLAUSIBLE_SPACING = (0.001, 100.0)
_LAST_CODE = 5


def geometry_of(header: Nifti1Header, shape: tuple[int, int, int], path: Path) -> tuple[Geometry, tuple[str, ...]]:
    """The sform where it has a code and is usable, else the qform, else the voxel sizes alone.

    Raises:
        GeometryError: None of them gives the voxels a place.
    """
    if not (0 <= header["sform_code"] <= _LAST_CODE and 0 <= header["qform_code"] <= _LAST_CODE):
        raise GeometryError(
            f"{path} has a code for its sform or qform that there is not. It is damaged: export it again."
        )
    sform = _usable(header.get_sform) if header["sform_code"] > 0 else None
    qform = _usable(lambda: _qform(header)) if header["qform_code"] > 0 else None
    remarks = []
    if sform is not None and qform is not None and (apart := _disagreement(sform, qform, shape)) > 0.1:
        remarks.append(f"The header's sform and qform differ by up to {apart:.1f} voxels; the sform is used.")
    if sform is None and header["sform_code"] > 0 and qform is not None:
        remarks.append("The header's sform is not usable; the qform is used.")
    if qform is None and header["qform_code"] > 0 and sform is not None:
        remarks.append("The header's qform is not usable; the sform is used.")
    affine = sform if sform is not None else qform
    if affine is None:
        if header["sform_code"] > 0 or header["qform_code"] > 0:
            raise GeometryError(
                f"{path} has no usable sform or qform: they are singular or not finite. Export it again."
            )
        affine = _bare_affine(header, shape, path)
        remarks.append(
            "The header gives no orientation; left and right are assumed to be stored as in radiological display (LAS)."
        )
    elif qform is None:
        remarks += _sizes_remark(header, affine)
    affine, remark = _in_mm(affine, int(header["xyzt_units"]) & 7)
    return Geometry(affine, shape), (*remarks, *remark, *shear_remark(affine))


def _usable(read: Callable[[], np.ndarray]) -> Float[np.ndarray, "4 4"] | None:
    try:
        with np.errstate(invalid="ignore"):  # numbers that are none are refused, not warned of
            affine = np.asarray(read(), np.float64)
    except (HeaderDataError, ValueError):
        return None
    return affine if is_usable(affine) else None


def _qform(header: Nifti1Header) -> Float[np.ndarray, "4 4"]:
    copy = header.copy()
    if copy["pixdim"][0] == 0:  # the standard: zero means 1
        copy["pixdim"][0] = 1
    if not np.isfinite(copy["pixdim"][:4]).all():
        raise ValueError("voxel sizes are not finite")
    affine: np.ndarray = copy.get_qform()
    return affine


def _bare_affine(header: Nifti1Header, shape: tuple[int, int, int], path: Path) -> Float[np.ndarray, "4 4"]:
    """Voxel sizes only, centred, first axis to the left, as nibabel and the standard's method 1 have it."""
    sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64)) * [-1, 1, 1]
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array(shape) - 1) / 2
    if not is_usable(affine):
        raise GeometryError(f"{path} has neither an orientation nor valid voxel sizes. Export it again.")
    return affine


def _sizes_remark(header: Nifti1Header, sform: Float[np.ndarray, "4 4"]) -> tuple[str, ...]:
    """A sentence where the header's voxel sizes are not those of its sform and no qform tells the same."""
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    if np.allclose(sizes, np.linalg.norm(sform[:3, :3], axis=0), rtol=0.01, atol=0):
        return ()
    return ("The header's voxel sizes are not those of its sform; the sform is used.",)


def shear_remark(affine: Float[np.ndarray, "4 4"]) -> tuple[str, ...]:
    """A sentence where axes are not at right angles; such a place is kept as it is."""
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    angle = np.degrees(np.arcsin(min(1.0, np.abs(steps.T @ steps - np.eye(3)).max())))
    return (f"The voxels' axes are {angle:.1f} degrees from a right angle; they are kept so.",) if angle > 0.5 else ()


def _disagreement(one: Float[np.ndarray, "4 4"], other: Float[np.ndarray, "4 4"], shape: tuple[int, int, int]) -> float:
    """The largest distance between the two places of one voxel, in voxels; a corner has it, as both maps are affine."""
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in shape))]).T
    apart = np.linalg.solve(one, other @ corners) - corners
    return float(np.abs(apart[:3]).max())


def _in_mm(affine: Float[np.ndarray, "4 4"], unit: int) -> tuple[Float[np.ndarray, "4 4"], tuple[str, ...]]:
    factor = _MM_PER_UNIT.get(unit)
    if factor is None:
        return affine, ()
    spacing = np.linalg.norm(affine[:3, :3], axis=0) * factor
    if spacing.min() < _PLAUSIBLE_SPACING[0] or spacing.max() > _PLAUSIBLE_SPACING[1]:
        return affine, ("The header's unit of length makes no plausible voxel size; millimetres are assumed.",)
    scaled = affine.copy()
    scaled[:3] *= factor
    return scaled, (
        f"The header's lengths are in {'metres' if unit == 1 else 'micrometres'} and were converted to millimetres.",
    )


def kept_header(header: Nifti1Header) -> Header:
    """The header's own words about space, so that they can be given back."""
    qform = _usable(lambda: _qform(header))
    return Header(
        sform=_finite(header.get_sform()),
        sform_code=int(header["sform_code"]),
        qform=qform,
        qform_code=int(header["qform_code"]),
        units=int(header["xyzt_units"]),
        quaternion=_finite([header[f"quatern_{i}"] for i in "bcd"]),
        pixdim=_finite(header["pixdim"][:4]),
    )


def _finite(numbers: ArrayLike) -> np.ndarray:
    return np.nan_to_num(np.asarray(numbers, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def header_for(geometry: Geometry) -> Header:
    """The header of a scan that was not NIfTI: sform and qform are the geometry, in mm; a sheared one has no qform."""
    steps = geometry.affine[:3, :3] / geometry.spacing
    rigid = np.allclose(steps.T @ steps, np.eye(3), atol=1e-4)
    if rigid:
        return Header(geometry.affine, 1, geometry.affine, 1, 2)
    return Header(geometry.affine, 1, None, 0, 2, pixdim=np.array([1.0, *geometry.spacing]))
