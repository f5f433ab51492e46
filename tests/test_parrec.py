"""Laws of PAR/REC: it lies where the same scan in DICOM lies, and a damaged pair is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medisent.errors import FormatError
from medisent.formats import read

pytestmark = pytest.mark.realdata


@pytest.fixture
def balls() -> Path:
    folder = os.environ.get("MEDISENT_TEST_DATA")
    if not folder:
        pytest.skip("MEDISENT_TEST_DATA is not set")
    return Path(folder) / "nitest_balls"


@pytest.fixture
def pair(balls, tmp_path) -> Path:
    """A pair of files that may be damaged."""
    for suffix in (".PAR", ".REC"):
        shutil.copyfile(balls / "PARREC" / f"T1{suffix}", tmp_path / f"T1{suffix}")
    return tmp_path / "T1.PAR"


@pytest.mark.parametrize("name", ["T1", "T2"])
@pytest.mark.parametrize("half", [".PAR", ".REC"])
def test_the_same_scan_as_dicom_has_the_same_values_in_the_same_place(balls, name, half):
    scan, dicom = read(balls / "PARREC" / f"{name}{half}"), read(balls / "DICOM" / f"{name}.dcm")
    to_dicom = np.linalg.inv(dicom.affine) @ scan.affine
    assert np.abs(to_dicom - np.eye(4)).max() < 0.01, "both count voxels alike, a hundredth of a voxel apart"
    np.testing.assert_allclose(scan.voxels, dicom.voxels, rtol=1e-5)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_shorter_rec_file_is_refused(pair, kept):
    rec = pair.with_suffix(".REC")
    rec.write_bytes(rec.read_bytes()[: int(kept * rec.stat().st_size)])
    with pytest.raises(FormatError, match="declares"):
        read(pair)


def test_half_a_pair_is_refused(pair):
    pair.with_suffix(".REC").unlink()
    with pytest.raises(FormatError, match="half of a pair"):
        read(pair)


def test_a_damaged_par_file_is_read_as_it_was_or_refused(pair):
    right, text = read(pair), pair.read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(text)
        start = int(chance.integers(len(text)))
        del damaged[start : start + int(chance.integers(1, 400))]
        pair.write_bytes(bytes(damaged))
        try:
            found = read(pair)
        except FormatError:
            continue
        assert found.voxels.shape == right.voxels.shape
