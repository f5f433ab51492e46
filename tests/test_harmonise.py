"""Laws of harmonising: sites are told where they differ and only there, anatomy and place stay, doubt is said."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisent.cli import main
from medisent.errors import CohortError
from medisent.formats import read
from medisent.harmonisation import (
    Findings,
    Look,
    Sketch,
    Target,
    Visit,
    harmonised_scan,
    site_test,
    sketch,
    visits_of,
    why_not,
)
from medisent.harmonisation.scanner import DOUBTS, known
from medisent.readings import Readout, read_factors

DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))


def sketches(shift, people, seed=0):
    """A sketch a scan of a person's own blob, with this much added to the logarithm of its intensities."""
    own = np.random.default_rng([seed, 1]).normal(1, 0.2, (max(people) + 1, 8, 8, 8)).clip(0.1)
    noise = np.random.default_rng([seed, 2]).normal(0, 0.02, (len(people), 8, 8, 8))
    return [sketch(own[who] * np.exp(by) + n) for who, by, n in zip(people, shift, noise, strict=True)]


def verdict(shift, people, sites, seed=0, chance=0):
    """The test of these sites."""
    return site_test(sketches(shift, people, seed), sites, [f"{who:02}" for who in people], chance)


def test_sites_that_differ_are_told_and_sites_that_do_not_are_not():
    people, sites = list(range(40)), ["a", "b"] * 20
    told = verdict([0.5 * (s == "b") for s in sites], people, sites)
    assert told.found
    assert told.best.accuracy > 0.9
    same = verdict([0.0] * 40, people, sites)
    assert not same.found
    assert same.best.accuracy < 0.85


@pytest.mark.slow
def test_the_test_of_sites_that_do_not_differ_is_right_as_often_as_it_says():
    people, sites = list(range(24)), ["a", "b"] * 12
    values = [verdict([0.0] * 24, people, sites, seed).p for seed in range(20)]
    assert np.mean(np.array(values) <= 0.2) < 0.5
    assert max(values) > 0.3


def test_of_people_who_were_at_every_site_the_sites_are_dealt_out_within_each():
    people = [i // 2 for i in range(24)]
    sites = ["a", "b"] * 12
    assert verdict([0.5 * (s == "b") for s in sites], people, sites).found


def test_the_same_seed_gives_the_same_verdict():
    people, sites = list(range(20)), ["a", "b"] * 10
    assert verdict([0.0] * 20, people, sites, chance=3) == verdict([0.0] * 20, people, sites, chance=3)


@pytest.mark.parametrize(
    ("sites", "subjects", "said"),
    [
        ("aaaaaa", "123456", "one site"),
        ("aaaaabbbb", "123456789", "4 subjects only"),
        ("aaaaabbbbb", "1234511111", "1 subject only"),
        ("aaaaabbbbb", "1234567890", ""),
        ("aaaaabbbbb", "1234512345", ""),
    ],
)
def test_it_is_said_why_sites_cannot_be_tested(sites, subjects, said):
    assert said in why_not(list(sites), list(subjects))
    assert bool(said) == bool(why_not(list(sites), list(subjects)))


@pytest.mark.parametrize("shape", [(16, 16, 16), (33, 9, 5), (1, 1, 1), (256, 3, 8)])
def test_scans_of_any_shape_have_sketches_of_one_size(shape):
    for voxels in (np.zeros(shape), np.random.default_rng(0).normal(size=shape), np.full(shape, np.nan)):
        found = sketch(voxels)
        assert (found.quantiles.shape, found.picture.shape, found.texture.shape) == ((25,), (512,), (2,))
        assert all(np.isfinite(part).all() for part in vars(found).values())


def familiar(reading, ok=True):
    checks = {name: replace(check, ok=ok) if name in DOUBTS else check for name, check in reading.checks.items()}
    return replace(reading, checks=checks)


def test_scans_brought_to_their_own_scanner_stay_as_they_are(trained, fine_scan):
    for ok in (True, False):
        reading = familiar(read_factors(trained, fine_scan), ok)
        moved = harmonised_scan(trained, reading, Target.like(trained, [reading]))
        assert moved.geometry == fine_scan.geometry
        np.testing.assert_allclose(moved.voxels, fine_scan.voxels, rtol=1e-4, atol=1e-5)


def test_of_a_scan_that_the_model_does_not_know_the_brightness_alone_moves(trained, fine_scan):
    bright = fine_scan.with_voxels(fine_scan.voxels * np.float32(7))
    for first, second in ((False, True), (True, False), (False, False)):
        reading, goal = (familiar(read_factors(trained, s), ok) for s, ok in ((bright, first), (fine_scan, second)))
        moved = harmonised_scan(trained, reading, Target.like(trained, [goal])).voxels
        inside = bright.voxels > 0.1
        ratio = moved[inside] / bright.voxels[inside]
        assert ratio.std() < 1e-4 * ratio.mean()
        if not (first or second):
            np.testing.assert_allclose(moved, fine_scan.voxels, rtol=1e-3, atol=1e-4)


def test_alone_and_without_another_scan_the_exponent_goes_by_what_the_network_reads(trained, fine_scan):
    reading = familiar(read_factors(trained, fine_scan))
    assert known(reading)
    from medisent.counterfactuals import harmonized
    from medisent.harmonisation.scanner import log_spread

    moved = harmonised_scan(trained, reading, Target.reference(trained, [log_spread(trained, reading)]))
    np.testing.assert_allclose(moved.voxels, harmonized(trained, reading).voxels, rtol=1e-4, atol=1e-5)


def table(folder, cohort, sites):
    rows = [cohort.rows[i % len(cohort.rows)] for i in range(len(sites))]
    said = pd.DataFrame({"scan": [r.scan for r in rows], "site": sites, "subject": [r.subject for r in rows]})
    said = said.drop_duplicates("scan")
    said.to_csv(folder / "cohort.tsv", sep="\t", index=False)
    return folder / "cohort.tsv"


def test_a_table_tells_site_and_subject_of_the_scans_that_are_named(tmp_path, cohort):
    path = table(tmp_path, cohort, list("ababababab"))
    every = visits_of(path, [], "site", "subject")
    assert [visit.site for visit in every] == list("ababababab")
    assert visits_of(path, [every[3].scan], "site", "subject") == [replace(every[3], label="1")]
    with pytest.raises(CohortError, match="--site COLUMN"):
        visits_of(path, [], "centre", "subject")
    with pytest.raises(CohortError, match="says nothing of 1 of the scans"):
        visits_of(path, [tmp_path / "other.nii"], "site", "subject")


def ran(capsys, *arguments):
    assert main([*map(str, arguments), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_where_sites_do_not_differ_scans_are_left_as_they_are_unless_it_is_insisted_on(
    tmp_path, cohort, model_file, capsys
):
    path = table(tmp_path, cohort, list("abbabaabba"))
    asked = ("harmonize", "--cohort", path, "--model", model_file, "-o", tmp_path / "out")
    told = ran(capsys, *asked, "--always")
    assert len(told["scans"]) == 10
    told = ran(capsys, *asked)
    assert told["sites_before"]["found"] is False
    assert (told["moved"], told["scans"], told["sites_after"]) == (False, [], None)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "harmonisation.html",
        "harmonisation.json",
        "harmonisation.tsv",
        "manifest.json",
    ]
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert "left as they are" in page
    assert "http" not in page.replace("http-equiv", "")


def test_without_sites_scans_are_harmonised_and_nobody_says_what_cannot_be_told(tmp_path, cohort, model_file, capsys):
    scans = [row.scan for row in cohort.rows[:2]]
    told = ran(capsys, "harmonize", *scans, "--model", model_file, "-o", tmp_path / "out")
    assert "No sites were given" in told["sites_before"]
    assert [read(name).geometry for name in told["scans"]] == [read(scan).geometry for scan in scans]
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert "Cannot be told" in page
    assert not any(scan.name in page for scan in scans), "scans are numbered"
    again = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    ran(capsys, "harmonize", *scans, "--model", model_file, "-o", tmp_path / "out")
    assert again == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    ran(capsys, "harmonize", *scans, "--names", "--model", model_file, "-o", tmp_path / "named")
    page = (tmp_path / "named" / "harmonisation.html").read_text(encoding="utf-8")
    assert all(str(scan) in page for scan in scans), "unless names are asked for"


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
def test_of_a_real_phantom_that_the_model_does_not_know_brightness_alone_is_moved(tmp_path, capsys):
    scans = sorted((DATA / "acr_phantom_multivendor").iterdir())
    told = ran(capsys, "harmonize", *scans, "--model", "rendered-heads", "-o", tmp_path / "out")
    assert told["unknown_scans"] == told["n"] == len(scans)
    assert "nothing else was moved" in Path(told["page"]).read_text(encoding="utf-8")
    for scan, name in zip(scans, told["scans"], strict=True):
        one, two = read(scan), read(name)
        assert np.corrcoef(one.voxels.ravel(), two.voxels.ravel())[0, 1] > 0.9999


def found(changes, *, known=True, after=True):
    """Findings of scans whose one readout, 10 in 8 to 12, changed by so much each."""

    def look(value):
        rows = {"size": Readout("size", "anatomy", "mL", 10.0 + value, 8.0 + value, 12.0 + value, 0.9, 50.0)}
        return Look(Sketch(np.zeros(25), np.zeros(512), np.zeros(2)), rows, known, 0.0)

    visits = [Visit(Path(f"{i}.nii"), "", str(i), str(i)) for i in range(1, len(changes) + 1)]
    moved = [look(change) for change in changes] if after else []
    return Findings(visits, [look(0.0) for _ in changes], moved, "No sites.", None)


@given(st.lists(st.sampled_from([0.0, 0.5, -0.5, 2.5, -3.0]), min_size=1, max_size=40))
def test_the_anatomy_is_as_it_was_only_while_no_readout_leaves_its_interval(changes):
    kept = found(changes).kept()
    left = sum(abs(change) > 2 for change in changes)
    assert kept.left == {"size": left}
    assert (kept.verdict == "yes") == (left == 0 and abs(np.median(changes)) <= 1)
    assert (kept.verdict == "no") == (left > math.ceil(0.1 * len(changes) - 1e-9) or abs(np.median(changes)) > 1)


def test_readouts_that_all_drift_one_way_are_no_anatomy_as_it_was():
    assert found([1.5] * 20).kept().verdict == "no"
    assert found([1.5, -1.5] * 10).kept().verdict == "yes"


def test_of_scans_that_the_model_does_not_know_nobody_says_whether_anatomy_was_kept():
    assert found([0.0] * 5, known=False).kept() is None
    assert found([0.0] * 5, after=False).kept() is None


def test_the_table_of_all_scans_has_every_readout_in_full_digits():
    rows = [line.split("\t") for line in found([1 / 3, 0.0]).table().splitlines()]
    assert rows[0] == ["scan", "site", "known", "size_before", "size_low", "size_high", "size_after"]
    assert rows[1] == ["1", "", "yes", "10.0", "8.0", "12.0", repr(10 + 1 / 3)]
    assert len(rows) == 3
