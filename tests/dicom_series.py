"""Made DICOM series for tests: small, oblique, in files whose names and numbers do not help with the order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

Change = Callable[[int, Dataset], None]
SECRETS = {
    "PatientName": "Canary^Carla",
    "PatientID": "CANARY-7",
    "StudyDate": "19991231",
    "SeriesDescription": "CANARY",
}
SHAPE = (6, 5, 8)  # columns, rows, slices
SPACING = (0.9, 1.1, 3.0)


def directions(angle: float = 0.4) -> np.ndarray:
    """Columns: along a row, along a column, across the slices."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


NORMAL = directions()[:, 2]


def lps() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions() * SPACING
    affine[:3, 3] = [-30.0, 20.0, 10.0]
    return affine


def ras() -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps()


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)


def image(array: np.ndarray, series: str) -> Dataset:
    """A DICOM image without place: array is (columns, rows) or (columns, rows, frames)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID, ds.Modality, ds.ImageType = series, "MR", ["ORIGINAL", "PRIMARY"]
    for name, secret in SECRETS.items():
        setattr(ds, name, secret)
    ds.Columns, ds.Rows = array.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = array.T.tobytes()
    return ds


def nothing(z: int, ds: Dataset) -> None:
    """No change."""


def write_series(folder: Path, change: Change = nothing, seed: int = 0, uid: int | None = None) -> Path:
    """Write a series; ``change`` is applied to the image of each slice, and an image without rows is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    array, series = voxels(seed), generate_uid(entropy_srcs=[str(seed if uid is None else uid)])
    for z, name in enumerate(np.random.default_rng(seed).permutation(SHAPE[2])):
        ds = image(array[:, :, z], series)
        ds.InstanceNumber = int(name)
        ds.ImagePositionPatient = [float(v) for v in (lps() @ [0, 0, z, 1])[:3]]
        ds.ImageOrientationPatient = [float(v) for v in directions()[:, :2].T.ravel()]
        ds.PixelSpacing = [SPACING[1], SPACING[0]]
        change(z, ds)
        if ds.get("Rows") != 0:
            ds.save_as(folder / f"{seed}-{name}.dcm", enforce_file_format=True)
    return folder


def enhanced(change: Callable[[Dataset], None] = lambda ds: None, times: int = 1) -> Dataset:
    """All slices in one file, each with its own rescaling; several times one after another."""
    array = np.concatenate([voxels(time) for time in range(times)], axis=2)
    ds = image(array, generate_uid())
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.NumberOfFrames = array.shape[2]
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [SPACING[1], SPACING[0]]
    orientation.ImageOrientationPatient = [float(v) for v in directions()[:, :2].T.ravel()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for number in range(array.shape[2]):
        z = number % SHAPE[2]
        frame, position, scale, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [float(v) for v in (lps() @ [0, 0, z, 1])[:3]]
        scale.RescaleSlope, scale.RescaleIntercept = 0.5 + z, -z
        content.TemporalPositionIndex = number // SHAPE[2] + 1
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([position]), Sequence([scale])
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    change(ds)
    return ds


def at(z: int, name: str | int, value: object) -> Change:
    """Set one element of one slice; by its tag to any text, also where that makes no sense."""
    return lambda here, ds: every(name, value)(here, ds) if here == z else None


def every(name: str | int, value: object) -> Change:
    """Set one element of all slices; by its tag to any text, also where that makes no sense."""
    if isinstance(name, int):
        return lambda z, ds: ds.add_new(name, "UT", value)
    return lambda z, ds: setattr(ds, name, value)


def shift(where: Callable[[int], np.ndarray]) -> Change:
    """Move slices by so many mm."""

    def change(z: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [float(v) for v in np.array(ds.ImagePositionPatient, float) + where(z)]

    return change


def drop(*gone: int) -> Change:
    """Leave slices out."""
    return lambda z, ds: setattr(ds, "Rows", 0) if z in gone else None


def both(*changes: Change) -> Change:
    """One change after another."""

    def change(z: int, ds: Dataset) -> None:
        for one in changes:
            one(z, ds)

    return change


def tilt(degrees: float) -> Change:
    """Shift each slice within its plane, as a tilted gantry does."""
    return shift(lambda z: z * SPACING[2] * np.tan(np.radians(degrees)) * directions()[:, 1])
