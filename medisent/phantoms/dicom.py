"""A rendered scan as a DICOM series that says in every image that it is synthetic."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from medisent.files import whole_file
from medisent.volumes import Volume

_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def write_series(volume: Volume, folder: Path, *, name: str, description: str, entropy: str) -> None:
    """Write one MR image a slice along z, int16 with a rescale slope.

    Args:
        volume: The scan.
        folder: Where the images go; it is made.
        name: Who it is of, such as ``SUB-0001``: there is no such patient.
        description: What the series says about itself.
        entropy: What its identifiers are derived from; equal entropy, equal identifiers.
    """
    high = float(max(volume.voxels.max(), 1e-6))
    slope = float(f"{high / 32000:.8g}")
    stored = np.rint(volume.voxels.astype(np.float64) / slope).clip(-32768, 32767).astype("<i2")
    directions = _TO_LPS @ volume.affine[:3, :3]
    for index in range(volume.geometry.shape[2]):
        image = _image(name, description, entropy, index)
        _place(image, volume, directions, index)
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = slope, 0, "US"
        plane = np.ascontiguousarray(stored[:, :, index].T)
        image.Rows, image.Columns = plane.shape
        image.PixelData = plane.tobytes()
        with whole_file(folder / f"{index + 1:04d}.dcm") as temporary:
            image.save_as(temporary, enforce_file_format=True)


def _image(name: str, description: str, entropy: str, index: int) -> Dataset:
    """One image without its place and its pixels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = _uid(f"{entropy} image {index}")
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(f"{entropy} study"), _uid(f"{entropy} series")
    image.FrameOfReferenceUID = _uid(f"{entropy} frame")
    image.PatientName, image.PatientID = f"SYNTHETIC^{name}", f"SYNTHETIC-{name}"
    image.PatientBirthDate = image.PatientSex = image.StudyDate = image.StudyTime = ""
    image.AccessionNumber = image.StudyID = image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
    image.PatientPosition = ""
    image.Modality, image.Manufacturer, image.BodyPartExamined = "MR", "SYNTHETIC", "HEAD"
    image.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    image.SeriesDescription, image.ImageComments = "SYNTHETIC phantom, no patient", description
    image.SeriesNumber, image.InstanceNumber = 1, index + 1
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions, image.MRAcquisitionType = "RM", "NONE", "", "3D"
    image.EchoTime = image.RepetitionTime = image.EchoTrainLength = None
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    return image


def _place(image: Dataset, volume: Volume, directions: np.ndarray, index: int) -> None:
    """Where the image lies: rows of the image run along x, columns along y, images along z."""
    spacing = volume.spacing
    position = _TO_LPS @ (volume.affine[:3, :3] @ np.array([0, 0, index]) + volume.affine[:3, 3])
    cosines = np.concatenate([directions[:, 0] / spacing[0], directions[:, 1] / spacing[1]])
    image.ImagePositionPatient = [_decimal(number) for number in position]
    image.ImageOrientationPatient = [_decimal(number) for number in cosines]
    image.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    image.SliceThickness = image.SpacingBetweenSlices = _decimal(spacing[2])


def _decimal(number: float) -> str:
    """A number as a decimal string of at most 16 characters."""
    text = f"{number:.9f}".rstrip("0").rstrip(".")
    text = text if len(text) <= 16 else f"{number:.8g}"
    return "0" if text in ("-0", "") else text


def _uid(entropy: str) -> UID:
    return UID("2.25." + str(int.from_bytes(hashlib.sha256(entropy.encode()).digest()[:16], "big")))
