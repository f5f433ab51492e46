"""An edited scan read again: rulers find what was done to a scan, and nothing where nothing was done."""

import math
from dataclasses import replace

import numpy as np
import pytest

from medisent.readings import read_factors
from medisent.rereading import dependence, reread


@pytest.mark.parametrize(("name", "edit"), [("brightness", lambda v: v * 1.7), ("contrast", lambda v: v**1.3)])
def test_a_ruler_finds_what_was_done_to_the_scanner(trained, scan, name, edit):
    reading = read_factors(trained, scan)
    if name not in reading.readouts:
        pytest.fail("the model that tests share has the whole scanner")
    present = reading.readouts[name].estimate
    asked = present * (1.7 if name == "brightness" else 1.3)
    found = reread(trained, reading, name, asked, scan.with_voxels(edit(np.maximum(scan.voxels, 0).astype(np.float64))))
    assert found.ruled == pytest.approx(asked, rel=0.03)


def test_a_ruler_of_volumes_counts_the_voxels_that_changed(trained, scan):
    reading = read_factors(trained, scan)
    present = reading.readouts["tumour_volume"].estimate
    edited = scan.voxels.copy()
    edited[6:9, 6:9, 6:9] += 1
    for asked, sign in ((present * 2, 1), (present / 2, -1)):
        found = reread(trained, reading, "tumour_volume", asked, scan.with_voxels(edited))
        assert found.ruled == pytest.approx(max(0.0, present + sign * 27 * scan.geometry.voxel_ml), rel=1e-6)


def test_the_scan_itself_read_again_moves_nothing(trained, scan):
    reading = read_factors(trained, scan)
    for name, readout in reading.readouts.items():
        if not math.isfinite(readout.low):
            continue
        found = reread(trained, reading, name, readout.estimate, scan)
        assert found.found
        assert found.kept
        assert max(found.moved.values(), default=0.0) == 0
        assert math.isnan(found.ruled) or found.ruled == pytest.approx(readout.estimate)


def test_an_interval_that_nothing_has_calibrated_is_no_measure_where_others_were(trained, scan):
    card = trained.card
    one = {name: replace(entry, calibrated=9 if name == "tumour_volume" else 0) for name, entry in card.factors.items()}
    none = {name: replace(entry, calibrated=0) for name, entry in card.factors.items()}
    reading = read_factors(trained, scan)
    moved = [
        reread(replace(trained, card=replace(card, factors=factors)), reading, "brightness", 1.0, scan).moved
        for factors in (one, none)
    ]
    assert set(moved[0]) == {"tumour_volume"}
    assert len(moved[1]) > 1


def test_an_edit_that_the_reading_does_not_follow_is_not_found_however_wide_its_interval(trained, scan):
    reading = read_factors(trained, scan)
    name = "tumour_volume"
    present = reading.readouts[name]
    found = reread(trained, reading, name, present.estimate * 2, scan)
    wide = replace(found, after=replace(present, low=0.0, high=1e6))
    assert not wide.found
    assert replace(wide, after=replace(wide.after, estimate=present.estimate * 1.9)).found


def test_dependence_goes_by_the_value_and_by_its_interval(trained, scan):
    first = replace(next(iter(read_factors(trained, scan).readouts.values())), estimate=10.0, low=8.0, high=12.0)
    assert [dependence(first, replace(first, estimate=value)) for value in (10.4, 9.0, 12.5)] == [
        "hardly", "somewhat", "much",
    ]  # fmt: skip
