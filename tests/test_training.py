"""Laws of training: the same seed gives the same bytes, interrupted or not; another study is refused by its changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from medisent.augmentation import changed
from medisent.batches import Batch
from medisent.checkpoints import MODEL_FILE, build_model
from medisent.config import ObjectiveSettings, Study, load_study
from medisent.errors import CohortError, MachineError, MedisentWarning, ModelError, StudyError
from medisent.files import only_process
from medisent.model import Draw, PartitionedVAE
from medisent.objectives import TERMS, Term
from medisent.progress import Silence
from medisent.scanners import measured_scale
from medisent.training import CHECKPOINT, Loop, dry_run, schedule, train
from medisent.training import loop as loops

PAGE = "training.html"
FILES = [CHECKPOINT, "manifest.json", "metrics.jsonl", MODEL_FILE, "study.toml", PAGE]


class Interrupted(KeyboardInterrupt):
    """Somebody pressed control-C."""


class Stop:
    """Progress that interrupts after so many steps of training."""

    def __init__(self, steps: int) -> None:
        self.steps, self.training = steps, False

    def stage(self, name: str, total: float | None = None) -> None:
        self.training, self.reports = name == "training", 0

    def advance(self, done: float, note: str = "") -> None:
        self.reports += 1  # the first says how far the work was when it began
        if self.training and self.reports > self.steps + 1:
            raise Interrupted


@pytest.fixture
def every_step(monkeypatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(loops, "_CHECKPOINT_SECONDS", -1.0)


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(study, run)
    return run


def records(run: Path) -> list[dict[str, float]]:
    """What the log says of steps; what it says of the validation split stands between."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if "validation" not in record]


def test_a_run_leaves_the_files_of_the_contract_and_no_other(finished):
    assert sorted(path.name for path in finished.iterdir()) == FILES


def test_terms_that_need_more_scans_a_step_are_warned_of_before_scans_are_read(study, tmp_path, monkeypatch):
    monkeypatch.setattr("medisent.training.making.read_splits", refused)
    comparing = replace(study, weights=replace(study.weights, density_ratio=1.0))
    with pytest.warns(MedisentWarning, match="density_ratio") as warned, pytest.raises(CohortError):
        train(comparing, tmp_path)
    assert len(warned) == 1


def refused(*_: object) -> None:
    raise CohortError("nothing is read")


def test_the_same_seed_gives_the_same_bytes(study, finished, tmp_path):
    again = train(study, tmp_path / "again")
    assert (tmp_path / "again" / MODEL_FILE).read_bytes() == (finished / MODEL_FILE).read_bytes()
    assert again.card.steps == 6


def test_another_seed_gives_another_model(study, finished, tmp_path):
    other = replace(study, training=replace(study.training, seed=1))
    train(other, tmp_path / "other")
    assert (tmp_path / "other" / MODEL_FILE).read_bytes() != (finished / MODEL_FILE).read_bytes()


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(study, finished, tmp_path, every_step):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(study, run, progress=Stop(3))
    assert not (run / MODEL_FILE).exists()
    with pytest.raises(Interrupted):
        train(study, run, progress=Stop(1))
    assert "Stopped at step 5; the same command goes on." in (run / PAGE).read_text(encoding="utf-8")
    train(study, run)
    assert "Done: 6 steps" in (run / PAGE).read_text(encoding="utf-8")
    assert (run / MODEL_FILE).read_bytes() == (finished / MODEL_FILE).read_bytes()


def test_a_run_goes_on_where_it_was_and_does_not_begin_again(study, shown, tmp_path, every_step):
    with pytest.raises(Interrupted):
        train(study, tmp_path, progress=Stop(3))
    loop = Loop(study, build_model(study), shown, tmp_path)
    loop.resume()
    assert loop.step == 3  # the checkpoint after the step that was cut short was not reached
    assert loop.seconds > 0


def test_a_finished_run_is_not_trained_again(study, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / CHECKPOINT).unlink()
    (run / "metrics.jsonl").write_text("kept", encoding="utf-8")
    model = train(study, run)
    assert model.card.steps == 6
    assert (run / "metrics.jsonl").read_text(encoding="utf-8") == "kept"
    assert not (run / CHECKPOINT).exists()


def test_a_run_of_another_study_is_refused_with_what_changed(study, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    other = replace(study, grid=replace(study.grid, spacing_mm=11.0))
    with pytest.raises(StudyError, match=r"\[grid\] spacing_mm: 12\.0 there, 11\.0 here.*--fresh"):
        train(other, run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_fresh_begins_anew_whatever_study_the_run_was_of(study, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    other = replace(study, training=replace(study.training, steps=2))
    model = train(other, run, fresh=True)
    assert model.card.steps == 2
    assert load_study(run / "study.toml").training.steps == 2


def test_fresh_forgets_a_checkpoint(study, finished, tmp_path, every_step):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(study, run, progress=Stop(3))
    (run / CHECKPOINT).write_bytes(b"damaged")
    train(study, run, fresh=True)
    assert (run / MODEL_FILE).read_bytes() == (finished / MODEL_FILE).read_bytes()


def test_two_processes_do_not_train_in_one_folder(study, tmp_path):
    with only_process(tmp_path, "x"), pytest.raises(MachineError, match=r"in use: another process is training in it\."):
        train(study, tmp_path, fresh=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "random", "empty", "model"])
def test_a_damaged_checkpoint_is_refused_and_fresh_is_named(study, finished, tmp_path, damage):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / MODEL_FILE).unlink()
    raw = (run / CHECKPOINT).read_bytes()
    model = (finished / MODEL_FILE).read_bytes()
    damaged = {"truncated": raw[: len(raw) // 2], "random": bytes(1000), "empty": b"", "model": model}[damage]
    (run / CHECKPOINT).write_bytes(damaged)
    with pytest.raises(ModelError, match=r"damaged.*--fresh"):
        train(study, run)
    assert not (run / MODEL_FILE).exists()


def test_a_checkpoint_holds_all_that_the_next_step_needs(study, shown, tmp_path):
    def loop() -> Loop:
        torch.manual_seed(5)
        network = build_model(study)
        network.fit(shown)
        return Loop(study, network, shown, tmp_path)

    first, second = loop(), loop()
    first.take_step()
    first.save()
    expected = first.take_step()
    torch.manual_seed(99)
    second.resume()
    found = second.take_step()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    weights, others = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


class Learner(Term):
    """A term with a weight of its own and a memory: what it costs depends on both."""

    def __init__(self, model: PartitionedVAE, options: ObjectiveSettings | None = None, scans: int = 1000) -> None:
        super().__init__(model, options, scans)
        self.slope = nn.Parameter(torch.ones(()))
        self.register_buffer("memory", torch.zeros(()))

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        cost = (self.slope * draw.q.loc.mean(1) - self.memory - 1).square()
        self.memory = self.memory + 0.1 * cost.detach().mean()
        return cost


def test_a_term_that_learns_and_remembers_goes_on_bit_for_bit(study, shown, tmp_path, monkeypatch):
    monkeypatch.setitem(TERMS, "distortion", Learner)

    def loop() -> Loop:
        torch.manual_seed(5)
        network = build_model(study)
        network.fit(shown)
        return Loop(study, network, shown, tmp_path)

    first, second = loop(), loop()
    for _ in range(2):
        first.take_step()
    first.save()
    found = first.objective.state_dict()
    assert float(found["terms.distortion.slope"]) != 1
    assert float(found["terms.distortion.memory"]) > 0
    expected = [first.take_step() for _ in range(2)]
    torch.manual_seed(99)
    second.resume()
    again = [second.take_step() for _ in range(2)]
    assert all(
        torch.equal(costs[name], same[name]) for costs, same in zip(expected, again, strict=True) for name in same
    )
    for one, other in ((first.network, second.network), (first.objective, second.objective)):
        weights, others = one.state_dict(), other.state_dict()
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_log_has_its_records_once_also_across_an_interruption(study, tmp_path, monkeypatch, every_step):
    monkeypatch.setattr(loops, "_LOG_EVERY", 2)
    with pytest.raises(Interrupted):
        train(study, tmp_path, progress=Stop(3))
    assert [record["step"] for record in records(tmp_path)] == [2]
    train(study, tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 6]
    assert set(records(tmp_path)[0]) >= {"step", "seconds", "total", "rate", "distortion"}


def test_epochs_count_steps_by_the_scans_there_are(study, shown, tmp_path):
    epochs = replace(study, training=replace(study.training, steps=None, epochs=3, batch=4))
    loop = Loop(epochs, build_model(study), shown, tmp_path)
    loop.clock.step = 3
    assert len(shown) == 6
    assert loop.share == 0.5


def test_minutes_are_minutes_on_the_clock(study, shown, tmp_path):
    minutes = replace(study, training=replace(study.training, steps=None, minutes=2.0))
    loop = Loop(minutes, build_model(study), shown, tmp_path)
    loop.clock.seconds = 30.0
    assert loop.share == 0.25


def test_every_scan_is_shown_once_before_any_is_shown_again(study, shown, tmp_path):
    loop = Loop(study, build_model(study), shown, tmp_path)
    rows = torch.cat([loop.sampler.next()[0] for _ in range(6)]).tolist()
    assert all(sorted(rows[i : i + 6]) == list(range(6)) for i in range(0, 24, 6))


def test_a_few_steps_make_the_objective_smaller(study, shown, tmp_path):
    torch.manual_seed(0)
    network = build_model(study)
    network.fit(shown)
    longer = replace(study, training=replace(study.training, steps=30))
    loop = Loop(longer, network, shown, tmp_path)
    costs = [float(loop.take_step()["total"].detach()) for _ in range(16)]
    assert sum(costs[-4:]) < 0.8 * sum(costs[:4])


def test_a_dry_run_writes_nothing_and_says_what_it_would_take(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dry_run(study)
    assert not list(tmp_path.iterdir())
    assert found.scans == 6
    assert found.parameters == sum(p.numel() for p in build_model(study).parameters())
    assert found.seconds_a_step is not None
    assert found.minutes == round(6 * found.seconds_a_step / 60, 1)


# What the model is shown


def test_a_changed_scan_keeps_its_brightness_in_its_scale_and_all_that_is_known(study, shown):
    network = build_model(study)
    change = changed(shown, network, torch.Generator().manual_seed(0))
    for scan in change.changed.scan:
        assert float(measured_scale(scan)) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(change.changed.log_scale - shown.log_scale, change.log_rescale)
    assert torch.equal(change.changed.masks.nan_to_num(-1), shown.masks.nan_to_num(-1))
    assert change.plain is shown
    ratio = change.changed.scan * change.log_rescale.exp().reshape(-1, 1, 1, 1, 1)
    applied = change.scanner.apply(shown.scan, network.basis) * shown.coverage
    assert float((ratio - applied).abs().mean()) < 0.02


def test_only_settings_that_vary_are_changed(study, shown):
    few = replace(study, scanner=replace(study.scanner, factors=("contrast",)), factors=study.factors[:3])
    scanner = changed(shown, build_model(few), torch.Generator().manual_seed(0)).scanner
    assert not scanner.log_gain.any()
    assert not scanner.bias.any()
    assert scanner.log_gamma.all()


def test_the_same_chance_changes_scans_alike(study, shown: Batch):
    network = build_model(study)
    one, other = (changed(shown, network, torch.Generator().manual_seed(7)).changed.scan for _ in range(2))
    assert torch.equal(one, other)


def test_the_learning_rate_rises_once_falls_once_and_never_is_zero():
    rates = [schedule(share / 500) for share in range(501)]
    top = rates.index(max(rates))
    assert 5 <= top <= 20
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
    assert max(rates) <= 1
    assert schedule(1.5) == schedule(1.0)


def test_a_cohort_without_validation_scans_is_calibrated_on_nobody(study, cohort_table, tmp_path):
    text = cohort_table.read_text(encoding="utf-8").replace("\tvalidation\t", "\ttrain\t")
    table = cohort_table.with_name("no_validation.tsv")
    table.write_text(text, encoding="utf-8")
    model = train(replace(study, cohort=replace(study.cohort, table=table)), tmp_path, progress=Silence())
    assert model.card.scans == 8
    assert all(entry.calibrated == 0 for entry in model.card.factors.values())
    assert len(model.card.typical_error) == 101


def test_fresh_costs_nothing_where_training_cannot_begin(study, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    broken = replace(study, cohort=replace(study.cohort, table=tmp_path / "none.tsv"))
    with pytest.raises(CohortError, match="does not exist"):
        train(broken, run, fresh=True)
    assert sorted(path.name for path in run.iterdir()) == FILES
