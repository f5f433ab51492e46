"""Laws of how training runs: what saves memory or time learns the same; what watches changes nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from medisent.batches import Batch
from medisent.checkpoints import MODEL_FILE, build_model
from medisent.config import Study, TrainingSettings
from medisent.errors import CohortError, StudyError
from medisent.manner import Manner
from medisent.model import PartitionedVAE
from medisent.progress import Silence
from medisent.training import Loop, dry_run, load_split, train
from medisent.training import loop as loops
from medisent.training.averages import Average
from medisent.training.memory import free_bytes, manner_of, needed_bytes


@pytest.fixture(scope="module")
def held(study, cohort) -> Batch:
    """The validation scans."""
    return load_split(study, cohort.of("validation"), Silence(), "reading")


def changed(study: Study, **settings: object) -> Study:
    return replace(study, training=replace(study.training, **settings))


def begun(study: Study, shown: Batch, *, held: Batch | None = None, observers=(), run: Path = Path()) -> Loop:
    """A loop about to take its first step; always the same."""
    torch.manual_seed(5)
    network = build_model(study)
    network.fit(shown)
    return Loop(study, network, shown, run, held, observers)


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loop.network.state_dict().items()}


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Precision and memory


def test_what_is_computed_again_is_learned_bit_for_bit_as_what_is_kept(study, shown):
    one = begun(study, shown)
    costs = [one.take_step() for _ in range(2)]
    other = begun(study, shown)
    other.network.manner = Manner(recompute=True)
    again = [other.take_step() for _ in range(2)]
    assert all(alike(*pair) for pair in zip(costs, again, strict=True))
    assert alike(weights(one), weights(other))


def test_bfloat16_learns_nearly_the_same_and_leaves_everything_in_float32(study, shown):
    one = begun(study, shown)
    costs = one.take_step()
    other = begun(study, shown)
    other.network.manner = Manner(torch.bfloat16)
    rough = other.take_step()
    assert all(cost.dtype == torch.float32 for cost in rough.values())
    assert float(rough["total"]) == pytest.approx(float(costs["total"]), rel=0.02)
    assert float(rough["total"]) != float(costs["total"])
    assert all(tensor.dtype == weights(one)[name].dtype for name, tensor in weights(other).items())


def test_a_network_that_does_not_learn_runs_in_float32_whatever_its_manner(study, shown):
    network = begun(study, shown).network.eval()
    with torch.no_grad():
        before = network.abduct(shown).q.loc
        network.manner = Manner(torch.bfloat16, recompute=True)
        assert torch.equal(network.abduct(shown).q.loc, before)


def test_single_scans_are_read_as_several_are_and_much_faster(study, shown):
    network = begun(study, shown).network.eval()
    inputs = torch.rand(2, 19, *(side // 2 for side in network.encoder.padded))
    with torch.no_grad():
        several = network.manner.run(network.encoder, inputs)[-1]
        one, slowly = network.manner.run(network.encoder, inputs[:1])[-1], network.encoder(inputs[:1])[-1]
    assert torch.equal(one, several[:1])
    assert torch.allclose(one, slowly, rtol=1e-4, atol=1e-5)
    with profile() as seen:
        network.abduct(shown[torch.tensor([0])])
    assert not [event.key for event in seen.key_averages() if "slow_conv3d" in event.key]


def test_the_manner_is_what_the_study_says_and_float32_where_it_leaves_it_to_this_machine(study, shown, monkeypatch):
    network = build_model(study)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert manner_of(study, network, shown).precision == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert manner_of(study, network, shown).precision == torch.bfloat16
    said = changed(study, precision="float32", recompute="always", compile=True)
    manner = manner_of(said, network, shown)
    assert (manner.precision, manner.recompute, manner.compile) == (torch.float32, True, True)
    assert not manner_of(study, network, shown).recompute


def test_networks_compute_again_by_themselves_where_memory_is_short(study, shown, monkeypatch):
    from medisent.training import memory

    large = replace(study, grid=replace(study.grid, shape=(96, 96, 96)))
    with torch.device("meta"):
        network = build_model(large)
    network.pivot = torch.zeros(())  # which tells the device
    thick = Batch(**{n: v.repeat(1, 1, 6, 6, 6) if v.ndim == 5 else v for n, v in vars(shown).items()})
    need = needed_bytes(large, network, thick, Manner())
    for free, recompute in ((need // 2, True), (2 * need, False), (None, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert manner_of(large, network, thick).recompute is recompute
    assert needed_bytes(large, network, thick, Manner(recompute=True)) < need


def test_what_a_step_keeps_is_known_before_it_is_taken(study, shown):
    thick = Batch(**{n: v.repeat(1, 1, 3, 3, 3)[:2] if v.ndim == 5 else v[:2] for n, v in vars(shown).items()})
    wide = replace(
        changed(study, batch=2), grid=replace(study.grid, shape=(48, 48, 48)), network=replace(study.network, width=8)
    )
    loop = begun(wide, thick)
    own = sum(p.numel() * 4 for p in loop.network.parameters())
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loop.objective(loop.network(*loop.next_batch()))
    found = sum(size for size, _ in kept.values()) - own
    told = (needed_bytes(wide, loop.network, thick, Manner()) - 3 * own) / 1.5
    assert told == pytest.approx(found, rel=0.25)


def test_the_most_memory_that_was_held_is_measured():
    # In a process of its own: one that has held much more before finds room without asking for any.
    code = """import torch
from medisent.training.memory import Peak
peak = Peak(torch.device("cpu"))
peak.watch()
before = peak.bytes()
torch.ones(1 << 24)
print(peak.bytes() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 << 20 < int(done.stdout) < 80 << 20
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 20


def test_a_dry_run_tries_nothing_that_memory_does_not_suffice_for(study, monkeypatch):
    from medisent.training import trial

    monkeypatch.setattr(trial, "free_bytes", lambda device: 1000)
    found = dry_run(changed(study, steps=None, epochs=3))
    assert (found.seconds_a_step, found.memory_measured_mb, found.minutes) == (None, None, None)
    assert found.steps == 6
    assert found.memory_needed_mb > 0


def test_a_dry_run_says_the_sizes_of_the_files_that_training_writes(study, tmp_path):
    loud = changed(study, ema=0.9, keep="best", steps=2, looks=1)
    files = dry_run(loud).files
    train(loud, tmp_path)
    for path in tmp_path.iterdir():
        assert path.name in files
    for name in (MODEL_FILE, "checkpoint.safetensors"):
        size = files[name]
        assert size is not None
        assert size == pytest.approx((tmp_path / name).stat().st_size / 2**20, rel=0.25)


# Accumulation and averages


def test_a_step_of_two_batches_learns_from_the_mean_of_both(study, shown):
    two = begun(changed(study, accumulate=2), shown)
    costs = two.take_step()
    one = begun(changed(study, accumulate=2), shown)
    parts = [one.learn_from(*one.next_batch()) for _ in range(2)]
    assert float(costs["total"]) == pytest.approx(sum(float(part["total"]) for part in parts) / 2)
    first = begun(study, shown)
    first.learn_from(*first.next_batch())
    second = begun(study, shown)
    second.network(*second.next_batch())  # the same batch, passed over
    second.network.settle()
    second.learn_from(*second.next_batch())
    grads = [[p.grad for p in loop.network.parameters()] for loop in (one, first, second)]
    assert sum(grad is not None for grad in grads[0]) > 50
    for both, *each in zip(*grads, strict=True):
        assert both is None or torch.allclose(both, sum(each) / 2, atol=1e-6, rtol=1e-4)


def test_an_epoch_has_fewer_steps_where_steps_take_more_batches(study, shown):
    loop = begun(changed(study, steps=None, epochs=4, batch=2, accumulate=3), shown)
    loop.clock.step = 1
    assert loop.share == 0.25


def test_the_mean_of_weights_is_over_all_steps_at_first_and_forgets_later():
    part = torch.nn.Linear(1, 1, bias=False)
    average = Average(part, 0.75)
    seen = [4.0, 2.0, 6.0, 0.0, 8.0]
    for value in seen:
        part.weight.data.fill_(value)
        average.take_in()
    mean = 0.75 * (sum(seen[:4]) / 4) + 0.25 * 8.0
    with average.shown():
        assert part.weight.item() == pytest.approx(mean)
    assert part.weight.item() == 8.0


def test_weights_without_a_mean_are_left_alone():
    part = torch.nn.Linear(2, 2)
    average = Average(part, 0.0)
    before = part.weight.clone()
    average.take_in()
    average.exchange()
    assert torch.equal(part.weight, before)


# Looks at the validation split


class Rude:
    """An observer that draws and asks for gradients."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.looks: list[tuple[int, float]] = []

    def saved(self, share: float, records: Sequence[str]) -> None:
        assert share > 0

    def stepped(self, step: int, seconds: float, costs: Mapping[str, Tensor]) -> None:
        assert seconds > 0
        self.steps.append(step)

    def validated(
        self, step: int, costs: Mapping[str, float], network: PartitionedVAE, held: Batch
    ) -> Mapping[str, object]:
        torch.rand(10)
        assert not network.training
        assert not network.abduct(held).q.loc.requires_grad
        self.looks.append((step, costs["total"]))
        return {"drawn": 10}


def test_who_looks_changes_nothing_of_what_is_learned(study, shown, held, tmp_path):
    rude = Rude()
    watched = begun(changed(study, looks=2, steps=3), shown, held=held, observers=[rude], run=tmp_path / "1")
    watched.run_to_end(Silence())
    alone = begun(changed(study, looks=0, steps=3), shown, run=tmp_path / "2")
    alone.run_to_end(Silence())
    assert alike(weights(watched), weights(alone))
    assert rude.steps == [1, 2, 3]
    assert [step for step, _ in rude.looks] == [2, 3]
    assert all(math.isfinite(total) for _, total in rude.looks)
    assert any('"drawn": 10' in line and '"validation"' in line for line in watched.records)


def test_dear_looks_are_fewer_where_minutes_are_counted_and_not_where_steps_are(study, shown, held, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loops, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for given, wanted in (({"minutes": 1.0, "steps": None}, {1, 2, 3}), ({"steps": 60}, {20})):
        loop = begun(changed(study, **given), shown, held=held)
        monkeypatch.setattr(loop, "take_step", lambda loop=loop: clock.__setitem__(0, clock[0] + 1) or step_of(loop))
        monkeypatch.setattr(loop, "look", lambda held: clock.__setitem__(0, clock[0] + 1.5))
        looked = []
        while not loop.over:
            before = loop.clock.looked
            loop.go_on()
            looked += [loop.step] * (loop.clock.looked > before)
        assert len(looked) in wanted
        assert given == {"steps": 60} or loop.clock.looked <= 0.05 * loop.seconds + 1.5


def step_of(loop: Loop) -> dict[str, torch.Tensor]:
    """A step that costs nothing and teaches nothing."""
    loop.clock.step += 1
    return {"total": torch.zeros(())}


def test_two_looks_at_the_same_weights_see_the_same(study, shown, held):
    rude = Rude()
    loop = begun(study, shown, held=held, observers=[rude])
    loop.look(held)
    torch.rand(3)
    loop.look(held)
    assert rude.looks[0] == rude.looks[1]


def scripted(monkeypatch, totals: list[float]) -> None:
    """Looks that find these costs, one after the other."""
    found = iter(totals)
    monkeypatch.setattr(loops, "costs_of", lambda *_: {"total": next(found)})


def test_training_ends_early_where_looking_on_has_no_use_and_keeps_the_best(study, shown, held, tmp_path, monkeypatch):
    scripted(monkeypatch, [5.0, 4.0, 6.0, 4.5, 1.0])
    wanted = changed(study, steps=5, looks=5, patience=2, keep="best")
    loop = begun(wanted, shown, held=held, run=tmp_path)
    loop.run_to_end(Silence())
    assert (loop.step, loop.best.nats, loop.best.misses) == (4, 4.0, 2)
    plain = begun(changed(study, steps=5), shown)
    for _ in range(2):
        plain.take_step()
    assert alike(weights(loop), weights(plain))


def test_means_best_weights_and_patience_go_on_bit_for_bit(study, shown, held, tmp_path):
    wanted = changed(study, steps=4, looks=4, patience=3, keep="best", ema=0.8, accumulate=2)
    whole = begun(wanted, shown, held=held, run=tmp_path / "whole")
    whole.run_to_end(Silence())
    part = begun(wanted, shown, held=held, run=tmp_path / "part")
    for _ in range(2):
        part.go_on()
    part.save()
    torch.manual_seed(77)
    rest = begun(wanted, shown, held=held, run=tmp_path / "part")
    rest.run_to_end(Silence())
    assert alike(weights(whole), weights(rest))
    for name in ("average", "best"):
        assert alike(whole.kept[name].state(), rest.kept[name].state())


def test_the_model_is_made_of_the_mean_of_weights_where_the_study_wants_it(study, shown, tmp_path):
    loop = begun(changed(study, ema=0.9, steps=3), shown, run=tmp_path)
    loop.run_to_end(Silence())
    plain = begun(changed(study, steps=3), shown, run=tmp_path / "plain")
    plain.run_to_end(Silence())
    assert not alike(weights(loop), weights(plain))
    loop.average.exchange()
    assert alike(weights(loop), weights(plain))


def test_patience_without_looks_is_refused():
    with pytest.raises(StudyError, match="looks is 0"):
        TrainingSettings(looks=0, patience=3)


def test_patience_without_a_validation_split_is_refused(study, cohort_table, tmp_path):
    text = cohort_table.read_text(encoding="utf-8").replace("\tvalidation\t", "\ttrain\t")
    table = cohort_table.with_name("nothing_held_out.tsv")
    table.write_text(text, encoding="utf-8")
    wanted = replace(changed(study, keep="best"), cohort=replace(study.cohort, table=table))
    with pytest.raises(CohortError, match="validation"):
        train(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
