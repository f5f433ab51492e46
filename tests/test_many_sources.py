"""Laws of batches: which scans are meant, what they are called, what a killed run leaves is gone on with."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_series import write_series
from hypothesis import given
from hypothesis import strategies as st

from medisent.cli import main
from medisent.errors import CohortError, FormatError
from medisent.formats.folder import Found, scans_in
from medisent.many import Encoding, Explaining, Looking, ModelFile, Moving, Source, sources_of, unique_names
from medisent.volumes import Volume

NAMES = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join), min_size=1, max_size=6)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def head(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).uniform(1, 100, (8, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([20.0, 20.0, 20.0, 1.0])), path)


def ran(capsys, *arguments, code=0):
    assert main([*map(str, arguments), "--device", "cpu", "--json", "-q"]) == code
    return json.loads(capsys.readouterr().out)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_is_searched_for_files_and_series_but_not_for_masks_and_results(here):
    for name in ("b/x.nii.gz", "a.nii", "masks/a.nii", "a_seg.nii", "derivatives/a.nii", ".hidden/a.nii", "b/c/d.mha"):
        head(here / name) if ".nii" in name else (here / name).parent.mkdir() or (here / name).touch()
    (here / "notes.txt").write_text("no scan", encoding="utf-8")
    assert [one.path.relative_to(here).as_posix() for one in scans_in(here)] == ["a.nii", "b/c/d.mha", "b/x.nii.gz"]
    (here / "empty").mkdir()
    with pytest.raises(FormatError, match="holds no scan"):
        scans_in(here / "empty")


def test_each_dicom_series_of_a_nested_folder_is_one_scan(here):
    def scout(_, image):
        image.SeriesDescription = "localizer"

    write_series(here / "p1" / "t1", seed=1)
    for number in (2, 3):
        write_series(here / "p2", seed=number)
    write_series(here / "p3" / "scout", scout, seed=4)
    found = scans_in(here)
    assert found == [Found(here / "p1" / "t1"), Found(here / "p2", 0), Found(here / "p2", 1)]
    assert len({Source(one.path, "", one.series).read().voxels.tobytes() for one in found}) == 3


def test_folders_over_which_a_series_is_spread_are_one_scan(here):
    write_series(here / "all", seed=1)
    for number, file in enumerate(sorted((here / "all").iterdir())):
        (here / "spread" / f"part-{number % 2}").mkdir(parents=True, exist_ok=True)
        shutil.move(file, here / "spread" / f"part-{number % 2}" / file.name)
    assert scans_in(here) == [Found(here / "spread")]


def test_scans_are_numbered_unless_names_are_asked_for(here):
    head(here / "set" / "b.nii")
    head(here / "set" / "a.nii")
    (here / "table.csv").write_text("scan,site\nset/b.nii,1\nset/a.nii,2\n", encoding="utf-8")
    table, folder = sources_of(table=here / "table.csv"), sources_of(folder=Path("set"))
    assert [(s.path.name, s.label) for s in table] == [("b.nii", "1"), ("a.nii", "2")]
    assert [(s.path.name, s.label) for s in folder] == [("a.nii", "1"), ("b.nii", "2")]
    assert [s.label for s in sources_of(table=here / "table.csv", names=True)] == ["set/b.nii", "set/a.nii"]
    assert sources_of([Path("set")]) == folder
    (here / "other.csv").write_text("image\nset/b.nii\n", encoding="utf-8")
    with pytest.raises(CohortError, match="none called scan"):
        sources_of(table=here / "other.csv")
    (here / "other.csv").write_text("scan,x\nset/b.nii,1\n,2\n", encoding="utf-8")
    with pytest.raises(CohortError, match="row 3"):
        sources_of(table=here / "other.csv")


@given(NAMES)
def test_names_of_outputs_are_never_shared(paths):
    names = unique_names([Source(Path("/data", f"{path}.nii"), str(n)) for n, path in enumerate(paths)])
    assert len(set(names)) == len(paths)
    if len({Path(path).name for path in paths}) == len(paths):
        assert names == [Path(path).name for path in paths]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "No scan was named"),
        (("x.nii", "--folder", "."), "in several ways"),
        (("--folder", ".", "--series", 0), "counted anew in each folder"),
    ],
)
@pytest.mark.parametrize("command", ["explain", "encode", "harmonize"])
def test_scans_that_are_not_clearly_named_are_refused(command, asked, said, here, capsys):
    head(here / "x.nii")
    assert said in ran(capsys, command, *asked, "-o", "out", code=2)["error"]["message"]


def test_several_explanations_equal_the_single_ones_and_stand_in_one_table(here, model_file, capsys):
    for number in range(2):
        head(here / "scans" / f"sub-0{number}.nii", number)
    (here / "scans" / "torn.nii").write_bytes((here / "scans" / "sub-00.nii").read_bytes()[:400])
    asked = ("explain", "scans", "--model", model_file, "-o", "out")
    told = ran(capsys, *asked, code=3)
    assert [row["scan"] for row in told["failed"]] == ["scans/torn.nii"]
    assert [row["out"] for row in told["scans"]] == ["out/0001", "out/0002", None]
    ran(capsys, "explain", "scans/sub-01.nii", "--model", model_file, "-o", "alone")
    assert contents(here / "alone") == contents(here / "out" / "0002")
    table = pd.read_csv("out/summary.tsv", sep="\t")
    assert list(table["scan"]) == [1, 2, 3]
    assert table["fault"].fillna("").tolist() == ["", "", "format"]
    alone = json.loads(Path("alone/factors.json").read_text(encoding="utf-8"))
    assert table["tumour_volume"][1] == alone["factors"][0]["estimate"]
    summary = Path("out/summary.json").read_text(encoding="utf-8")
    assert json.loads(summary)["scans"][1]["factors"] == alone["factors"]
    assert "sub-0" not in summary + Path("out/summary.tsv").read_text(encoding="utf-8")


def test_what_was_explained_is_passed_over_unless_files_are_gone_or_the_scan_is_another(here, model_file, capsys):
    for number in range(2):
        head(here / f"{number}.nii", number)
    asked = ("explain", "0.nii", "1.nii", "--model", model_file, "-o", "out")
    assert ran(capsys, *asked)["found"] == 0
    before = contents(here / "out")
    inodes = [(here / "out" / name / "manifest.json").stat().st_ino for name in ("0001", "0002")]
    (here / "out" / "0002" / "canonical.nii.gz").unlink()
    assert ran(capsys, *asked)["found"] == 1
    assert contents(here / "out") == before
    assert (here / "out" / "0001" / "manifest.json").stat().st_ino == inodes[0]
    head(here / "0.nii", 9)
    assert ran(capsys, *asked)["found"] == 1
    assert contents(here / "out")["0001/factors.json"] != before["0001/factors.json"]
    work = Explaining(ModelFile.of(model_file, "cpu"), here / "out", dicom=False, fresh=True)
    source = Source(here / "0.nii", "1")
    assert isinstance(work.fetched(source, "0001"), Volume)
    others = (replace(work, dicom=True), replace(work, model=replace(work.model, digest="0")))
    for other in others:
        assert isinstance(replace(other, fresh=False).fetched(source, "0001"), Volume), "made by other means"
    assert not isinstance(replace(work, fresh=False).fetched(source, "0001"), Volume)


def test_codes_and_harmonised_scans_of_a_killed_run_are_gone_on_with(here, model_file, capsys):
    for number in range(4):
        head(here / "scans" / f"{number}.nii", number)
    for name, stops, left in (("encode", [2], 2), ("harmonize", [2, 3], 3)):
        asked = (name, "--folder", "scans", "--model", model_file, "-o")
        ran(capsys, *asked, f"whole-{name}")
        for stop in stops:
            with killed_after(stop) as seen:
                assert main([*map(str, asked), f"out-{name}", "--device", "cpu", "-q"]) == 130
            assert not Path(f"out-{name}").exists()
            assert len(seen) == stop
        with killed_after(1000) as seen:
            ran(capsys, *asked, f"out-{name}")
        assert len(seen) == left
        assert not Path(f"out-{name}.unfinished").exists()
    assert Path("out-encode").read_bytes() == Path("whole-encode").read_bytes()
    assert contents(here / "out-harmonize") == contents(here / "whole-harmonize")


@contextmanager
def killed_after(stop):
    """Within it a run is interrupted once this many scans were worked on; the names of their outputs."""
    seen = []

    def counted(real):
        def made(self, source, name, scan):
            if len(seen) == stop:
                raise KeyboardInterrupt
            seen.append(name)
            return real(self, source, name, scan)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for work in (Encoding, Looking, Moving):
            patch.setattr(work, "made", counted(work.made))
        yield seen
