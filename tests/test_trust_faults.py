"""Laws of bad days: a killed, hindered or crowded run leaves whole files of one run, and says what was in its way."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest

from medisent.cohorts import read_table
from medisent.exports import voxels_digest
from medisent.files import file_digest
from medisent.formats import read
from medisent.phantoms import write_cohort

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> list[Path]:
    """Eight scans of 32 x 32 x 32 voxels."""
    out = tmp_path_factory.mktemp("heads")
    table = write_cohort(out, subjects=8, seed=5, spacing_mm=6.0, shape=(32, 32, 32))
    return [table.parent / name for name in read_table(table)["scan"]]


@pytest.fixture
def asked(model_file) -> list[str]:
    return ["--model", str(model_file), "--device", "cpu", "--quiet"]


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A disk of 300 kB, in memory."""
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k,mode=777", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def final(out: Path) -> dict[str, Path]:
    """What stands under final names."""
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if not any(part.startswith(".") for part in Path(name).parts)}


def hidden(out: Path) -> list[str]:
    return [str(path.relative_to(out)) for path in out.rglob(".*")]


def run_of(out: Path) -> str | None:
    """The scan whose explanation this is, once every file is found whole and of it; None if there is none at all."""
    found = final(out)
    if not found:
        return None
    for name, path in found.items():
        if name.endswith(".gz"):
            gzip.decompress(path.read_bytes())
    hashes = {name: file_digest(path) for name, path in found.items() if name != "manifest.json"}
    if "manifest.json" not in found:  # killed while one run takes the place of another: all that is there is of one
        records = [out / ".medisent-ready" / name for name in ("before", "new/manifest.json", "moving/manifest.json")]
        told = [json.loads(path.read_text(encoding="utf-8")) for path in records if path.is_file()]
        (run,) = [run for run in told if hashes.items() <= run["outputs"].items()]
        return str(run["inputs"]["scan_voxels_sha256"])
    run = json.loads(found["manifest.json"].read_text(encoding="utf-8"))
    assert hashes == run["outputs"]
    scan = json.loads(found["factors.json"].read_text(encoding="utf-8"))["scan"]
    assert scan == run["inputs"]["scan_voxels_sha256"]
    return str(scan)


def test_twenty_kills_during_export_leave_whole_files_of_one_run(server, scans, asked, tmp_path):
    out, chance = tmp_path / "out", np.random.default_rng(0)

    def begin(number: int) -> int:
        return server.begin(tmp_path, "explain", scans[number % 2], "-o", out, *asked)

    began = time.monotonic()
    assert server.end(begin(0)) == 0
    whole = time.monotonic() - began
    first = run_of(out)
    seen = {first}
    for number in range(1, 21):
        process, before = begin(number), {path.name for path in out.glob(".partial-*")}
        while not {path.name for path in out.glob(".partial-*")} - before:
            assert Path(f"/proc/{process}/wchan").exists()
            assert "Z" not in Path(f"/proc/{process}/stat").read_text(encoding="ascii").split()[2]
            time.sleep(0.01)
        time.sleep(float(chance.uniform(0, whole)))
        os.kill(process, SIGKILL)
        server.end(process)
        seen.add(run_of(out))
    assert None not in seen
    assert server.end(begin(1)) == 0
    assert run_of(out) != first
    assert hidden(out) == []


def test_eight_runs_at_once_into_one_folder_leave_one_of_them(server, scans, asked, tmp_path):
    out = tmp_path / "out"
    running = [server.begin(tmp_path, "explain", s, "-o", out, *asked, log=f"{i}") for i, s in enumerate(scans)]
    edits = [
        server.begin(tmp_path, "counterfactual", s, "-o", tmp_path / "edit.nii.gz", *asked, log=f"edit{i}")
        for i, s in enumerate(scans)
    ]
    assert [server.end(process) for process in (*running, *edits)] == [0] * 16
    assert run_of(out) is not None
    assert hidden(out) == []
    told = json.loads((tmp_path / "edit.json").read_text(encoding="utf-8"))
    edited = read(tmp_path / "edit.nii.gz")  # of nothing: the scan itself
    assert told["SourceVoxelsSHA256"] == voxels_digest(edited)


def test_a_full_disk_is_said_and_nothing_half_is_left(server, scans, asked, small, tmp_path):
    assert server.run(tmp_path, "encode", scans[0], "-o", small / "codes.tsv", *asked) == 0
    codes = (small / "codes.tsv").read_bytes()
    (small / "ballast").write_bytes(bytes(280_000))
    for command, target in (("explain", "out"), ("counterfactual", "c.nii"), ("harmonize", "h.nii")):
        assert server.run(tmp_path, command, scans[0], "-o", small / target, *asked) == 4, command
        said = (tmp_path / "log.err").read_text(encoding="utf-8")
        assert "cannot be written: No space left on device. Make room" in said, command
        assert ".partial" not in said
        assert len(said.splitlines()) == 1
        assert set(final(small)) == {"codes.tsv", "ballast"}
        assert hidden(small) == []
    (small / "ballast").write_bytes(bytes(298_000))
    assert server.run(tmp_path, "encode", *scans * 4, "-o", small / "codes.tsv", *asked) == 4
    assert (small / "codes.tsv").read_bytes() == codes


def test_a_training_on_a_full_disk_says_so_and_keeps_its_checkpoint(server, study, small, tmp_path):
    from medisent.config import dump_study

    (tmp_path / "study.toml").write_text(dump_study(study), encoding="utf-8")
    assert server.run(tmp_path, "train", "study.toml", "-o", small / "run", "--device", "cpu", "-q") == 4
    assert "No space left on device" in (tmp_path / "log.err").read_text(encoding="utf-8")
    assert set(final(small)) <= {"run/study.toml", "run/training.html"}  # the page says that it failed
    assert hidden(small) == []


def test_a_limit_on_the_size_of_files_is_said(server, scans, asked, tmp_path):
    assert server.run(tmp_path, "explain", scans[0], "-o", "out", *asked, size=20_000) == 4
    assert "File too large. Raise the limit" in (tmp_path / "log.err").read_text(encoding="utf-8")
    assert final(tmp_path / "out") == {}


def test_a_disk_that_may_only_be_read_is_said(server, scans, asked, small, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    targets = {"explain": "out", "counterfactual": "c.nii", "harmonize": "h.nii", "encode": "codes.tsv"}
    for command, target in targets.items():
        assert server.run(tmp_path, command, scans[0], "-o", small / target, *asked) == 4, command
        said = (tmp_path / "log.err").read_text(encoding="utf-8")
        assert "cannot be written: Read-only file system" in said
        assert len(said.splitlines()) == 1
    assert final(small) == {}


def test_too_little_memory_is_said_and_nothing_half_is_left(server, scans, asked, tmp_path):
    held = int(Path(f"/proc/{server.process.pid}/statm").read_text(encoding="ascii").split()[0]) * os.sysconf(
        "SC_PAGE_SIZE"
    )
    ended = []
    for number, more in enumerate((2, 8, 24, 64, 4096)):
        out = tmp_path / f"{number}"
        ended.append(server.run(tmp_path, "explain", scans[0], "-o", out, *asked, memory=held + (more << 20)))
        said = (tmp_path / "log.err").read_text(encoding="utf-8")
        if ended[-1] == 0:
            assert run_of(out) is not None
        else:
            assert (ended[-1], final(out) if out.is_dir() else {}) == (4, {}), (more, said)
            assert "memory" in said
            assert "Traceback" not in said
    assert ended[0] == 4
    assert ended[-1] == 0


@pytest.mark.parametrize(
    "name",
    [
        *("Größe_Ж_脳_🧠", "with space ' \" $HOME *?;&", "-begins with a dash", "newline\nin it", "ends with dot."),
        *("x" * 255, "é" * 127, "~", "%2e%2e", "CON", "a" * 120 + ".nii.gz.d", "\udcff\udcfe not text"),
    ],
)
def test_odd_names_of_outputs_are_written_or_refused(server, scans, asked, tmp_path, name):
    out = tmp_path / name / "below"
    assert server.run(tmp_path, "explain", scans[0], "-o", out, *asked) == 0
    assert run_of(out) is not None
    edited = tmp_path / name / "c.nii.gz"
    assert server.run(tmp_path, "counterfactual", scans[0], "-o", edited, "--json", *asked) == 0
    assert {path.name for path in (tmp_path / name).iterdir()} == {"below", "c.nii.gz", "c.json"}
    assert json.loads((tmp_path / "log.out").read_text(encoding="utf-8"))["out"]


def test_names_that_are_too_long_are_refused(server, scans, asked, tmp_path):
    for target in ("x" * 256, "/".join(["x" * 200] * 21)):
        for command, ending in (("explain", ""), ("counterfactual", ".nii.gz"), ("encode", "")):
            assert server.run(tmp_path, command, scans[0], "-o", target + ending, *asked) == 4, command
            said = (tmp_path / "log.err").read_text(encoding="utf-8")
            assert "File name too long. Choose a shorter name." in said or "a name has 255 at most" in said
    assert {path.suffix for path in final(tmp_path).values()} == {".out", ".err"}
