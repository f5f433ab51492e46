"""Laws of runs: killed, stopped or shared among processes, a training ends as if it had not been."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from os import kill
from pathlib import Path

import pytest
from forked import Server
from safetensors.torch import load_file

from medisent.checkpoints import MODEL_FILE
from medisent.config import ObjectiveSettings, Study, Supervision, Weights, differences, dump_study
from medisent.files import PARTIAL
from medisent.training import CHECKPOINT

CLOCK = {"seconds", "scans_a_second"}
"""What a record of the log reads from a clock."""


@pytest.fixture(scope="module")
def learning(study: Study) -> Study:
    """The study with all its scans for training, so that nothing but training takes time."""
    table = study.cohort.table.with_name("all_training.tsv")
    text = study.cohort.table.read_text(encoding="utf-8")
    table.write_text(text.replace("\tvalidation\t", "\ttrain\t").replace("\ttest\t", "\ttrain\t"), encoding="utf-8")
    return replace(study, cohort=replace(study.cohort, table=table), training=replace(study.training, steps=6))


def begun(server: Server, folder: Path, study: Study, run: str, **environment: str) -> int:
    """The process of a training in a folder."""
    name = f"{run}{environment.get('RANK', '')}"
    (folder / f"{name}.toml").write_text(dump_study(study), encoding="utf-8")
    words = ("train", folder / f"{name}.toml", "-o", run, "--device", "cpu")
    return server.begin(folder, *words, log=name, environment=environment, slowly=True)


def trained(server: Server, folder: Path, study: Study, run: str) -> tuple[bytes, list[dict[str, object]]]:
    """What a training that runs to its end leaves."""
    assert server.end(begun(server, folder, study, run)) == 0, (folder / f"{run}.err").read_text()
    return outcome(folder / run)


def outcome(run: Path) -> tuple[bytes, list[dict[str, object]]]:
    """The bytes of a run's model, and its log without what is read from a clock."""
    assert not [path.name for path in run.iterdir() if path.name.startswith(PARTIAL)]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]
    return (run / MODEL_FILE).read_bytes(), log


def killed(server: Server, process: int, number: int = signal.SIGKILL) -> int:
    """How a process ended that was sent a signal."""
    with suppress(ProcessLookupError):
        kill(process, number)
    return server.end(process)


def until_written(run: Path, checkpoints: int) -> None:
    """Wait until a process is in the midst of writing a checkpoint, after so many others; or has ended."""
    given_up = time.monotonic() + 120
    left, before, seen = set(run.glob(f"{PARTIAL}*")), _written(run), 0
    while time.monotonic() < given_up and not (run / MODEL_FILE).exists():
        now = _written(run)
        seen, before = seen + (now != before), now
        begun = set(run.glob(f"{PARTIAL}*.safetensors")) - left
        if seen >= checkpoints and any(_size(path) for path in begun):
            return
        time.sleep(0.001)


def _written(run: Path) -> int:
    """Which checkpoint it is."""
    with suppress(FileNotFoundError):
        return (run / CHECKPOINT).stat().st_mtime_ns
    return 0


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def test_a_run_killed_inside_a_checkpoint_and_stopped_by_a_signal_ends_as_if_it_had_not_been(
    server, learning, tmp_path
):
    wanted = trained(server, tmp_path, learning, "whole")
    process = begun(server, tmp_path, learning, "run")
    until_written(tmp_path / "run", 2)
    assert killed(server, process) == -signal.SIGKILL
    assert not (tmp_path / "run" / MODEL_FILE).exists()
    process = begun(server, tmp_path, learning, "run")
    until_written(tmp_path / "run", 1)
    assert killed(server, process, signal.SIGTERM) == 130
    assert "after step" in (tmp_path / "run.err").read_text()
    assert trained(server, tmp_path, learning, "run") == wanted


@pytest.mark.slow
def test_twenty_kills_over_ten_runs_change_no_bit(server, learning, tmp_path):
    learning = replace(learning, training=replace(learning.training, steps=12))
    start = time.monotonic()
    wanted = trained(server, tmp_path, learning, "whole")
    whole = time.monotonic() - start
    chance = random.Random(0)
    ended: list[int] = []
    for number in range(10):
        run = f"run{number}"
        while len(ended) < 2 * number + 2:
            process = begun(server, tmp_path, learning, run)
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, whole))
            else:
                until_written(tmp_path / run, chance.randint(1, 4))
                time.sleep(chance.uniform(0, 0.08))
            code = killed(server, process)
            assert code in (0, -signal.SIGKILL)
            if code == 0:  # it was faster
                assert outcome(tmp_path / run) == wanted
                for path in (tmp_path / run).iterdir():
                    path.unlink()
            else:
                ended.append(code)
        assert trained(server, tmp_path, learning, run) == wanted
    assert ended == 20 * [-signal.SIGKILL]


# Several processes


def crew(server: Server, folder: Path, study: Study, size: int) -> list[int]:
    """How processes ended that trained together in the folder ``crew``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        begun(server, folder, study, "crew", **meeting, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)
    ]
    return [server.end(process) for process in processes]


def wider(study: Study) -> Study:
    """The study with two channels in each group that is normalised.

    Where there is one, its bias changes nothing and its gradient is rounding alone, which the optimiser makes large.
    """
    return replace(study, network=replace(study.network, width=8))


def apart(one: Path, other: Path) -> float:
    """How far the weights of two checkpoints are apart, relative to their size."""
    ours, theirs = (load_file(run / CHECKPOINT) for run in (one, other))
    names = [name for name, tensor in ours.items() if name.startswith("network.") and tensor.is_floating_point()]
    off = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in names)
    return (off / sum(float(ours[name].double().square().sum()) for name in names)) ** 0.5


@pytest.mark.parametrize("kind", ["groups", "clamp"])
def test_two_processes_with_half_of_the_scans_each_learn_what_one_learns_with_all(server, learning, tmp_path, kind):
    grouped = replace(
        wider(learning),
        supervision=(Supervision(kind=kind, by="site", share=("nuisance",)),),
        weights=replace(learning.weights, total_correlation=1.0, guard=1.0, differences=1.0),
        objective=ObjectiveSettings(queue=16),
    )
    trained(server, tmp_path, grouped, "one")
    assert crew(server, tmp_path, grouped, 2) == [0, 0]
    assert 0 < apart(tmp_path / "one", tmp_path / "crew") < 1e-4
    assert (tmp_path / "crew0.out").read_text()
    assert not (tmp_path / "crew1.out").read_text()
    assert not (tmp_path / "crew1.err").read_text()


def test_a_step_that_cannot_be_shared_evenly_is_refused_once(server, learning, tmp_path):
    odd = replace(learning, training=replace(learning.training, batch=3))
    assert crew(server, tmp_path, odd, 2) == [3, 3]
    said = [(tmp_path / f"crew{rank}.err").read_text() for rank in range(2)]
    assert sum("cannot share evenly" in text for text in said) == 1


VARIANTS = {
    "plain": {},
    "terms": {"weights": {"total_correlation", "hsic", "adversary", "density_ratio", "dip_one", "dip_two", "guard"}},
    "capacity": {"objective": ObjectiveSettings(capacity=1.0)},
    "clamp": {"supervision": Supervision(kind="clamp", by="site", share=("anatomy",))},
    "pairs": {"supervision": Supervision(kind="pairs", by="site", share=("anatomy",))},
    "ranks": {"supervision": Supervision(kind="ranks", by="site", share=("head_size",), order="head_size_mm")},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_steps_of_two_processes_are_those_of_one(server, learning, tmp_path, variant):
    said = VARIANTS[variant]
    wanted = replace(
        wider(learning),
        supervision=tuple(value for name, value in said.items() if name == "supervision"),
        weights=replace(Weights(), **dict.fromkeys(said.get("weights", ()), 1.0)),
        objective=said.get("objective", ObjectiveSettings(queue=32)),
        # What a pair shares is decided by a threshold, which rounding crosses sooner or later.
        training=replace(learning.training, steps=25 if variant == "pairs" else 50),
    )
    trained(server, tmp_path, wanted, "one")
    assert crew(server, tmp_path, wanted, 2) == [0, 0]
    assert apart(tmp_path / "one", tmp_path / "crew") < 1e-4


# What changed


def test_studies_differ_in_the_settings_that_were_changed_and_no_other(study):
    other = replace(study, training=replace(study.training, batch=8), factors=study.factors[:-1])
    found = differences(study, other)
    assert "[training] batch: 4 there, 8 here" in found
    assert "[[factors]] brightness kind: positive there, nothing here" in found
    assert all(text.startswith(("[training] batch", "[[factors]] brightness")) for text in found)
    assert differences(study, study) == []
