"""Laws of files: what the file means is read, what was read is written, and what cannot be trusted is refused."""

import gzip
import itertools
import os
import struct
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImaged

from medisent import formats
from medisent.errors import FormatError, GeometryError, MachineError, MedisentError, UsageError
from medisent.formats.others import decode
from medisent.formats.reader import ScanReader
from medisent.volumes import Geometry, Volume

DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))
ORIENTATIONS = [
    np.array([sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True)]).T
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
DTYPES = ["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">i4", "<f4", ">f4", "<f8", ">f8", "<i8", "<u8", "<u4"]


def rotation(angle: float) -> np.ndarray:
    x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    z = np.array([[np.cos(2 * angle), -np.sin(2 * angle), 0], [np.sin(2 * angle), np.cos(2 * angle), 0], [0, 0, 1]])
    return x @ z


def affine_of(matrix: np.ndarray, origin: tuple[float, float, float] = (-12.3, 40.1, 7.7)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


def values(dtype: str, shape: tuple[int, ...] = (4, 5, 3), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1000, shape).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind.newbyteorder("="), endpoint=True).astype(kind)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> Path:
    """A NIfTI file with the header fields that are named, unscaled."""
    cls = fields.pop("cls", nib.Nifti1Image)
    affine = affine_of(np.diag([1.0, 1.5, 2.0])) if affine is None else affine
    header = cls.header_class(endianness="<" if array.dtype.str[0] == "|" else array.dtype.newbyteorder("=").str[0])
    if array.dtype.str.startswith(">"):
        header = cls.header_class(endianness=">")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1, strip_shears=True)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    for name, value in fields.items():
        header[name] = value
    data = header.binaryblock + bytes(4) + array.tobytes(order="F")
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)
    return path


def raw_header(path: Path) -> np.ndarray:
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if struct.unpack("<i", data[:4])[0] == 348 or struct.unpack(">i", data[:4])[0] == 348:
        return nib.Nifti1Header(data[:348], check=False)
    return nib.Nifti2Header(data[:540], check=False)


SPACE = ["sform_code", "qform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"]
SPACE += ["quatern_b", "quatern_c", "quatern_d"]


def assert_given_back(source: Path, target: Path) -> None:
    """Law 1 and 2: shape, values, sform, qform, codes, units, voxel sizes."""
    before, after = raw_header(source), raw_header(target)
    for name in SPACE:
        assert np.array_equal(before[name], after[name]), name
    assert np.array_equal(before["pixdim"][:4], after["pixdim"][:4])
    one, two = nib.load(source), nib.load(target)
    assert one.shape == two.shape
    assert np.array_equal(one.affine, two.affine)
    assert np.array_equal(one.get_fdata(), two.get_fdata())


@st.composite
def scans(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    orientation = draw(st.sampled_from(ORIENTATIONS))
    spacing = np.array(draw(st.tuples(*[st.sampled_from([0.3, 0.9375, 1.0, 2.5, 6.5])] * 3)))
    shear = np.eye(3)
    shear[0, 1] = draw(st.sampled_from([0.0, 0.2, -0.1]))
    matrix = rotation(draw(st.sampled_from([0.0, 0.1, 0.7, -2.0]))) @ orientation @ shear * spacing
    fields: dict[str, object] = {
        "sform_code": draw(st.integers(0, 4)),
        "qform_code": draw(st.integers(0, 4)),
        "xyzt_units": draw(st.sampled_from([0, 2, 10])),
        "cls": draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image])),
    }
    slope = draw(st.sampled_from([None, 0.0, np.nan, 1.0, 0.1, -2.5, 1.31062]))
    if slope is not None:
        fields |= {"scl_slope": slope, "scl_inter": draw(st.sampled_from([0.0, -1024.0, 0.37]))}
    array = values(draw(st.sampled_from(DTYPES)), seed=draw(st.integers(0, 9)))
    return array, affine_of(matrix), fields


@settings(max_examples=40, deadline=None)
@given(scans(), st.sampled_from([".nii", ".nii.gz"]))
def test_what_is_read_is_what_nibabel_means_and_what_is_written_is_what_was_read(tmp_path_factory, scan, suffix):
    array, affine, fields = scan
    folder = tmp_path_factory.mktemp("scan")
    source = save(folder / f"in{suffix}", array, affine, **fields)
    volume = formats.read(source)
    assert np.array_equal(volume.voxels.astype(np.float64), nib.load(source).get_fdata())
    assert np.array_equal(volume.affine, nib.load(source).affine)
    target = folder / f"out{suffix}"
    formats.write(volume, target, description="a copy")
    assert_given_back(source, target)
    again = formats.read(target)
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.geometry == volume.geometry


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=lambda m: "".join(nib.aff2axcodes(affine_of(m))))
def test_every_orientation_keeps_a_marker_in_its_place(tmp_path, matrix):
    array = np.zeros((4, 5, 3), np.uint8)
    array[1, 3, 2] = 9
    affine = affine_of(matrix * [0.9, 1.1, 3.0])
    volume = formats.read(save(tmp_path / "scan.nii", array, affine))
    marker = np.argwhere(volume.voxels == 9)[0]
    assert np.allclose(volume.affine @ [*marker, 1], affine @ [1, 3, 2, 1], atol=1e-4)


def test_a_pair_of_header_and_image_is_read_from_either(tmp_path):
    image = nib.Nifti1Pair(values("<i2"), affine_of(np.eye(3)))
    nib.save(image, tmp_path / "scan.hdr")
    for name in ("scan.hdr", "scan.img"):
        assert np.array_equal(formats.read(tmp_path / name).voxels, values("<i2"))
    (tmp_path / "scan.img").unlink()
    with pytest.raises(FormatError, match=r"half of a pair, and the \.img file beside it is missing"):
        formats.read(tmp_path / "scan.hdr")


def test_one_time_point_of_a_series_is_read_when_it_is_chosen(tmp_path):
    array = values("<i2", (4, 5, 3, 2))
    for name in ("scan.nii", "scan.nii.gz"):
        path = save(tmp_path / name, array)
        assert np.array_equal(formats.read(path, volume=1).voxels, array[..., 1])
        with pytest.raises(
            FormatError, match=r"has 4 dimensions, but a scan has 3\. Choose one time point first: --vol"
        ):
            formats.read(path)
        with pytest.raises(FormatError, match=r"has no volume 2\. It has 2: choose --volume 0 to 1\."):
            formats.read(path, volume=2)


def test_a_fourth_axis_of_length_one_is_no_axis(tmp_path):
    array = values("<i2", (4, 5, 3, 1))
    assert np.array_equal(formats.read(save(tmp_path / "scan.nii", array)).voxels, array[..., 0])


# ------------------------------------------------------------------------------------------------------- place in space


def test_the_sform_is_taken_and_a_conflict_with_the_qform_is_remarked(tmp_path):
    path = save(tmp_path / "scan.nii", values("<i2"), qoffset_x=100.0)
    volume = formats.read(path)
    assert np.array_equal(volume.affine, nib.load(path).affine)
    assert len(volume.remarks) == 1
    assert "sform and qform differ by up to 112.3 voxels; the sform is used." in volume.remarks[0]
    assert formats.read(save(tmp_path / "fine.nii", values("<i2"))).remarks == ()


def test_the_qform_is_taken_where_the_sform_is_not_usable(tmp_path):
    path = save(tmp_path / "scan.nii", values("<i2"), srow_x=[0, 0, 0, 0])
    volume = formats.read(path)
    assert np.array_equal(volume.affine, nib.load(path).get_qform())
    assert volume.remarks == ("The header's sform is not usable; the qform is used.",)


def test_a_header_without_orientation_is_read_as_nibabel_does_and_remarked(tmp_path):
    path = save(tmp_path / "scan.nii", values("<i2"), sform_code=0, qform_code=0)
    volume = formats.read(path)
    assert np.allclose(volume.affine, nib.load(path).affine)
    assert "gives no orientation" in volume.remarks[0]


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000.0), (3, 0.001), (2, 1.0)])
def test_places_are_in_mm_whatever_unit_the_header_has(tmp_path, unit, factor):
    mm = affine_of(np.diag([1.0, 1.5, 2.0]))
    stored = mm.copy()
    stored[:3] /= factor
    path = save(tmp_path / "scan.nii", values("<i2"), stored, xyzt_units=unit)
    volume = formats.read(path)
    assert np.allclose(volume.affine, mm, rtol=1e-5)
    formats.write(volume, tmp_path / "out.nii", description="")
    assert_given_back(path, tmp_path / "out.nii")


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [0, 0, 0, 0], "qform_code": 0},
        {"srow_x": [np.nan, 0, 0, 0], "qform_code": 0},
        {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1.0001, 0, 0], "qform_code": 0},
        {"sform_code": 0, "quatern_b": 5.0},
    ],
)
def test_a_singular_or_non_finite_place_is_refused(tmp_path, fields):
    with pytest.raises(GeometryError, match="no usable sform or qform"):
        formats.read(save(tmp_path / "scan.nii", values("<i2"), **fields))


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_not_there_or_not_an_image_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "empty.nii").touch()
    (tmp_path / "words.nii").write_text("not a scan " * 60)
    (tmp_path / "words.txt").write_text("not a scan " * 60)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder").mkdir()
    sentences = {
        "missing.nii": "does not exist. Check the path.",
        "empty.nii": "is empty. Copy or download it again.",
        "words.nii": "is not a NIfTI file, or its header is damaged.",
        "words.txt": "is not an image that can be read, or it is damaged.",
        "picture.png": "is a picture without a place in the patient.",
        "folder": "holds no DICOM image.",
    }
    for name, sentence in sentences.items():
        with pytest.raises(FormatError) as caught:
            formats.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name} {sentence}")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3


def odd_voxels() -> list[tuple[str, np.ndarray, type[MedisentError], str]]:
    rgb = np.zeros((4, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    hole = values("<f4")
    hole[1, 1, 1] = np.nan
    endless = values("<f8")
    endless[1, 1, 1] = -np.inf
    return [
        ("colour", rgb, FormatError, "holds colours (RGB)"),
        ("complex", values("<f4").astype(np.complex64), FormatError, "holds complex numbers"),
        ("slice", values("<i2", (4, 5, 1)), FormatError, "has one slice (4 x 5 x 1 voxels)"),
        ("sagittal", values("<i2", (1, 5, 4)), FormatError, "has one slice (1 x 5 x 4 voxels)"),
        ("flat", values("<i2", (4, 5)), FormatError, "has one slice (4 x 5 x 1 voxels)"),
        ("nan", hole, FormatError, "NaN or infinite. Replace them first"),
        ("inf", endless, FormatError, "NaN or infinite. Replace them first"),
        ("constant", np.full((4, 5, 3), 7, np.int16), FormatError, "has the value 7 in every voxel"),
        ("vectors", values("<f4", (4, 5, 3, 1, 3)), FormatError, "has 5 dimensions, but a scan has 3."),
    ]


@pytest.mark.parametrize(
    ("name", "array", "refusal", "words"), odd_voxels(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_voxels_that_are_no_scan_are_refused(tmp_path, name, array, refusal, words):
    with pytest.raises(refusal) as caught:
        formats.read(save(tmp_path / f"{name}.nii.gz", array))
    assert words in str(caught.value)
    assert str(caught.value).count(". ") <= 2


@pytest.mark.parametrize("code", [1, 5, 1536, 1792, -3])
def test_types_that_are_not_known_or_too_long_are_refused(tmp_path, code):
    with pytest.raises(FormatError, match=r"holds values of a type that is not read|holds complex numbers"):
        formats.read(save(tmp_path / "scan.nii", values("<i2"), datatype=code))


def test_an_empty_mask_is_read_when_it_is_allowed(tmp_path):
    path = save(tmp_path / "mask.nii", np.zeros((4, 5, 3), np.uint8))
    assert formats.read(path, constant=True).voxels.max() == 0


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.02])
def test_a_truncated_file_is_refused(tmp_path, name, kept):
    path = save(tmp_path / name, values("<i2", (20, 20, 20)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(FormatError, match=r"truncated|header is damaged"):
        formats.read(path)


def test_no_flipped_bit_of_a_packed_file_gives_other_voxels(tmp_path):
    array = values("<i2", (8, 8, 8))
    whole = save(tmp_path / "scan.nii.gz", array).read_bytes()
    path = tmp_path / "damaged.nii.gz"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            assert np.array_equal(formats.read(path).voxels, array)  # bits of gzip's own header that mean nothing
        except FormatError:
            refused += 1
    assert refused >= 140


def test_noise_in_a_header_is_read_or_refused(tmp_path):
    whole = save(tmp_path / "scan.nii", values("<i2")).read_bytes()
    path = tmp_path / "damaged.nii"
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, 348, 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert formats.read(path).voxels.ndim == 3
        except MedisentError:
            refused += 1
    assert refused > 20


def test_a_header_that_claims_more_than_it_holds_is_refused_before_memory_is_asked_for(tmp_path):
    for name in ("scan.nii", "scan.nii.gz"):
        path = save(tmp_path / name, values("<i2"), dim=[3, 800, 800, 800, 1, 1, 1, 1])
        with pytest.raises(FormatError, match="truncated"):
            formats.read(path)
        path = save(tmp_path / name, values("<i2"), dim=[3, 10000, 10000, 10000, 1, 1, 1, 1])
        with pytest.raises(FormatError, match="claims 10000 x 10000 x 10000 voxels, more than"):
            formats.read(path)


def test_a_bomb_is_refused_before_it_has_unfolded(tmp_path):
    path = save(tmp_path / "scan.nii.gz", values("<i2"))
    with gzip.open(path, "ab", compresslevel=9) as file:
        file.write(bytes(1 << 26))
    with pytest.raises(FormatError, match="holds more data than its header declares"):
        formats.read(path)


def test_a_size_limit_holds_for_every_format(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(values("<i2")), tmp_path / "scan.mha")
    save(tmp_path / "scan.nii", values("<i2"))
    for name in ("scan.nii", "scan.mha"):
        with pytest.raises(FormatError, match="more than the 59 that are read"):
            formats.read(tmp_path / name, max_voxels=59)
        assert formats.read(tmp_path / name, max_voxels=60).voxels.size == 60
        with formats.reading_at_most(59):
            assert formats.read(tmp_path / name, max_voxels=60).voxels.size == 60
            with formats.reading_at_most(None), pytest.raises(FormatError, match="more than the 59 that are read"):
                formats.read(tmp_path / name)
        assert formats.read(tmp_path / name).voxels.size == 60


def test_an_unreadable_file_is_a_fault_of_the_machine(tmp_path, monkeypatch):
    path = save(tmp_path / "scan.nii", values("<i2"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MachineError, match="cannot be read: Permission denied"):
        formats.read(path)


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.fixture
def scan() -> Volume:
    affine = affine_of(rotation(0.3) * [0.9, 1.1, 3.0])
    return Volume(np.asfortranarray(values("<f4", (6, 7, 5))), Geometry(affine, (6, 7, 5)))


def test_a_scan_without_header_is_written_with_its_place_in_both_forms(tmp_path, scan):
    formats.write(scan, tmp_path / "scan.nii.gz", description="synthetic: gain 1.5")
    written = nib.load(tmp_path / "scan.nii.gz")
    assert np.allclose(written.affine, scan.affine, atol=1e-5)
    assert np.allclose(written.get_qform(), scan.affine, atol=1e-4)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert written.header["descrip"].item() == b"synthetic: gain 1.5"
    assert np.array_equal(formats.read(tmp_path / "scan.nii.gz").voxels, scan.voxels)


def test_a_sheared_scan_without_header_is_written_without_a_qform(tmp_path, scan):
    sheared = Geometry(scan.affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (6, 7, 5))
    formats.write(Volume(scan.voxels, sheared), tmp_path / "scan.nii", description="")
    again = formats.read(tmp_path / "scan.nii")
    assert np.allclose(again.affine, sheared.affine, atol=1e-5)
    assert again.remarks == ("The voxels' axes are 9.3 degrees from a right angle; they are kept so.",)


def test_a_volume_that_was_moved_does_not_fall_back_to_the_place_it_was_read_from(tmp_path):
    volume = formats.read(save(tmp_path / "scan.nii", values("<i2")))
    moved = Geometry(volume.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 5.0]), volume.geometry.shape)
    formats.write(replace(volume, geometry=moved), tmp_path / "out.nii", description="")
    assert np.allclose(formats.read(tmp_path / "out.nii").affine, moved.affine, atol=1e-5)


def test_the_same_scan_gives_the_same_bytes(tmp_path, scan):
    for folder in ("one", "two"):
        formats.write(scan, tmp_path / folder / f"{folder}.nii.gz", description="x")
    assert (tmp_path / "one/one.nii.gz").read_bytes() == (tmp_path / "two/two.nii.gz").read_bytes()
    scan_in_c_order = scan.with_voxels(np.ascontiguousarray(scan.voxels))
    formats.write(scan_in_c_order, tmp_path / "three.nii.gz", description="x")
    assert (tmp_path / "three.nii.gz").read_bytes() == (tmp_path / "one/one.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("voxels", "stored"),
    [
        (np.arange(8.0) + 0.5, "float32"),
        (np.arange(8.0) + 0.1, "float64"),
        (np.arange(8.0) * 1e300, "float64"),
        (np.arange(8, dtype=np.float32), "float32"),
        (np.arange(8, dtype=np.float16), "float32"),
        (np.arange(8) + 2**60, "int64"),
        (np.arange(8, dtype=np.uint16), "uint16"),
        (np.arange(8, dtype=np.uint8), "uint8"),
    ],
)
def test_values_are_stored_in_a_type_that_holds_them(tmp_path, voxels, stored):
    volume = Volume(voxels.reshape(2, 2, 2), Geometry(np.eye(4), (2, 2, 2)))
    formats.write(volume, tmp_path / "scan.nii", description="")
    written = nib.load(tmp_path / "scan.nii")
    assert written.get_data_dtype() == stored
    assert np.array_equal(np.asanyarray(written.dataobj), volume.voxels)


def test_nothing_but_values_and_place_is_carried_over(tmp_path):
    words = {"descrip": b"CANARY one", "aux_file": b"CANARY two", "db_name": b"CANARY 3", "intent_name": b"CANARY 4"}
    path = save(tmp_path / "scan.nii", values("<i2"), **words)
    formats.write(formats.read(path), tmp_path / "out.nii", description="plain")
    assert b"CANARY" not in (tmp_path / "out.nii").read_bytes()


def test_a_long_description_is_cut_to_what_the_header_holds(tmp_path, scan):
    formats.write(scan, tmp_path / "scan.nii", description="é" + "x" * 200)
    assert nib.load(tmp_path / "scan.nii").header["descrip"].item() == b"?" + b"x" * 78


def test_another_suffix_than_nifti_is_wrong_usage(tmp_path, scan):
    with pytest.raises(UsageError, match=r"written as NIfTI\. Let the name end in \.nii or \.nii\.gz\."):
        formats.write(scan, tmp_path / "scan.mha", description="")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- other formats


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_formats_keep_values_and_place(tmp_path, suffix, packed):
    array = values("<i2", (6, 5, 4))
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing([0.9, 1.1, 3.0])
    image.SetOrigin([10.0, -20.0, 30.0])
    image.SetDirection(rotation(0.3).ravel().tolist())
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, path, packed)
    volume = formats.read(path)
    assert np.array_equal(volume.voxels, array)
    place = image.TransformIndexToPhysicalPoint([5, 1, 2])
    assert np.allclose(volume.affine @ [5, 1, 2, 1], [-place[0], -place[1], place[2], 1])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".gipl", ".vtk"])
def test_other_formats_are_refused_when_truncated(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(values("<i2", (20, 20, 20))), path)
    assert formats.read(path).voxels.shape == (20, 20, 20)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(FormatError, match=r"truncated|damaged"):
        formats.read(path)


def test_colour_and_time_of_other_formats_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(values("u1", (4, 5, 3, 3)), isVector=True), tmp_path / "rgb.nrrd")
    with pytest.raises(FormatError, match=r"holds 3 values \(colours or a vector\) in each voxel"):
        formats.read(tmp_path / "rgb.nrrd")
    series = values("<i2", (2, 3, 4, 5))
    sitk.WriteImage(sitk.GetImageFromArray(series, isVector=False), tmp_path / "series.nrrd")
    with pytest.raises(FormatError, match="Choose one time point first: --volume 0"):
        formats.read(tmp_path / "series.nrrd")
    assert np.array_equal(formats.read(tmp_path / "series.nrrd", volume=1).voxels, series[1].T)


def test_a_decoder_that_crashes_takes_nobody_with_it(tmp_path, monkeypatch):
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr("medisent.formats.others._CHILD", crash)
    (tmp_path / "scan.vtk").write_bytes(b"anything")
    with pytest.raises(FormatError, match="makes its decoder crash"):
        formats.read(tmp_path / "scan.vtk")


def test_the_small_file_that_crashes_simpleitk_is_survived(tmp_path):
    path = save(tmp_path / "small.nii", values("<f4", (1, 2, 3, 1, 3)))
    with pytest.raises(FormatError, match="has 5 dimensions"):
        formats.read(path)
    assert decode([path], max_voxels=100)[0] is not None


# ---------------------------------------------------------------------------------------------------------------- MONAI


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_monai_loads_with_our_reader(tmp_path):
    path = save(tmp_path / "scan.nii.gz", values("<f8"), scl_slope=0.1, scl_inter=3.0)
    volume = formats.read(path)
    loaded = LoadImaged(["scan"], reader=ScanReader(), dtype=None)({"scan": path})["scan"]
    assert loaded.dtype.is_floating_point
    assert np.array_equal(loaded.numpy(), volume.voxels)
    assert np.array_equal(loaded.affine.numpy(), volume.affine)


def test_our_reader_stacks_scans_of_one_place_as_channels(tmp_path):
    paths = [save(tmp_path / f"{n}.nii", values("<i2", seed=n)) for n in range(2)]
    reader = ScanReader()
    assert reader.verify_suffix(paths)
    assert not reader.verify_suffix(tmp_path / "missing.nii")
    channels, place = reader.get_data(reader.read(paths))
    assert channels.shape == (2, 4, 5, 3)
    assert place["original_channel_dim"] == 0
    elsewhere = save(tmp_path / "other.nii", values("<i2"), affine_of(np.eye(3)))
    with pytest.raises(ValueError, match="one shape and one place"):
        reader.get_data(reader.read([paths[0], elsewhere]))


# ---------------------------------------------------------------------------------------------------- real scans


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
def test_odd_files_of_the_field_are_read_or_refused():
    verdicts = {}
    for path in sorted((DATA / "nifti_odd_niivue").iterdir()):
        try:
            verdicts[path.name] = formats.read(path).voxels.shape
        except MedisentError as refusal:
            verdicts[path.name] = refusal.code
    assert verdicts == {
        "FLAIR.nrrd": (124, 160, 140),
        "complex.nii.gz": "format",
        "ct_perfusion.nii.gz": "format",
        "low_res.nii.gz": (7, 5, 3),
        "mha.mha": (64, 64, 37),
        "minimal.nii.gz": (64, 64, 10),
        "shear.nii.gz": (306, 422, 54),
    }


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
def test_real_scans_are_given_back_as_they_came(tmp_path):
    for name in (
        "nifti_odd_niivue/shear.nii.gz",
        "nitest_balls/NIFTI/T1.nii.gz",
        "totalseg_ct_mr/example_ct_sm.nii.gz",
    ):
        formats.write(formats.read(DATA / name), tmp_path / "out.nii.gz", description="")
        assert_given_back(DATA / name, tmp_path / "out.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.hdr"])
def test_an_outline_is_of_the_scan_that_is_read_and_equal_for_copies_alone(name, tmp_path):
    paths = [tmp_path / folder / name for folder in ("one", "two", "three")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        path.parent.mkdir()
        array = np.random.default_rng(seed).normal(size=(6, 5, 4)).astype(np.float32)
        if name.endswith(".mha"):
            sitk.WriteImage(sitk.GetImageFromArray(array), path)
        else:
            kind = nib.Nifti1Pair if name.endswith(".hdr") else nib.Nifti1Image
            nib.save(kind(array, np.diag([2.0, 3.0, 4.0, 1.0])), path)
    one, two, three = (formats.outline(path) for path in paths)
    assert one.geometry == formats.read(paths[0]).geometry
    assert one.likeness == two.likeness != three.likeness


@pytest.mark.parametrize("keep", [0, 200, 900, -9, -1])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_outline_refuses_what_is_cut_short(name, keep, tmp_path):
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 40)), np.eye(4)), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    for reader in (formats.outline, formats.read):
        with pytest.raises(FormatError):
            reader(tmp_path / name)


def test_an_outline_reads_no_voxel_of_a_nifti_file(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 40)), np.eye(4)), tmp_path / "a.nii.gz")
    monkeypatch.setattr("medisent.formats.nifti._stored", None)
    assert formats.outline(tmp_path / "a.nii.gz").geometry.shape == (6, 5, 40)


def test_an_outline_has_what_limits_reading_has(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((3, 4, 5), "<i2"))
    with formats.reading_at_most(59), pytest.raises(FormatError, match="more than the 59"):
        formats.outline(path)
    with pytest.raises(FormatError, match="does not exist"):
        formats.outline(tmp_path / "b.nii")
