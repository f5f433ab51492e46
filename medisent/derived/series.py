"""A counterfactual as a derived series: the slices of its source, with other values, marked as synthetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from medisent.derived.maps import write_synthetic_map
from medisent.derived.origin import MANUFACTURER, MODEL_NAME, Origin, derived_uid, number, short
from medisent.derived.scales import fitting_scales
from medisent.files import whole_file
from medisent.volumes import Volume


def write_series(volume: Volume, folder: Path, origin: Origin, *, said: str, series_number: int) -> None:
    """Write a counterfactual as images of the source's kind: MR and CT slice by slice, others as one parametric map.

    Args:
        volume: The counterfactual, in the scan's space.
        folder: Where the images go.
        origin: What it was made from.
        said: What was asked, such as ``tumour_volume=20``.
        series_number: Of the new series.

    Raises:
        MachineError: A file cannot be written.
    """
    if origin.source.modality not in ("MR", "CT"):
        write_synthetic_map(volume, folder / "synthetic.dcm", origin, said=said, series_number=series_number)
        return
    uid = derived_uid("series", origin.entropy, said, np.ascontiguousarray(volume.voxels).tobytes())
    planes = [volume.voxels[:, :, z] for z in range(volume.geometry.shape[2])]
    scales, signed = fitting_scales(planes, origin.slices or [None] * len(planes))
    low, high = np.percentile(origin.scan.voxels, [0.5, 99.5])
    for index, (plane, scale) in enumerate(zip(planes, scales, strict=True)):
        image = _image(origin, index, said)
        image.SeriesInstanceUID, image.SeriesNumber = uid, series_number
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = derived_uid("image", uid, str(index))
        # The source's window, so that a change of brightness is seen as one.
        image.WindowCenter, image.WindowWidth = number((low + high) / 2), number(max(high - low, 1e-3))
        image.VOILUTFunction = "LINEAR_EXACT"  # of real values: the default is one of whole numbers
        image.RescaleSlope, image.RescaleIntercept = scale.slope, scale.intercept
        image.RescaleType = "HU" if origin.source.modality == "CT" else "US"
        image.PixelRepresentation = int(signed)
        image.PixelData = scale.stored(plane).T.astype("<i2" if signed else "<u2").tobytes()
        with whole_file(folder / f"synthetic_{index + 1:04d}.dcm") as temporary:
            image.save_as(temporary, enforce_file_format=True)


def _image(origin: Origin, index: int, said: str) -> Dataset:
    """A slice without its identifiers and its pixels."""
    image = Dataset()
    tomography = origin.source.modality == "CT"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage if tomography else MRImageStorage
    origin.mark(image)
    image.Modality, image.InstanceNumber = origin.source.modality, index + 1
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if tomography else "OTHER"]
    image.ContentQualification, image.BurnedInAnnotation = "RESEARCH", "NO"
    image.Laterality = image.PatientPosition = ""
    image.SeriesDescription = short(f"SYNTHETIC medisent {said}")
    image.ImageComments = "SYNTHETIC: no patient looked like this. For research, not for diagnosis."
    image.DerivationDescription = short(f"Counterfactual: {said}", 1024)
    if origin.source.lossy:
        image.LossyImageCompression = "01"
    image.Manufacturer, image.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    image.SoftwareVersions, image.DeviceSerialNumber = MODEL_NAME, origin.model[:16]
    image.SourceImageSequence = [origin.reference(index)]
    image.ImagePositionPatient = [number(mm) for mm in origin.positions[index]]
    image.ImageOrientationPatient, image.PixelSpacing = origin.orientation, origin.pixel_spacing
    image.SliceThickness = image.SpacingBetweenSlices = number(origin.slice_spacing)
    if tomography:
        image.KVP = image.AcquisitionNumber = None
    else:  # of the acquisition nothing is said, as far as the standard allows
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""
        image.MRAcquisitionType, image.EchoTime, image.RepetitionTime, image.EchoTrainLength = "", None, None, None
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = origin.scan.geometry.shape[1::-1]
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    return image
