"""Laws of the benchmark: its baselines, what it keeps and never makes twice, how processes share it, its page."""

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medisent.bench import ROWS, bench, measuring, rows, running
from medisent.bench.claims import claimed, wait_for
from medisent.bench.cohorts import Cohorts
from medisent.bench.editing import left_alone, score_edits
from medisent.bench.figures import Edit, Figures, Leak, Result, read_result
from medisent.bench.harmonizing import Combat, matched
from medisent.bench.linear import Linear
from medisent.bench.measuring import Judge
from medisent.bench.rows import Row
from medisent.bench.running import result_path
from medisent.bench.tables import KINDS, MISSING, Entry, Standing, cell
from medisent.cli import main
from medisent.cohorts import read_table
from medisent.config import load_study
from medisent.errors import UsageError
from medisent.formats import read
from medisent.phantoms import write_cohort
from medisent.progress import Silence

SITES = ["one"] * 30 + ["two"] * 30 + ["three"] * 30


@pytest.fixture(scope="module")
def planted():
    """Features of ninety scans with a covariate, and the same once three sites have shifted and stretched them."""
    chance = np.random.default_rng(0)
    covariate = chance.standard_normal((90, 1))
    features = covariate @ chance.standard_normal((1, 40)) + 0.5 * chance.standard_normal((90, 40))
    site = np.repeat(np.arange(3), 30)
    shift = chance.normal(0, 3, (3, 40))[site]
    return covariate, features, features * np.array([0.7, 1.0, 1.6])[site][:, None] + shift


# ---- baselines ---------------------------------------------------------------------------------------------


@given(arrays(np.float64, (3, 4, 5), elements=st.floats(-100, 100)))
def test_a_scan_matched_to_itself_stays_as_it_is(scan):
    assert np.allclose(matched(scan, scan), scan, atol=1e-9)


def test_matching_undoes_whatever_keeps_the_order_of_intensities():
    scan = np.random.default_rng(0).random((6, 7, 8))
    assert np.allclose(matched(3 * scan**1.7 + 1, scan), scan, atol=0.02)


def test_combat_takes_planted_sites_away(planted):
    covariate, _, seen = planted
    cleaned = Combat.fitted(seen, SITES, covariate)(seen, SITES, covariate)
    left = cleaned - covariate @ np.linalg.lstsq(covariate, cleaned, rcond=None)[0]
    means = left.reshape(3, 30, 40).mean(1)
    assert np.abs(means - means.mean(0)).max() < 0.2
    assert np.allclose(left.reshape(3, 30, 40).std(1).mean(1), left.std(0).mean(), rtol=0.15)


def test_combat_keeps_a_planted_covariate(planted):
    covariate, features, seen = planted
    cleaned = Combat.fitted(seen, SITES, covariate)(seen, SITES, covariate)
    design = np.hstack([covariate, np.ones((90, 1))])
    slopes, truth = (np.linalg.lstsq(design, x, rcond=None)[0][0] for x in (cleaned, features))
    assert np.corrcoef(slopes, truth)[0, 1] > 0.98


def test_combat_leaves_features_without_sites_nearly_as_they_are(planted):
    covariate, features, _ = planted
    cleaned = Combat.fitted(features, SITES, covariate)(features, SITES, covariate)
    assert np.square(cleaned - features).mean() < 0.05 * features.var()


def test_combat_refuses_a_site_that_it_has_not_seen(planted):
    covariate, _, seen = planted
    with pytest.raises(UsageError, match="four"):
        Combat.fitted(seen, SITES, covariate)(seen[:1], ["four"], covariate[:1])


def test_the_linear_baseline_reads_and_moves_what_is_linear():
    chance = np.random.default_rng(0)
    factors = {"size": np.exp(chance.normal(2, 0.5, 80)), "gain": np.exp(chance.normal(0, 0.3, 80))}
    pattern = chance.standard_normal((2, 200))
    scans = np.log(np.stack([*factors.values()], 1)) @ pattern + 0.01 * chance.standard_normal((80, 200))
    linear = Linear.fitted(scans[:60], {name: values[:60] for name, values in factors.items()}, count=8)
    assert np.corrcoef(linear.read("size", scans[60:]), factors["size"][60:])[0, 1] > 0.99
    moved = linear.edited("size", scans[0], 5.0, 10.0)
    assert np.allclose(moved - scans[0], np.log(2) * pattern[0], atol=0.03)
    assert np.array_equal(linear.edited("size", scans[0], 5.0, 5.0), scans[0])


# ---- what is measured --------------------------------------------------------------------------------------


def judge(chance, **labels):
    """Sixty scans of sixty people with these labels, of which nothing else is known."""
    people = [f"sub-{i}" for i in range(60)]
    given = pd.DataFrame({name: chance.standard_normal(60) for name in measuring.COLUMNS} | labels)
    return Judge(Path("cohort.tsv"), given, people, people, [{}] * 60)


def test_beside_the_worst_pair_stands_what_the_labels_alone_tell():
    chance = np.random.default_rng(0)
    gain = chance.standard_normal(60)
    known = judge(chance, brightness=gain, contrast=gain + 0.1 * chance.standard_normal(60))
    pairs = [Leak(0.2, "tumour_volume", "contrast"), Leak(0.9, "brightness", "contrast")]
    worst = measuring._worst(pairs, known, 0)
    assert (worst.r2, worst.block) == (0.9, "brightness")
    assert worst.labels > 0.9
    assert measuring._worst([Leak(0.5, "anatomy_rest", "contrast")], known, 0).labels is None
    assert measuring._worst([], known, 0) is None


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Six heads, all for testing, with the true counterfactuals of one."""
    folder = tmp_path_factory.mktemp("heads")
    table = write_cohort(folder, subjects=6, spacing_mm=8.0, shape=(24, 24, 24), counterfactuals=True)
    read_table(table).assign(split="test").to_csv(table, sep="\t", index=False)
    return table


def test_what_an_edit_does_to_another_structure_is_told_in_ml_whatever_the_study_knows(judged):
    study = rows._without_masks(load_study(judged.with_name("study.toml")))
    material = Judge.of(judged).material(study, Silence())

    def paints(scan, truth):
        """The true counterfactual, but the ventricles are brighter."""
        mask = read(material.cohort.rows[truth.row].masks["ventricle_volume"]).voxels
        voxels = read(truth.path).voxels
        return scan.with_voxels(voxels + 0.5 * voxels.max() * mask)

    alone, painted = (score_edits(material, editor)["tumour_volume+=15"] for editor in (left_alone, paints))
    assert set(alone.elsewhere_ml) == set(painted.elsewhere_ml) == {"ventricle_volume"}
    assert alone.elsewhere_ml["ventricle_volume"] < 1 < painted.elsewhere_ml["ventricle_volume"]


# ---- what is kept ------------------------------------------------------------------------------------------


FIGURES = Figures(
    readout={"tumour_volume": 0.9},
    leak_to_anatomy=Leak(0.02, "brightness", "head_size"),
    edits={"brightness*=1.5": Edit(0.01, None, 0.3, 12)},
    site=0.3,
)


def test_a_result_reads_back_as_it_was_written(tmp_path):
    result = Result("ours", 1, 40, 2.5, FIGURES)
    result.save(tmp_path / "ours-1.json")
    assert read_result(tmp_path / "ours-1.json") == result


def test_a_result_from_before_a_figure_was_measured_reads_and_shows_a_dash(tmp_path):
    Result("ours", 0, 40, 2.5, FIGURES).save(tmp_path / "ours-0.json")
    found = json.loads((tmp_path / "ours-0.json").read_text())
    del found["figures"]["commutativity"], found["figures"]["mapped"], found["figures"]["leak_to_anatomy"]["labels"]
    for name in ("elsewhere_ml", "composition", "reversibility"):
        del found["figures"]["edits"]["brightness*=1.5"][name]
    (tmp_path / "ours-0.json").write_text(json.dumps(found))
    entry = Entry("ours", "ours", "", (read_result(tmp_path / "ours-0.json"),))
    cells = {column.head: str(cell(entry, column)) for kind in KINDS[2:4] for column in kind.columns}
    assert cells.pop("brightness × 1.5") == "0.30"
    assert set(cells.values()) == {MISSING}
    assert column_of("nuisance to anatomy, labels alone").value(entry.results[0].figures) is None


def test_what_is_not_finite_is_null_on_disk(tmp_path):
    Result("ours", 0, 0, 0.0, replace(FIGURES, site=float("nan"))).save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["figures"]["site"] is None


@pytest.fixture
def counted(monkeypatch):
    """Three rows that count how often they are worked on; the third takes what the second has made."""
    calls = []

    def work(place, row, seed, progress):
        calls.append((row, seed))
        return 0, FIGURES

    made = tuple(Row(n, n.title(), "", work, needs) for n, needs in (("a", None), ("c", "b"), ("b", None)))
    monkeypatch.setattr(running, "ROWS", made)
    return calls


def test_all_rows_come_with_one_seed_before_any_comes_with_the_next(tmp_path, counted):
    bench(tmp_path, seeds=2)
    assert [seed for _, seed in counted] == [0, 0, 0, 1, 1, 1]
    assert counted.index(("b", 0)) < counted.index(("c", 0))


def test_nothing_is_made_twice(tmp_path, counted):
    bench(tmp_path, seeds=1)
    before = result_path(tmp_path, "a", 0).read_bytes()
    bench(tmp_path, seeds=2)
    assert sorted(counted) == [(row, seed) for row in "abc" for seed in (0, 1)]
    assert result_path(tmp_path, "a", 0).read_bytes() == before


def test_a_row_that_another_process_holds_is_left_to_it(tmp_path, counted):
    with claimed(result_path(tmp_path, "a", 0).with_suffix(".lock")) as mine:
        assert mine
        bench(tmp_path, seeds=1)
    assert sorted(counted) == [("b", 0), ("c", 0)]
    bench(tmp_path, seeds=1)
    assert ("a", 0) in counted


def test_a_lock_whose_process_is_gone_counts_as_none(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    (tmp_path / "a.lock").write_text(str(process.pid))
    with claimed(tmp_path / "a.lock") as mine:
        assert mine
    assert not (tmp_path / "a.lock").exists()


def test_a_lock_is_held_by_one_at_a_time_and_given_back(tmp_path):
    with claimed(tmp_path / "a.lock") as first, claimed(tmp_path / "a.lock") as second:
        assert first
        assert not second
    start = time.monotonic()
    wait_for(tmp_path / "a.lock")
    assert time.monotonic() - start < 0.5


def test_a_row_that_fails_costs_no_other_and_is_reported_at_the_end(tmp_path, counted, monkeypatch):
    def fails(place, row, seed, progress):
        raise UsageError("no such luck")

    monkeypatch.setattr(running, "ROWS", (Row("bad", "Bad", "", fails), *running.ROWS))
    with pytest.raises(UsageError, match="no such luck"):
        bench(tmp_path, seeds=1)
    assert sorted(counted) == [("a", 0), ("b", 0), ("c", 0)]
    assert not result_path(tmp_path, "bad", 0).exists()


def test_results_of_another_size_are_refused(tmp_path, counted):
    bench(tmp_path, seeds=1, steps=10)
    with pytest.raises(UsageError, match="10 steps"):
        bench(tmp_path, seeds=1, steps=20)


def test_a_row_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"no row ourz.*beta_vae"):
        bench(tmp_path, only=["ourz"])


# ---- the page ----------------------------------------------------------------------------------------------


def standing():
    entries = [
        Entry(
            row.name,
            row.title,
            row.note,
            tuple(Result(row.name, s, 5, 1.0, replace(FIGURES, site=0.3 + i + s / 10)) for s in (0, 1, 2)),
        )
        for i, row in enumerate(ROWS)
    ]
    return Standing((*entries[:-1], replace(entries[-1], results=())), "40 heads")


def test_the_page_shows_every_row_measured_or_not():
    text = standing().markdown()
    about = text[text.index("## What each row is") :]
    assert [line.split(" | ")[0].strip("| ") for line in about.splitlines()[4:] if line] == [r.title for r in ROWS]
    assert "not measured" in about.splitlines()[-1]


def test_a_cell_shows_the_median_and_every_value():
    column = next(c for kind in KINDS for c in kind.columns if c.head == "site told")
    assert str(cell(standing().entries[0], column)) == "0.40 (0.30, 0.40, 0.50)"
    assert str(cell(standing().entries[-1], column)) == MISSING


def test_the_worst_pair_is_that_of_the_seed_with_the_median_and_stands_with_its_own_labels():
    leaks = [Leak(0.3, "brightness", "contrast", 0.11), Leak(0.1, "contrast", "head_size"), Leak(0.2, "head_size", "x")]
    results = tuple(Result("ours", s, 5, 1.0, replace(FIGURES, leak_between=leak)) for s, leak in enumerate(leaks))
    shown = [column_of(f"worst other, {part}") for part in ("pair", "labels alone")]
    assert [str(cell(Entry("", "", "", results), c)) for c in shown] == ["head size → x", MISSING]
    assert [str(cell(Entry("", "", "", results[:1]), c)) for c in shown] == ["gain → contrast", "0.11"]


def column_of(key):
    return next(column for kind in KINDS for column in kind.columns if column.key == key)


def test_the_json_holds_every_seed_and_the_medians():
    found = json.loads(json.dumps(standing().to_json()))
    assert set(found["rows"]) == {row.name for row in ROWS}
    assert found["rows"]["ours"]["seeds"]["2"]["figures"]["edits"]["brightness*=1.5"]["rce"] == 0.01
    assert found["rows"]["ours"]["median"]["Edits: relative counterfactual error: brightness x1.5"] == 0.01


def test_doing_nothing_stands_first_and_names_are_unique():
    assert ROWS[0].name == "none"
    assert len({row.name for row in ROWS}) == len({row.title for row in ROWS}) == len(ROWS)
    assert all(row.needs is None or row.needs in {r.name for r in ROWS} for row in ROWS)


def test_a_row_without_a_recipe_finds_the_study_of_its_cohort(tmp_path):
    place = rows.Place(tmp_path, Cohorts(tmp_path / "cohorts", 12, spacing_mm=24.0, side=8), 100)
    for row in ROWS:
        if isinstance(row.work, rows.Training) and row.work.recipe is None and row.work.cohort in ("plain", "missing"):
            study = row.work.study(place, 0, Silence())
            known = read_table(study.cohort.table)
            assert all((study.cohort.table.parent / scan).is_file() for scan in known[study.cohort.scan])


def test_the_row_without_scanner_layer_and_independence_keeps_neither(study):
    bare = rows._bare(study)
    assert bare.factors == study.factors
    assert not bare.scanner.factors
    assert not bare.network.remainders
    told = {name for name, weight in vars(bare.weights).items() if weight}
    assert told <= {"distortion", "rate", "readout", "mask"}


@pytest.mark.slow
def test_the_whole_benchmark_runs_small_and_resumes(tmp_path, capsys):
    assert main(["bench", str(tmp_path), "--quick", "--seeds", "1", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"] == len(ROWS)
    edits = found["rows"]["none"]["seeds"]["0"]["figures"]["edits"]
    assert len(edits) == 4
    assert all(edit["rce"] == 1 for edit in edits.values())
    assert (tmp_path / "bench.html").is_file()
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").iterdir()}
    assert main(["bench", str(tmp_path), "--quick", "--seeds", "1", "--quiet"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "results").iterdir()} == written
    assert rows.recipe("ours").is_file()
