"""Laws of dress: in whatever type, byte order, version, packing and name a scan comes, its values are the same."""

import gzip
import itertools
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medisent import formats
from medisent.errors import FormatError, GeometryError, MachineError, MedisentError

SHAPE = (4, 5, 3)
C, S = np.cos(0.2), np.sin(0.2)
AFFINE = np.array([[-0.9 * C, -1.1 * S, 0, 12], [-0.9 * S, 1.1 * C, 0, -40], [0, 0, 3, 7], [0, 0, 0, 1]])
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
DRESSES = ["scan.nii", "scan.nii.gz", "scan.hdr", "scan.img.gz"]


def values(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    if dtype[0] == "f":
        return (rng.normal(0, 1, SHAPE) * 10.0 ** rng.integers(-6, 7, SHAPE)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, SHAPE, dtype=dtype, endpoint=True)


def save(path: Path, array: np.ndarray, order: str = "<", version: int = 1, **fields: object) -> Path:
    """A NIfTI file or pair, put together by hand."""
    pair = not path.name.startswith("scan.nii")
    kinds = {1: (nib.Nifti1Image, nib.Nifti1Pair), 2: (nib.Nifti2Image, nib.Nifti2Pair)}
    header = kinds[version][pair].header_class(endianness=order)
    header.set_data_dtype(array.dtype.newbyteorder(order))
    header.set_data_shape(array.shape)
    header.set_sform(AFFINE, 1)
    header.set_qform(AFFINE, 1)
    header["vox_offset"] = 0 if pair else int(header["sizeof_hdr"]) + 4
    for name, value in fields.items():
        header[name] = value
    data = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    parts = {path.name: header.binaryblock + bytes(4) + data}
    if pair:
        parts = {path.name.replace("img", "hdr"): header.binaryblock, path.name.replace("hdr", "img"): data}
    for name, part in parts.items():
        (path.parent / name).write_bytes(gzip.compress(part) if name.endswith(".gz") else part)
    return path


@pytest.mark.parametrize(("dtype", "dress"), list(itertools.product(TYPES, DRESSES)))
def test_values_are_those_that_were_stored_and_twins_are_equal(tmp_path, dtype, dress):
    array = values(dtype)
    found = []
    for order, version in (("<", 1), (">", 1), ("<", 2), (">", 2)):
        folder = tmp_path / f"{version}{'little' if order == '<' else 'big'}"
        folder.mkdir()
        volume = formats.read(save(folder / dress, array, order, version))
        assert volume.remarks == ()
        assert np.allclose(volume.affine, AFFINE, atol=1e-5)
        found.append(volume.voxels)
    for voxels in found:
        assert voxels.dtype == np.dtype(dtype)
        assert np.array_equal(voxels, array)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("slope", "intercept"), [(0.0, 5.0), (np.nan, 5.0), (np.nan, np.nan), (-2.5, 3.0), (0.1, 0.0)])
def test_slopes_mean_what_the_standard_says(tmp_path, dtype, slope, intercept):
    array = values(dtype)
    right = array.astype(float) if slope == 0 or np.isnan(slope) else array * np.float64(np.float32(slope)) + intercept
    for order in "<>":
        path = save(tmp_path / "scan.nii", array, order, scl_slope=slope, scl_inter=intercept)
        voxels = formats.read(path).voxels.astype(float)
        assert np.abs(voxels - right).max() <= 1e-6 * np.abs(right).max()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scl_slope": np.inf}, "a slope or intercept that is no number"),
        ({"scl_slope": -np.inf, "scl_inter": 1}, "a slope or intercept that is no number"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "a slope or intercept that is no number"),
        ({"scl_slope": 2, "scl_inter": np.inf}, "a slope or intercept that is no number"),
        ({"bitpix": 8}, "two lengths of one value"),
        ({"datatype": 2}, "two lengths of one value"),
        ({"datatype": 2, "bitpix": 8}, "more data than its header declares"),
        ({"datatype": 16, "bitpix": 32}, "truncated"),
        ({"dim": [3, 4, 5, 2, 1, 1, 1, 1]}, "more data than its header declares"),
        ({"dim": [3, 4, 5, 4, 1, 1, 1, 1]}, "truncated"),
        ({"vox_offset": 348}, "begin where they cannot"),
        ({"vox_offset": 352.5}, "begin where they cannot"),
        ({"vox_offset": np.nan}, "begin where they cannot"),
        ({"vox_offset": -1}, "begin where they cannot"),
        ({"vox_offset": 1e12}, "begin where they cannot"),
        ({"magic": b"ni1\0"}, "in another file than they are"),
        ({"datatype": 1536, "bitpix": 128}, "a type that is not read"),
        ({"datatype": 1, "bitpix": 1}, "a type that is not read"),
        ({"datatype": 0}, "a type that is not read"),
        ({"datatype": 32, "bitpix": 64}, "complex numbers"),
        ({"datatype": 128, "bitpix": 24}, "colours"),
        ({"datatype": 2304, "bitpix": 32}, "colours"),
        ({"dim": [3, 4, -5, 3, 1, 1, 1, 1]}, "no valid dimensions"),
        ({"dim": [0, 4, 5, 3, 1, 1, 1, 1]}, "no valid dimensions"),
        ({"dim": [9, 4, 5, 3, 1, 1, 1, 1]}, "no valid dimensions"),
    ],
    ids=str,
)
def test_headers_that_lie_are_refused_by_the_lie(tmp_path, fields, words):
    with pytest.raises(FormatError, match=words):
        formats.read(save(tmp_path / "scan.nii", values("i2"), **fields))


def test_zeros_behind_the_voxels_are_padding_and_anything_else_is_not(tmp_path):
    path = save(tmp_path / "scan.nii", values("i2"))
    whole = path.read_bytes()
    for packed in (bytes, gzip.compress):
        path.write_bytes(packed(whole + bytes(500)))
        assert np.array_equal(formats.read(path).voxels, values("i2"))
        for rest in (bytes(500) + b"\1", bytes(5000)):
            path.write_bytes(packed(whole + rest))
            with pytest.raises(FormatError, match="more data than its header declares"):
                formats.read(path)


# ------------------------------------------------------------------------------------------------------ sform and qform


CONFLICTS = {
    "both, apart": ({"qoffset_x": 40.0}, "the sform is used"),
    "sform code 2, qform code 1": ({"sform_code": 2, "qoffset_z": -30.0}, "the sform is used"),
    "qform of a higher code": ({"qform_code": 2, "qoffset_y": 10.0}, "the sform is used"),
    "sheared sform": ({"srow_x": [-0.9, 0.5, 0, 12]}, "the sform is used"),
    "sheared sform alone": ({"srow_x": [-0.9, 0.5, 0, 12], "qform_code": 0}, "from a right angle; they are kept so"),
    "sform of zeros": ({"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}, "the qform is used"),
    "sform not finite": ({"srow_x": [np.nan, 0, 0, 0]}, "the qform is used"),
    "sform out of this world": ({"srow_x": [1e30, 0, 0, 0]}, "the qform is used"),
    "qform not finite": ({"qoffset_x": np.inf}, "the sform is used"),
    "voxel sizes and sform": ({"qform_code": 0, "pixdim": [1, 3, 3, 3, 1, 1, 1, 1]}, "the sform is used"),
    "both codes 0": ({"sform_code": 0, "qform_code": 0}, "gives no orientation"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_is_resolved_by_the_rule_and_remarked(tmp_path, name):
    fields, words = CONFLICTS[name]
    path = save(tmp_path / "scan.nii", values("i2"), **fields)
    volume = formats.read(path)
    assert any(words in remark for remark in volume.remarks)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    place = {"sform": header.get_sform, "qform": header.get_qform}
    used = re.search(r"the (sform|qform) is used", " ".join(volume.remarks))
    if used:
        assert np.array_equal(volume.affine, place[used[1]]())
    formats.write(volume, tmp_path / "again.nii", description="")
    again = formats.read(tmp_path / "again.nii")
    assert np.allclose(again.affine, volume.affine, atol=1e-5), "the same place when it is written and read again"


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]},
        {"qform_code": 0, "srow_x": [1e-20, 0, 0, 0]},
        {"qform_code": 0, "srow_x": [-0.9, 0.1, 0, 1e30]},
        {"sform_code": 200},
        {"qform_code": -3},
    ],
    ids=str,
)
def test_no_place_is_made_up(tmp_path, fields):
    with pytest.raises(GeometryError):
        formats.read(save(tmp_path / "scan.nii", values("i2"), **fields))


# ---------------------------------------------------------------------------------------------------------------- names

NAMES = [
    "größe ünïcode.nii",
    "扫描 脑.nii.gz",
    "🧠.nii.gz",
    " leading and trailing .nii",
    "-o.nii.gz",
    "a'b\"c$d&e;f|g*h?.nii",
    "line\nbreak.nii",
    "é" * 122 + "aaaa.nii",
    "x" * 248 + ".nii.gz",
    "percent%s%d{}.nii",
    "SCAN.NII.GZ",
    os.fsdecode(b"not utf-8 \xe9.nii"),
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_scan_of_any_name_is_read_and_written(tmp_path, name):
    source = save(tmp_path / "scan.nii", values("i2"))
    path = tmp_path / name
    path.write_bytes(source.read_bytes())
    volume = formats.read(path)
    assert np.array_equal(volume.voxels, values("i2"))
    (tmp_path / "out").mkdir()
    if name.endswith((".nii", ".nii.gz")):
        formats.write(volume, tmp_path / "out" / name, description="a copy")
        assert [p.name for p in (tmp_path / "out").iterdir()] == [name]
        assert np.array_equal(formats.read(tmp_path / "out" / name).voxels, volume.voxels)


def test_other_formats_of_any_name_are_read_or_refused(tmp_path):
    for name in ("größe 脑.nii", "-o \n;$x"):
        path = tmp_path / f"{name}.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(values("i2")), tmp_path / "plain.nrrd")
        (tmp_path / "plain.nrrd").rename(path)
        assert np.array_equal(formats.read(path).voxels, values("i2").T)
    path.rename(odd := tmp_path / (NAMES[-1] + ".nrrd"))
    with pytest.raises(MedisentError):
        formats.read(odd)


def test_links_are_followed_and_loops_and_dead_ends_are_refused(tmp_path):
    source = save(tmp_path / "scan.nii", values("i2"))
    (tmp_path / "link.nii").symlink_to(source)
    assert np.array_equal(formats.read(tmp_path / "link.nii").voxels, values("i2"))
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "dead.nii").symlink_to(tmp_path / "nothing.nii")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "itself").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("loop.nii", "dead.nii", "folder", "pipe.nii", "x" * 256 + ".nii", "scan.nii/scan.nii"):
        with pytest.raises((FormatError, MachineError)):
            formats.read(tmp_path / name)


@pytest.mark.slow
def test_ten_thousand_files_that_are_no_scans_are_refused_in_seconds(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(10_000):
        place = tmp_path / str(number % 50)
        place.mkdir(exist_ok=True)
        (place / f"{number}{['.txt', '.dcm', '', '.jpg'][number % 4]}").write_bytes(
            rng.bytes(int(rng.integers(0, 600)))
        )
    started = os.times()
    with pytest.raises(FormatError, match=r"2500 DICOM files .* none any more"):
        formats.read(tmp_path)
    assert sum(os.times()[:2]) - sum(started[:2]) < 20
