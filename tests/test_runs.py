"""Laws of the list of runs: what a folder's small files say, and that nothing in them can break it."""

import json
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisent.cli import main
from medisent.cli.runs import runs_table
from medisent.errors import UsageError
from medisent.files import only_process
from medisent.runs import run_of, runs_in

RECORDS = [
    {"step": 10, "seconds": 1.0, "total": 9.0},
    {"step": 10, "seconds": 1.0, "validation": {"scans": 4, "readout": {"dose": {"r2": 0.1, "mae": 2.0}}}},
    {
        "step": 20,
        "seconds": 2.0,
        "validation": {
            "scans": 7,
            "readout": {"dose": {"r2": 0.5, "mae": 1.0}},
            "leakage": {"dose": {"dose": 0.9, "gain": 0.3}, "rest": {"dose": 0.2, "gain": -0.1}},
        },
    },
    {"step": 30, "seconds": 90.0, "total": 7.0},
]
EVALUATION = {"schema": 1, "n": 12, "split": "test", "readout": {"dose": {"r2": 0.75, "mae": 1.5}}, "leakage": {}}


def whole(extra=b""):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8) + extra


@pytest.fixture
def run(tmp_path):
    """A run that was stopped after thirty steps."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text('[cohort]\ntable = "t.tsv"\nabout = "Rendered\\nheads."\n', encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS), encoding="utf-8")
    (folder / "checkpoint.safetensors").write_bytes(whole())
    return folder


def ended(run):
    (run / "model.safetensors").write_bytes(whole())
    (run / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (run / "manifest.json").write_text(json.dumps({"steps": 33, "seconds": 99.0}), encoding="utf-8")


def test_a_run_that_was_stopped_says_how_far_it_came_and_what_validation_found_last(run):
    found = run_of(run)
    assert (found.name, found.state, found.steps, found.seconds) == ("first", "stopped", 30, 90.0)
    assert (found.split, found.scans, found.leak) == ("validation", 7, 0.3)
    assert found.readout == {"dose": {"r2": 0.5, "mae": 1.0}}
    assert found.about == "Rendered heads."


def test_a_finished_run_says_what_its_evaluation_found(run):
    ended(run)
    found = run_of(run)
    assert (found.state, found.steps, found.seconds) == ("done", 33, 99.0)
    assert (found.split, found.scans, found.leak) == ("test", 12, None)
    assert found.readout == {"dose": {"r2": 0.75, "mae": 1.5}}


def test_a_run_is_running_as_long_as_its_process_is(run):
    with only_process(run, "training in it"):
        assert run_of(run).state == "running"
    assert run_of(run).state == "stopped"


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.safetensors", "evaluation.json", "manifest.json"])
def test_a_run_with_a_file_that_is_not_whole_is_damaged(run, name):
    ended(run)
    raw = (run / name).read_bytes()
    for damage in (raw[: len(raw) // 2], b"", b"[]", raw + b"more"):
        (run / name).write_bytes(damage)
        assert run_of(run).state == "damaged", damage
    (run / name).write_bytes(raw)
    assert run_of(run).state == "done"


@settings(max_examples=60)
@given(raw=st.binary(max_size=80), name=st.sampled_from(["model.safetensors", "metrics.jsonl", "study.toml"]))
def test_whatever_lies_in_a_run_it_is_listed(raw, name, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "metrics.jsonl").write_bytes(b"")
    (run / name).write_bytes(raw)
    assert runs_table(runs_in(run))


def test_runs_are_listed_newest_first_and_nothing_else_is(run):
    other = run.parent / "second"
    other.mkdir()
    (other / "checkpoint.safetensors").write_bytes(whole())
    cohort = run.parent / "cohort"
    cohort.mkdir()
    (cohort / "study.toml").write_text("", encoding="utf-8")
    for path, when in ((run, 100), (other, 200)):
        for file in path.iterdir():
            os.utime(file, (when, when))
    assert [found.name for found in runs_in(run.parent)] == ["second", "first"]
    os.utime(run / "metrics.jsonl", (300, 300))
    assert [found.name for found in runs_in(run.parent)] == ["first", "second"]


def test_the_command_lists_what_lies_in_runs(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent.parent)
    assert main(["runs"]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    for part in ("first", "stopped", "30", "1:30 min", "0.50 dose", "0.30", "7 validation", "Rendered heads."):
        assert part in line
    assert main(["runs", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert (told["name"], told["state"], told["readout"]["dose"]["r2"]) == ("first", "stopped", 0.5)


def test_a_place_without_runs_says_so_and_a_folder_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "runs": []}
    assert main(["runs"]) == 0
    assert "medisent train" in capsys.readouterr().out
    with pytest.raises(UsageError, match="absent is no folder"):
        runs_in(tmp_path / "absent")
