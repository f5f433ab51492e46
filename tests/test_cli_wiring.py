"""Laws of whole commands: what each writes and prints, and that a refusal is short, ends right and writes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from medisent.checkpoints import load_tensors, save_tensors
from medisent.cli import main
from medisent.cli.runs import _name_of
from medisent.config import load_study
from medisent.errors import CohortError
from medisent.formats import read
from medisent.models import load

STUDY = """
[cohort]
table = "{table}"
split = "split"
[grid]
spacing_mm = 12
shape = [16, 16, 16]
[network]
width = 4
rest = 1
[scanner]
factors = ["brightness"]
[training]
steps = 2
[gate]
leakage = 0.0
[[factors]]
name = "tumour_volume"
role = "anatomy"
kind = "positive"
unit = "mL"
column = "tumour_ml"
mask = "tumour_mask"
[[factors]]
name = "brightness"
role = "nuisance"
kind = "positive"
column = "gain"
[[factors]]
name = "dose"  # another name for the same values, so that brightness has to leak them
role = "nuisance"
kind = "positive"
column = "gain"
"""
ON_SCANS = {
    "explain": ["-o", "out"],
    "counterfactual": ["--set", "brightness=1", "-o", "out.nii.gz"],
    "encode": ["-o", "out.tsv"],
}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def said_by(capsys, *arguments, code=0):
    """The object that a command with --json prints, which is all that it prints on stdout."""
    assert main([*map(str, arguments), "--json", "--device", "cpu"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def refusal(tmp_path, capsys):
    """Run a command that has to be refused; its words, once it is clear that they are few and nothing was written."""

    def refuse(*arguments, code=3, fault):
        before = contents(tmp_path)
        assert main([*map(str, arguments), "--json"]) == code
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert len(lines) <= 6
        assert "Traceback" not in said.err
        error = json.loads(said.out)["error"]
        assert (error["code"], error["exit_code"]) == (fault, code)
        assert lines[-1] == error["message"].splitlines()[-1], "the refusal is the last word"
        assert contents(tmp_path) == before
        return error["message"]

    return refuse


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and no model that the environment names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDISENT_MODEL", raising=False)
    return tmp_path


@pytest.fixture
def case(here, cohort):
    """A scan, ``case.nii.gz``, in the folder."""
    shutil.copy(cohort.of("test").rows[0].scan, here / "case.nii.gz")
    return Path("case.nii.gz")


@pytest.fixture(scope="module", autouse=True)
def no_panel():
    """Evaluations leave out the metrics, which take seconds and matter to no command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medisent.evaluation.separation.panel", lambda *_, **__: {})
        yield


@pytest.fixture(scope="module")
def place(cohort_table, tmp_path_factory):
    """A folder with the study ``first.toml``: half of its heads are for testing, and its gate lets nothing leak."""
    folder = tmp_path_factory.mktemp("place")
    rows = pd.read_csv(cohort_table, sep="\t", dtype=str, keep_default_na=False)
    for column in ("scan", "tumour_mask"):
        rows[column] = [str(cohort_table.parent / name) for name in rows[column]]
    rows["split"] = ["train"] * 4 + ["validation"] + ["test"] * 5
    rows.to_csv(folder / "heads.tsv", sep="\t", index=False)
    (folder / "first.toml").write_text(STUDY.format(table="heads.tsv"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(place, no_panel):
    """What ``medisent train first.toml --seed 9`` left in ``runs/first``; it missed its gate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "first.toml", "--seed", "9", "--device", "cpu", "--quiet"]) == 5
    return place / "runs" / "first"


def test_what_training_warns_of_is_said_once(place, here, capsys, monkeypatch):
    def refused(*_):
        raise CohortError("nothing is read")

    monkeypatch.setattr("medisent.training.making.read_splits", refused)
    said = (place / "first.toml").read_text(encoding="utf-8") + "[weights]\ndensity_ratio = 1.0\n"
    Path("compared.toml").write_text(said.replace("heads.tsv", str(place / "heads.tsv")), encoding="utf-8")
    assert main(["train", "compared.toml", "--device", "cpu"]) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "density_ratio" in line]
    assert line.startswith("warning: ")


def test_a_run_is_named_after_its_study_and_holds_what_the_contract_says(run):
    assert {"study.toml", "model.safetensors", "metrics.jsonl", "evaluation.json", "evaluation.html"} <= set(
        contents(run)
    )
    assert load(run).card.scans == 4


def test_a_study_called_study_names_its_run_after_its_folder(tmp_path):
    assert _name_of(tmp_path / "study.toml") == tmp_path.name
    assert _name_of(tmp_path / "other.toml") == "other"


def test_a_seed_on_the_command_line_goes_before_the_studys(run):
    assert load_study(run / "study.toml").training.seed == 9


def test_the_same_command_again_finds_the_run_done(run, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = contents(run)
    said = said_by(capsys, "train", "first.toml", "--seed", "9", code=5)
    assert contents(run) == before
    assert (said["schema"], said["run"], said["model"]) == (1, "runs/first", "runs/first/model.safetensors")
    assert said["split"] == "test"
    assert said["evaluation"] == json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def test_a_run_of_another_study_is_refused_and_kept(run, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = contents(run)
    assert main(["train", "first.toml", "--seed", "8", "--device", "cpu"]) == 3
    assert "[training] seed: 9 there, 8 here" in capsys.readouterr().err
    assert contents(run) == before


def test_a_dry_run_says_what_training_would_take_and_writes_nothing(place, here, capsys):
    said = said_by(capsys, "train", place / "first.toml", "--dry-run")
    assert (said["schema"], said["scans"]) == (1, 4)
    assert said["parameters"] > 0
    assert contents(here) == {}


@pytest.mark.parametrize("words", [["init", "heads.tsv"], ["train", "first.toml"], ["evaluate", "runs/first"]])
def test_no_command_about_a_cohort_reads_more_voxels_than_asked_for(words, run, place, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(place)
    out = tmp_path / ("study.toml" if words[0] == "init" else "out")
    said = refusal(*words, "-o", out, "--max-voxels", 16**3 - 1, fault="cohort")
    assert "claims 16 x 16 x 16 voxels, more than the 4,095 that are read." in said


def test_an_evaluation_goes_into_a_folder_and_to_stdout(run, here, capsys):
    said = said_by(capsys, "evaluate", run, "--split", "validation", "-o", "out", code=5)  # too few to check the gate
    assert said == json.loads(Path("out/evaluation.json").read_text(encoding="utf-8"))
    assert said["n"] == 1
    assert {"schema", "readout", "leakage", "disentanglement", "counterfactual", "reconstruction"} <= set(said)


def test_a_gate_that_is_not_met_ends_with_5_after_everything_is_written(run, here, capsys):
    assert main(["evaluate", str(run), "-o", "out", "--seed", "9", "--device", "cpu", "--json"]) == 5
    assert set(contents(here)) == {"out/evaluation.json", "out/evaluation.html"}
    said = capsys.readouterr()
    assert "The study allows leakage up to R² 0, but there is: " in said.err.splitlines()[-1]
    assert "dose from brightness" in said.err.splitlines()[-1]
    assert json.loads(said.out) == json.loads(Path("out/evaluation.json").read_text(encoding="utf-8"))
    assert contents(Path("out")) == {name: contents(run)[name] for name in contents(Path("out"))}, "train evaluates too"


def test_an_explanation_is_named_after_its_scan(case, model_file, capsys):
    said = said_by(capsys, "explain", case, "--model", model_file)
    assert (said["schema"], said["out"], said["report"]) == (1, "case_medisent", "case_medisent/report.html")
    written = json.loads(Path("case_medisent/factors.json").read_text(encoding="utf-8"))
    assert said["factors"] == written["factors"]
    assert {"name", "role", "unit", "estimate", "low", "high", "level", "percentile"} <= set(said["factors"][0])
    assert "<html" in Path(said["report"]).read_text(encoding="utf-8")


def test_what_a_scan_is_unlike_is_said_on_the_terminal_too(case, model_file, capsys):
    image = nibabel.load(case)
    nibabel.save(nibabel.Nifti1Image(1e6 * image.get_fdata(dtype=np.float32), image.affine), "bright.nii.gz")
    assert main(["explain", "bright.nii.gz", "--model", str(model_file), "--device", "cpu", "-o", "there"]) == 0
    quality = json.loads(Path("there/factors.json").read_text(encoding="utf-8"))["quality"]
    unlike = [check["note"] for check in quality.values() if not check["ok"]]
    assert any("brightness" in note for note in unlike)
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")] == unlike
    edit = ["counterfactual", "bright.nii.gz", "--set", "brightness*=1.1", "--extrapolate", "-o", "brighter.nii.gz"]
    assert main([*edit, "--model", str(model_file), "--device", "cpu"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")] == unlike


def test_an_explanation_is_told_as_a_table_or_not_at_all(case, model_file, capsys):
    asked = ["explain", str(case), "--model", str(model_file), "--device", "cpu"]
    assert main([*asked, "-o", "there", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*asked, "-o", "elsewhere"]) == 0
    assert "tumour_volume" in capsys.readouterr().out
    assert contents(Path("there")) == contents(Path("elsewhere")), "same command, same bytes"


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes_in_another_process(case, model_file):
    for seed in ("1", "2"):
        command = [
            sys.executable,
            "-m",
            "medisent",
            "explain",
            case,
            "--model",
            model_file,
            "-o",
            seed,
            "--device",
            "cpu",
        ]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert contents(Path("1")) == contents(Path("2"))


def test_a_counterfactual_says_that_it_is_synthetic(case, model_file, capsys):
    edits = ["tumour_volume*=1.01", "brightness=1"]
    asked = [word for edit in edits for word in ("--set", edit)]
    said = said_by(
        capsys, "counterfactual", case, *asked, "--extrapolate", "--model", model_file, "-o", "edited.nii.gz"
    )
    assert said == {"schema": 1, "out": "edited.nii.gz", "set": edits}
    assert "synthetic" in nibabel.load("edited.nii.gz").header["descrip"].item().decode()
    sidecar = json.loads(Path("edited.json").read_text(encoding="utf-8"))
    assert (sidecar["synthetic"], sidecar["set"]) == (True, edits)
    assert not np.array_equal(read("edited.nii.gz").voxels, read(case).voxels)


def test_a_counterfactual_of_nothing_is_the_scan(case, model_file):
    assert main(["counterfactual", str(case), "--model", str(model_file), "--device", "cpu", "-q"]) == 0
    written = nibabel.load("case_counterfactual.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(nibabel.load(case).dataobj))


def test_codes_have_one_row_a_scan(case, model_file, capsys):
    asked = ["encode", str(case), str(case), "--model", str(model_file), "--device", "cpu"]
    assert main([*asked, "-o", "codes.tsv"]) == 0
    capsys.readouterr()
    codes, expected = pd.read_csv("codes.tsv", sep="\t"), load(model_file).encode([case, case])
    assert list(codes["scan"]) == [1, 2]
    pd.testing.assert_frame_equal(codes.drop(columns="scan"), expected)
    assert main([*asked, "--quiet"]) == 0
    assert capsys.readouterr().out == Path("codes.tsv").read_text(encoding="utf-8")
    said = said_by(capsys, *asked)
    assert (said["schema"], said["out"], len(said["codes"])) == (1, None, 2)
    assert [row["scan"] for row in said["codes"]] == ["1", "2"]
    assert said_by(capsys, *asked, "--names")["codes"][0]["scan"] == "case.nii.gz"


def test_without_a_name_the_newest_run_in_runs_is_taken(run, place, cohort, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.delenv("MEDISENT_MODEL", raising=False)
    scan = cohort.of("test").rows[0].scan
    assert main(["encode", str(scan), "--device", "cpu", "-q"]) == 0
    newest = capsys.readouterr().out
    assert main(["encode", str(scan), "--model", str(run), "--device", "cpu", "-q"]) == 0
    assert newest == capsys.readouterr().out


def scan_of(voxels):
    return lambda path: nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9.0, 9.0, 1.0])), path)


def head(*shape):
    return np.random.default_rng(0).uniform(1, 100, shape).astype(np.float32)


def with_a_hole():
    voxels = head(8, 8, 8)
    voxels[3, 4, 5] = np.nan
    return voxels


NO_SCANS = {
    "missing": (lambda path: None, "does not exist"),
    "not an image": (lambda path: path.write_text("Dear colleague", encoding="utf-8"), "damaged"),
    "4D": (scan_of(head(8, 8, 8, 3)), "has 4 dimensions, but a scan has 3"),
    "RGB": (scan_of(np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "holds colours (RGB)"),
    "one slice": (scan_of(head(8, 8, 1)), "one slice"),
    "NaN": (scan_of(with_a_hole()), "NaN"),
    "constant": (scan_of(np.ones((8, 8, 8), np.float32)), "in every voxel"),
}


@pytest.mark.parametrize("fault", NO_SCANS)
@pytest.mark.parametrize("command", ON_SCANS)
def test_what_is_no_scan_is_refused(command, fault, here, model_file, refusal):
    make, words = NO_SCANS[fault]
    make(here / "case.nii.gz")
    said = refusal(command, "case.nii.gz", "--model", model_file, *ON_SCANS[command], fault="format")
    assert words in said
    assert "case.nii.gz" in said


@pytest.mark.parametrize(
    ("edit", "code", "fault", "words"),
    [
        (
            "tumor=20",
            3,
            "intervention",
            "This model has no factor 'tumor'. It has tumour_volume, head_size, site, brightness",
        ),
        ("tumour_volume=9999", 3, "intervention", "but training saw"),
        ("tumour_volume=large", 3, "intervention", "large"),
        ("site=site-9", 3, "intervention", "site-1"),
        ("tumour_volume", 2, "usage", "NAME=VALUE"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(edit, code, fault, words, case, model_file, refusal):
    asked = ["counterfactual", case, "--set", edit, "--model", model_file, "-o", "out.nii.gz"]
    assert words in refusal(*asked, code=code, fault=fault)


def test_a_value_beyond_what_training_saw_is_given_to_who_asks_twice(case, model_file, refusal):
    asked = ["counterfactual", str(case), "--set", "brightness=90", "--model", str(model_file), "-o", "out.nii.gz"]
    assert "--extrapolate" in refusal(*asked, fault="intervention")
    assert main([*asked, "--extrapolate", "-q"]) == 0
    assert Path("out.nii.gz").exists()


def of_another_version(source, path):
    tensors, header = load_tensors(source, kind="medisent model")
    save_tensors(tensors, {**header, "schema": "99"}, path)


def half(source, path):
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "words"), [(of_another_version, "has format 99"), (half, "damaged"), (lambda *_: None, "does not exist")]
)
@pytest.mark.parametrize("command", [*ON_SCANS, "info", "evaluate"])
def test_a_model_that_cannot_be_used_is_refused(command, spoil, words, case, model_file, refusal):
    spoil(model_file, Path("model.safetensors"))
    model = ["model.safetensors"] if command in ("info", "evaluate") else [case, "--model", "model.safetensors"]
    assert words in refusal(command, *model, *ON_SCANS.get(command, ()), fault="model")


def test_without_any_model_the_packaged_one_is_taken_and_said_to_know_no_real_scan(here, cohort, monkeypatch, capsys):
    monkeypatch.delenv("MEDISENT_MODEL", raising=False)
    assert main(["encode", str(cohort.of("test").rows[0].scan), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("scan\ttumour_volume.0")
    assert "learned from rendered heads" in err
    assert main(["info", "rendered-heads"]) == 0
    out = capsys.readouterr().out
    assert "tumour_volume" in out
    assert "about: Heads rendered by medisent phantom; no patients." in out


def test_a_study_with_a_wrong_key_is_refused_by_line_and_nearest_name(here, refusal):
    Path("study.toml").write_text(STUDY.format(table="a.tsv").replace("steps", "stops"), encoding="utf-8")
    said = refusal("train", "study.toml", fault="study")
    assert "study.toml line 14: [training] has no setting 'stops'. Did you mean 'steps'?" in said


def test_a_table_with_missing_scans_is_refused_with_all_of_them(here, place, refusal):
    rows = pd.read_csv(place / "heads.tsv", sep="\t", dtype=str, keep_default_na=False)
    rows["scan"] = [f"gone-{i}.nii.gz" for i in range(len(rows))]
    rows.to_csv("heads.tsv", sep="\t", index=False)
    shutil.copy(place / "first.toml", "first.toml")
    said = refusal("train", "first.toml", fault="cohort")
    assert all(f"gone-{i}.nii.gz" in said for i in range(len(rows)))


def test_a_card_is_told_in_lines_and_as_an_object(model_file, capsys):
    assert main(["info", str(model_file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    card = load(model_file).card
    assert said["trained_on"] == {"scans": card.scans, "subjects": card.subjects, "steps": 0, "seed": 0}
    assert any("contrast" in limit for limit in said["limits"]), (
        "nobody labelled it, so nothing calibrated its interval"
    )
    tumour = said["factors"][0]
    seen = card.factors["tumour_volume"]
    assert (tumour["name"], tumour["unit"], tumour["low"], tumour["high"]) == (
        "tumour_volume",
        "mL",
        seen.low,
        seen.high,
    )
    assert "contrast" in [factor["name"] for factor in said["factors"]], "the scanner's own factors are there unnamed"
    assert main(["info", str(model_file)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {f"scans: {card.scans}", f"- {said['limits'][-1]}"} <= set(lines)
    row = next(line for line in lines if line.startswith("tumour_volume "))
    assert {"anatomy", "mL", f"{seen.high:.3g}"} <= set(row.split())


@pytest.mark.slow
def test_the_demo_goes_the_whole_way_and_names_the_report(here, capsys):
    said = said_by(capsys, "demo", "--out", "demo", "--subjects", "14", "--minutes", "0.05", "--seed", "3")
    training = load_study(Path("demo/run/study.toml")).training
    assert (training.minutes, training.seed) == (0.05, 3)
    assert Path(said["report"]).exists()
    assert Path(said["scan"]).exists()
    assert said["evaluation"] == json.loads(Path("demo/run/evaluation.json").read_text(encoding="utf-8"))
    assert Path("demo/cohort/counterfactuals.tsv").exists()


def test_a_phantom_cohort_is_rendered_as_asked(tmp_path, capsys):
    asked = ["--subjects", "7", "--shape", "12", "14", "10", "--spacing", "14", "--seed", "2", "--json"]
    assert main(["phantom", str(tmp_path / "cohort"), *asked]) == 0
    said = json.loads(capsys.readouterr().out)
    table = pd.read_csv(said["cohort"], sep="\t")
    assert len(table) == said["subjects"] == 7
    assert nibabel.load(tmp_path / "cohort" / table["scan"][0]).shape == (12, 14, 10)
