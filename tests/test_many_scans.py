"""Laws of commands that take several scans: one that is refused is named, and all others are done."""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from medisent.cli import main
from medisent.formats import read

KILLER = "scan-07.nii"


def crashes_simpleitk(path: Path) -> None:
    """A valid file of 370 bytes in five dimensions."""
    nibabel.save(nibabel.Nifti1Image(np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 1, 3), np.eye(4)), path)


@pytest.fixture
def batch(tmp_path, cohort, monkeypatch):
    """Twenty scans in the working folder; the eighth kills what reads it carelessly."""
    monkeypatch.chdir(tmp_path)
    names = [f"scan-{number:02}.nii" for number in range(20)]
    for number, name in enumerate(names):
        if name == KILLER:
            crashes_simpleitk(Path(name))
        else:
            shutil.copy(cohort.of("train").rows[number % 6].scan, name + ".gz")
    return [name if name == KILLER else name + ".gz" for name in names]


def ended(capsys, *arguments, code):
    assert main([*map(str, arguments), "--device", "cpu"]) == code
    return capsys.readouterr()


def test_nineteen_of_twenty_scans_are_encoded_beside_a_killer(batch, model_file, capsys):
    said = ended(capsys, "encode", *batch, "--names", "--model", model_file, "-o", "codes.tsv", "--json", code=3)
    told, codes = json.loads(said.out), pd.read_csv("codes.tsv", sep="\t")
    others = [name for name in batch if name != KILLER]
    assert list(codes["scan"]) == [row["scan"] for row in told["codes"]] == others
    assert [(row["scan"], row["code"]) for row in told["failed"]] == [(KILLER, "format")]
    assert "has 5 dimensions" in told["failed"][0]["message"]
    lines = said.err.splitlines()
    assert lines[-2:] == ["1 of 20 scans failed; the others are done:", told["failed"][0]["message"]]
    alone = ended(capsys, "encode", others[9], "--names", "--model", model_file, code=0).out
    assert alone.splitlines()[1] == Path("codes.tsv").read_text(encoding="utf-8").splitlines()[10]


def test_nineteen_of_twenty_scans_are_harmonized_beside_a_killer(batch, model_file, capsys):
    said = ended(capsys, "harmonize", *batch, "--model", model_file, "-o", "out", "--json", code=3)
    told = json.loads(said.out)
    assert [row["scan"] for row in told["failed"]] == [KILLER]
    written = sorted(str(path) for path in Path("out").glob("*.nii.gz"))
    assert told["scans"] == written
    assert len(written) == 19
    for name in written:
        assert read(name).geometry == read(name.replace("out/", "").replace("_harmonized", "")).geometry


def test_scans_that_all_fail_are_one_short_refusal_and_nothing_is_written(batch, model_file, capsys):
    for number in range(9):
        crashes_simpleitk(Path(f"bad-{number}.nii"))
    bad = [f"bad-{number}.nii" for number in range(9)]
    said = ended(capsys, "encode", *bad, "--names", "--model", model_file, "-o", "codes.tsv", "--json", code=3)
    lines = said.err.splitlines()
    assert (lines[-6], lines[-1]) == ("9 of 9 scans failed:", "... and 5 more.")
    assert json.loads(said.out)["error"]["code"] == "format"
    assert not Path("codes.tsv").exists()


def test_a_machines_fault_ends_with_4_only_where_no_scan_is_at_fault(batch, model_file, capsys, monkeypatch):
    real = Path.open

    def refuse(path, *arguments, **named):
        if path.name == "scan-03.nii.gz":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    for scans, code in ((batch[2:5], 4), (batch[2:9], 3)):
        said = ended(capsys, "encode", *scans, "--names", "--model", model_file, "--json", code=code)
        assert {row["code"] for row in json.loads(said.out)["failed"]} >= {"machine"}


@pytest.mark.parametrize("command", ["explain", "counterfactual", "harmonize", "encode"])
def test_more_voxels_than_asked_for_are_refused(command, batch, model_file, capsys):
    out = {"harmonize": ["-o", "out.nii"]}.get(command, [])
    for limit, code in ((16**3 - 1, 3), (16**3, 0)):
        said = ended(capsys, command, batch[0], "--model", model_file, *out, "--max-voxels", limit, code=code)
        assert ("claims 16 x 16 x 16 voxels, more than the 4,095 that are read." in said.err) == (code == 3)


def test_a_name_that_is_not_utf_8_is_escaped_in_tables_and_objects(batch, model_file, capsys):
    odd = os.fsdecode(b"caf\xe9.nii.gz")
    shutil.copy(batch[0], odd)
    asked = ["encode", odd, "gone.nii", "--names", "--model", model_file, "-o", "codes.tsv", "--json"]
    said = ended(capsys, *asked, code=3)
    assert json.loads(said.out)["codes"][0]["scan"] == odd
    said.out.encode("utf-8")
    assert "caf\\udce9.nii.gz" in Path("codes.tsv").read_text(encoding="utf-8")


def test_one_of_several_volumes_is_encoded_and_harmonized_but_a_series_of_one_folder_only(batch, model_file, capsys):
    one = nibabel.load(batch[0])
    nibabel.save(nibabel.Nifti1Image(np.stack([one.get_fdata() + 1, one.get_fdata()], 3), one.affine), "two.nii")
    rows = [
        json.loads(ended(capsys, "encode", *asked, "--model", model_file, "--json", code=0).out)["codes"]
        for asked in ([batch[0]], ["two.nii", "--volume", 1])
    ]
    assert rows[0] == rows[1]
    ended(capsys, "harmonize", "two.nii", "--volume", 1, "--model", model_file, "-o", "out.nii.gz", code=0)
    for command in ("encode", "harmonize"):
        said = ended(capsys, command, *batch[:2], "--series", 0, "--model", model_file, "-o", "out", code=2)
        assert "counted anew in each folder" in said.err


def test_a_result_whose_name_no_disk_takes_is_refused_before_anything_is_computed(batch, capsys):
    scan = "x" * 247 + ".nii.gz"
    shutil.copy(batch[0], scan)
    for command in ("explain", "counterfactual"):
        said = ended(capsys, command, scan, "--model", "gone", code=4).err
        assert "a name has 255 at most" in said
