"""Laws of model files: what is saved comes back, what is damaged or foreign is refused in a sentence, nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medisent.checkpoints import (
    MODEL_FILE,
    PACKAGED_MODEL,
    SCHEMA,
    build_model,
    find_model,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
    study_factors,
)
from medisent.errors import ModelError


def parts(path: Path) -> tuple[dict, bytes]:
    """The header and the weights of a safetensors file."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def assembled(path: Path, header: dict, weights: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + weights)
    return path


def with_metadata(source: Path, target: Path, **changes: str) -> Path:
    header, weights = parts(source)
    header["__metadata__"] = {**header["__metadata__"], **changes}
    return assembled(target, header, weights)


# What is saved comes back


def test_a_model_comes_back_with_its_weights_its_study_and_its_card(trained, tmp_path):
    save_model(trained.study, trained.network, trained.card, tmp_path / MODEL_FILE)
    again = load_model(tmp_path / MODEL_FILE)
    before, after = trained.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.card == trained.card
    assert again.study.factors == trained.study.factors
    assert again.study.grid == trained.study.grid
    assert not again.network.training


def test_the_same_model_gives_the_same_bytes(trained, tmp_path):
    for name in ("one", "two"):
        save_model(trained.study, trained.network, trained.card, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert load_model(tmp_path / "one").digest == load_model(tmp_path / "two").digest


def test_a_model_file_does_not_say_where_the_cohort_lies(study, trained, tmp_path):
    save_model(study, trained.network, trained.card, tmp_path / MODEL_FILE)
    assert study.cohort.table.is_absolute()
    assert str(study.cohort.table.parent).encode() not in (tmp_path / MODEL_FILE).read_bytes()


def test_in_its_run_folder_a_model_finds_its_cohort_again(study, trained, tmp_path):
    from medisent.config import dump_study

    save_model(study, trained.network, trained.card, tmp_path / MODEL_FILE)
    assert load_model(tmp_path / MODEL_FILE).study.cohort.table == Path(study.cohort.table.name)
    (tmp_path / "study.toml").write_text(dump_study(study), encoding="utf-8")
    assert load_model(tmp_path / MODEL_FILE).study.cohort.table == study.cohort.table
    (tmp_path / "study.toml").write_text("not a study", encoding="utf-8")
    assert load_model(tmp_path / MODEL_FILE).study.cohort.table == Path(study.cohort.table.name)


def test_the_scanners_factors_are_factors_whether_the_study_names_them_or_not(study):
    names = [factor.name for factor in study_factors(study)]
    assert names == ["tumour_volume", "head_size", "site", "brightness", "contrast", "bias_field"]
    only = replace(study, scanner=replace(study.scanner, factors=("contrast",)), factors=study.factors[:1])
    assert [factor.name for factor in study_factors(only)] == ["tumour_volume", "contrast"]
    assert list(build_model(only).factors) == ["tumour_volume", "contrast"]


def test_tensors_and_texts_come_back_as_they_were(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, dtype=torch.long)}
    header = {"schema": str(SCHEMA), "kind": "thing", "text": "zwei\nZeilen \N{SNOWMAN}"}
    save_tensors(tensors, header, tmp_path / "x")
    found, texts = load_tensors(tmp_path / "x", kind="thing")
    assert texts == header
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


# What is refused


def test_another_version_is_refused_with_both_versions(model_file, tmp_path):
    path = with_metadata(model_file, tmp_path / "x", schema="7")
    with pytest.raises(ModelError, match=r"format 7, but this medisent reads format 3\..*train it anew"):
        load_model(path)


def test_another_kind_of_file_is_refused(model_file, tmp_path):
    path = with_metadata(model_file, tmp_path / "x", kind="medisent checkpoint")
    with pytest.raises(ModelError, match="not a medisent model"):
        load_model(path)
    header, weights = parts(model_file)
    del header["__metadata__"]
    with pytest.raises(ModelError, match="not a medisent model"):
        load_model(assembled(tmp_path / "y", header, weights))


@pytest.mark.parametrize("card", ["", "3", "null", "[]", "{}", '{"factors": {}}', '{"factors": 3, "precision": []}'])
def test_a_card_that_is_none_is_refused(model_file, tmp_path, card):
    with pytest.raises(ModelError, match="do not fit together"):
        load_model(with_metadata(model_file, tmp_path / "x", card=card))


@pytest.mark.parametrize("text", ["", "grid = 3", "[grid]\nspacing_mm = 6.0\nshape = [8, 8, 8]\n"])
def test_a_study_that_is_none_is_refused(model_file, tmp_path, text):
    with pytest.raises(ModelError, match="do not fit together"):
        load_model(with_metadata(model_file, tmp_path / "x", study=text))


def test_weights_of_another_network_are_refused(model_file, tmp_path):
    text = parts(model_file)[0]["__metadata__"]["study"]
    assert "width = 4" in text
    path = with_metadata(model_file, tmp_path / "x", study=text.replace("width = 4", "width = 8"))
    with pytest.raises(ModelError, match="do not fit together"):
        load_model(path)


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(model_file, tmp_path, share):
    raw = model_file.read_bytes()
    (tmp_path / "x").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ModelError, match="x"):
        load_model(tmp_path / "x")


def test_more_bytes_than_there_should_be_are_refused(model_file, tmp_path):
    (tmp_path / "x").write_bytes(model_file.read_bytes() + bytes(64))
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path / "x")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(tmp_path, seed):
    (tmp_path / "x").write_bytes(np.random.default_rng(seed).bytes(4096))
    with pytest.raises(ModelError):
        load_model(tmp_path / "x")


@pytest.mark.parametrize("seed", range(8))
def test_a_header_with_a_flipped_bit_is_refused_or_harmless(model_file, tmp_path, seed):
    raw = bytearray(model_file.read_bytes())
    chance = np.random.default_rng(seed)
    raw[chance.integers(8 + struct.unpack("<Q", raw[:8])[0])] ^= 1 << int(chance.integers(8))
    (tmp_path / "x").write_bytes(raw)
    with suppress(ModelError):
        assert load_model(tmp_path / "x").card.scans > 0


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    if form == "pickle":
        Path("x").write_bytes(pickle.dumps({"weights": Bomb()}))
    else:
        torch.save({"weights": Bomb()}, "x")
    with pytest.raises(ModelError, match="not a model file"):
        load_model(Path("x"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("claim", [1 << 25, 1 << 40, 2**64 - 1])
def test_a_header_that_claims_to_be_huge_is_refused_before_memory_is_asked_for(tmp_path, claim):
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", claim) + b"{")
        file.truncate(1 << 26)
    with pytest.raises(ModelError, match="not a model file"):
        load_model(tmp_path / "x")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path / "none")


def test_a_failed_save_leaves_the_old_file(model_file, trained, tmp_path):
    (tmp_path / "x").write_bytes(model_file.read_bytes())
    with pytest.raises(TypeError):
        save_tensors({"a": "no tensor"}, {"kind": "thing"}, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == model_file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# Which model


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDISENT_MODEL", raising=False)
    return tmp_path


def run(place: Path, name: str, age: float) -> Path:
    path = place / "runs" / name / MODEL_FILE
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_without_any_model_the_packaged_one_is_taken_and_reads_its_own_kind_of_head(place):
    assert find_model() == find_model("rendered-heads") == PACKAGED_MODEL
    trained = load_model(find_model())
    assert trained.card.figures["tumour_volume_r2"] > 0.9
    assert trained.study.cohort.table.name == str(trained.study.cohort.table)


def test_what_lies_here_goes_before_what_the_package_carries(place):
    (place / "rendered-heads").touch()
    assert find_model("rendered-heads") == Path("rendered-heads")


def test_without_a_name_the_newest_finished_run_is_taken(place):
    run(place, "b", age=5)
    newest = run(place, "a", age=1)
    run(place, "c", age=9)
    (place / "runs" / "unfinished").mkdir()
    assert find_model().resolve() == newest


def test_the_environment_goes_before_the_newest_run_and_a_name_before_both(place, monkeypatch):
    newest, other, third = run(place, "a", 1), run(place, "b", 2), run(place, "c", 3)
    monkeypatch.setenv("MEDISENT_MODEL", str(other))
    assert find_model() == other
    assert find_model(third) == third
    monkeypatch.setenv("MEDISENT_MODEL", "")
    assert find_model().resolve() == newest


def test_a_name_may_be_a_run_folder_or_a_model_file(place):
    path = run(place, "a", 1)
    assert find_model(path.parent) == find_model(path) == find_model(str(path)) == path


def test_a_run_that_has_not_ended_is_refused(place):
    (place / "empty").mkdir()
    with pytest.raises(ModelError, match="has not ended"):
        find_model(place / "empty")


def test_a_name_of_nothing_is_refused_wherever_it_comes_from(place, monkeypatch):
    run(place, "a", 1)
    with pytest.raises(ModelError, match="does not exist"):
        find_model("nothing")
    monkeypatch.setenv("MEDISENT_MODEL", "nothing")
    with pytest.raises(ModelError, match="does not exist"):
        find_model()
