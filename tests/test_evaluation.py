"""An evaluation says what it measured, never more: against truths, beside doing nothing, the same every time."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medisent.calibration import calibrate
from medisent.checkpoints import Trained, build_model, study_factors
from medisent.cohorts import load_cohort, read_cohort
from medisent.config import NetworkSettings, Study, Supervision, load_study
from medisent.errors import CohortError, UsageError
from medisent.evaluation import Evaluation, evaluate
from medisent.evaluation.attributions import integrated_gradients, occlusion
from medisent.evaluation.clamped import FEWEST_GROUPS, clamped_scores
from medisent.evaluation.edits import Crowd, edit_scores, median_interval
from medisent.evaluation.images import brighter, steeper
from medisent.evaluation.making import in_both_orders, make, trio_of
from medisent.evaluation.material import gathered
from medisent.evaluation.rulers import Structure, Trio, effect, effect_error
from medisent.evaluation.separation import readout_of
from medisent.factors import Circular, Nominal, Positive, Real
from medisent.formats import read
from medisent.loading import loading
from medisent.phantoms import write_cohort
from medisent.phantoms.cohort import Truth
from medisent.phantoms.sampling import Plan, sample
from medisent.progress import Silence
from medisent.readings import abducted, ranges, read_batch

CONTRACT = {
    "readout": {"r2", "mae", "coverage90"},
    "disentanglement": {"value", "low", "high", "floor", "ceiling"},
    "counterfactual": {"rce", "rce_noop", "effect_error", "off_target", "composition", "reversibility"},
}
SPACING = (6.0, 6.0, 6.0)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Twelve heads, two of them in the test split, with the true counterfactuals of those two."""
    folder = tmp_path_factory.mktemp("heads")
    return write_cohort(folder, subjects=12, spacing_mm=12.0, shape=(16, 16, 16), counterfactuals=True)


@pytest.fixture(scope="module")
def trained(table) -> Trained:
    """A model that has learned nothing but knows its cohort."""
    study = replace(load_study(table.parent / "study.toml"), network=NetworkSettings(width=4, rest=2))
    factors = study_factors(study)
    cohort = read_cohort(table, factors, split="split")
    loader = loading(study.grid, [f.name for f in factors if f.mask])
    parts = {split: load_cohort(cohort.of(split), loader, 1.728) for split in ("train", "validation")}
    torch.manual_seed(0)
    network = build_model(study)
    network.fit(parts["train"])
    subjects = {split: [row.subject for row in cohort.of(split).rows] for split in parts}
    card = calibrate(
        network,
        parts["train"],
        parts["validation"],
        subjects=subjects["train"],
        validation_subjects=subjects["validation"],
        steps=0,
    )
    return Trained(study, network, card)


@pytest.fixture(scope="module")
def evaluation(trained) -> Evaluation:
    return evaluate(trained)


@pytest.fixture(scope="module")
def whole(trained, table) -> Evaluation:
    """All twelve heads, as a table without splits and with two labels."""
    columns = ["scan", "subject", "tumour_ml", "gain"]
    everything = table.with_name("everything.tsv")
    pd.read_csv(table, sep="\t", dtype=str)[columns].to_csv(everything, sep="\t", index=False)
    return evaluate(trained, everything)


def figures(found):
    """All numbers in JSON, wherever they stand."""
    if isinstance(found, dict):
        return [number for part in found.values() for number in figures(part)]
    return [found] if isinstance(found, int | float) else []


def apart(table: Path, folder: Path, **columns: object) -> Path:
    """A copy of the test split's rows in a folder of its own, without counterfactuals; None drops a column."""
    rows = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    rows = rows[rows["split"] == "test"].assign(**{k: v for k, v in columns.items() if v is not None})
    rows = rows.drop(columns=[k for k, v in columns.items() if v is None])
    for name in ("scans", "masks"):
        shutil.copytree(table.parent / name, folder / name)
    rows.to_csv(folder / "cohort.tsv", sep="\t", index=False)
    return folder / "cohort.tsv"


def edits_beside(table: Path, folder: Path, **columns: object) -> Path:
    """The same with the first edit of the first scan beside it, some of its columns changed."""
    copied = apart(table, folder)
    shutil.copytree(table.parent / "counterfactuals", folder / "counterfactuals")
    edits = pd.read_csv(table.parent / "counterfactuals.tsv", sep="\t", dtype=str).iloc[:1].assign(**columns)
    edits.to_csv(folder / "counterfactuals.tsv", sep="\t", index=False)
    return copied


def scored(trained: Trained, table: Path):
    material = gathered(trained.study, table, "test", Silence())
    found = abducted(trained.network, material.batch)
    values = {name: part[:, 0].double().numpy() for name, part in ranges(trained, found).items()}
    edits = edit_scores(trained, material, Crowd(found.q, values, material.subjects), lambda: None)
    return edits.scores, edits.typical, edits.notes


def test_the_json_has_every_key_of_the_contract_and_only_finite_numbers(evaluation):
    found = evaluation.to_json()
    assert found["schema"] == 1
    assert found["n"] == 2
    assert {"leakage", "disentanglement", "reconstruction"} <= set(found)
    assert set(found["readout"]) == {"tumour_volume", "ventricle_volume", "head_size", "brightness"}
    assert set(found["counterfactual"]) == {
        *("brightness*=1.5", "contrast*=1.2", "ventricle_volume*=1.6", "tumour_volume+=15"),
    }
    for part in ("readout", "counterfactual"):
        assert all(set(row) >= CONTRACT[part] for row in found[part].values())
    assert {"psnr", "ssim"} <= set(found["reconstruction"])
    assert all(math.isfinite(number) for number in figures(found))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.slow
def test_with_enough_subjects_leakage_and_panel_are_measured(whole):
    found = whole.to_json()
    assert found["n"] == 12
    assert all(set(score) == CONTRACT["disentanglement"] for score in found["disentanglement"].values())
    assert {"mig", "infom", "dci_disentanglement", "block_mig"} <= set(found["disentanglement"])
    blocks = {"tumour_volume", "ventricle_volume", "head_size", "anatomy_rest", "nuisance_rest"}
    assert set(found["leakage"]) == set(found["leakage_floor"]) == blocks | {"brightness", "contrast", "bias_field"}
    assert all(set(row) == {"tumour_volume", "brightness"} for row in found["leakage"].values())
    assert found["leakage"]["brightness"]["brightness"] > 0.5  # the measured scale tells the gain, trained or not
    assert all(math.isfinite(number) for number in figures(found))


@pytest.mark.slow
def test_the_same_model_table_and_seed_give_the_same_bytes(trained, whole, table, tmp_path):
    again = evaluate(trained, table.with_name("everything.tsv"))
    whole.save(tmp_path / "one")
    again.save(tmp_path / "two")
    for name in ("evaluation.json", "evaluation.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_saved_is_the_json_and_one_page_and_reads_the_same_twice(evaluation, tmp_path):
    for name in ("one", "two"):
        evaluation.save(tmp_path / name)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["evaluation.html", "evaluation.json"]
    for name in ("evaluation.json", "evaluation.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / "evaluation.json").read_text()) == evaluation.to_json()
    page = (tmp_path / "one" / "evaluation.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 4  # the readouts, and each edit
    assert "doing nothing" in page


def test_nothing_that_is_written_names_a_subject_or_a_file(evaluation, table):
    written = json.dumps(evaluation.to_json()) + evaluation.page()
    rows = pd.read_csv(table, sep="\t", dtype=str)
    assert not [name for name in (*rows["subject"], str(table.parent), "synthetic.nii") if name in written]


def test_doing_nothing_stands_beside_every_edit_and_an_edit_for_nothing_changes_nothing(evaluation):
    assert all(score.rce_noop == 1 and score.composition == 0 for score in evaluation.counterfactual.values())


def test_what_is_perfect_for_doing_nothing_is_said_beside_it(evaluation):
    for score in evaluation.counterfactual.values():
        assert (score.effect_error_noop, score.reversibility_noop, score.composition_noop) == (1, 0, 0)
        assert score.off_target_noop is not None or score.off_target is None
        assert 0 < score.cld_noop <= 1


def test_errors_inside_and_outside_of_the_change_add_up_where_one_scan_is_measured(trained, table, tmp_path):
    found, _, _ = scored(trained, edits_beside(table, tmp_path))
    (score,) = found.values()
    assert score.rce_inside + score.rce_outside == pytest.approx(score.rce)


def test_effects_are_told_in_the_factor_s_unit_beside_what_was_asked(evaluation):
    tumour = evaluation.counterfactual["tumour_volume+=15"]
    assert (tumour.asked, tumour.unit) == (15, "mL")
    assert tumour.missed == pytest.approx(15 * tumour.effect_error)


def test_what_a_gain_does_to_structures_is_not_asked_and_what_an_edit_does_to_others_is(evaluation):
    assert set(evaluation.side_effects["tumour_volume+=15"]) == {"ventricle_volume"}
    assert set(evaluation.side_effects["ventricle_volume*=1.6"]) == {"tumour_volume"}
    assert all(0 <= s.ml <= s.most_ml for found in evaluation.side_effects.values() for s in found.values())


def test_a_gain_and_an_exponent_come_to_the_same_in_either_order(evaluation):
    assert set(evaluation.commutativity) >= {"brightness*=1.5, contrast*=1.2"}
    assert all(share >= 0 for share in evaluation.commutativity.values())


def test_maps_are_scored_beside_gradients_and_occlusion(evaluation):
    assert set(evaluation.maps) == {"tumour_volume", "ventricle_volume"}
    for score in evaluation.maps.values():
        assert score.noop == 0
        assert all(-1 <= part <= 1 for part in (score.ncc, score.ncc_edit, score.occlusion))


def test_gradients_add_up_to_what_the_readout_gains_over_air(trained, table):
    material = gathered(trained.study, None, "test", Silence())
    batch = material.batch[torch.tensor([0])]
    network = trained.network

    def told(scan):
        found = network.abduct(replace(batch, scan=scan))
        return float(network.volumes(found.masks)[0, 0])

    with torch.no_grad():
        gained = told(batch.scan) - told(torch.zeros_like(batch.scan))
    added = integrated_gradients(network, batch, ["tumour_volume", "head_size"])
    assert added["tumour_volume"].sum() == pytest.approx(gained, rel=0.1, abs=0.5)


def test_occlusion_is_nothing_where_there_is_no_tissue(trained, table):
    material = gathered(trained.study, None, "test", Silence())
    batch = material.batch[torch.tensor([0])]
    hidden = occlusion(trained.network, batch, ["tumour_volume", "head_size"])
    assert set(hidden) == {"tumour_volume", "head_size"}
    assert all(m[:6, :6, :6].any() == bool((batch.scan[0, 0, :6, :6, :6] > 0.3).any()) for m in hidden.values())
    assert hidden["tumour_volume"].any()


def test_one_edit_alone_has_no_order(trained, table):
    material = gathered(trained.study, None, "test", Silence())
    reading = read_batch(trained, [read(material.cohort.rows[0].scan)])[0]
    made = make(trained, reading, material.truths[0])
    assert list(in_both_orders(trained, [(made, reading)])) == []


def test_a_gain_moves_no_anatomy_and_its_edit_is_nearly_the_truth(evaluation):
    moved = {d.edit: d.moved for found in evaluation.robustness.values() for d in found}
    assert set(moved) == {"brightness*=1.5", "contrast*=1.2"}
    assert moved["brightness*=1.5"] < 1e-4
    gain = evaluation.counterfactual["brightness*=1.5"]
    assert gain.rce < 0.05
    assert gain.effect_error is not None
    assert gain.effect_error < 0.05
    assert gain.reversibility is not None
    assert gain.reversibility < 1e-3


def test_a_cohort_without_true_counterfactuals_has_no_score_of_edits_and_says_why(trained, table, tmp_path):
    found = evaluate(trained, apart(table, tmp_path))
    assert found.counterfactual == {}
    assert found.to_json()["counterfactual"] == {}
    assert any("true counterfactuals" in note for note in found.notes)


def test_few_subjects_leave_separation_out_and_say_so(evaluation):
    assert evaluation.leakage == evaluation.disentanglement == {}
    assert any("2 subjects" in note for note in evaluation.notes)


def test_factors_without_a_column_or_a_value_are_unknown_and_nothing_is_said_of_them(trained, table, tmp_path):
    copied = apart(table, tmp_path, head_size_mm=None, tumour_ml="", tumour_mask=None)
    material = gathered(trained.study, copied, "test", Silence())
    assert set(material.labelled()) == {"ventricle_volume", "brightness"}


def test_a_table_without_the_study_s_split_is_measured_whole_and_the_reader_is_told(trained, table, tmp_path):
    material = gathered(trained.study, apart(table, tmp_path, split=None), "test", Silence())
    assert len(material.cohort) == 2
    assert "whatever training saw" in material.notes[0]


def test_a_split_without_scans_is_refused(trained, table, tmp_path):
    with pytest.raises(CohortError, match="validation split was asked for"):
        evaluate(trained, apart(table, tmp_path), split="validation")


def test_a_study_whose_table_is_gone_is_refused_with_the_way_out(trained, tmp_path):
    cohort = replace(trained.study.cohort, table=tmp_path / "gone.tsv")
    with pytest.raises(CohortError, match="--cohort"):
        evaluate(replace(trained, study=replace(trained.study, cohort=cohort)))


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"counterfactual": "counterfactuals/absent.nii.gz"}, "row 2: absent.nii.gz is not there"),
        ({"counterfactual": ""}, "row 2: an empty cell"),
        ({"edit": "brighter"}, "row 2: 'brighter' is not an edit"),
    ],
)
def test_a_table_of_counterfactuals_that_cannot_be_used_is_refused_by_row(trained, table, tmp_path, columns, match):
    with pytest.raises(CohortError, match=match):
        gathered(trained.study, edits_beside(table, tmp_path, **columns), "test", Silence())


def test_counterfactuals_without_their_column_are_refused(trained, table, tmp_path):
    copied = edits_beside(table, tmp_path)
    edits = pd.read_csv(tmp_path / "counterfactuals.tsv", sep="\t", dtype=str).drop(columns="edit")
    edits.to_csv(tmp_path / "counterfactuals.tsv", sep="\t", index=False)
    with pytest.raises(CohortError, match="no column edit"):
        gathered(trained.study, copied, "test", Silence())


def test_an_edit_of_a_factor_that_the_model_lacks_is_left_out_and_named(trained, table, tmp_path):
    found, _, notes = scored(trained, edits_beside(table, tmp_path, edit="age+=10"))
    assert found == {}
    assert "age + 10" in notes[0]


def test_a_truth_on_another_grid_than_its_scan_is_refused(trained, table, tmp_path):
    other = write_cohort(tmp_path / "other", subjects=1, spacing_mm=12.0, shape=(17, 16, 16))
    stranger = str(next((other.parent / "scans").glob("*.nii.gz")))
    with pytest.raises(CohortError, match="17 x 16 x 16"):
        scored(trained, edits_beside(table, tmp_path / "own", counterfactual=stranger))


def test_an_edit_that_cannot_be_made_counts_as_doing_nothing(trained, table, tmp_path):
    scores, _, notes = scored(trained, edits_beside(table, tmp_path, edit="brightness+=-100"))
    found = scores["brightness+=-100"]
    assert "left as they were" in notes[0]
    assert (found.rce, found.effect_error, found.failed, found.n) == (1.0, 1.0, 1, 1)
    assert found.reversibility is None


def test_an_edit_whose_truth_is_the_scan_itself_is_left_out_and_named(trained, table, tmp_path):
    scan = pd.read_csv(table.parent / "counterfactuals.tsv", sep="\t", dtype=str)["scan"][0]
    found, _, notes = scored(trained, edits_beside(table, tmp_path, counterfactual=scan))
    assert found == {}
    assert "are the scans themselves" in notes[0]


def test_what_the_model_makes_is_held_against_the_truth_that_is_meant(trained, table):
    material = gathered(trained.study, None, "test", Silence())
    truth = next(t for t in material.truths if t.edit == "tumour_volume+=15" and t.row == 1)
    scan = read(material.cohort.rows[1].scan)
    trio = trio_of(make(trained, read_batch(trained, [scan])[0], truth), 0.0)
    assert np.array_equal(trio.scan, scan.voxels)
    assert np.array_equal(trio.truth, read(truth.path).voxels)


# ---- rulers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> Truth:
    """A rendered head of 6 mm voxels with a middling tumour."""
    plan = Plan(subjects=12)
    return min((Truth.of(v, plan) for v in sample(plan)[:4]), key=lambda t: abs(t.tumour_ml - 20))


def versions(head: Truth, factor: str, share: float) -> np.ndarray:
    """The head as it is after a share of an edit."""
    if factor == "tumour_volume":
        return head.with_tumour(head.tumour_ml + 15 * share).scan()
    if factor == "ventricle_volume":
        return head.with_ventricles(head.ventricle_ml * (1 + 0.6 * share)).scan()
    own = head.visit.acquisition
    if factor == "brightness":
        return head.scan(own.brighter(1 + 0.5 * share))
    return head.scan(replace(own, gamma=own.gamma * (1 + 0.2 * share)))


@pytest.mark.parametrize("factor", ["brightness", "contrast", "ventricle_volume", "tumour_volume"])
def test_the_truth_is_perfect_and_the_scan_itself_is_no_effect_by_every_ruler(head, factor):
    scan, truth = versions(head, factor, 0), versions(head, factor, 1)
    perfect, still = (Trio.of(scan, edited, truth, SPACING) for edited in (truth, scan))
    assert (perfect.rce(), effect_error(factor, perfect)) == (0, 0)
    assert (still.rce(), effect_error(factor, still)) == (1, pytest.approx(1))
    assert math.isnan(perfect.off_target()) or perfect.off_target() == 0


@pytest.mark.parametrize(
    ("factor", "within"),
    [("brightness", 0.02), ("contrast", 0.05), ("ventricle_volume", 0.05), ("tumour_volume", 0.2)],
)
@pytest.mark.parametrize("share", [0.5, 1.5])
def test_rulers_read_how_much_of_an_edit_was_made(head, factor, within, share):
    trio = Trio.of(versions(head, factor, 0), versions(head, factor, share), versions(head, factor, 1), SPACING)
    assert effect(factor, trio) == pytest.approx(share, abs=within)


def test_a_structure_that_grows_is_read_in_ml_and_one_that_stays_is_not(head):
    scan = versions(head, "ventricle_volume", 0).astype(float)
    wider = head.with_ventricles(head.ventricle_ml + 2).scan().astype(float)
    larger = head.with_tumour(head.tumour_ml + 2).scan().astype(float)
    ventricles, tumour = (Structure.of(scan, mask, SPACING) for mask in (head.masks.ventricles, head.masks.tumour))
    everywhere = np.ones(scan.shape, dtype=bool)
    assert ventricles.difference_ml(scan, scan, everywhere) == 0
    assert ventricles.difference_ml(wider, scan, everywhere) == pytest.approx(2, rel=0.3)
    assert 2 < tumour.difference_ml(larger, scan, everywhere) < 5  # a rim and a core move: it never says too little
    away = ~Trio.of(scan, wider, wider, SPACING).support
    assert tumour.difference_ml(wider, scan, away) < 0.2


def test_a_structure_that_is_not_there_is_no_ruler(head):
    scan = versions(head, "brightness", 0).astype(float)
    assert Structure.of(scan, np.zeros(scan.shape), SPACING) is None
    assert Structure.of(np.ones(scan.shape), head.masks.tumour, SPACING) is None


def test_the_opposite_edit_has_a_negative_effect(head):
    scan = versions(head, "ventricle_volume", 0)
    smaller = versions(head, "ventricle_volume", -0.5)
    trio = Trio.of(scan, smaller, versions(head, "ventricle_volume", 1), SPACING)
    assert effect("ventricle_volume", trio) == pytest.approx(-0.5, abs=0.1)


def test_what_is_painted_far_away_is_off_target_and_no_effect(head):
    scan, truth = versions(head, "tumour_volume", 0), versions(head, "tumour_volume", 1)
    painted = scan.copy()
    painted[:2, :2, :2] += 5
    trio = Trio.of(scan, painted, truth, SPACING)
    assert effect("tumour_volume", trio) == 0
    assert trio.off_target() > 2 * Trio.of(scan, scan, truth, SPACING).off_target()
    assert trio.rce() > 1


def test_rulers_count_from_air_whatever_air_measures(head):
    three = [versions(head, "brightness", share) for share in (0, 0.7, 1)]
    plain = Trio.of(*three, SPACING)
    shifted = Trio.of(*(voxels - 1000 for voxels in three), SPACING, air=-1000.0)
    assert effect("brightness", shifted) == pytest.approx(effect("brightness", plain), abs=1e-3)
    assert shifted.rce() == pytest.approx(plain.rce(), rel=1e-3)


def test_a_truth_without_a_change_has_no_relative_error():
    scan = np.random.default_rng(0).random((6, 6, 6))
    with pytest.raises(UsageError, match="no change"):
        Trio.of(scan, scan, scan, SPACING).rce()


# ---- figures -----------------------------------------------------------------------------------------------------


def test_formulas_change_the_gain_and_the_exponent_above_air_and_nothing_else():
    scan = np.random.default_rng(0).uniform(0, 200, (8, 8, 8)).astype(np.float32)
    assert brighter(scan - 1000, -1000.0) == pytest.approx(1.5 * scan - 1000, rel=1e-5)
    bent = steeper(scan)
    slope = np.polyfit(np.log(scan.ravel()), np.log(bent.ravel()), 1)[0]
    assert slope == pytest.approx(1.2, abs=1e-3)


def readout(factor, estimate, truth):
    found = np.stack([np.array(estimate, float), np.array(estimate, float) - 1, np.array(estimate, float) + 1], 1)
    return readout_of(factor, found, np.array(truth, float))


def test_unknown_truths_do_not_count():
    found = readout(Real(name="age", role="anatomy"), [1, 2, 9], [1, 2, math.nan])
    assert (found.r2, found.mae, found.coverage90, found.n) == (1, 0, 1, 2)


@pytest.mark.parametrize("truth", [[3.0], [3.0, 3.0]])
def test_a_truth_that_does_not_vary_has_no_r2(truth):
    found = readout(Positive(name="volume", role="anatomy"), [4.0] * len(truth), truth)
    assert found.r2 is None
    assert found.mae == 1


def test_angles_are_compared_round_the_circle():
    factor = Circular(name="phase", role="anatomy", period=10.0)
    found = readout(factor, [9.9, 5.1, 2.5], [0.1, 4.9, 2.5])
    assert found.mae == pytest.approx(0.4 / 3)
    assert found.coverage90 == 1
    assert found.r2 is not None
    assert found.r2 > 0.9


def test_levels_are_right_or_wrong():
    factor = Nominal(name="site", role="nuisance", levels=("a", "b", "c"))
    assert readout(factor, [0, 1, 2, 2], [0, 1, 2, 2]).r2 == pytest.approx(1)
    wrong = readout(factor, [2, 1, 2, 2], [0, 1, 2, 2])
    assert wrong.mae == 0.25
    assert wrong.r2 is not None
    assert wrong.r2 < 1


def test_types_without_intervals_have_no_coverage():
    found = np.array([[1.0, math.nan, math.nan], [2.0, math.nan, math.nan]])
    assert readout_of(Real(name="age", role="anatomy"), found, np.array([1.0, 3.0])).coverage90 is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_the_interval_of_a_median_holds_it_and_lies_in_the_sample(values):
    low, high = median_interval(values)
    assert min(values) <= low <= np.median(values) <= high <= max(values)


@settings(max_examples=10, deadline=None)
@given(st.integers(6, 60))
def test_intervals_of_medians_hold_the_true_one_as_often_as_they_say(n):
    rng = np.random.default_rng(n)
    held = [low <= 0 <= high for low, high in (median_interval(list(rng.normal(size=n))) for _ in range(400))]
    assert np.mean(held) > 0.92


def test_a_notebook_shows_the_page_apart_from_its_own(evaluation):
    shown = evaluation._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<script" not in shown


def test_the_study_in_a_model_says_where_its_cohort_is(trained: Trained, table: Path):
    study: Study = trained.study
    assert study.cohort.table == table.resolve()


# Groups in which one factor alone varies


def clamped_codes(groups: int, own: bool) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Three factors, each varying alone in so many groups of three scans; codes that obey one factor each, or none."""
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.normal(size=(3 * groups, 4)), 3, axis=0) + 0.05 * rng.normal(size=(9 * groups, 4))
    factor = np.repeat(np.arange(3), 3 * groups)
    latent = factor if own else np.repeat(rng.integers(0, 4, 3 * groups), 3)
    codes[np.arange(len(codes)), latent] += rng.normal(size=len(codes))
    names = np.repeat([f"group {index}" for index in range(3 * groups)], 3)
    return codes, {f"factor {index}": list(np.where(factor == index, names, "")) for index in range(3)}


def test_a_factor_that_varies_alone_is_told_from_codes_that_obey_one_factor_each():
    found = clamped_scores(*clamped_codes(20, own=True), 0)
    assert {name: score.value > 0.9 for name, score in found.items()} == {"beta_vae": True, "factor_vae": True}
    lost = clamped_scores(*clamped_codes(20, own=False), 0)
    assert all(score.value < 0.7 and score.low < score.floor + 0.2 for score in lost.values())


def test_few_groups_or_one_factor_alone_tell_nothing():
    codes, varying = clamped_codes(FEWEST_GROUPS - 1, own=True)
    assert clamped_scores(codes, varying, 0) == {}
    codes, varying = clamped_codes(FEWEST_GROUPS, own=True)
    assert clamped_scores(codes, {"factor 0": varying["factor 0"]}, 0) == {}
    assert clamped_scores(codes, {}, 0) == {}


def test_groups_of_clamped_supervision_come_with_the_scans_where_the_table_has_them(table, trained):
    entries = tuple(Supervision(kind="clamp", by=by, vary=("brightness",)) for by in ("subject", "absent"))
    shared = Supervision(kind="clamp", by="subject", share=("anatomy",))
    for supervision, varying in (((shared,), []), (entries[1:], []), (entries[:1], ["brightness"])):
        material = gathered(replace(trained.study, supervision=supervision), table, "test", Silence())
        assert list(material.varying) == varying
        assert all(list(groups) == material.subjects for groups in material.varying.values())
