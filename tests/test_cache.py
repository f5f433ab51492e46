"""Laws of the cache: what comes out of it is what was loaded, whatever happened to its files in between."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medisent.cohorts import Cohort, Row, load_cohort
from medisent.errors import CohortError, FormatError
from medisent.factors import Positive
from medisent.grids import Grid
from medisent.progress import Silence
from medisent.stores import Store, store_folder, usual_store
from medisent.training import load_split

TUMOUR = Positive(name="tumour", role="anatomy", unit="mL", column="ml", mask="mask")
GRID = Grid(6.0, (4, 3, 2))
CANARY = "DOE-JANE-1970"


class Loader:
    """Makes numbers of a file's bytes, and counts how often it is asked."""

    def __init__(self, fails=(), killed_at=None):
        self.asked, self.fails, self.killed_at = 0, fails, killed_at

    def __call__(self, item):
        self.asked += 1
        if self.asked == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if item["scan"].name in self.fails:
            raise FormatError(f"{item['scan'].name} is not a scan.")
        scan = torch.from_numpy(np.frombuffer(item["scan"].read_bytes(), np.uint8)[:24].astype(np.float32) / 7)
        mask = torch.full((1, 4, 3, 2), torch.nan if item["tumour"] is None else 0.25)
        return {"scan": scan.reshape(1, 4, 3, 2), "coverage": mask + 1, "log_scale": scan.sum(), "tumour": mask}


def rows(folder: Path, count: int = 5) -> Cohort:
    """Scans of random bytes, every other one with a mask."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    found = []
    for index in range(count):
        scan, mask = folder / f"{CANARY}-{index}.nii", folder / f"mask-{index}.nii"
        scan.write_bytes(rng.bytes(100))
        mask.write_bytes(rng.bytes(50))
        masks = {"tumour": mask if index % 2 else None}
        found.append(Row(scan, f"{CANARY}-{index}", "train", (float(index),), masks, (), ()))
    return Cohort(tuple(found), (TUMOUR,))


@pytest.fixture
def cohort(tmp_path):
    return rows(tmp_path / "scans")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache", GRID)


def load(cohort, store=None, loader=None):
    return load_cohort(cohort, loader or Loader(), 0.216, store=store)


def same(one, other):
    return all(
        torch.equal(getattr(one, f.name).nan_to_num(-9), getattr(other, f.name).nan_to_num(-9)) for f in fields(one)
    )


def asked(cohort, store):
    loader = Loader()
    batch = load(cohort, store, loader)
    assert same(batch, load(cohort))
    return loader.asked


def stacks(store):
    return sorted(path.name for path in store.folder.glob("[!.]*.stack"))


def test_what_was_loaded_once_comes_back_mapped_value_for_value(cohort, store):
    assert [asked(cohort, store), asked(cohort, store)] == [5, 0]
    told = []
    batch = load_cohort(cohort, Loader(), 0.216, lambda done, total: told.append((done, total)), store)
    assert told == [(index + 1, 5) for index in range(5)]
    assert batch.scan.is_contiguous()
    batch.scan[0] = 0  # a copy of one's own
    assert asked(cohort, store) == 0


def test_real_scans_are_the_same_bit_for_bit_with_and_without(study, cohort_table, monkeypatch, tmp_path):
    from medisent.training import study_cohort

    part = study_cohort(study).of("train")
    plain = load_split(study, part, Silence(), "")
    monkeypatch.setenv("MEDISENT_CACHE", str(tmp_path / "cache"))
    assert same(plain, load_split(study, part, Silence(), ""))
    monkeypatch.setattr("medisent.training.splits.loading", lambda *a, **k: pytest.fail)
    assert same(plain, load_split(study, part, Silence(), ""))


@pytest.mark.parametrize("where", ["header", "scan", "mask", "last", "short", "long", "empty", "digests"])
def test_a_damaged_stack_is_made_again(cohort, store, where):
    asked(cohort, store)
    path = store.folder / (stacks(store)[0] if where != "digests" else "digests.json")
    whole = path.read_bytes()
    at = {"header": 3, "scan": 4100, "mask": 4096 + 1300, "last": -1, "digests": 20}.get(where, 0)
    damaged = bytearray(whole)
    damaged[at] ^= 1
    path.write_bytes({"short": whole[:-4], "long": whole + b"\0\0\0\0", "empty": b""}.get(where, bytes(damaged)))
    assert asked(cohort, store) == (5 if where != "digests" else 0)
    assert asked(cohort, store) == 0
    assert len(stacks(store)) == 1


def test_another_grid_air_mask_or_order_is_another_stack(cohort, store):
    files = [(row.scan, row.masks["tumour"]) for row in cohort.rows]
    others = [
        replace(store, grid=Grid(5.0, GRID.shape)),
        replace(store, grid=Grid(6.0, (4, 2, 3))),
        replace(store, air=-1000.0),
    ]
    keys = {store.key(files), *(other.key(files) for other in others)}
    keys |= {store.key(files[::-1]), store.key([(scan, None) for scan, _ in files]), store.key([files[0]])}
    assert len(keys) == 7


def test_a_changed_file_is_seen_though_size_and_time_are_the_same(cohort, store):
    asked(cohort, store)
    scan = cohort.rows[2].scan
    before = scan.stat()
    scan.write_bytes(scan.read_bytes()[::-1])
    os.utime(scan, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert asked(cohort, store) == 5


def test_what_is_touched_moved_or_copied_is_the_same(cohort, store, tmp_path):
    asked(cohort, store)
    cohort.rows[0].scan.touch()
    assert asked(cohort, store) == 0
    shutil.copytree(tmp_path / "scans", tmp_path / "copy")
    moved = [replace(r, scan=tmp_path / "copy" / r.scan.name) for r in cohort.rows]
    assert asked(replace(cohort, rows=tuple(moved)), store) == 0


def test_a_folder_of_images_is_one_scan_that_changes_with_any_of_them(cohort, store, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for index in range(3):
        (series / f"{index}.dcm").write_bytes(bytes([index] * 9))
    first = store.key([(series,)])
    assert store.key([(series,)]) == first
    (series / "3.dcm").write_bytes(b"new")
    assert store.key([(series,)]) != first


def apart(work, count=1):
    """Run the work in processes of their own; their exit codes."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=work) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


def test_processes_that_fill_it_together_leave_one_whole_stack(cohort, store):
    assert apart(lambda: load(cohort, store), 4) == [0] * 4
    assert asked(cohort, store) == 0
    assert sorted(p.name for p in store.folder.iterdir()) == sorted([*stacks(store), "digests.json"])
    assert len(stacks(store)) == 1


@pytest.mark.parametrize("at", [1, 3, 5])
def test_who_is_killed_while_writing_leaves_nothing_broken(cohort, store, at):
    assert apart(lambda: load(cohort, store, Loader(killed_at=at))) == [-signal.SIGKILL]
    assert stacks(store) == []
    partial = next(store.folder.glob(".partial-*"))
    assert asked(cohort, store) == 5
    assert asked(cohort, store) == 0
    assert not partial.exists()


def test_no_name_stands_in_it(cohort, store):
    asked(cohort, store)
    for path in store.folder.rglob("*"):
        assert CANARY not in path.name
        content = path.read_bytes()
        assert CANARY.encode() not in content
        assert b"scans" not in content


def test_scans_that_are_refused_are_all_named_and_nothing_is_kept(cohort, store):
    fails = [cohort.rows[index].scan.name for index in (1, 3)]
    with pytest.raises(CohortError, match=r"2 of 5 scans.*-1\.nii.*-3\.nii"):
        load(cohort, store, Loader(fails))
    assert stacks(store) == []


def test_without_room_for_it_scans_are_loaded_all_the_same(cohort, store, tmp_path):
    (tmp_path / "file").touch()
    assert asked(cohort, replace(store, folder=tmp_path / "file" / "below")) == 5


def test_scans_that_change_while_they_are_read_are_refused(cohort, store):
    class Changing(Loader):
        def __call__(self, item):
            cohort.rows[0].scan.write_bytes(bytes(100))
            return super().__call__(item)

    with pytest.raises(CohortError, match="changed while"):
        load(cohort, store, Changing())
    assert stacks(store) == []


def test_beyond_its_limit_what_was_not_used_for_longest_goes(cohort, store, tmp_path):
    small = replace(store, limit=3 * 4096 + 3000)
    parts = [Cohort(cohort.rows[index : index + 1], cohort.factors) for index in range(4)]
    for age, part in enumerate(parts[:3]):
        asked(part, small)
        newest = max(store.folder.glob("[!.]*.stack"), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (1000 + age, 1000 + age))
    assert asked(parts[0], small) == 0  # which makes the second the oldest
    assert asked(parts[3], small) == 1
    assert [asked(part, replace(small, limit=1 << 20)) for part in parts] == [0, 1, 0, 0]


def test_formats_whose_voxels_lie_elsewhere_are_not_kept(store, tmp_path):
    for name in ("a.hdr", "a.IMG.gz", "a.mhd", "a.nhdr"):
        (tmp_path / name).touch()
        assert store.key([(tmp_path / name,)]) is None


def test_where_it_is_can_be_said_or_it_can_be_left_out(monkeypatch, tmp_path):
    assert usual_store(GRID, 0.0) is None  # as the tests have it
    monkeypatch.setenv("MEDISENT_CACHE", str(tmp_path))
    assert store_folder() == tmp_path
    monkeypatch.delenv("MEDISENT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store_folder() == tmp_path / "xdg" / "medisent"
