"""What a scan is: voxels and where they lie in the patient. Knows no file and no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Num, Shaped
from nibabel.orientations import aff2axcodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where voxels lie: index to millimetres, RAS+ (right, anterior, superior are positive).

    Attributes:
        affine: Voxel index (homogeneous) to world millimetres.
        shape: Voxels along each axis.
    """

    affine: Float[np.ndarray, "4 4"]
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """The middle of the field of view, in mm."""
        middle = (np.array(self.shape) - 1) / 2
        centre: np.ndarray = self.affine[:3, :3] @ middle + self.affine[:3, 3]
        return centre

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    @property
    def axis_codes(self) -> str:
        """The nearest anatomical direction of each axis, such as ``RAS``."""
        return "".join(aff2axcodes(self.affine))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI header says about space, kept so that it can be given back unchanged.

    Attributes:
        sform: The header's sform, or None where it has none.
        sform_code: Its code.
        qform: The header's qform, or None where it has none.
        qform_code: Its code.
        units: The header's ``xyzt_units`` byte.
        quaternion: The stored quaternion b, c, d; the qform's matrix does not give it back to the last bit.
        pixdim: The stored handedness and the three voxel sizes, in the header's unit.
    """

    sform: Float[np.ndarray, "4 4"] | None
    sform_code: int
    qform: Float[np.ndarray, "4 4"] | None
    qform_code: int
    units: int
    quaternion: Float[np.ndarray, "3"] | None = None
    pixdim: Float[np.ndarray, "4"] | None = None


@dataclass(frozen=True)
class Stored:
    """How a file holds values: as ``stored * slope + intercept``.

    Attributes:
        dtype: Of what is stored, such as ``int16``.
        slope: What it is multiplied by.
        intercept: What is then added.
    """

    dtype: str
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Instance:
    """The DICOM image, or the frame of one, that a slice of a scan was read from.

    Attributes:
        sop_class: What kind of object it is in, a UID.
        uid: Of the object.
        frame: Which of its frames, counted from 1; None where it has but one.
        position: Centre of the first voxel in mm, LPS+.
        slope: What a stored value is multiplied by.
        intercept: What is then added.
    """

    sop_class: str
    uid: str
    frame: int | None
    position: tuple[float, float, float]
    slope: float
    intercept: float


@dataclass(frozen=True)
class Source:
    """What objects derived from a DICOM scan refer to: identifiers of data, of no person.

    Attributes:
        modality: Such as ``MR``.
        study: UID.
        series: UID.
        frame_of_reference: UID of the coordinate system; empty where the images name none.
        instances: In the order of the slices.
        lossy: Whether an image was ever compressed with loss.
    """

    modality: str
    study: str
    series: str
    frame_of_reference: str
    instances: tuple[Instance, ...]
    lossy: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A scan: a box of voxels with a place in space.

    Attributes:
        voxels: Values as the file means them (slope and intercept applied), axes (x, y, z) as stored.
        geometry: Where they lie.
        header: What the file said about space, where it was NIfTI; given back when the scan is written.
        remarks: What the reader had to decide, in sentences without identifiers.
        source: What derived DICOM objects refer to, where it was DICOM.
        stored: How the file held the values, where it was NIfTI.
    """

    voxels: Num[np.ndarray, "x y z"]
    geometry: Geometry
    header: Header | None = None
    remarks: tuple[str, ...] = field(default=())
    source: Source | None = None
    stored: Stored | None = None

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index to world millimetres, RAS+."""
        return self.geometry.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in mm."""
        return self.geometry.spacing

    def with_voxels(self, voxels: Shaped[np.ndarray, "x y z"]) -> Volume:
        """The same place with other voxels."""
        return replace(self, voxels=voxels)

    def plot(
        self,
        *,
        over: Volume | None = None,
        at: tuple[int, int, int] | None = None,
        window: tuple[float, float] | None = None,
        axes: Iterable[Axes] | None = None,
    ) -> tuple[Axes, Axes, Axes]:
        """Axial, coronal and sagittal plane on Matplotlib axes; see ``medisent.volumes.showing.plot_planes``."""
        from medisent.volumes.showing import plot_planes

        return plot_planes(self, over=over, at=at, window=window, axes=axes)

    def __repr__(self) -> str:
        shape, spacing = (" x ".join(f"{n:.4g}" for n in three) for three in (self.geometry.shape, self.spacing))
        return f"Volume({shape} voxels of {spacing} mm, {self.geometry.axis_codes}, {self.voxels.dtype})"

    def _repr_html_(self) -> str:
        from medisent.volumes.showing import scan_card

        return scan_card(self)
