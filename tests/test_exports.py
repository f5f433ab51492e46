"""Laws of what leaves as NIfTI: nothing of the scan is lost by the edit beside it, and the file says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisent import formats
from medisent.exports import Edit, Making, voxels_digest, write_synthetic
from medisent.volumes import Volume

SHAPE = (5, 4, 3)
TYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
SCALES = ((1.0, 0.0), (0.0625, 0.0), (0.1, -3.3), (1e-4, 7.0))


def kept(folder: Path, dtype: str, scale: tuple[float, float], seed: int = 0) -> Volume:
    """A scan that was stored in such a type under such a scale."""
    draw = np.random.default_rng(seed)
    whole = draw.integers(0, 250, SHAPE) if dtype != "int32" else draw.integers(-(2**31), 2**31, SHAPE)
    raw = whole.astype(dtype) if np.dtype(dtype).kind in "iu" else draw.normal(0, 9, SHAPE).astype(dtype)
    image = nibabel.Nifti1Image(raw, np.diag([1.0, 2.0, 3.0, 1.0]), dtype=raw.dtype)
    image.header.set_slope_inter(*scale)
    path = folder / "scan.nii"
    # nibabel would work out a scale of its own
    path.write_bytes(image.header.binaryblock[:108] + np.float32(352).tobytes() + image.header.binaryblock[112:])
    with path.open("ab") as file:
        file.write(bytes(4) + raw.tobytes(order="F"))
    return formats.read(path)


def edited(scan: Volume, seed: int = 1) -> Volume:
    """A third of the voxels moved by something."""
    draw = np.random.default_rng(seed)
    values = scan.voxels.astype(np.float64 if scan.voxels.dtype.itemsize > 2 else np.float32)
    spread = float(values.std())
    return scan.with_voxels(
        np.where(draw.random(SHAPE) < 1 / 3, values + draw.normal(0, spread, SHAPE), values).astype(values.dtype)
    )


@settings(max_examples=30)
@given(st.sampled_from(TYPES), st.sampled_from(SCALES), st.integers(0, 99))
def test_an_unedited_voxel_leaves_equal_and_an_edited_one_to_single_precision(tmp_path_factory, dtype, scale, seed):
    folder = tmp_path_factory.mktemp("kept")
    scan = kept(folder, dtype, scale, seed)
    edit = edited(scan, seed)
    said = formats.write(edit, folder / "edit.nii", description="", like=scan)
    before, after = nibabel.load(folder / "scan.nii").get_fdata(), nibabel.load(folder / "edit.nii").get_fdata()
    same = edit.voxels == scan.voxels
    assert 0 < same.sum() < same.size
    assert np.array_equal(after[same], before[same])
    slack = 2e-7 * (np.abs(edit.voxels).max() + abs(scale[1]))
    np.testing.assert_allclose(after, edit.voxels, rtol=0, atol=slack)
    written = nibabel.load(folder / "edit.nii")
    assert (said.dtype, said.slope, said.intercept) == (
        written.get_data_dtype().name,
        written.dataobj.slope,
        written.dataobj.inter,
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", TYPES)
def test_what_the_scans_own_type_holds_is_stored_in_it(tmp_path, dtype, scale):
    scan = kept(tmp_path, dtype, scale)
    values = scan.voxels.copy()
    values[0] = values[1]
    said = formats.write(scan.with_voxels(values), tmp_path / "edit.nii", description="", like=scan)
    assert (said.dtype, said.slope, said.intercept) == (dtype, *map(float, map(np.float32, scale)))
    assert np.array_equal(formats.read(tmp_path / "edit.nii").voxels, values)


@pytest.mark.parametrize("scale", SCALES)
def test_between_the_steps_of_a_short_integer_values_are_single_under_its_scale(tmp_path, scale):
    scan = kept(tmp_path, "int16", scale)
    said = formats.write(edited(scan), tmp_path / "edit.nii", description="", like=scan)
    assert (said.dtype, said.slope, said.intercept) == ("float32", *map(float, map(np.float32, scale)))


def test_a_synthetic_scan_says_what_it_is_in_its_header_and_beside_it(tmp_path):
    scan = kept(tmp_path, "int16", (0.1, 2.0))
    making = Making(scan, "0" * 64, ("tumour_volume=20",), (Edit("tumour_volume", 20.0, "mL"),))
    write_synthetic(edited(scan), tmp_path / "edit.nii.gz", making)
    assert b"synthetic" in nibabel.load(tmp_path / "edit.nii.gz").header["descrip"].item()
    said = json.loads((tmp_path / "edit.json").read_text())
    assert said["synthetic"] is True
    assert (said["set"], said["edits"]) == (
        ["tumour_volume=20"],
        [{"factor": "tumour_volume", "value": 20.0, "unit": "mL"}],
    )
    assert (said["SourceVoxelsSHA256"], said["ModelSHA256"]) == (voxels_digest(scan), "0" * 64)
    assert (said["DataType"], said["Slope"]) == ("float32", float(np.float32(0.1)))
    assert said["GeneratedBy"][0]["Name"] == "medisent"
