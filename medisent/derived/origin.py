"""What derived objects come from: a scan, a model, and the images they refer to without naming anybody.

Nothing is copied from the images. Every object is made of the few elements that link it: the UIDs of study, frame of
reference and referenced images. Its own identifiers come from its content, so that the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydicom.dataset import Dataset
from pydicom.uid import UID, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from medisent.errors import FormatError
from medisent.files import whole_file
from medisent.version import __version__
from medisent.volumes import Instance, Source, Volume

MANUFACTURER = "medisent"
MODEL_NAME = f"medisent {__version__}"
REMOVED = "Written anew by medisent; UIDs alone link it to its source"
# Where the standard demands a date there is one, and it says nothing: a clock would change the bytes.
NO_DATE, NO_TIME = "19000101", "000000"
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ALIKE = 0.1  # of the distance between slices: images that lie so near to the scan's slices are its slices
_DRAWN = "1.2.826.0.1.3680043.10.511.3."  # what the identifiers begin with that highdicom draws
_REFERENCES = ("SourceImageSequence", "ReferencedInstanceSequence", "ReferencedSOPSequence")


@dataclass(frozen=True, eq=False)
class Origin:
    """What derived objects come from.

    Attributes:
        scan: The scan.
        source: Its images.
        model: SHA-256 of the model file.
    """

    scan: Volume
    source: Source
    model: str

    @classmethod
    def of(cls, scan: Volume, model: str) -> Origin:
        """The origin of what a model makes of a scan.

        Raises:
            FormatError: The scan was not DICOM, or its images lack the identifiers to refer to.
        """
        source = scan.source
        if source is None:
            raise FormatError(
                "DICOM objects were asked for, but the scan is not DICOM, so there are no images that they could refer "
                "to. Give the DICOM folder, or leave out --dicom."
            )
        if not (source.study and source.series and source.instances and all(i.uid for i in source.instances)):
            raise FormatError(
                "DICOM objects were asked for, but the scan's images lack UIDs of study, series or image to refer "
                "to. Export the series again, or leave out --dicom."
            )
        return cls(scan, source, model)

    @property
    def entropy(self) -> str:
        """What identifiers of everything that comes from here have in common."""
        return f"{self.source.study} {self.source.series} {self.model} {__version__}"

    @property
    def frame_of_reference(self) -> str:
        """UID of the coordinate system; where the images name none, one that their derived objects share."""
        return self.source.frame_of_reference or derived_uid("frame of reference", self.source.series)

    @property
    def pseudonym(self) -> str:
        """Whom the objects are filed under: the same for all of a study, and nobody's name."""
        return "MEDISENT-" + hashlib.sha256(self.source.study.encode()).hexdigest()[:12].upper()

    @cached_property
    def slices(self) -> tuple[Instance, ...]:
        """The image that each slice is; nothing where the scan was resampled from its images."""
        count = self.scan.geometry.shape[2]
        if len(self.source.instances) != count:
            return ()
        affine = _TO_LPS @ self.scan.affine
        even = affine[:3, 3] + np.arange(count)[:, None] * affine[:3, 2]
        apart = np.abs(np.array([instance.position for instance in self.source.instances]) - even).max()
        return self.source.instances if apart < _ALIKE * self.scan.spacing[2] else ()

    @cached_property
    def positions(self) -> Float[np.ndarray, "slices 3"]:
        """Centre of each slice's first voxel in mm, LPS+: the images' own, unless the scan was resampled from them."""
        if self.slices:
            return np.array([instance.position for instance in self.slices])
        affine = _TO_LPS @ self.scan.affine
        even: np.ndarray = affine[:3, 3] + np.arange(self.scan.geometry.shape[2])[:, None] * affine[:3, 2]
        return even

    @property
    def orientation(self) -> list[str]:
        """Directions of rows and columns, LPS+."""
        steps = (_TO_LPS @ self.scan.affine)[:3, :2] / self.scan.spacing[:2]
        return [number(cosine) for cosine in steps.T.ravel()]

    @property
    def pixel_spacing(self) -> list[str]:
        """Distances between rows, and between columns, in mm."""
        x, y, _ = self.scan.spacing
        return [number(y), number(x)]

    @property
    def slice_spacing(self) -> float:
        """Distance between slices along their normal, in mm."""
        steps = self.scan.affine[:3, :3]
        normal = np.cross(steps[:, 0], steps[:, 1])
        return float(abs(steps[:, 2] @ normal) / np.linalg.norm(normal))

    def reference(self, index: int) -> Dataset:
        """A reference to the image that a slice is, or comes from."""
        instance, item = self.slices[index] if self.slices else self.source.instances[0], Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.sop_class, instance.uid
        if instance.frame is not None:
            item.ReferencedFrameNumber = instance.frame
        return item

    @cached_property
    def stand_ins(self) -> list[Dataset]:
        """For each slice an image that says where it lies and nothing else, for highdicom to derive from.

        Each has a UID of its own, also where slices are frames of one object; ``write`` puts the references right.
        """
        images = []
        for index in range(self.scan.geometry.shape[2]):
            image = Dataset()
            image.SOPClassUID, image.SOPInstanceUID = (
                MRImageStorage,
                derived_uid("slice", self.source.series, str(index)),
            )
            image.SeriesInstanceUID, image.Modality = self.source.series, self.source.modality
            self.mark(image)
            image.Rows, image.Columns = self.scan.geometry.shape[1::-1]
            image.ImagePositionPatient = [number(mm) for mm in self.positions[index]]
            image.ImageOrientationPatient, image.PixelSpacing = self.orientation, self.pixel_spacing
            image.SliceThickness = image.SpacingBetweenSlices = number(self.slice_spacing)
            images.append(image)
        return images

    def mark(self, image: Dataset) -> None:
        """Study, frame of reference, and a patient without a name."""
        image.SpecificCharacterSet = "ISO_IR 192"
        image.PatientID, image.PatientName = self.pseudonym, f"{self.pseudonym}^"
        image.PatientIdentityRemoved, image.DeidentificationMethod = "YES", REMOVED
        image.PatientBirthDate = image.PatientSex = image.StudyDate = image.StudyTime = ""
        image.AccessionNumber = image.StudyID = image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
        image.StudyInstanceUID, image.FrameOfReferenceUID = self.source.study, self.frame_of_reference

    def equipment(self, series: UID) -> dict[str, Any]:
        """What highdicom's constructors have to be told of every object: its identifiers, and what has made it."""
        return {
            "series_instance_uid": series,
            "series_number": 1,
            "sop_instance_uid": derived_uid("object", series),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": MODEL_NAME,
            "software_versions": MODEL_NAME,
            "device_serial_number": self.model[:16],
        }

    def write(self, image: Dataset, path: Path) -> None:
        """Write an object of highdicom without its clock and its chance, its references those of the true images.

        Raises:
            MachineError: The file cannot be written.
        """
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContributingEquipmentSequence"):
            if keyword in image:
                delattr(image, keyword)
        image.ContentDate, image.ContentTime = NO_DATE, NO_TIME
        drawn: dict[str, UID] = {}
        for dataset in _walk(image):
            for element in dataset:
                if element.VR == "UI" and str(element.value).startswith(_DRAWN):
                    uid = derived_uid("drawn", image.SOPInstanceUID, str(len(drawn)))
                    element.value = drawn.setdefault(str(element.value), uid)
        for dataset in list(_walk(image)):
            for keyword in _REFERENCES:
                if keyword in dataset:
                    items = [self._true(item) for item in dataset[keyword].value]
                    dataset[keyword].value = items if keyword == "SourceImageSequence" else _once(items)
        with whole_file(path) as temporary:
            image.save_as(temporary, enforce_file_format=True)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {str(image.SOPInstanceUID): index for index, image in enumerate(self.stand_ins)}

    def _true(self, item: Dataset) -> Dataset:
        """A reference to what the stand-in stands for; highdicom may use one item in several places."""
        index = self._indices.get(str(item.ReferencedSOPInstanceUID))
        if index is None:
            return item
        true = deepcopy(item)
        true.update(self.reference(index))
        return true


def derived_uid(*content: str | bytes) -> UID:
    """A UID made of what it names: the same content, the same UID."""
    digest = hashlib.sha256()
    for part in content:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return UID("2.25." + str(int.from_bytes(digest.digest()[:16], "big")))


def number(value: float) -> str:
    """A number as DICOM's decimal string, to its 16 characters."""
    return str(format_number_as_ds(float(value)))


def short(text: str, length: int = 64) -> str:
    """Text as it fits into an element."""
    plain = " ".join(text.replace("\\", "/").split())
    return plain if len(plain) <= length else plain[: length - 3] + "..."


def _walk(dataset: Dataset) -> Iterator[Dataset]:
    """A dataset and every item of every sequence in it."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _walk(item)


def _once(items: Sequence[Dataset]) -> list[Dataset]:
    """A list of objects, each of them once, whichever of its frames are meant."""
    unique = {item.ReferencedSOPInstanceUID: item for item in items}
    if len(unique) < len(items):
        for item in unique.values():
            item.pop("ReferencedFrameNumber", None)
    return list(unique.values())
