"""Rendered heads, scanners and cohorts keep what they promise: exact volumes, true counterfactuals, no leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medisent.config import load_study
from medisent.errors import InterventionError, UsageError
from medisent.formats import read
from medisent.phantoms import (
    Acquisition,
    Anatomy,
    Plan,
    Ruler,
    acquire,
    bias_field,
    bias_strength,
    measure_tumour_ml,
    measure_ventricle_ml,
    render,
    sample,
    write_cohort,
)
from medisent.phantoms.heads import head_frame
from medisent.phantoms.repeats import with_repeats
from medisent.scanners import Scanner, bias_basis
from medisent.volumes import Geometry

GRID = Plan().geometry
COARSE = Plan(spacing_mm=4.25, shape=(45, 45, 45)).geometry  # the cheapest: one point a voxel
PERSON = Anatomy(ventricle_ml=20, tumour_ml=12, tumour_mm=(38.0, 2.0, 30.0), seed=3)
SCANNER = Acquisition(
    gain=1.3, gamma=1.1, bias=(0.05, -0.08, 0.03, 0.06, -0.04, 0.02, 0.03, -0.05, 0.01), blur_mm=4.0, noise=0.02, seed=5
)


def oblique() -> Geometry:
    """Anisotropic, rotated, with one axis the other way round."""
    turn, tilt = np.radians(25), np.radians(-15)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    rotation @= np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    shape = (62, 70, 38)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-3.4, 3.1, 5.5])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Geometry(affine, shape)


def world(geometry: Geometry) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort")
    return write_cohort(out, subjects=6, seed=4, spacing_mm=4.25, shape=(45, 45, 45), counterfactuals=True)


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


# Heads


@settings(max_examples=6, deadline=None)
@given(tumour=st.floats(0.5, 60), ventricles=st.floats(5, 60), roughness=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_masks_sum_to_the_asked_volumes_whoever_it_is(tumour, ventricles, roughness, seed):
    person = replace(PERSON, tumour_ml=tumour, ventricle_ml=ventricles, roughness=roughness, seed=seed)
    assert render(person, COARSE).tumour_ml == pytest.approx(tumour, abs=1e-3)
    alone = render(replace(person, tumour_ml=0.0), COARSE)
    assert alone.ventricle_ml == pytest.approx(ventricles, abs=1e-3)
    assert alone.tumour_ml == 0


@pytest.mark.parametrize("geometry", [GRID, oblique()], ids=["6 mm", "oblique, anisotropic"])
def test_masks_sum_to_the_asked_volumes_on_any_grid(geometry):
    head = render(PERSON, geometry)
    assert head.tumour_ml == pytest.approx(12, abs=1e-3)
    assert head.ventricle_ml == pytest.approx(20, abs=1e-3)


@pytest.mark.slow
def test_masks_sum_to_the_asked_volumes_at_one_millimetre():
    head = render(PERSON, Plan(spacing_mm=1.0, shape=(180, 200, 180)).geometry)
    assert head.tumour_ml == pytest.approx(12, abs=1e-3)
    assert head.ventricle_ml == pytest.approx(20, abs=1e-3)


def test_the_same_person_lies_in_the_same_place_on_another_grid():
    for mask in ("tumour", "ventricles"):
        centres = []
        for geometry in (GRID, oblique()):
            fraction = getattr(render(PERSON, geometry).masks, mask)
            centres.append((world(geometry) * fraction[..., None]).sum(axis=(0, 1, 2)) / fraction.sum())
        np.testing.assert_allclose(centres[0], centres[1], atol=0.4)


def test_the_same_seed_is_the_same_head_and_another_seed_another():
    first, again = render(PERSON, COARSE), render(PERSON, COARSE)
    assert first.canonical.tobytes() == again.canonical.tobytes()
    other = render(replace(PERSON, seed=4), COARSE)
    brain = (first.canonical > 0.3) & (other.canonical > 0.3)
    assert np.abs(first.canonical - other.canonical)[brain].mean() > 0.01


def test_brightness_goes_from_air_to_about_one():
    canonical = render(PERSON, GRID).canonical
    assert canonical.dtype == np.float32
    assert canonical.min() == 0
    assert 0.85 < canonical.max() < 1.2
    assert np.mean(canonical == 0) > 0.2


def test_a_tumour_has_a_rim_brighter_than_white_and_a_core_darker_than_grey_matter():
    geometry = Plan(spacing_mm=3.0, shape=(64, 64, 64)).geometry
    head = render(replace(PERSON, tumour_ml=25), geometry)
    within = head.canonical[head.masks.tumour > 0.99]
    assert np.percentile(within, 90) > 0.85
    assert np.percentile(within, 10) < 0.4
    assert np.percentile(head.canonical[head.masks.ventricles > 0.99], 50) < 0.2


def test_another_tumour_changes_no_voxel_outside_both_tumours():
    before, after = render(PERSON, GRID), render(replace(PERSON, tumour_ml=27), GRID)
    outside = (before.masks.tumour == 0) & (after.masks.tumour == 0)
    assert np.array_equal(before.canonical[outside], after.canonical[outside])
    assert np.abs(before.canonical - after.canonical)[~outside].max() > 0.2
    assert np.all(after.masks.tumour >= before.masks.tumour)
    reach = np.linalg.norm(world(GRID)[~outside] - PERSON.tumour_mm, axis=1)
    assert reach.max() < 45


def test_other_ventricles_change_no_voxel_outside_both_ventricles():
    before, after = render(PERSON, GRID), render(replace(PERSON, ventricle_ml=32), GRID)
    outside = (before.masks.ventricles == 0) & (after.masks.ventricles == 0)
    assert np.array_equal(before.canonical[outside], after.canonical[outside])
    assert np.array_equal(before.masks.tumour, after.masks.tumour)


def test_a_tumour_hides_the_ventricle_behind_it():
    near = replace(PERSON, tumour_ml=30, tumour_mm=(20.0, 5.0, 18.0))
    head, alone = render(near, GRID), render(replace(near, tumour_ml=0.0), GRID)
    assert head.ventricle_ml < alone.ventricle_ml - 1
    assert np.all(head.masks.ventricles + head.masks.tumour <= 1 + 1e-5)


def test_a_larger_head_is_larger_by_its_radius_cubed():
    volumes = [(render(Anatomy(head_size=size, tumour_ml=0), GRID).canonical > 0.02).sum() for size in (66.0, 72.6)]
    # The neck runs out of the field of view, so the whole grows a little less than the cranium.
    assert volumes[1] / volumes[0] == pytest.approx(1.1**3, rel=0.06)


def test_a_tumour_outside_the_brain_or_too_large_for_it_is_refused():
    with pytest.raises(InterventionError, match=r"room for 0\.0 mL"):
        render(replace(PERSON, tumour_mm=(200.0, 0.0, 0.0)), COARSE)
    with pytest.raises(InterventionError, match="does not fit"):
        render(replace(PERSON, tumour_ml=900), COARSE)


# Scanners


def test_a_scan_is_gain_times_bias_times_canonical_to_the_gamma():
    head = render(PERSON, COARSE)
    plain = replace(SCANNER, blur_mm=0, noise=0)
    expected = 1.3 * np.exp(bias_field(plain.bias, COARSE.shape)) * head.canonical**1.1
    np.testing.assert_allclose(acquire(head, plain), expected, rtol=1e-5)


def test_the_default_scanner_is_one_that_the_models_scanner_layer_can_express():
    head = render(PERSON, COARSE)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 45)] * 3, indexing="ij"))
    scanner = Scanner(torch.tensor([1.3]).log(), torch.tensor([1.1]).log(), torch.tensor([SCANNER.bias]))
    layer = scanner.apply(torch.from_numpy(head.canonical)[None, None], bias_basis(grid))
    np.testing.assert_allclose(acquire(head, replace(SCANNER, blur_mm=0, noise=0)), layer[0, 0].numpy(), rtol=1e-4)


def test_a_foreign_scanner_is_one_that_gain_gamma_and_a_quadratic_field_cannot_express():
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 45)] * 3, indexing="ij")
    quadratic = [np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z]
    misfits = {}
    for foreign in (False, True):
        errors = []
        for visit in sample(Plan(4, 1, 4.25, (45, 45, 45), foreign=foreign)):
            head = render(visit.anatomy, COARSE)
            inside = head.canonical > 0.1
            scan = acquire(head, replace(visit.acquisition, blur_mm=0, noise=0))
            design = np.stack([f[inside] for f in quadratic] + [np.log(head.canonical[inside])], axis=1)
            target = np.log(scan[inside])
            errors.append((target - design @ np.linalg.lstsq(design, target)[0]).std())
        misfits[foreign] = errors
    assert max(misfits[False]) < 1e-4
    assert min(misfits[True]) > 0.05


def test_equal_noise_seeds_are_equal_noise_in_another_head():
    seen = replace(SCANNER, blur_mm=0)
    heads = render(PERSON, COARSE), render(replace(PERSON, tumour_ml=25), COARSE)
    scans = [acquire(head, seen) for head in heads]
    same = heads[0].canonical == heads[1].canonical
    assert same.mean() > 0.5
    assert np.array_equal(scans[0][same], scans[1][same])


def test_a_brighter_counterfactual_keeps_the_noise_of_the_scan():
    head = render(PERSON, COARSE)
    scan, bright = acquire(head, SCANNER), acquire(head, SCANNER.brighter(1.5))
    clean = acquire(head, replace(SCANNER, noise=0))
    brain = clean > 0.4  # where Rician noise is nearly Gaussian
    noise = (scan - clean)[brain]
    assert np.abs((bright - 1.5 * clean)[brain] - noise).mean() < 0.03 * np.abs(noise).mean()


def test_noise_is_rician_with_the_asked_width():
    head = render(PERSON, GRID)
    plain = Acquisition(gain=2.0, noise=0.03, seed=1)
    air = acquire(head, plain)[head.canonical == 0]
    assert np.sqrt(np.mean(air**2, dtype=np.float64)) == pytest.approx(2.0 * 0.03 * np.sqrt(2), rel=0.02)
    brain = head.canonical > 0.4
    assert (acquire(head, plain) - 2 * head.canonical)[brain].std() == pytest.approx(0.06, rel=0.05)


def test_a_bias_field_has_a_known_number_of_coefficients():
    with pytest.raises(UsageError, match="3, 9 and 19"):
        bias_field((0.1, 0.2), (8, 8, 8))
    assert bias_field((), (8, 8, 8)).max() == 0
    assert abs(float(bias_field(tuple(range(1, 10)), (65, 65, 65)).mean())) < 0.3  # no constant term


# Cohorts


@pytest.mark.parametrize("confound", [-0.6, 0.0, 0.9])
def test_the_asked_confounding_is_the_correlation_found(confound):
    visits = sample(Plan(24, 2, confound=confound))
    tumour = np.log([visit.anatomy.tumour_ml for visit in visits])
    gain = np.log([visit.acquisition.gain for visit in visits])
    assert np.corrcoef(tumour, gain)[0, 1] == pytest.approx(confound, abs=1e-6)
    by_site = pd.Series(tumour).groupby([visit.site for visit in visits]).mean()
    if confound == 0.9:
        assert np.corrcoef(by_site.index, by_site)[0, 1] > 0.6


def test_tumours_lie_inside_the_brain_and_hardly_touch_the_ventricles():
    for visit in sample(Plan(8, 6)):
        person = visit.anatomy
        head, alone = render(person, COARSE), render(replace(person, tumour_ml=0.0), COARSE)
        assert head.tumour_ml == pytest.approx(person.tumour_ml, abs=1e-3)
        assert alone.ventricle_ml - head.ventricle_ml < 0.03 * person.ventricle_ml
        # Where there is tumour, there was brain: darker only where a sulcus or the rim of the brain is.
        assert np.average(alone.canonical, weights=head.masks.tumour) > 0.42


def test_what_is_idiosyncratic_does_not_follow_the_factors():
    plain, confounded = (sample(Plan(8, 8, confound=r)) for r in (0.0, 0.8))
    assert [visit.anatomy for visit in plain] == [visit.anatomy for visit in confounded]
    seeds = np.array([visit.anatomy.seed for visit in plain])
    assert len(set(seeds)) == 8
    # The same seed with every factor changed has the same folds: away from the changed parts the same voxels.
    person = plain[0].anatomy
    other = replace(person, tumour_ml=4.0, ventricle_ml=30.0, roughness=0.2, tumour_mm=(-36.0, 5.0, 28.0))
    heads = render(person, GRID), render(other, GRID)
    apart = sum(m for h in heads for m in (h.masks.tumour, h.masks.ventricles)) == 0
    assert np.array_equal(heads[0].canonical[apart], heads[1].canonical[apart])


def test_factors_are_drawn_independently_of_each_other():
    visits = sample(Plan(40, 9))
    factors = np.array(
        [
            (np.log(a.tumour_ml), np.log(a.ventricle_ml), a.head_size, a.roughness)
            for a in (visit.anatomy for visit in visits)
        ]
    )
    correlations = np.abs(np.corrcoef(factors.T)[np.triu_indices(4, 1)])
    assert correlations.max() < 4 / np.sqrt(40)


def test_the_table_tells_the_truth_about_its_scans_and_masks(cohort):
    rows = table(cohort)
    assert len(rows) == 6
    assert set(rows["split"]) == {"train", "validation", "test"}
    for row in rows.itertuples():
        scan = read(cohort.parent / row.scan)
        assert scan.geometry == COARSE
        for path, ml in ((row.tumour_mask, row.tumour_ml), (row.ventricle_mask, row.ventricle_ml)):
            mask = read(cohort.parent / path)
            assert mask.geometry == COARSE
            assert mask.voxels.sum(dtype=np.float64) * COARSE.voxel_ml == pytest.approx(ml, abs=1e-3)


def test_every_scan_of_a_cohort_says_that_it_is_synthetic(cohort):
    scans = list(cohort.parent.rglob("*.nii.gz"))
    assert len(scans) == 6 * 3 + 4
    for scan in scans:
        assert scan.name.endswith("_synthetic.nii.gz")
        sidecar = json.loads(scan.with_name(scan.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["synthetic"] is True
        assert "synthetic" in sidecar["description"]
    assert "synthetic" in (cohort.parent / "README.txt").read_text()


def test_the_study_beside_the_table_is_one_that_can_be_read(cohort):
    study = load_study(cohort.parent / "study.toml")
    assert study.grid.shape == (45, 45, 45)
    assert study.grid.spacing_mm == 4.25
    columns = set(table(cohort).columns)
    assert {f.column for f in study.factors} | {f.mask for f in study.factors if f.mask} <= columns
    assert study.training.seed == 4


def test_the_counterfactuals_of_a_cohort_are_the_re_rendered_scans(cohort):
    edits = table(cohort.parent / "counterfactuals.tsv")
    rows = table(cohort).set_index("scan")
    assert list(edits["edit"]) == ["brightness*=1.5", "contrast*=1.2", "ventricle_volume*=1.6", "tumour_volume+=15"]
    asked = dict(zip(edits["factor"], edits["value"], strict=True))
    row = rows.loc[edits["scan"][0]]
    wanted = {
        "brightness": row.gain * 1.5,
        "contrast": row.gamma * 1.2,
        "ventricle_volume": row.ventricle_ml * 1.6,
        "tumour_volume": row.tumour_ml + 15,
    }
    assert asked == pytest.approx(wanted, rel=1e-5)
    plan = Plan(6, 4, 4.25, (45, 45, 45))
    visit = next(v for v in sample(plan) if f"sub-{v.subject:04d}" == row.subject)
    person, scanner = visit.anatomy, visit.acquisition
    grown = acquire(render(replace(person, tumour_ml=person.tumour_ml + 15), COARSE), scanner)
    found = {f: read(cohort.parent / p).voxels for f, p in zip(edits["factor"], edits["counterfactual"], strict=True)}
    np.testing.assert_allclose(found["tumour_volume"], grown, atol=2e-5)
    np.testing.assert_allclose(found["brightness"], acquire(render(person, COARSE), scanner.brighter(1.5)), atol=1e-5)
    still = np.abs(found["tumour_volume"] - read(cohort.parent / edits["scan"][0]).voxels) == 0
    assert still.mean() > 0.5


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for out in ("one", "two"):
        write_cohort(tmp_path / out, subjects=3, seed=1, spacing_mm=12, shape=(16, 16, 16), dicom=out == "x")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) > 12
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_a_dicom_cohort_holds_the_scans_of_the_nifti_cohort(tmp_path):
    arguments = {"subjects": 2, "seed": 3, "spacing_mm": 12.0, "shape": (16, 17, 18)}
    nifti = write_cohort(tmp_path / "nifti", **arguments)
    dicom = write_cohort(tmp_path / "dicom", dicom=True, **arguments)
    again = write_cohort(tmp_path / "again", dicom=True, **arguments)
    for one, other in zip(table(nifti)["scan"], table(dicom)["scan"], strict=True):
        expected, found = read(nifti.parent / one), read(dicom.parent / other)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
        np.testing.assert_allclose(found.voxels, expected.voxels, atol=expected.voxels.max() / 60000)
        slices = sorted((dicom.parent / other).iterdir())
        assert len(slices) == 18
        image = pydicom.dcmread(slices[5])
        assert image.pixel_array.shape == (17, 16)
        assert image.pixel_array.dtype == np.int16
        assert "SYNTHETIC" in str(image.PatientName)
        assert "SYNTHETIC" in image.SeriesDescription
        assert slices[5].read_bytes() == (again.parent / other / slices[5].name).read_bytes()
        sidecar = json.loads((dicom.parent / (other + ".json")).read_text())
        assert sidecar["synthetic"] is True


def test_missing_labels_are_empty_cells_outside_the_test_split(tmp_path):
    rows = table(write_cohort(tmp_path, subjects=10, missing=0.5, spacing_mm=16, shape=(12, 12, 12)))
    tested = rows["split"] == "test"
    assert rows[tested].notna().all(axis=None)
    share = rows.loc[~tested, ["tumour_ml", "ventricle_ml", "head_size_mm", "gain"]].isna().to_numpy().mean()
    assert 0.2 < share < 0.8
    assert (rows["tumour_ml"].isna() == rows["tumour_mask"].isna()).all()


def test_travelling_subjects_are_the_same_at_every_site_and_returning_ones_have_grown_tumours(tmp_path):
    arguments = {"spacing_mm": 16.0, "shape": (12, 12, 12), "travelling": 1, "longitudinal": 1}
    rows = table(write_cohort(tmp_path, subjects=5, seed=2, **arguments))
    assert len(rows) == 5 + 3 + 1
    counts = rows.groupby("subject").size()
    traveller, returner = (
        rows[rows["subject"] == counts.idxmax()],
        rows[rows["subject"] == counts.index[counts == 2][0]],
    )
    assert sorted(traveller["site"]) == ["site-1", "site-2", "site-3", "site-4"]
    masks = [read(tmp_path / path).voxels for path in traveller["tumour_mask"]]
    assert all(np.array_equal(masks[0], mask) for mask in masks)
    assert traveller["gain"].nunique() == 4
    assert returner["tumour_ml"].iloc[1] > 1.1 * returner["tumour_ml"].iloc[0]
    assert returner["ventricle_ml"].iloc[1] == pytest.approx(returner["ventricle_ml"].iloc[0], rel=0.03)
    assert (rows.groupby("subject")["split"].nunique() == 1).all()


VARIED = {
    "tumour": lambda visit: visit.anatomy.tumour_ml,
    "ventricles": lambda visit: visit.anatomy.ventricle_ml,
    "head_size": lambda visit: visit.anatomy.head_size,
    "brightness": lambda visit: visit.acquisition.gain,
    "contrast": lambda visit: visit.acquisition.gamma,
}


@pytest.fixture(scope="module")
def repeats():
    """Visits of a plan with clamped groups and pairs, by subject, those of one visit left out."""
    plan = Plan(30, 4, clamped=2, clamped_size=3, pairs=6)
    visits = with_repeats(sample(plan), plan)
    assert {visit.split for visit in visits if visit.of > 1} == {"train"}
    assert len(visits) == 30 + 5 * 2 * 2 + 6
    people: dict[int, list] = {}
    for visit in visits:
        people.setdefault(visit.subject, []).append(visit)
    return [found for found in people.values() if len(found) > 1]


def differing(visits):
    return {name for name, value in VARIED.items() if len({value(visit) for visit in visits}) > 1}


def test_in_a_clamped_group_one_factor_varies_and_nothing_else_but_noise_and_what_follows(repeats):
    groups = [visits for visits in repeats if visits[0].clamp]
    assert sorted(visits[0].clamp for visits in groups) == sorted([*VARIED] * 2)
    for visits in groups:
        assert differing(visits) == {visits[0].clamp}
        assert len(visits) == len({visit.acquisition.seed for visit in visits}) == 3
        first = visits[0]
        for visit in visits:
            there = head_frame(visit.anatomy) @ [*visit.anatomy.tumour_mm, 1.0]
            assert np.allclose(there, head_frame(first.anatomy) @ [*first.anatomy.tumour_mm, 1.0])
            assert visit.anatomy.seed == first.anatomy.seed
            assert replace(visit.acquisition, gain=1.0, gamma=1.0, seed=0) == replace(
                first.acquisition, gain=1.0, gamma=1.0, seed=0
            )


def test_a_pair_differs_in_one_or_two_factors(repeats):
    pairs = [visits for visits in repeats if visits[0].paired]
    assert {len(visits) for visits in pairs} == {2}
    assert {len(differing(visits)) for visits in pairs} == {1, 2}


def test_people_alike_have_the_five_factors_in_common_and_differ_in_all_else():
    plan = Plan(30, 4, clamped=1, clamped_size=3, alike=4)
    before, visits = sample(plan), with_repeats(sample(plan), plan)
    groups: dict[int, list] = {}
    for visit in visits:
        if visit.clamp == "rest":
            groups.setdefault(visit.group, []).append(visit)
    assert len(groups) == 4
    for first, group in groups.items():
        assert len(group) == len({visit.subject for visit in group}) == 3
        assert first in {visit.subject for visit in group}
        assert differing(group) == set()
        assert len({visit.anatomy.seed for visit in group}) == len({visit.acquisition.bias for visit in group}) == 3
        assert {visit.split for visit in group} == {"train"}
    same = {visit.subject for visit in visits if visit in before}
    others = {visit.subject for visit in visits if not visit.clamp}
    assert others <= same


def test_clamped_groups_and_pairs_are_named_in_columns_of_their_own_and_only_where_asked_for(tmp_path):
    arguments = {"spacing_mm": 16.0, "shape": (12, 12, 12)}
    rows = table(write_cohort(tmp_path / "a", subjects=10, clamped=1, clamped_size=2, pairs=1, alike=0, **arguments))
    assert "clamp_rest" not in rows
    alike = table(write_cohort(tmp_path / "c", subjects=10, clamped_size=3, alike=2, **arguments))
    assert sorted(alike["clamp_rest"].value_counts()) == [3, 3]
    for name in VARIED:
        group = rows[rows[f"clamp_{name}"].notna()]
        assert len(group) == 2
        assert group[f"clamp_{name}"].nunique() == 1
    assert (rows["pair"].dropna() == rows.loc[rows["pair"].notna(), "subject"]).all()
    plain = table(write_cohort(tmp_path / "b", subjects=10, **arguments))
    assert not [name for name in plain.columns if name.startswith(("clamp", "pair"))]


def test_more_groups_than_there_are_people_are_refused():
    plan = Plan(10, clamped=2)
    with pytest.raises(UsageError, match=r"take 10 people.*there are 6\. Ask for fewer"):
        with_repeats(sample(plan), plan)


def test_in_a_narrow_field_of_view_everything_is_smaller_in_proportion():
    wide, narrow = sample(Plan(6, 1)), sample(Plan(6, 1, 6.0, (24, 24, 24)))
    ratio = narrow[0].anatomy.head_size / wide[0].anatomy.head_size
    assert ratio == pytest.approx(144 / 190, rel=1e-6)
    assert narrow[0].anatomy.tumour_ml / wide[0].anatomy.tumour_ml == pytest.approx(ratio**3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subjects": 0}, "at least one"),
        ({"confound": 1.2}, "between -1 and 1"),
        ({"missing": -0.1}, "between 0 and 1"),
        ({"spacing_mm": 1.0}, "no head fits"),
        ({"subjects": 3, "travelling": 4}, "--subjects"),
    ],
)
def test_a_cohort_that_cannot_be_rendered_is_refused_and_leaves_nothing(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        write_cohort(tmp_path / "cohort", **wrong)
    assert not list(tmp_path.rglob("*.tsv"))


# The ruler


def test_the_ruler_reads_true_counterfactuals_to_five_percent():
    errors = []
    for visit in sample(Plan(2, 11)):
        person, scanner = visit.anatomy, visit.acquisition
        grown = replace(person, tumour_ml=person.tumour_ml + 15)
        found = measure_tumour_ml(acquire(render(grown, COARSE), scanner), person, COARSE, scanner)
        errors.append(abs(found / grown.tumour_ml - 1))
        wider = replace(person, ventricle_ml=person.ventricle_ml * 1.6)
        found = measure_ventricle_ml(acquire(render(wider, COARSE), scanner), person, COARSE, scanner)
        errors.append(abs(found / wider.ventricle_ml - 1))
    assert np.median(errors) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True])
def test_the_ruler_reads_many_true_counterfactuals_to_five_percent(foreign):
    errors = []
    for visit in sample(Plan(12, 12, foreign=foreign)):
        person, scanner = visit.anatomy, visit.acquisition
        ruler = Ruler.of(person, GRID, scanner)
        for ml in (0.0, person.tumour_ml, person.tumour_ml + 15):
            found = ruler.tumour_ml(acquire(render(replace(person, tumour_ml=ml), GRID), scanner))
            errors.append(abs(found.ml - ml) / max(ml, 5))
    assert np.median(errors) < 0.05
    assert max(errors) < (0.3 if foreign else 0.15)


def test_the_ruler_reads_no_change_as_no_change_and_wrong_tissue_as_unexplained():
    person = replace(PERSON, tumour_ml=10)
    grown = replace(person, tumour_ml=25)
    before, after = render(person, COARSE), render(grown, COARSE)
    ruler = Ruler.of(person, COARSE, SCANNER)
    unchanged = ruler.tumour_ml(acquire(before, SCANNER))
    assert unchanged.ml == pytest.approx(10, rel=0.05)
    assert unchanged.explained > 0.95
    right = ruler.tumour_ml(acquire(after, SCANNER))
    # The right outline filled with something uniformly dark: as large, but not what a tumour looks like.
    filled = replace(after, canonical=after.canonical * (1 - after.masks.tumour) + 0.35 * after.masks.tumour)
    wrong = ruler.tumour_ml(acquire(filled, SCANNER))
    assert wrong.ml == pytest.approx(25, rel=0.2)
    assert wrong.explained < right.explained - 0.3


def test_the_strength_of_a_bias_field_is_its_spread_over_the_head():
    head = render(PERSON, COARSE)
    log_field = np.log(acquire(head, Acquisition(bias=SCANNER.bias))[head.canonical > 0.05])
    log_field -= np.log(head.canonical[head.canonical > 0.05])
    assert bias_strength(head.canonical, SCANNER.bias) == pytest.approx(log_field.std(), rel=1e-3)
