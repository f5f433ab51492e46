"""Laws of how commands hand on what they were asked: the work itself is stood in for by small fakes."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel
import numpy as np
import pandas as pd
import pytest

from medisent.cli import main
from medisent.config import Gate
from medisent.errors import InterventionError, ModelError

EVALUATION = {"n": 3, "readout": {}, "leakage": {"rest": {"gain": 0.3}}, "disentanglement": {}, "counterfactual": {}}


@dataclass
class Told:
    """What the fakes were told."""

    calls: list


class FakeModel:
    study = SimpleNamespace(gate=None)

    def explain(self, scan):
        factors = pd.DataFrame(
            {"name": ["tumour"], "role": ["anatomy"], "unit": ["mL"], "estimate": [9.6], "low": [7.9]}
        )
        factors["high"] = np.nan

        def save(folder):
            folder.mkdir(parents=True)
            (folder / "report.html").write_text("report", encoding="utf-8")

        return SimpleNamespace(factors=factors, save=save)

    def encode(self, scans):
        return pd.DataFrame({"tumour.0": [float(s.voxels.mean()) for s in scans]})


@pytest.fixture
def told(monkeypatch):
    """Stand-ins for training, evaluating, loading and editing, and the list of what they were asked."""
    told = Told([])

    def fake(name, **functions):
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)

    def note(name, value=None):
        def called(*args, **named):
            named.pop("progress", None)
            told.calls.append((name, args, named))
            return value

        return called

    def find_model(name):
        if name == "nowhere":
            raise ModelError("There is no model nowhere. Train one with: medisent train STUDY.toml")
        return Path(name or "runs/newest")

    def save(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")

    def parse_wish(text):
        name, _, value = text.partition("=")
        if not value:
            raise InterventionError(f"--set is {text!r}, but has to be NAME=VALUE.")
        return name, value

    def counterfactual(model, scan, wishes, *, extrapolate=False):
        told.calls.append(("counterfactual", (tuple(wishes),), {"extrapolate": extrapolate}))
        return scan

    fake("medisent.training", train=note("train"), dry_run=note("dry_run", {"parameters": 12}))
    fake("medisent.checkpoints", find_model=find_model, load=note("load", FakeModel()))
    fake("medisent.evaluation", evaluate=note("evaluate", SimpleNamespace(save=save)))
    fake("medisent.counterfactuals", parse_wish=parse_wish, counterfactual=counterfactual)
    return told


@pytest.fixture
def scan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(0, 100, (6, 7, 8)).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "case.nii.gz")
    return Path("case.nii.gz")


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "first.toml"
    path.write_text('[cohort]\ntable = "a.tsv"\n[grid]\nspacing_mm = 2\nshape = [8, 8, 8]\n', encoding="utf-8")
    return path


def test_a_run_is_named_after_its_study(study, told, capsys):
    assert main(["train", str(study), "--device", "cpu", "--json"]) == 0
    (_, (given, run), named) = told.calls[0]
    assert run == Path("runs/first")
    assert given.training.seed == 0
    assert named == {"device": "cpu", "fresh": False}
    assert json.loads(capsys.readouterr().out)["run"] == "runs/first"


def test_a_study_called_study_names_its_run_after_its_folder(study, told):
    study.rename(study.parent / "study.toml")
    assert main(["train", str(study.parent / "study.toml"), "--device", "cpu", "-q"]) == 0
    assert told.calls[0][1][1] == Path("runs") / study.parent.name


def test_a_seed_on_the_command_line_goes_before_the_studys(study, told):
    assert main(["train", str(study), "-o", "here", "--seed", "9", "--fresh", "--device", "cpu", "-q"]) == 0
    (_, (given, run), named) = told.calls[0]
    assert (given.training.seed, run, named["fresh"]) == (9, Path("here"), True)


def test_a_dry_run_trains_nothing(study, told, capsys):
    assert main(["train", str(study), "--dry-run", "--device", "cpu", "--json"]) == 0
    assert [name for name, *_ in told.calls] == ["dry_run"]
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "parameters": 12}


def test_an_evaluation_goes_into_the_run_and_to_stdout(tmp_path, told, capsys):
    assert main(["evaluate", str(tmp_path), "--split", "validation", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == EVALUATION
    assert (tmp_path / "evaluation.json").exists()
    assert told.calls[-1][2] == {"split": "validation", "seed": 0}


def test_a_gate_that_is_not_met_ends_with_5_after_everything_is_written(tmp_path, told, monkeypatch, capsys):
    monkeypatch.setattr(FakeModel, "study", SimpleNamespace(gate=Gate(leakage=0.2)))
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 5
    assert (tmp_path / "out" / "evaluation.json").exists()
    assert "gain from rest (R2 0.30)" in capsys.readouterr().err


def test_an_explanation_is_named_after_its_scan(scan, told, capsys):
    assert main(["explain", str(scan), "--json", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["report"]).read_text(encoding="utf-8") == "report"
    assert said["out"] == "case_medisent"
    assert said["factors"][0]["estimate"] == 9.6
    assert said["factors"][0]["high"] is None


def test_an_explanation_is_told_as_a_table(scan, told, capsys):
    assert main(["explain", str(scan), "-o", "there", "--device", "cpu", "-q", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["explain", str(scan), "-o", "elsewhere", "--device", "cpu"]) == 0
    assert "tumour" in capsys.readouterr().out


def test_a_counterfactual_says_that_it_is_synthetic(scan, told, capsys):
    asked = ["--set", "tumour=20", "--set", "gain=2", "--extrapolate", "--device", "cpu"]
    assert main(["counterfactual", str(scan), *asked, "-o", "edited.nii.gz"]) == 0
    assert told.calls[-1] == ("counterfactual", ((("tumour", "20"), ("gain", "2")),), {"extrapolate": True})
    assert "synthetic" in nibabel.load("edited.nii.gz").header["descrip"].item().decode()
    sidecar = json.loads(Path("edited.json").read_text(encoding="utf-8"))
    assert sidecar["synthetic"] is True
    assert sidecar["set"] == ["tumour=20", "gain=2"]


def test_a_counterfactual_of_nothing_is_the_scan(scan, told):
    assert main(["counterfactual", str(scan), "--device", "cpu", "-q"]) == 0
    written = nibabel.load("case_counterfactual.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(nibabel.load(scan).dataobj))


def test_a_wish_that_is_none_is_refused_and_nothing_is_written(scan, told, capsys):
    assert main(["counterfactual", str(scan), "--set", "tumour", "-o", "edited.nii.gz"]) == 3
    assert "NAME=VALUE" in capsys.readouterr().err
    assert [p.name for p in Path().iterdir()] == ["case.nii.gz"]


def test_codes_have_one_row_a_scan(scan, told, capsys):
    assert main(["encode", str(scan), str(scan), "-o", "codes.tsv", "--device", "cpu"]) == 0
    codes = pd.read_csv("codes.tsv", sep="\t")
    assert list(codes.columns) == ["scan", "tumour.0"]
    assert list(codes["scan"]) == ["case.nii.gz", "case.nii.gz"]
    capsys.readouterr()
    assert main(["encode", str(scan), "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "scan\ttumour.0"


@pytest.mark.parametrize("command", ["explain", "counterfactual", "encode"])
def test_without_a_model_a_command_refuses_and_writes_nothing(command, scan, told, capsys):
    assert main([command, str(scan), "--model", "nowhere", "--device", "cpu", "-o", "out.nii.gz"]) == 3
    assert "medisent train" in capsys.readouterr().err
    assert [p.name for p in Path().iterdir()] == ["case.nii.gz"]


@pytest.mark.parametrize("command", ["explain", "counterfactual", "encode"])
def test_a_scan_that_is_not_there_is_refused(command, scan, told, capsys):
    assert main([command, "nothing.nii.gz", "--device", "cpu", "--json", "-o", "out.nii.gz"]) == 3
    said = capsys.readouterr()
    assert "nothing.nii.gz does not exist" in said.err
    assert json.loads(said.out)["error"]["code"] == "format"


def test_a_card_is_told_in_lines_and_as_an_object(tmp_path, capsys):
    from medisent.checkpoints import Card, FactorCard, build_model, save_model
    from medisent.config import parse_study

    text = '[cohort]\ntable = "a.tsv"\n[grid]\nspacing_mm = 4\nshape = [8, 8, 8]\n[network]\nwidth = 8\nrest = 2\n'
    text += '[[factors]]\nname = "tumour"\nrole = "anatomy"\nkind = "positive"\nunit = "mL"\ncolumn = "t"\n'
    study = parse_study(text, "study.toml")
    seen = FactorCard((1.0,) * 101, 1.5, 42.0, 1.6, 12)
    card = Card({"tumour": seen}, 0.9, 70, 60, 800, (0.1,), (1.0,), (0.0,), ((1.0,),), {"tumour_r2": 0.9})
    save_model(study, build_model(study), card, tmp_path / "model.safetensors")
    assert main(["info", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["trained_on"] == {"scans": 70, "subjects": 60, "steps": 800}
    assert said["factors"][0]["name"] == "tumour"
    assert (said["factors"][0]["low"], said["factors"][0]["high"], said["factors"][0]["unit"]) == (1.5, 42.0, "mL")
    assert "brightness" in [factor["name"] for factor in said["factors"]]
    assert main(["info", str(tmp_path)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {"scans: 70", "- name: tumour", "high: 42.0"} <= set(lines)


def test_without_any_model_info_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDISENT_MODEL", raising=False)
    assert main(["info"]) == 3
    assert "medisent train" in capsys.readouterr().err


def test_the_demo_goes_the_whole_way_and_names_the_report(tmp_path, told, capsys):
    out = tmp_path / "demo"
    assert (
        main(
            [
                "demo",
                "--out",
                str(out),
                "--subjects",
                "14",
                "--minutes",
                "1",
                "--seed",
                "3",
                "--device",
                "cpu",
                "--json",
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert [name for name, *_ in told.calls] == ["train", "load", "evaluate"]
    (given, run), _ = told.calls[0][1:]
    assert (given.training.minutes, given.training.seed, run) == (1.0, 3, out / "run")
    assert Path(said["report"]).exists()
    assert Path(said["scan"]).exists()
    assert said["evaluation"] == EVALUATION
    assert (out / "cohort" / "counterfactuals.tsv").exists()


def test_a_phantom_cohort_is_rendered_as_asked(tmp_path, capsys):
    asked = ["--subjects", "7", "--shape", "12", "14", "10", "--spacing", "14", "--seed", "2", "--json"]
    assert main(["phantom", str(tmp_path / "cohort"), *asked]) == 0
    said = json.loads(capsys.readouterr().out)
    table = pd.read_csv(said["cohort"], sep="\t")
    assert len(table) == said["subjects"] == 7
    assert nibabel.load(tmp_path / "cohort" / table["scan"][0]).shape == (12, 14, 10)
