"""Laws of DICOM: one clean series becomes a volume in its place, all else is refused by the name of its fault."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid

from medisent import formats
from medisent.errors import FormatError, GeometryError, MedisentError
from medisent.formats.pixels import stored

DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
SECRETS = {
    "PatientName": "Canary^Carla",
    "PatientID": "CANARY-7",
    "StudyDate": "19991231",
    "SeriesDescription": "CANARY",
}
SHAPE = (6, 5, 4)  # columns, rows, slices
SPACING = (0.9, 1.1, 3.0)


def directions(angle: float = 0.4) -> np.ndarray:
    """Columns: along a row, along a column, across the slices."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def lps() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions() * SPACING
    affine[:3, 3] = [-30.0, 20.0, 10.0]
    return affine


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


def write_series(folder: Path, change: Callable[[int, Dataset], None] = lambda z, ds: None, seed: int = 0) -> Path:
    """An oblique series; file names and instance numbers are no help with the order."""
    folder.mkdir(parents=True, exist_ok=True)
    array, series = voxels(seed), generate_uid(entropy_srcs=[str(seed)])
    for z, name in enumerate(np.random.default_rng(seed).permutation(SHAPE[2])):
        ds = image(array[:, :, z], series)
        ds.InstanceNumber = int(name)
        ds.ImagePositionPatient = [float(v) for v in (lps() @ [0, 0, z, 1])[:3]]
        ds.ImageOrientationPatient = [float(v) for v in directions()[:, :2].T.ravel()]
        ds.PixelSpacing = [SPACING[1], SPACING[0]]
        change(z, ds)
        ds.save_as(folder / f"{seed}-{name}.dcm", enforce_file_format=True)
    return folder


def enhanced(change: Callable[[Dataset], None] = lambda ds: None) -> Dataset:
    ds = image(voxels(), generate_uid())
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.NumberOfFrames = SHAPE[2]
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [SPACING[1], SPACING[0]]
    orientation.ImageOrientationPatient = [float(v) for v in directions()[:, :2].T.ravel()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in range(SHAPE[2]):
        frame, position, scale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [float(v) for v in (lps() @ [0, 0, z, 1])[:3]]
        scale.RescaleSlope, scale.RescaleIntercept = 0.5 + z, -z
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([position]), Sequence([scale])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    change(ds)
    return ds


def ras() -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps()


def test_an_oblique_series_of_shuffled_files_becomes_a_volume_in_its_place(tmp_path):
    volume = formats.read(write_series(tmp_path / "series"))
    assert volume.voxels.dtype == np.uint16
    assert np.array_equal(volume.voxels, voxels())
    assert np.allclose(volume.affine, ras(), atol=1e-6)
    assert volume.spacing == pytest.approx(SPACING)
    assert volume.header is None


def test_slices_are_rescaled_one_by_one(tmp_path):
    def scale(z: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 0.25 * (z + 1), -10 * z

    volume = formats.read(write_series(tmp_path / "series", scale))
    z = np.arange(SHAPE[2])
    assert volume.voxels.dtype == np.float64
    assert np.array_equal(volume.voxels, voxels() * (0.25 * (z + 1)) - 10 * z)


def test_whole_slopes_keep_integers(tmp_path):
    def scale(z: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024

    volume = formats.read(write_series(tmp_path / "series", scale))
    assert volume.voxels.dtype == np.int32
    assert np.array_equal(volume.voxels, voxels().astype(int) - 1024)


def test_what_hides_in_the_unused_bits_is_no_value(tmp_path):
    def overlay(z: int, ds: Dataset) -> None:
        ds.PixelData = (np.frombuffer(ds.PixelData, np.uint16) | 0x8000).tobytes()

    assert np.array_equal(formats.read(write_series(tmp_path / "series", overlay)).voxels, voxels())


def test_a_compressed_series_has_the_same_voxels(tmp_path):
    volume = formats.read(write_series(tmp_path / "series", lambda z, ds: ds.compress(RLELossless)))
    assert np.array_equal(volume.voxels, voxels())


def test_an_enhanced_image_is_one_volume(tmp_path):
    enhanced().save_as(tmp_path / "one.dcm", enforce_file_format=True)
    for path in (tmp_path, tmp_path / "one.dcm"):
        volume = formats.read(path)
        z = np.arange(SHAPE[2])
        assert np.array_equal(volume.voxels, voxels() * (0.5 + z) - z)
        assert np.allclose(volume.affine, ras(), atol=1e-6)


def test_files_of_old_scanners_without_preamble_are_read(tmp_path):
    folder = write_series(tmp_path / "series")
    for path in folder.iterdir():
        ds = dcmread(path)
        ds.file_meta, ds.preamble = FileMetaDataset(), None
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(formats.read(folder).voxels, voxels())


def test_what_is_no_image_in_a_folder_is_passed_over(tmp_path):
    folder = write_series(tmp_path / "series")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "notes.txt").write_text("words")
    report = image(voxels()[:, :, 0], generate_uid())
    del report.Rows, report.Columns, report.PixelData
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    assert np.array_equal(formats.read(folder).voxels, voxels())


def test_several_series_are_refused_with_a_list_that_names_nobody_and_one_can_be_chosen(tmp_path):
    for seed in range(9):
        write_series(
            tmp_path / "study" / f"{seed}", lambda z, ds, seed=seed: setattr(ds, "SeriesNumber", 9 - seed), seed
        )
    with pytest.raises(FormatError) as caught:
        formats.read(tmp_path / "study")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 6
    assert lines[0] == f"{tmp_path / 'study'} holds 9 series, but a scan is one of them:"
    assert "0: MR, 4 images, 6 x 5, 1.10 x 0.90 mm; 1: MR" in lines[1]
    assert lines[-1] == "Choose one by its number: --series 0."
    assert np.array_equal(formats.read(tmp_path / "study", series=0).voxels, voxels(8))
    assert np.array_equal(formats.read(tmp_path / "study", series=8).voxels, voxels(0))
    with pytest.raises(FormatError, match="holds 9 series and none of number 9"):
        formats.read(tmp_path / "study", series=9)


def at(z: int, name: str, value: object) -> Callable[[int, Dataset], None]:
    return lambda here, ds: setattr(ds, name, value) if here == z else None


def shift(where: Callable[[int], np.ndarray]) -> Callable[[int, Dataset], None]:
    def change(z: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [float(v) for v in np.array(ds.ImagePositionPatient, float) + where(z)]

    return change


def every(name: str, value: object) -> Callable[[int, Dataset], None]:
    return lambda z, ds: setattr(ds, name, value)


def fresh_uid(z: int, ds: Dataset) -> None:
    ds.SOPInstanceUID = generate_uid()


NORMAL = directions()[:, 2]
FAULTS = {
    "missing slice": (shift(lambda z: 3.0 * NORMAL * (z > 1)), "slices 3.00 to 6.00 mm apart"),
    "uneven": (shift(lambda z: 0.3 * NORMAL * (z == 2)), "some are missing, or they are uneven"),
    "duplicate": (shift(lambda z: -3.0 * NORMAL * (z == 2)), "has 1 of 4 slices at the place of another"),
    "all at one place": (shift(lambda z: -3.0 * z * NORMAL), "has 3 of 4 slices at the place of another"),
    "tilt": (shift(lambda z: z * 3.0 * np.tan(np.radians(10)) * directions()[:, 1]), r"tilted gantry (10.0 degrees)"),
    "off the line": (shift(lambda z: 1.0 * directions()[:, 0] * (z == 1)), "do not lie on a straight line"),
    "orientation": (at(1, "ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), "mixes images of different orientation"),
    "spacing": (at(1, "PixelSpacing", [2.0, 2.0]), "mixes images of different pixel spacing"),
    "no position": (at(1, "ImagePositionPatient", None), "has an image without position"),
    "no orientation": (every("ImageOrientationPatient", None), "has an image without orientation"),
    "no spacing": (every("PixelSpacing", None), "has an image without pixel spacing"),
    "short position": (at(1, "ImagePositionPatient", [1.0, 2.0]), "has an image without position"),
    "skewed axes": (every("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "axes or spacing are impossible"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_place_is_refused_by_its_name(tmp_path, fault):
    change, words = FAULTS[fault]
    with pytest.raises(GeometryError) as caught:
        formats.read(write_series(tmp_path / "series", change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_small_unevenness_is_remarked(tmp_path):
    volume = formats.read(write_series(tmp_path / "series", shift(lambda z: 0.06 * NORMAL * (z == 2))))
    assert volume.remarks == ("The slices' distances differ by up to 2.0 %; 3.000 mm is used.",)


KINDS = {
    "colour": (every("SamplesPerPixel", 3), "holds colour images (RGB)"),
    "palette": (every("PhotometricInterpretation", "PALETTE COLOR"), "holds colour images (RGB)"),
    "mosaic": (every("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "holds mosaics"),
    "short pixels": (lambda z, ds: setattr(ds, "PixelData", ds.PixelData[:20]), "its data are damaged"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_are_no_scan_are_refused(tmp_path, kind):
    change, words = KINDS[kind]
    with pytest.raises(FormatError) as caught:
        formats.read(write_series(tmp_path / "series", change))
    assert words in str(caught.value)


def test_one_file_of_a_series_is_one_slice(tmp_path):
    folder = write_series(tmp_path / "series")
    with pytest.raises(GeometryError, match="has one slice, but a scan has three dimensions"):
        formats.read(next(folder.iterdir()))


def test_several_time_points_in_an_enhanced_image_are_refused(tmp_path):
    def repeat(ds: Dataset) -> None:
        frames = ds.PerFrameFunctionalGroupsSequence
        frames[2].PlanePositionSequence, frames[3].PlanePositionSequence = (
            frames[n].PlanePositionSequence for n in (0, 1)
        )

    enhanced(repeat).save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="2 of 4 slices at the place of another: copies, echoes or time points"):
        formats.read(tmp_path / "one.dcm")


def test_a_frame_count_that_is_not_true_is_refused(tmp_path):
    enhanced(lambda ds: setattr(ds, "NumberOfFrames", 3)).save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="describes another number of frames than it holds"):
        formats.read(tmp_path / "one.dcm")


def test_more_voxels_than_wanted_are_refused_before_they_are_decoded(tmp_path):
    folder = write_series(tmp_path / "series", lambda z, ds: setattr(ds, "PixelData", b"\0\0"))
    with pytest.raises(FormatError, match="claims 6 x 5 x 4 voxels, more than the 119 that are read"):
        formats.read(folder, max_voxels=119)


def test_no_refusal_and_no_volume_tells_who_was_scanned(tmp_path):
    said = []
    changes = [change for change, _ in (FAULTS | KINDS).values()]
    for number, change in enumerate(changes):
        with pytest.raises(MedisentError) as caught:
            formats.read(write_series(tmp_path / f"{number}", change))
        said.append(str(caught.value))
    formats.write(formats.read(write_series(tmp_path / "fine")), tmp_path / "out.nii", description="a scan")
    everything = "".join(said).encode() + (tmp_path / "out.nii").read_bytes()
    assert not any(secret.encode() in everything for secret in SECRETS.values())


def test_damaged_files_are_read_or_refused(tmp_path):
    folder = write_series(tmp_path / "series")
    files = sorted(folder.iterdir())
    whole = files[0].read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(132, len(data), 8):
            data[place] = rng.integers(256)
        files[0].write_bytes(data[: rng.integers(200, len(data) + 1)])
        try:
            formats.read(folder)
        except MedisentError:
            refused += 1
    assert refused > 10


# ------------------------------------------------------------------------------------------ real scans


def by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    found = sitk.ReadImage(names if len(names) > 1 else names[0])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.reshape(found.GetDirection(), (3, 3)) * found.GetSpacing(), found.GetOrigin()
    return sitk.GetArrayFromImage(found).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.realdata
@needs_data
def test_one_phantom_of_several_vendors_reads_as_simpleitk_reads_it():
    folders = sorted((DATA / "acr_phantom_multivendor").iterdir())
    assert len(folders) == 6
    for folder in folders:
        volume = formats.read(folder)
        array, affine = by_simpleitk(folder)
        assert np.array_equal(volume.voxels, array)
        assert np.allclose(volume.affine, affine, atol=1e-4)


@pytest.mark.realdata
@needs_data
def test_one_image_in_nine_transfer_syntaxes_is_one_image():
    files = sorted((DATA / "dcm_qa_ts").iterdir())
    pixels = stored(files, DATA)
    assert len(pixels) == 9
    assert all(np.array_equal(pixels[file], pixels[files[0]]) for file in files)
    with pytest.raises(FormatError, match="holds mosaics"):
        formats.read(files[0])


@pytest.mark.realdata
@needs_data
def test_dicom_and_nifti_of_one_acquisition_agree():
    for name in ("T1", "T2"):
        ours = formats.read(DATA / f"nitest_balls/DICOM/{name}.dcm")
        theirs = formats.read(DATA / f"nitest_balls/NIFTI/{name}.nii.gz")
        assert np.allclose(ours.voxels, theirs.voxels, rtol=1e-6, atol=1e-3)
        assert np.allclose(ours.affine[:3, :3], theirs.affine[:3, :3], atol=1e-3)
        # the converter counted from the voxel's corner, DICOM from its centre
        apart = np.linalg.solve(ours.affine, theirs.affine)[:3, 3]
        assert np.abs(apart).max() < 0.51


@pytest.mark.realdata
@needs_data
def test_traps_of_the_field_are_read_or_refused_by_name():
    cases = DATA / "dicom2nifti_cases"
    for good in (
        "ge/anatomical/001",
        "generic/compressed_j2k/001",
        "generic/compressed_jpeg/001",
        "hitachi/anatomical/001",
    ):
        array, affine = by_simpleitk(cases / good)
        volume = formats.read(cases / good)
        assert np.array_equal(volume.voxels, array)
        assert np.allclose(volume.affine, affine, atol=1e-3)
    for bad, words in {
        "failing/gantrytilting/001": "tilted gantry",
        "failing/sliceincrement/002": "tilted gantry",
    }.items():
        with pytest.raises(GeometryError, match=words):
            formats.read(cases / bad)
    with pytest.raises(FormatError, match="colour"):
        formats.read(cases / "generic/rgb/001")
    with pytest.raises(FormatError, match="holds 2 series") as caught:
        formats.read(DATA / "pgbm_dicom/Study3")
    assert "Thanos" not in str(caught.value)
