"""Laws of Dask: workers give what this process gives, a dead worker costs nothing, and nobody else is let in."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from medisent.cli import main

distributed = pytest.importorskip("distributed")

COMMANDS = {"encode": ("codes.tsv", 40), "harmonize": ("moved", 40), "explain": ("explained", 10)}


@pytest.fixture
def forty(tmp_path, cohort, monkeypatch):
    """A folder of forty scans to work beside; the seventh is torn."""
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    for number in range(40):
        path = shutil.copy(cohort.rows[number % len(cohort.rows)].scan, f"scans/{number:02}.nii.gz")
        if number == 6:
            os.truncate(path, 1000)
    return Path("scans")


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def refused(capsys, *arguments, code):
    assert main(["encode", "x.nii", "--model", "rendered-heads", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize("where", ["local", "local:0", "head:8786", "file:///etc/passwd", "tcp://head"])
def test_workers_that_are_nowhere_are_refused(where, capsys):
    assert "local:N" in refused(capsys, "--dask", where, code=2)


def test_a_scheduler_that_does_not_answer_and_a_dask_that_is_not_there_are_told(capsys, monkeypatch):
    monkeypatch.setattr("medisent.many.cluster._ANSWER_S", 1)
    said = refused(capsys, "--dask", "tcp://127.0.0.1:9", code=4)
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in said
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'medisent[dask]'" in refused(capsys, "--dask", "local:2", code=4)


def test_a_scheduler_that_listens_elsewhere_is_given_the_work(forty, model_file, capsys):
    scans = [str(forty / f"{number:02}.nii.gz") for number in (5, 6, 7)]
    asked = ["encode", *scans, "--model", str(model_file), "--device", "cpu", "-q"]
    anywhere = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", scheduler_kwargs=anywhere
    ) as machines:
        assert main([*asked, "-o", "there.tsv", "--dask", machines.scheduler_address]) == 3
    assert main([*asked, "-o", "here.tsv"]) == 3
    assert Path("there.tsv").read_bytes() == Path("here.tsv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_workers_of_whom_one_is_killed_give_the_bytes_of_one_process(command, forty, model_file, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    asked = [command, "--folder", str(forty), "--model", str(model_file), "--device", "cpu", "-q", "-o"]
    out, count = COMMANDS[command]
    for scan in sorted(forty.iterdir())[count:]:
        scan.unlink()
    assert main([*asked, out]) == 3
    Path("there").mkdir()
    killed, heard = [], set()
    murder = threading.Thread(target=kill_one, args=(Path("there"), killed, heard))
    murder.start()
    assert main([*asked, f"there/{out}", "--dask", "local:2"]) == 3
    murder.join()
    assert killed
    assert heard == {"127.0.0.1"}, "nothing listens to other machines"
    assert contents(Path("there") / out) == contents(Path(out))


def kill_one(place, killed, heard):
    """Kill the process that works hardest once some scans are done; the interfaces that anything listens on."""
    until = time.monotonic() + 240
    while time.monotonic() < until and sum(1 for _ in place.rglob("*.json")) < 6:
        time.sleep(0.05)
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    for process in family:
        heard |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    workers = [p for p in family[1:] if "spawn_main" in " ".join(p.cmdline())]
    hardest = max(workers, key=lambda p: sum(p.cpu_times()[:2]))
    os.kill(hardest.pid, signal.SIGKILL)
    killed.append(hardest.pid)
