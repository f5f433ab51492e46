"""Laws of counterfactuals: nothing asked, nothing changed; only the change is interpolated; a wish is what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from medisent import counterfactuals
from medisent.checkpoints import Trained
from medisent.counterfactuals import (
    Wish,
    counterfactual,
    edited,
    factor_map,
    parse_wish,
    shown,
    wanted_value,
    with_values,
)
from medisent.errors import InterventionError, UsageError
from medisent.factors import Circular
from medisent.formats import read, write
from medisent.grids import sample
from medisent.phantoms.heads import Head
from medisent.readings import Reading, read_factors
from medisent.shapes import averaged
from medisent.volumes import Volume

TYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64", "scaled int16")


def as_type(scan: Volume, name: str) -> Volume:
    """The scan as a file of that type would give it."""
    if name == "scaled int16":
        stored = np.round(scan.voxels.astype(np.float64) * 4000).astype(np.int16)
        return replace(scan, voxels=stored * 0.0625)
    if name in ("float32", "float64"):
        return replace(scan, voxels=scan.voxels.astype(name))
    most = {"uint8": 250, "int16": 30_000, "uint16": 60_000, "int32": 2_000_000_000}[name]
    return replace(scan, voxels=np.round(scan.voxels.astype(np.float64) / scan.voxels.max() * most).astype(name))


def seen(trained: Trained, scan: Volume, head: Head) -> Reading:
    """The reading of a scan whose tumour was found as it is."""
    reading = read_factors(trained, scan)
    masks = reading.scene.masks.clone()
    masks[0] = torch.from_numpy(sample(Volume(head.masks.tumour, head.geometry), reading.placed))
    found = replace(reading.readouts["tumour_volume"], estimate=head.tumour_ml)
    readouts = {**reading.readouts, "tumour_volume": found}
    return replace(reading, scene=replace(reading.scene, masks=masks), readouts=readouts)


@pytest.fixture(scope="module")
def reading(trained: Trained, fine_scan: Volume, fine_head: Head) -> Reading:
    return seen(trained, fine_scan, fine_head)


def changed(before: Volume, after: Volume) -> np.ndarray:
    return np.asarray(before.voxels != after.voxels)


# Law 2: nothing asked, nothing changed


@pytest.mark.parametrize("name", TYPES)
def test_an_empty_edit_returns_the_voxels_as_they_are(trained, fine_scan, name):
    scan = as_type(fine_scan, name)
    same = counterfactual(trained, scan, [])
    assert same.voxels.dtype == scan.voxels.dtype
    assert same.voxels.tobytes() == scan.voxels.tobytes()
    assert same.geometry == scan.geometry


@pytest.mark.parametrize("wish", ["brightness*=1", "contrast+=0", "bias_field*=1", "tumour_volume+=0", "head_size*=1"])
@pytest.mark.parametrize("name", ["int16", "float64"])
def test_a_wish_for_what_is_there_changes_no_voxel(trained, fine_scan, name, wish):
    scan = as_type(fine_scan, name)
    same = counterfactual(trained, scan, [parse_wish(wish)], extrapolate=True)
    assert same.voxels.dtype == scan.voxels.dtype
    assert np.array_equal(same.voxels, scan.voxels)


def test_the_level_that_is_there_changes_no_voxel(trained, reading):
    level = trained.network.factors["site"].show(reading.readouts["site"].estimate)
    assert np.array_equal(edited(trained, reading, [Wish("site", "=", level)]).voxels, reading.scan.voxels)


# Law 1: native space


def header_of(path: Path) -> dict[str, object]:
    header = nibabel.load(path).header
    fields = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    kept = {name: header[name].item() for name in (*fields, "xyzt_units")}
    rows = {name: header[name].tolist() for name in ("srow_x", "srow_y", "srow_z")}
    return {**kept, **rows, "pixdim": header["pixdim"][:4].tolist(), "shape": header.get_data_shape()}


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 4), (4, 1)])
@pytest.mark.parametrize("wish", [None, "brightness*=1.2"])
def test_sform_qform_codes_and_units_are_kept_through_an_edit_and_a_file(trained, fine_scan, tmp_path, codes, wish):
    stored = np.round(fine_scan.voxels * 1000).astype(np.int16)
    image = nibabel.Nifti1Image(stored, None)
    image.set_sform(fine_scan.affine, codes[0])
    image.set_qform(fine_scan.affine, codes[1])
    image.header.set_slope_inter(0.5, -3)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "in.nii")
    scan = read(tmp_path / "in.nii")
    after = counterfactual(trained, scan, [parse_wish(wish)] if wish else [], extrapolate=True)
    write(after, tmp_path / "out.nii", description="synthetic")
    assert header_of(tmp_path / "out.nii") == header_of(tmp_path / "in.nii")
    assert np.array_equal(read(tmp_path / "out.nii").voxels, scan.voxels) == (wish is None)


def test_an_edited_scan_lies_where_the_scan_lies(trained, reading):
    after = edited(trained, reading, [parse_wish("head_size*=1.02")], extrapolate=True)
    assert after.geometry == reading.scan.geometry
    assert after.voxels.shape == reading.scan.voxels.shape
    assert changed(reading.scan, after).any()


# Law 3: only the change is interpolated


@pytest.mark.parametrize("name", TYPES)
def test_a_shape_edit_leaves_every_voxel_away_from_the_shape_as_it_was(trained, fine_scan, fine_head, name):
    scan = as_type(fine_scan, name)
    after = edited(trained, seen(trained, scan, fine_head), [parse_wish("tumour_volume+=10")], extrapolate=True)
    moved = changed(scan, after)
    away_mm = distance_transform_edt(fine_head.masks.tumour < 0.01, sampling=scan.spacing)
    assert moved.any()
    # The surface moves by 2 mm, and a cell of the grid has a diagonal of 21 mm.
    assert away_mm[moved].max() < 30
    assert moved.mean() < 0.06
    kept = away_mm >= 30
    assert np.array_equal(after.voxels[kept], scan.voxels[kept])


def test_a_voxel_is_changed_only_where_its_surrounding_cells_are(trained, reading):
    scene = reading.scene
    canonical = scene.canonical.clone()
    canonical[8, 8, 8] += 0.5
    after = shown(reading, replace(scene, canonical=canonical))
    to_grid = np.linalg.inv(reading.placed.affine) @ reading.scan.affine
    index = np.moveaxis(np.indices(reading.scan.voxels.shape), 0, -1) @ to_grid[:3, :3].T + to_grid[:3, 3]
    near = (np.abs(index - 8) < 1 + 1e-6).all(axis=-1)
    moved = changed(reading.scan, after)
    assert moved.any()
    assert not (moved & ~near).any()


def test_large_whole_numbers_keep_their_last_digit(trained, fine_scan, fine_head):
    scan = as_type(fine_scan, "int32")
    after = edited(trained, seen(trained, scan, fine_head), [parse_wish("tumour_volume+=5")], extrapolate=True)
    kept = after.voxels == scan.voxels
    assert kept.mean() > 0.85
    assert (scan.voxels[kept] > 2**24).any()
    assert (scan.voxels[kept] % 2 == 1).any()


def test_a_larger_tumour_is_nearer_to_the_true_larger_tumour_than_the_scan_was(trained, fine_head, reading):
    from medisent.phantoms import Acquisition, acquire, render

    larger = render(replace(fine_head.anatomy, tumour_ml=fine_head.tumour_ml + 15), fine_head.geometry)
    truth = acquire(larger, Acquisition(gain=1.2, bias=(0.1, 0.0, -0.1), noise=0.02))
    after = edited(trained, reading, [parse_wish("tumour_volume+=15")], extrapolate=True)
    error, nothing = (((v.astype(float) - truth) ** 2).sum() for v in (after.voxels, reading.scan.voxels))
    assert error < 0.9 * nothing


def test_structures_are_edited_as_close_as_the_scan_is_and_not_as_coarse_as_the_grid(
    trained, fine_head, fine_scan, monkeypatch
):
    from medisent.phantoms import Acquisition, acquire, render

    larger = render(replace(fine_head.anatomy, tumour_ml=fine_head.tumour_ml + 15), fine_head.geometry)
    truth = acquire(larger, Acquisition(gain=1.2, bias=(0.1, 0.0, -0.1), noise=0.02))
    errors = []
    for close in (True, False):
        if not close:
            monkeypatch.setattr(counterfactuals, "closeness", lambda *_: 1)
        own = seen(trained, fine_scan, fine_head)
        assert (counterfactuals._close(own, 0.0).close is None) is not close
        after = edited(trained, own, [parse_wish("tumour_volume+=15")], extrapolate=True)
        errors.append(((after.voxels.astype(float) - truth) ** 2).sum())
    assert errors[0] < 0.8 * errors[1]


def test_a_close_up_shows_what_the_grid_shows(reading):
    close = counterfactuals._close(reading, 0.0).close
    assert close is not None
    inside = (reading.abduction.sight.batch.coverage[0, 0] == 1).numpy()
    coarse, fine = reading.scene.canonical.numpy()[inside], averaged(close.image, close.times)[inside]
    assert np.corrcoef(coarse, fine)[0, 1] > 0.99


def test_a_scan_no_finer_than_the_grid_has_no_close_up(trained, scan):
    own = read_factors(trained, scan)
    assert counterfactuals._close(own, 0.0) is own.scene


def test_what_two_edits_of_structures_add_comes_together(trained, fine_head, reading):
    once = counterfactuals.scene_with(trained, reading, [("tumour_volume", 40.0)])
    twice = counterfactuals.scene_with(trained, reading, [("tumour_volume", 34.0), ("tumour_volume", 40.0)])
    volume = [float(one.masks[0].sum()) * trained.network.voxel_ml for one in (reading.scene, once, twice)]
    assert volume[1] - volume[0] == pytest.approx(40.0 - fine_head.tumour_ml, abs=0.2)
    assert volume[2] - volume[0] == pytest.approx(40.0 - fine_head.tumour_ml, abs=0.2)
    gained = [one.close.gained for one in (once, twice)]
    assert np.corrcoef(gained[0].ravel(), gained[1].ravel())[0, 1] > 0.95


# The scanner, at full resolution


@pytest.mark.parametrize("name", TYPES)
def test_one_and_a_half_times_as_bright_is_one_and_a_half_times_every_voxel(trained, fine_scan, name):
    scan = as_type(fine_scan, name)
    after = counterfactual(trained, scan, [parse_wish("brightness*=1.5")], extrapolate=True)
    assert np.allclose(after.voxels, 1.5 * scan.voxels.astype(np.float64), rtol=1e-5)


def test_air_below_zero_stays_what_it_is_when_a_scan_gets_brighter(trained, fine_scan):
    scan = replace(fine_scan, voxels=fine_scan.voxels - np.float32(0.05))
    after = counterfactual(trained, scan, [parse_wish("brightness*=1.5")], extrapolate=True)
    below = scan.voxels < 0
    assert below.any()
    assert np.array_equal(after.voxels[below], scan.voxels[below])
    assert np.allclose(after.voxels[~below], 1.5 * scan.voxels[~below], rtol=1e-5)


def test_brightness_is_above_air_where_air_is_not_zero(trained, fine_scan):
    settings = replace(trained.study, scanner=replace(trained.study.scanner, air=-1000.0))
    tomogram = replace(trained, study=settings)
    scan = replace(fine_scan, voxels=fine_scan.voxels * np.float32(1000) - np.float32(1000))
    after = counterfactual(tomogram, scan, [parse_wish("brightness*=1.5")], extrapolate=True)
    assert np.allclose(after.voxels + 1000, 1.5 * (scan.voxels + 1000), atol=0.01)


def test_a_steeper_contrast_keeps_air_and_the_order_of_neighbouring_tissues(trained, reading):
    flat = replace(reading.scene.scanner, bias=torch.zeros_like(reading.scene.scanner.bias))
    even = replace(reading, scene=replace(reading.scene, scanner=flat))
    before = reading.scan.voxels
    after = edited(trained, even, [parse_wish("contrast*=1.2")], extrapolate=True).voxels
    order = np.argsort(before, axis=None)
    assert (np.diff(after.ravel()[order]) >= -1e-5).all()
    assert not np.allclose(after, before, rtol=0.05)


@pytest.fixture(scope="module")
def noisy(reading: Reading) -> Reading:
    """The same scan with noise in two channels, a fiftieth of its scale in each."""
    noise = 0.02 * math.exp(reading.log_scale)
    real, imaginary = np.random.default_rng(0).normal(0, noise, (2, *reading.scan.voxels.shape))
    voxels = np.hypot(reading.scan.voxels + real, imaginary).astype(np.float32)
    return replace(reading, scan=replace(reading.scan, voxels=voxels), noise=noise)


@pytest.mark.parametrize("wish", ["contrast*=1.2", "bias_field*=3"])
def test_another_contrast_or_field_leaves_the_noise_of_air_as_it_is(trained, noisy, wish):
    before = noisy.scan.voxels
    after, unknown = (
        edited(trained, replace(noisy, noise=noise), [parse_wish(wish)], extrapolate=True).voxels
        for noise in (noisy.noise, 0.0)
    )
    air, tissue = before < noisy.noise, before > math.exp(noisy.log_scale)
    assert air.any()
    assert np.allclose(after[air], before[air], rtol=1e-5)
    assert not np.allclose(unknown[air], before[air], rtol=0.05)
    assert np.allclose(after[tissue], unknown[tissue], rtol=0.01)


def test_another_brightness_is_one_for_the_noise_too(trained, noisy):
    after = edited(trained, noisy, [parse_wish("brightness*=1.5")], extrapolate=True).voxels
    assert np.allclose(after, 1.5 * noisy.scan.voxels, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_noise_is_told_from_signal_in_any_unit(trained, noisy, unit):
    wish = [parse_wish("contrast*=1.2")]
    other = replace(
        noisy,
        scan=replace(noisy.scan, voxels=noisy.scan.voxels * np.float32(unit)),
        noise=noisy.noise * unit,
        log_scale=noisy.log_scale + math.log(unit),
    )
    one, same = (edited(trained, seen, wish, extrapolate=True).voxels for seen in (noisy, other))
    assert np.allclose(same / np.float32(unit), one, rtol=1e-3, atol=1e-3 * noisy.noise)


def test_a_noisy_scan_with_another_contrast_has_a_way_back(trained, noisy):
    there = edited(trained, noisy, [parse_wish("contrast*=1.2")], extrapolate=True)
    scanner = noisy.scene.scanner
    steeper = replace(scanner, log_gamma=scanner.log_gamma + math.log(1.2))
    other = replace(noisy, scan=there, scene=replace(noisy.scene, scanner=steeper))
    assert np.allclose(shown(other, noisy.scene).voxels, noisy.scan.voxels, rtol=1e-3, atol=1e-4 * noisy.noise)


@pytest.mark.parametrize("name", ["brightness", "contrast", "bias_field"])
def test_there_and_back_again_is_the_scan_up_to_rounding(trained, reading, name):
    present = reading.readouts[name].estimate
    far = with_values(trained, reading, [(name, present * 1.4)]).voxels
    back = with_values(trained, reading, [(name, present * 1.4), (name, present)]).voxels
    assert np.allclose(back, reading.scan.voxels, rtol=1e-4, atol=1e-6)
    assert not np.allclose(far, reading.scan.voxels, rtol=1e-3)


def test_wishes_for_the_scanner_add_up_in_any_order(trained, reading):
    wishes = [parse_wish("brightness*=1.5"), parse_wish("contrast*=1.1")]
    one, other = (edited(trained, reading, order, extrapolate=True).voxels for order in (wishes, wishes[::-1]))
    assert np.allclose(one, other, rtol=1e-5)


def test_relative_wishes_are_relative_to_the_scans_own_readout(trained, reading):
    present = reading.readouts["brightness"].estimate
    assert wanted_value(trained, reading, parse_wish("brightness*=1.5"), extrapolate=True) == present * 1.5
    assert wanted_value(trained, reading, parse_wish("brightness+=0.5"), extrapolate=True) == present + 0.5


def test_a_large_scan_worked_on_in_slabs_gives_the_same_bytes(trained, reading, monkeypatch):
    wishes = [parse_wish("brightness*=1.3"), parse_wish("bias_field*=2"), parse_wish("tumour_volume+=5")]
    whole = edited(trained, reading, wishes, extrapolate=True)
    monkeypatch.setattr(counterfactuals, "_SLAB", 1)
    assert np.allclose(edited(trained, reading, wishes, extrapolate=True).voxels, whole.voxels, rtol=1e-6, atol=1e-7)


def test_the_same_wish_gives_the_same_bytes(trained, fine_scan):
    wishes = [parse_wish("brightness*=1.2"), parse_wish("head_size+=1")]
    one, other = (counterfactual(trained, fine_scan, wishes, extrapolate=True).voxels.tobytes() for _ in range(2))
    assert one == other


# What is refused


@pytest.mark.parametrize("name", ["brightness", "head_size"])
@pytest.mark.parametrize("high", [math.inf, 0.0], ids=["rises", "falls"])
def test_a_map_is_an_edit_by_what_is_typical_that_stays_in_what_training_saw(trained, reading, name, high):
    entry = replace(trained.card.factors[name], low=0.0, high=high)
    other = replace(trained, card=replace(trained.card, factors={**trained.card.factors, name: entry}))
    step = (entry.quantiles[84] - entry.quantiles[16]) / 2 * (1 if high else -1)
    present = reading.readouts[name].estimate
    wanted = with_values(other, reading, [(name, present + step)])
    assert np.array_equal(
        factor_map(other, reading, name).voxels, (wanted.voxels - reading.scan.voxels) / np.float32(step)
    )


def test_an_unknown_factor_is_refused_with_those_there_are(trained, fine_scan):
    with pytest.raises(InterventionError, match=r"no factor 'tumor'.*tumour_volume, head_size, site, brightness"):
        counterfactual(trained, fine_scan, [parse_wish("tumor=3")])


@pytest.mark.parametrize("wish", ["tumour_volume=5000", "tumour_volume*=1000", "tumour_volume=0.001", "brightness=100"])
def test_what_training_never_saw_is_refused_with_what_it_saw_unless_it_is_meant(trained, reading, wish):
    name = parse_wish(wish).name
    entry = trained.card.factors[name]
    show = trained.network.factors[name].show
    with pytest.raises(InterventionError, match="--extrapolate") as refusal:
        wanted_value(trained, reading, parse_wish(wish))
    assert f"{show(entry.low)} to {show(entry.high)}" in str(refusal.value)
    assert wanted_value(trained, reading, parse_wish(wish), extrapolate=True) > 0


def test_small_values_are_beyond_training_too_however_wide_the_range_was(trained, reading):
    wide = replace(trained.card.factors["tumour_volume"], low=2.0, high=50.0)
    card = replace(trained.card, factors={**trained.card.factors, "tumour_volume": wide})
    seeing = replace(trained, card=card)
    assert wanted_value(seeing, reading, parse_wish("tumour_volume=1.9")) == 1.9
    for wish in ("tumour_volume=0.5", "tumour_volume=60"):
        with pytest.raises(InterventionError, match="2 mL to 50 mL"):
            wanted_value(seeing, reading, parse_wish(wish))


def test_what_training_saw_is_granted_up_to_its_edges(trained, reading):
    for name in ("tumour_volume", "head_size", "brightness"):
        entry = trained.card.factors[name]
        for value in (entry.low, entry.high):
            assert wanted_value(trained, reading, Wish(name, "=", repr(value))) == value


@pytest.mark.parametrize("wish", ["site*=2", "site+=1"])
def test_levels_cannot_be_multiplied_or_added(trained, reading, wish):
    with pytest.raises(InterventionError, match=r"site has levels.*site=LEVEL"):
        wanted_value(trained, reading, parse_wish(wish))


@pytest.mark.parametrize("wish", ["site=site-9", "head_size=big", "head_size*=big", "head_size+=nan", "brightness=inf"])
def test_a_value_that_is_none_is_refused_even_beyond_training(trained, reading, wish):
    with pytest.raises(InterventionError, match=parse_wish(wish).name):
        wanted_value(trained, reading, parse_wish(wish), extrapolate=True)


@pytest.mark.parametrize("wish", ["tumour_volume=-1", "tumour_volume+=-5000", "brightness*=0", "brightness*=-2"])
def test_a_positive_factor_stays_positive_even_beyond_training(trained, reading, wish):
    with pytest.raises(InterventionError, match="positive"):
        wanted_value(trained, reading, parse_wish(wish), extrapolate=True)


def test_a_step_on_a_circle_comes_round():
    hour = Circular(name="hour", role="anatomy", period=24.0)
    assert counterfactuals._relative(hour, 23.0, Wish("hour", "+=", "2")) == 1
    assert counterfactuals._relative(hour, 1.0, Wish("hour", "+=", "-3")) == 22


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("tumour_volume=20", ("tumour_volume", "=", "20")),
        ("tumour_volume*=1.5", ("tumour_volume", "*=", "1.5")),
        ("tumour_volume+=10", ("tumour_volume", "+=", "10")),
        ("tumour_volume+=-10", ("tumour_volume", "+=", "-10")),
        ("  size = 3e2 ", ("size", "=", "3e2")),
        ("site=site 1", ("site", "=", "site 1")),
        ("site=a=b", ("site", "=", "a=b")),
    ],
)
def test_a_wish_is_read_and_shown_as_written(text, wish):
    assert parse_wish(text) == Wish(*wish)
    assert parse_wish(str(parse_wish(text))) == parse_wish(text)


@pytest.mark.parametrize(
    "text", ["", "=", "size", "size=", "=3", "size*3", "size+3", "size 3", "*=3", "a b=3", "size*=  "]
)
def test_what_is_no_wish_is_refused_with_the_three_forms(text):
    with pytest.raises(UsageError, match=r"NAME=VALUE.*NAME\*=FACTOR.*NAME\+=STEP"):
        parse_wish(text)
