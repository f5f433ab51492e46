"""Laws of bad days while training: each is said in a sentence, and what was saved before stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from medisent.cli import main
from medisent.config import Study, dump_study
from medisent.errors import CohortError, MachineError, StudyError
from medisent.model import Draw, PartitionedVAE
from medisent.objectives import TERMS, Term
from medisent.training import CHECKPOINT, train
from medisent.training import loop as loops


class Astray(Term):
    """A term that is no number from its third draw on."""

    draws = 0

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        Astray.draws += 1
        return draw.q.loc.mean(1) * (torch.nan if Astray.draws > 2 else 1.0)


class Steep(Term):
    """A term that costs nothing worth mentioning, and whose gradient is infinite from its third draw on."""

    draws = 0

    def forward(self, draw: Draw) -> Float[Tensor, " batch"]:
        Steep.draws += 1
        flat = draw.q.scale.mean(1)
        return (flat - flat.detach()).sqrt() if Steep.draws > 2 else flat


@pytest.fixture
def every_step(monkeypatch) -> None:
    """A checkpoint after every step, and no look at the validation split between."""
    monkeypatch.setattr(loops, "_CHECKPOINT_SECONDS", -1.0)


@pytest.fixture
def blind(study: Study) -> Study:
    """The study, without looks."""
    return replace(study, training=replace(study.training, looks=0))


@pytest.mark.parametrize(("term", "named"), [(Astray, "rate"), (Steep, "the gradient of ")])
def test_a_training_that_goes_astray_says_where_and_keeps_what_was_saved(
    term, named, blind, tmp_path, monkeypatch, every_step
):
    monkeypatch.setitem(TERMS, "rate", term)
    term.draws = 0
    steps = replace(blind, training=replace(blind.training, steps=6))
    with pytest.raises(StudyError, match=rf"(?s)in step 3, {named}.*learning_rate.*0\.003.*--fresh") as caught:
        train(steps, tmp_path)
    assert caught.value.exit_code == 3
    from medisent.checkpoints import load_tensors

    tensors, _ = load_tensors(tmp_path / CHECKPOINT, kind="medisent checkpoint")
    assert int(tensors["clock.step"]) == 2
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and name != "best.nats"}
    assert [name for name, tensor in floats.items() if not tensor.isfinite().all()] == []
    page = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "Failed at step 2." in page
    assert f"in step 3, {named}" in page
    assert 'http-equiv="refresh"' not in page


def test_memory_that_does_not_suffice_is_said_with_what_to_lower(blind, tmp_path, monkeypatch, every_step, capsys):
    taken = 0

    def greedy(self: PartitionedVAE, *_: object) -> Draw:
        nonlocal taken
        taken += 1
        if taken > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, *_)

    forward = PartitionedVAE.forward
    monkeypatch.setattr(PartitionedVAE, "forward", greedy)
    (tmp_path / "study.toml").write_text(dump_study(blind), encoding="utf-8")
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "study.toml"), "-o", str(run), "--device", "cpu"]) == 4
    said = capsys.readouterr().err
    for word in ("4 scans of 16 x 16 x 16 voxels", "smaller batch", "accumulate", "recompute", "[grid]", "--dry-run"):
        assert word in said
    before = (run / CHECKPOINT).read_bytes()
    with pytest.raises(MachineError, match="Memory of cpu"):
        train(blind, run)
    assert (run / CHECKPOINT).read_bytes() == before


def test_a_fault_that_is_no_lack_of_memory_is_not_called_one(blind, tmp_path, monkeypatch):
    def broken(*_: object) -> Draw:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(PartitionedVAE, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(blind, tmp_path)
    page = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "Failed at step 0." in page
    assert "by a fault of its own (RuntimeError)" in page


def test_a_disk_that_is_full_in_the_middle_keeps_the_checkpoint_before(blind, tmp_path, monkeypatch, every_step):
    written = Path.write_bytes
    saved: list[bytes] = []

    def full(path: Path, data: bytes) -> int:
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(data)
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineError, match=r"cannot be written: No space left on device\. Make room"):
        train(blind, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == saved[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        CHECKPOINT,
        "metrics.jsonl",
        "study.toml",
        "training.html",
    ]


def test_an_empty_training_split_is_refused(study, cohort_table, tmp_path):
    table = cohort_table.with_name("nothing_to_learn.tsv")
    table.write_text(cohort_table.read_text(encoding="utf-8").replace("\ttrain\t", "\ttest\t"), encoding="utf-8")
    with pytest.raises(CohortError, match="train"):
        train(replace(study, cohort=replace(study.cohort, table=table)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("column", "value", "name"), [("site", "site-2", "site"), ("head_size_mm", "150.0", "head_size")]
)
def test_a_factor_that_is_the_same_in_all_training_scans_is_refused(column, value, name, study, cohort_table, tmp_path):
    from medisent.cohorts import read_table

    rows = read_table(cohort_table)
    rows[column] = value
    table = cohort_table.with_name(f"same_{name}.tsv")
    table.write_text(rows.to_csv(sep="\t", index=False), encoding="utf-8")
    with pytest.raises(CohortError, match=rf"(?s){name}.*all 6 .*training") as caught:
        train(replace(study, cohort=replace(study.cohort, table=table)), tmp_path / "run")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused(blind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "study.toml").write_text(dump_study(blind), encoding="utf-8")
    for asked in (["--dry-run"], ["-o", str(tmp_path / "run")]):
        assert main(["train", str(tmp_path / "study.toml"), "--device", "cuda", *asked]) == 4
        assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
