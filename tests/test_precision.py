"""Laws of what is left out of files: only digits far below the noise, and never one of the scan's own values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisent.exports import Making, write_synthetic
from medisent.formats import read
from medisent.precision import brief_edit, brief_map, in_steps, noise_of, step_of
from medisent.volumes import Geometry, Stored, Volume

SHAPE = (24, 20, 16)


def noisy(sd: float, stored: Stored | None = None, seed: int = 0) -> Volume:
    """A slope of grey under noise; as the file of a scan would hold it."""
    values = 200 + 10 * np.arange(SHAPE[0])[:, None, None] + np.random.default_rng(seed).normal(0, sd, SHAPE)
    if stored is None:
        return Volume(values.astype(np.float32), Geometry(np.eye(4), SHAPE))
    whole = np.rint((values - stored.intercept) / stored.slope)
    exact = whole.astype(stored.dtype) if stored.slope == 1 else whole * stored.slope + stored.intercept
    return Volume(exact, Geometry(np.eye(4), SHAPE), stored=stored)


def edited(scan: Volume, seed: int = 1) -> Volume:
    """The scan with other values in its middle."""
    voxels = scan.voxels.astype(np.float64 if scan.voxels.itemsize > 4 else np.float32)
    voxels[6:18, 5:15] *= np.random.default_rng(seed).uniform(0.9, 1.1, (12, 10, 16)).astype(voxels.dtype)
    return scan.with_voxels(voxels)


STORED = st.sampled_from([None, Stored("int16"), Stored("uint16", 0.25, -3.0), Stored("int16", 1.7, 11.3)])


@settings(max_examples=30)
@given(sd=st.sampled_from([0.02, 1.0, 40.0]), stored=STORED, seed=st.integers(0, 99))
def test_the_scans_own_values_stay_and_others_move_by_half_a_step_at_most(sd, stored, seed):
    scan = noisy(sd, stored, seed)
    edit = edited(scan, seed)
    step = step_of(edit, scan)
    found = in_steps(edit, scan, step).voxels
    own = edit.voxels == scan.voxels
    assert (found[own] == scan.voxels[own]).all()
    assert np.abs(found - edit.voxels).max() <= step * (0.5 + 1e-6) + 1e-4
    assert step <= noise_of(scan) / 16


@given(sd=st.floats(0.1, 50), offset=st.floats(-100, 1e4))
def test_noise_is_measured_under_a_slope_of_grey_in_the_scans_unit(sd, offset):
    scan = noisy(sd)
    assert noise_of(scan.with_voxels(scan.voxels + np.float32(offset))) == pytest.approx(sd, rel=0.1)


def test_an_edit_of_a_scan_in_whole_numbers_keeps_its_type_where_they_are_far_below_the_noise(tmp_path):
    for sd, dtype, step in ((40.0, "int16", 1.0), (3.0, "float32", 0.125)):
        scan = noisy(sd, Stored("int16"))
        edit = edited(scan)
        brief, found = brief_edit(edit, scan)
        write_synthetic(brief, tmp_path / "edit.nii.gz", Making(scan, "0" * 64, ("made wider",), step=found))
        said = json.loads((tmp_path / "edit.json").read_text(encoding="utf-8"))
        assert (said["DataType"], said["Step"]) == (dtype, step)
        back = read(tmp_path / "edit.nii.gz").voxels
        assert np.abs(back - edit.voxels).max() <= step / 2


def test_a_scan_made_a_thousand_times_darker_has_steps_as_much_finer():
    scan = noisy(40.0, Stored("int16"))
    dark = scan.with_voxels((scan.voxels / 1000).astype(np.float32))
    brief, step = brief_edit(dark, scan)
    assert 0 < step <= 0.04 / 16 * 1.1
    assert np.abs(brief.voxels - dark.voxels).max() <= step * 0.51


def test_where_there_is_no_noise_every_digit_is_kept():
    voxels = np.zeros(SHAPE, np.float32)
    voxels[3, 4, 5] = 1.2345678
    scan = Volume(voxels, Geometry(np.eye(4), SHAPE))
    edit = scan.with_voxels(voxels * np.float32(1.1))
    brief, step = brief_edit(edit, scan)
    assert step == 0
    assert (brief.voxels == edit.voxels).all()


@given(seed=st.integers(0, 99), scale=st.floats(1e-6, 1e6))
def test_a_map_keeps_its_zeros_and_all_else_to_a_thousandth_or_far_below_its_noise(seed, scale):
    values = np.random.default_rng(seed).normal(0, scale, SHAPE).astype(np.float32)
    values[:5] = 0
    values[5:10] *= np.float32(100)
    change = Volume(values, Geometry(np.eye(4), SHAPE))
    found = brief_map(change).voxels
    assert found.dtype == np.float32
    assert (found[:5] == 0).all()
    assert (np.abs(found - values) <= np.abs(values) / 1000 + noise_of(change) / 16).all()
