"""Laws of DICOM: one clean series becomes a volume in its place, value for value, in whatever form it is stored."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_series import (
    SHAPE,
    SPACING,
    enhanced,
    image,
    ras,
    voxels,
    write_series,
)
from openjpeg.utils import encode_array
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medisent import formats
from medisent.errors import FormatError, GeometryError, MedisentError

DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")


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
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, voxels().astype(int) - 1024)


def test_what_hides_in_the_unused_bits_is_no_value(tmp_path):
    def overlay(z: int, ds: Dataset) -> None:
        ds.PixelData = (np.frombuffer(ds.PixelData, np.uint16) | 0x8000).tobytes()
        ds.add_new(0x60000102, "US", 15)

    assert np.array_equal(formats.read(write_series(tmp_path / "series", overlay)).voxels, voxels())


def test_values_with_and_without_their_sign_in_the_unused_bits_are_the_same(tmp_path):
    truth = voxels().astype(int) - 2000

    def signed(z: int, ds: Dataset) -> None:
        unused = 0xF000 if z % 2 else 0
        ds.PixelRepresentation = 1
        ds.PixelData = np.where(truth < 0, truth & 0xFFF | unused, truth)[:, :, z].astype(np.uint16).T.tobytes()

    assert np.array_equal(formats.read(write_series(tmp_path / "series", signed)).voxels, truth)


def test_bytes_that_big_endian_scanners_store_in_words_are_read_in_their_order(tmp_path):
    truth = voxels()[:5, :5] % 256  # an odd number of them

    def words(z: int, ds: Dataset) -> None:
        ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 5, 8, 8, 7
        ds.PixelData = (
            np.frombuffer(truth[:, :, z].T.astype(np.uint8).tobytes() + b"\0", np.uint16).byteswap().tobytes()
        )
        ds["PixelData"].VR, ds.file_meta.TransferSyntaxUID = "OW", ExplicitVRBigEndian

    assert np.array_equal(formats.read(write_series(tmp_path / "series", words)).voxels, truth)


def test_a_sign_that_the_header_denies_is_refused(tmp_path):
    def negative(z: int, ds: Dataset) -> None:
        plane = np.add.outer(np.arange(32), np.arange(40)).astype(np.int16) - 30 - z
        ds.Columns, ds.Rows, ds.file_meta.TransferSyntaxUID = 40, 32, JPEG2000Lossless
        ds.PixelData = encapsulate([encode_array(plane, 12, photometric_interpretation=2, use_mct=False)])
        ds["PixelData"].is_undefined_length = True

    with pytest.raises(FormatError, match="a sign that its header denies") as caught:
        formats.read(write_series(tmp_path / "series", negative))
    assert caught.value.code == "format.damaged"


PACKED = [RLELossless, JPEGLSLossless, JPEG2000Lossless]
PLAIN = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
FORMS = [(syntax, bits, signed) for syntax in PACKED + PLAIN for bits in (8, 10, 12, 16) for signed in (False, True)]
QUICK = [form for form in FORMS if form[0] in [RLELossless, *PLAIN] or form[1:] == (12, True)]


def write_form(folder: Path, syntax: str, bits: int, signed: bool) -> np.ndarray:
    """A series of smooth images of 40 x 32 in some form of storage; returns what it holds."""
    low = -(1 << bits - 1) if signed else 0
    place = np.add.outer(np.add.outer(np.arange(40) * 5, np.arange(32) * 3), np.arange(SHAPE[2]) * 7)
    truth = low + place * 97 % (1 << bits)
    dtype = np.dtype(f"{'>' if syntax == ExplicitVRBigEndian else '<'}{'i' if signed else 'u'}{1 if bits == 8 else 2}")

    def change(z: int, ds: Dataset) -> None:
        plane = np.ascontiguousarray(truth[:, :, z].T.astype(dtype))
        ds.Columns, ds.Rows, ds.PixelRepresentation = 40, 32, int(signed)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * dtype.itemsize, bits, bits - 1
        if syntax == JPEG2000Lossless:
            ds.PixelData = encapsulate([encode_array(plane, bits, photometric_interpretation=2, use_mct=False)])
            ds["PixelData"].is_undefined_length = True
        elif syntax in PACKED:
            ds.compress(syntax, plane)
        else:
            ds.PixelData = plane.tobytes() if syntax != ExplicitVRBigEndian or bits > 8 else plane.byteswap().tobytes()
        ds.file_meta.TransferSyntaxUID = syntax

    write_series(folder, change)
    return truth


def form_id(form: tuple[str, int, bool]) -> str:
    return f"{form[0].name[:14]}-{form[1]}{'s' * form[2]}"


@pytest.mark.parametrize(
    "form", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FORMS], ids=form_id
)
def test_every_lossless_form_of_storage_gives_the_same_voxels(tmp_path, form):
    syntax, bits, signed = form
    truth = write_form(tmp_path / "series", syntax, bits, signed)
    assert np.array_equal(formats.read(tmp_path / "series").voxels, truth)


def test_a_transfer_syntax_that_is_not_read_is_named(tmp_path):
    def video(z: int, ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        ds.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0\1\2\3\4"
        ds["PixelData"].is_undefined_length = True

    with pytest.raises(FormatError, match=r"not read [(]MPEG2 Main Profile") as caught:
        formats.read(write_series(tmp_path / "series", video))
    assert caught.value.code == "format.transfer_syntax"


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


def test_more_voxels_than_wanted_are_refused_before_they_are_decoded(tmp_path):
    folder = write_series(tmp_path / "series", lambda z, ds: setattr(ds, "PixelData", b"\0\0"))
    with pytest.raises(FormatError, match="claims 6 x 5 x 8 voxels, more than the 239 that are read"):
        formats.read(folder, max_voxels=239)


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
@pytest.mark.parametrize("number", [1, 2, 3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 6, 7, 8, 9))])
def test_one_mosaic_in_nine_transfer_syntaxes_is_one_volume_where_nibabel_sees_it(number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel warns of its own DICOM readers
        from nibabel.nicom.dicomwrappers import wrapper_from_file

        truth = wrapper_from_file(DATA / "dcm_qa_ts/1.dcm")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ truth.affine[:, [1, 0, 2, 3]]  # nibabel counts rows first
    volume = formats.read(DATA / f"dcm_qa_ts/{number}.dcm")
    assert np.array_equal(volume.voxels, truth.get_data().transpose(1, 0, 2))
    assert np.allclose(volume.affine, affine, atol=1e-6)


@pytest.mark.realdata
@needs_data
def test_time_points_of_enhanced_files_are_volumes_and_a_field_map_is_not_the_scan(tmp_path):
    folder = DATA / "enhanced_xa10"
    for number in range(1, 5):
        shutil.copy(folder / f"6_{number}.dcm", tmp_path)
    with pytest.raises(GeometryError, match=r"4 images .* of each of 6 places") as caught:
        formats.read(tmp_path)
    assert caught.value.code == "geometry.4d"
    assert np.array_equal(formats.read(tmp_path, volume=2).voxels, formats.read(folder / "6_3.dcm").voxels)
    scan = formats.read(folder / "IM_0027_fMAP.dcm")
    assert "the rest is real images" in scan.remarks[0]
    assert np.array_equal(scan.voxels, formats.read(folder / "IM_0027_fMAP.dcm", series=0).voxels)


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
    tilted = formats.read(cases / "failing/gantrytilting/001")
    assert "tilted by 14.0 degrees" in tilted.remarks[0]
    for z, file in enumerate(sorted((cases / "failing/gantrytilting/001").iterdir())):
        x, y, height = dcmread(file).ImagePositionPatient
        assert tilted.affine @ [0, 0, z, 1] == pytest.approx([-x, -y, height, 1], abs=1e-4)
    with pytest.raises(GeometryError, match="1 of 5 are missing") as caught:
        formats.read(cases / "failing/sliceincrement/002")
    assert caught.value.code == "geometry.gap"
    with pytest.raises(FormatError, match="colour") as refused:
        formats.read(cases / "generic/rgb/001")
    assert refused.value.code == "format.rgb"
    with pytest.raises(FormatError, match="holds 2 series") as several:
        formats.read(DATA / "pgbm_dicom/Study3")
    assert several.value.code == "format.several_series"
    assert "Thanos" not in str(several.value)


def test_an_outline_of_a_series_is_that_of_its_volume_and_reads_no_pixel(tmp_path, monkeypatch):
    folder, copy, other = (write_series(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 2)))
    shutil.rmtree(copy)
    shutil.copytree(folder, copy)
    geometry = formats.read(folder).geometry
    monkeypatch.setattr("medisent.formats.dicom.assembled", None)
    one, two, three = (formats.outline(path) for path in (folder, copy, other))
    assert (one.geometry, one.modality) == (geometry, "MR")
    assert one.likeness == two.likeness != three.likeness
