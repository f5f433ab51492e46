"""Laws of writing: whole files under their final names, or nothing."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from medisent.errors import MachineError
from medisent.files import digests, only_process, whole_file, whole_folder, write_text


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_takes_its_name_when_the_block_ends(tmp_path):
    with whole_file(tmp_path / "deep" / "scan.nii.gz") as temporary:
        temporary.write_bytes(b"voxels")
        assert temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "deep" / "scan.nii.gz").exists()
    assert (tmp_path / "deep" / "scan.nii.gz").read_bytes() == b"voxels"
    assert leftovers(tmp_path / "deep") == ["scan.nii.gz"]


def test_a_failed_block_leaves_what_was_there_before(tmp_path):
    target = tmp_path / "table.tsv"
    target.write_text("old")

    def fail() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["table.tsv"]


def test_a_written_file_is_readable_as_the_umask_says(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "written", "words")
    assert (tmp_path / "written").stat().st_mode == plain.stat().st_mode


def publish(out: Path, files: dict[str, str], command: str = "explain") -> None:
    """One run: files, and a record of them."""
    with whole_folder(out, record="manifest.json") as place:
        for name, text in files.items():
            write_text(place / name, text)
        write_text(place / "manifest.json", json.dumps({"command": command, "outputs": digests(place)}))


def contents(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): p.read_text() for p in sorted(out.rglob("*")) if p.is_file()}


def test_a_whole_folder_appears_when_the_block_ends_and_other_files_stay(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier.txt").write_text("stays")
    (out / "report.html").write_text("old")
    with whole_folder(out, record="report.html") as temporary:
        write_text(temporary / "maps" / "gain.txt", "map")
        (temporary / "report.html").write_text("new")
        assert contents(out)["report.html"] == "old"
        assert not (out / "maps").exists()
    assert contents(out) == {"earlier.txt": "stays", "maps/gain.txt": "map", "report.html": "new"}


def test_a_run_takes_the_place_of_the_run_before_and_of_nothing_else(tmp_path):
    publish(tmp_path, {"report.html": "1", "maps/gone.txt": "1", "maps/mine.txt": "1", "edits/gone.txt": "1"})
    (tmp_path / "maps" / "mine.txt").write_text("changed by hand")
    (tmp_path / "notes.txt").write_text("mine, too")
    publish(tmp_path, {"report.html": "2"})
    found = contents(tmp_path)
    del found["manifest.json"]
    assert found == {"report.html": "2", "maps/mine.txt": "changed by hand", "notes.txt": "mine, too"}
    assert not (tmp_path / "edits").exists()


def test_what_another_command_wrote_stays(tmp_path):
    publish(tmp_path, {"model.safetensors": "weights"}, command="train")
    publish(tmp_path, {"report.html": "1"})
    assert contents(tmp_path)["model.safetensors"] == "weights"


def test_a_record_that_names_files_elsewhere_costs_none_of_them(tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    outside.write_text("safe")
    publish(out, {"report.html": "1"})
    (out / "link").symlink_to(tmp_path)
    names = ["../outside.txt", str(outside), "link/outside.txt"]
    outputs = dict.fromkeys(names, hashlib.sha256(b"safe").hexdigest())
    (out / "manifest.json").write_text(json.dumps({"command": "explain", "outputs": outputs}))
    publish(out, {"report.html": "2"})
    assert outside.read_text() == "safe"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": "explain", "outputs": 3}', "[" * 100_000, "\xff"])
def test_a_record_that_is_none_is_replaced(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    publish(tmp_path, {"report.html": "1"})
    assert json.loads(contents(tmp_path)["manifest.json"])["outputs"].keys() == {"report.html"}


def test_a_failed_folder_leaves_what_was_there_before(tmp_path):
    publish(tmp_path, {"report.html": "old"})
    before = contents(tmp_path)

    def fail() -> None:
        with whole_folder(tmp_path, record="manifest.json") as temporary:
            (temporary / "report.html").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert contents(tmp_path) == before
    (tmp_path / "table").mkdir()
    with pytest.raises(MachineError, match="table in it is a folder"):
        publish(tmp_path, {"report.html": "new", "table": "new"})
    assert contents(tmp_path) == before


def test_a_refusal_names_the_place_that_was_asked_for(tmp_path):
    def fail() -> None:
        with whole_folder(tmp_path / "out", record="x") as place, whole_file(place / "maps" / "gain.nii"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(MachineError, match=r"out cannot be written: No space left on device\. Make room") as caught:
        fail()
    assert ".partial" not in str(caught.value)


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MachineError, match="not a file"):
        write_text(tmp_path / "pipe", "words")
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "table.tsv")
    write_text(tmp_path / "link", "words")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "table.tsv").read_text() == "words"


def test_a_folder_has_one_process_at_a_time(tmp_path):
    with only_process(tmp_path, "at it"):
        with pytest.raises(MachineError, match=r"another process is at it\. Wait"), only_process(tmp_path, "at it"):
            pytest.fail("it is in use")
        publish(tmp_path, {"report.html": "1"})
    with only_process(tmp_path, "at it"):
        pass
    assert leftovers(tmp_path) == ["manifest.json", "report.html"]


# Processes that die, and processes that meet. They are forked by a small process of their own.

DYING = """
import json, os, sys, pathlib
from medisent.files import digests, whole_folder, write_text

def publish(out, run, names):
    with whole_folder(out, record="manifest.json") as place:
        for name in names:
            write_text(place / name, f"{run} {name}")
        write_text(place / "manifest.json", json.dumps({"command": "c", "outputs": digests(place), "run": run}))

def contents(out):
    return {str(p.relative_to(out)): p.read_text() for p in out.rglob("*")
            if p.is_file() and "medisent-" not in str(p.relative_to(out))}

def dies_at(step, out):  # whether the process died before it was done
    child = os.fork()
    if child == 0:
        left = [step]
        def count(event, arguments):
            writes = event == "open" and (arguments[1] is None or set(arguments[1]) & set("wax+"))
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), 9)
        sys.addaudithook(count)
        publish(out, "new", ["maps/a", "maps/c", "report"])
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def in_another(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

step, seen = 0, set()
root = pathlib.Path(sys.argv[1])
while True:
    out = root / str(step)
    in_another(lambda: publish(out, "old", ["maps/a", "maps/b", "report"]))
    died = dies_at(step, out)
    found = contents(out)
    runs = {text.split()[0] for name, text in found.items() if name != "manifest.json"}
    if "manifest.json" in found:
        told = json.loads(found["manifest.json"])
        assert set(found) == {*told["outputs"], "manifest.json"}, (step, found)
        assert runs == {told["run"]}, (step, found)
    assert len(runs) <= 1, (step, found)
    seen.add((*sorted(runs), "manifest.json" in found))
    def table():
        write_text(out / "table", "words")  # any later writer finishes or removes what was left
    in_another(table)
    found = contents(out)
    told = json.loads(found["manifest.json"])
    assert set(found) == {*told["outputs"], "manifest.json", "table"}, (step, found)
    left = [p.name for p in out.rglob(".*")]
    assert not left, (step, left)
    if not died:
        break
    step += 1
assert {("old", True), ("new", True), ("new", False)} <= seen, seen
print(step)
"""

MEETING = """
import json, os, sys, pathlib
from medisent.files import digests, whole_folder, write_text

out = pathlib.Path(sys.argv[1])
children = []
for run in range(8):
    child = os.fork()
    if child == 0:
        for turn in range(3):
            with whole_folder(out, record="manifest.json") as place:
                for name in ("report", f"maps/{run}", "maps/all"):
                    write_text(place / name, f"{run} {turn}")
                write_text(place / "manifest.json", json.dumps({"command": "c", "outputs": digests(place)}))
            write_text(out / "table", f"{run} {turn} " * 1000)
        os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: waiting for a disk is not what these tests are about."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


def test_a_process_killed_at_any_step_leaves_one_run_and_the_next_writer_nothing_else(memory):
    done = subprocess.run([sys.executable, "-c", DYING, memory], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30  # places at which it was killed


def test_eight_processes_that_write_into_one_folder_leave_one_run(memory):
    done = subprocess.run([sys.executable, "-c", MEETING, memory], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = contents(memory)
    assert len(set(found.pop("table").strip().split(" "))) <= 2  # the number of one run, and of one of its turns
    told = json.loads(found.pop("manifest.json"))["outputs"]
    assert told.keys() == found.keys()
    assert len(set(found.values())) == 1
    assert len(found) == 3


def test_what_a_living_process_writes_is_not_swept_away(tmp_path):
    with whole_folder(tmp_path, record="report") as place, whole_file(tmp_path / "table") as temporary:
        (place / "report").write_text("1")
        temporary.write_text("2")
        code = "import sys, pathlib, medisent.files as f; f.write_text(pathlib.Path(sys.argv[1]) / 'other', '3')"
        subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=60)
    assert contents(tmp_path) == {"report": "1", "table": "2", "other": "3"}


@pytest.mark.parametrize("writer", [whole_file, partial(whole_folder, record="x")])
def test_a_place_that_cannot_be_written_is_a_fault_of_the_machine(tmp_path, writer):
    (tmp_path / "file").touch()

    def write() -> None:
        with writer(tmp_path / "file" / "below"):
            pytest.fail("there is nowhere to write")

    with pytest.raises(MachineError, match=r"cannot be written: .+\. Choose another place") as caught:
        write()
    assert caught.value.exit_code == 4
