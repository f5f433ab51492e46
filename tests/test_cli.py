"""Laws of the command line: what is printed where, and how a command ends."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import write_series

from medisent import __version__
from medisent.cli import app, main
from medisent.cli.options import chosen_device
from medisent.cli.output import Lines, Output, jsonable, table
from medisent.cli.runs import leakage_lines, summary
from medisent.config import Gate
from medisent.errors import GateError, MachineError, UsageError
from medisent.evaluation import check_gate
from medisent.many import stem
from medisent.progress import Progress, Silence

COMMANDS = (
    *("demo", "phantom", "init", "schema", "train", "runs", "evaluate", "explain", "counterfactual", "encode"),
    *("info", "check"),
)
HEAVY = ("torch", "monai", "numpy", "pandas", "scipy", "SimpleITK")


@pytest.fixture
def cohort(tmp_path):
    """A table with twenty small scans, tumour masks, and factors of which two go together."""
    rng = np.random.default_rng(0)
    rows = ["scan\tsubject\tsite\ttumour_ml\ttumour_mask\tgain\tgrade\tconstant\tcomment"]
    for i in range(20):
        voxels = rng.uniform(0, 100, (10, 12, 8)).astype(np.float32)
        affine = np.diag([5.0, 5.0, 6.0, 1.0])
        for kind, image in (("scan", voxels), ("mask", (voxels > 90).astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / f"{kind}{i}.nii.gz")
        tumour, site = f"{i + 0.5}" if i != 3 else "", "AB"[i >= 10]
        cells = (
            f"scan{i}.nii.gz",
            f"s{i}",
            site,
            tumour,
            f"mask{i}.nii.gz",
            f"{1 + i / 20}",
            f"{i % 3}",
            "7",
            f"free {i}",
        )
        rows.append("\t".join(cells))
    path = tmp_path / "cohort.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_every_command_of_the_contract_is_there(capsys):
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.split("Commands:")[1].splitlines() if line.strip()]
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_json_and_can_be_quiet_and_debugged(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert {"--json", "--quiet", "--debug"} <= set(text.replace(",", " ").split())


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "explain", "counterfactual", "encode"])
def test_every_command_that_computes_takes_a_device_and_a_seed(command, capsys):
    assert main([command, "--help"]) == 0
    assert {"--device", "--seed"} <= set(capsys.readouterr().out.split())


def test_every_command_is_described_in_one_uncut_line(capsys):
    main(["--help"])
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["--version"], ["runs", "."]])
def test_help_imports_nothing_heavy_and_is_quick(arguments):
    code = (
        f"import sys\nfrom medisent.cli import main\nmain({arguments})\nprint([m for m in {HEAVY} if m in sys.modules])"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout.splitlines()[-1] == "[]"
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.6, f"{min(spent):.2f} s of CPU time"


def test_completion_imports_nothing_heavy():
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n"
        "from medisent.cli import main\nmain([])"
    )
    asked = {"_MEDISENT_COMPLETE": "complete_bash", "COMP_WORDS": "medisent exp", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.split() == ["explain", "[]"]


def test_a_folder_of_two_series_and_a_scan_that_is_not_there_are_refused_before_torch_is_loaded(tmp_path):
    two = write_series(tmp_path / "two", seed=0)
    write_series(two, seed=1)
    gone, out = str(tmp_path / "gone.nii"), str(tmp_path / "out")
    commands = [
        *(["explain", scan, "-o", out] for scan in (str(two), gone)),
        ["counterfactual", str(two), "--set", "brightness=1"],
        ["harmonize", str(two), "-o", out],
        ["encode", str(two)],
    ]
    code = f"""
import sys
sys.modules["torch"] = None
from medisent.cli import main
print([main(command) for command in {commands!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[3, 3, 3, 3, 3]\n"
    assert done.stderr.count("holds 2 series") == 4
    assert "gone.nii does not exist" in done.stderr


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "medisent", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["explian", "scan.nii"],
        ["explain"],
        ["explain", "scan.nii", "--modl", "x"],
        ["phantom", "out", "--subjects", "many"],
        ["phantom", "out", "--subjects", "0"],
        ["phantom", "out", "--shape", "8", "8"],
        ["phantom", "out", "--confound", "2"],
        ["check", "--seed", "1"],
    ],
)
def test_wrong_usage_is_refused_with_exit_code_2_and_one_line(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "Traceback" not in said.err


def test_a_refusal_for_scripts_is_one_object(capsys):
    assert main(["explain", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["error"]["code"] == "usage"
    assert said["error"]["exit_code"] == 2


def _failing(monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("medisent.config.proposing.proposal.read_table", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 4, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), 4, "Permission denied"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("secret"), 1, "--debug"),
        (FileNotFoundError(errno.ENOENT, "No such file", "secret"), 1, "--debug"),
    ],
)
def test_every_end_has_its_exit_code_and_no_traceback(error, code, said, monkeypatch, capsys, tmp_path):
    _failing(monkeypatch, error)
    assert main(["init", "cohort.tsv", "-o", str(tmp_path / "study.toml")]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert "secret" not in err
    assert len(err.splitlines()) <= 6


def test_debug_shows_the_traceback(monkeypatch, capsys, tmp_path):
    _failing(monkeypatch, ZeroDivisionError("inside"))
    assert main(["init", "cohort.tsv", "--debug", "-o", str(tmp_path / "study.toml")]) == 1
    assert "ZeroDivisionError: inside" in capsys.readouterr().err


def test_a_long_refusal_is_cut_to_six_lines(monkeypatch, capsys, tmp_path):
    _failing(monkeypatch, UsageError("\n".join(f"line {i}" for i in range(20))))
    assert main(["init", "cohort.tsv", "-o", str(tmp_path / "study.toml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "... and 15 more lines."


def test_a_missing_study_is_refused_as_input(capsys, tmp_path):
    assert main(["train", str(tmp_path / "none.toml")]) == 3
    assert "There is no study file" in capsys.readouterr().err


def test_a_wrong_key_in_a_study_is_refused_by_line(capsys, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text('[cohort]\ntable = "a.tsv"\n[grid]\nspacing_mm = 2\nshap = [8, 8, 8]\n', encoding="utf-8")
    assert main(["train", str(study)]) == 3
    assert "study.toml line 5: [grid] has no setting 'shap'. Did you mean 'shape'?" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.parametrize(("name", "exit_code"), [("gpu", 2), ("cuda:", 2), ("cpu:1", 2)])
def test_a_device_that_is_none_is_wrong_usage(name, exit_code):
    with pytest.raises(UsageError) as caught:
        chosen_device(name)
    assert caught.value.exit_code == exit_code


def test_a_device_that_is_not_there_is_refused_as_the_machines_fault():
    assert chosen_device("cpu") == "cpu"
    assert chosen_device("auto") in ("cpu", "cuda")
    with pytest.raises(MachineError, match="CUDA device"):
        chosen_device("cuda:99")


def test_check_lists_the_machine_and_every_part(capsys):
    assert main(["check", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["ok"] is True
    assert {"torch", "monai", "numpy", "nibabel", "pydicom"} <= set(found["parts"])
    assert found["missing"] == []
    assert said.err == ""
    assert main(["check"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["medisent", __version__] in lines


def test_check_ends_with_4_after_its_object_where_a_part_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("medisent.cli.machine._parts", lambda: ({"torch": "2"}, ["monai"]))
    assert main(["check", "--json"]) == 4
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"] == ["monai"]
    assert "These parts are missing: monai." in said.err


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "a"), ("b/a.nii", "a"), ("a.b.nrrd", "a.b"), ("folder/of/slices", "slices"), ("IM.DCM", "IM")],
)
def test_a_scan_is_called_by_its_name_without_endings(name, expected):
    assert stem(Path(name)) == expected


def test_a_folder_named_by_a_dot_is_called_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "series").mkdir()
    monkeypatch.chdir(tmp_path / "series")
    assert stem(Path()) == "series"
    assert stem(Path("..")) == tmp_path.name


def test_a_counterfactual_is_nifti_or_refused_before_anything_is_read(capsys):
    assert main(["counterfactual", "none.nii", "-o", "out.png"]) == 2
    assert ".nii or .nii.gz" in capsys.readouterr().err


def test_numbers_that_are_not_finite_become_null():
    found = jsonable(
        {"a": float("nan"), "b": [np.float32(1.5), np.int64(2)], "c": np.array([1.0, np.inf]), "d": Path("x")}
    )
    assert found == {"a": None, "b": [1.5, 2], "c": [1.0, None], "d": "x"}
    json.dumps(found)


def test_results_go_to_stdout_and_messages_to_stderr(capsys):
    output = Output(as_json=True)
    output.say("a message")
    output.result({"x": 1}, ["text"])
    said = capsys.readouterr()
    assert said.err == "a message\n"
    assert json.loads(said.out) == {"x": 1}


def test_a_quiet_command_prints_only_the_object_that_was_asked_for(capsys):
    Output(quiet=True).say("a message")
    Output(quiet=True).result({"x": 1}, ["text"])
    with Output(quiet=True).progress() as progress:
        progress.stage("working", 3)
        progress.advance(1, "note")
    assert capsys.readouterr() == ("", "")
    Output(as_json=True, quiet=True).result({"x": 1}, ["text"])
    assert json.loads(capsys.readouterr().out) == {"x": 1}


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter([0.0, 2.0, *range(6, 14), 14.0])
    monkeypatch.setattr("medisent.cli.output.time.monotonic", lambda: next(clock))
    progress = Lines()
    progress.stage("training", 100)
    for _ in range(9):
        progress.advance(1, "loss 3.2")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["training", "training, 7 %, 1:30 min left, loss 3.2"]


def test_lines_become_fewer_the_longer_a_stage_takes(capsys, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("medisent.cli.output.time.monotonic", lambda: seconds[0])
    progress = Lines()
    progress.stage("training", 12 * 3600)
    for second in range(5, 12 * 3600, 5):
        seconds[0] = float(second)
        progress.advance(5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 150
    assert lines[1] == "training, 0 %"
    assert lines[3] == "training, 0 %, 12:00 h left"
    assert "left" in lines[-1]


def test_what_is_worth_saying_stands_below_the_bars_and_is_cut_at_the_edge():
    from io import StringIO

    from rich.console import Console

    from medisent.cli.bars import bars

    console = Console(file=StringIO(), force_terminal=True, width=72)
    with bars(console) as progress:
        progress.stage("training", 10)
        progress.advance(3, "step 640, 43 scans/s, 780 nats: distortion 758, rate 31, readout 2.1, mask 410, more")
        shown = [console.render_lines(part) for part in progress._progress.get_renderables()]
    bar, note = ("".join(segment.text for segment in lines[0]) for lines in shown)
    assert "training" in bar
    assert "30 %" in bar
    assert note.startswith("  step 640, 43 scans/s, 780 nats: distortion 758")
    assert note.rstrip().endswith("…")


def test_bars_name_the_stage_and_end_full():
    from io import StringIO

    from rich.console import Console

    from medisent.cli.bars import bars

    screen = StringIO()
    with bars(Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.stage("rendering", 4)
        progress.advance(4)
        progress.stage("training", 10)
        progress.advance(3, "loss 3.2")
    text = screen.getvalue()
    assert "rendering" in text
    assert "training" in text
    assert "loss 3.2" in text
    assert text.count("100 %") >= 2


@pytest.mark.parametrize("teller", [Silence(), Lines()], ids=["silence", "lines"])
def test_progress_is_told_the_same_way_whoever_listens(teller):
    assert isinstance(teller, Progress)


def test_a_table_is_aligned():
    assert table([("a", "bb"), ("ccc", "d")]) == ["a    bb", "-------", "ccc  d"]


def test_a_gate_is_not_met_by_what_leaks_more_than_it_allows():
    leakage = {"tumour": {"tumour": 0.9, "gain": 0.05}, "anatomy_rest": {"gain": 0.4}}
    check_gate(None, leakage)
    check_gate(Gate(leakage=0.5), leakage)
    with pytest.raises(GateError, match=r"gain from anatomy rest \(R² 0\.40\)") as caught:
        check_gate(Gate(leakage=0.2), leakage)
    assert caught.value.exit_code == 5
    assert "tumour from tumour" not in str(caught.value)


def test_a_gate_says_what_the_labels_alone_would_leak_and_still_is_not_met():
    leakage = {"tumour": {"tumour": 0.9, "gain": 0.55}}
    with pytest.raises(GateError, match=r"gain from tumour \(R² 0\.55; the labels alone give 0\.60\)"):
        check_gate(Gate(leakage=0.2), leakage, {"tumour": {"gain": 0.6}})


@pytest.mark.parametrize(
    ("leakage", "wanted"), [({}, []), ({}, ["gain"]), ({"rest": {"tumour": 0.0}}, ["tumour", "gain"])]
)
def test_a_gate_that_could_not_be_checked_is_not_met(leakage, wanted):
    with pytest.raises(GateError, match="could not be measured"):
        check_gate(Gate(leakage=0.9), leakage, None, wanted)
    check_gate(None, leakage, None, wanted)


def test_leakage_is_told_block_by_block_with_what_chance_gives_and_the_own_block_marked():
    leakage = {"tumour": {"tumour": 0.9, "gain": 0.05}, "gain": {"tumour": 0.31}}
    lines = leakage_lines(
        leakage, {"tumour": {"tumour": -0.02}, "gain": {"tumour": 0.01, "gain": 0.0}}, Gate(leakage=0.3)
    )
    cells = [line.split() for line in lines]
    assert cells[0] == ["leakage,", "R²", "tumour", "gain"]
    assert cells[2] == ["tumour", "[0.90]", "0.05"]
    assert cells[3] == ["gain", "0.31", "!", "–"]
    assert cells[4] == ["by", "chance,", "most", "0.01", "0.00"]
    assert "above the gate of 0.3" in lines[-1]
    assert leakage_lines({}, {}) == []


def test_an_evaluation_is_told_in_tables_beside_doing_nothing():
    evaluation = {
        "n": 36,
        "readout": {"tumour": {"r2": 0.91, "mae": 2.0, "coverage90": 0.9}},
        "leakage": {},
        "counterfactual": {
            "gain x1.5": {"rce": 0.01, "rce_noop": 1.0, "effect_error": None, "off_target": 0.0, "composition": 0.0}
        },
        "off_target_ml": {"tumour +15": {"ventricles": {"ml": 0.12, "most_ml": 0.7, "n": 36}}},
        "maps": {"tumour": {"ncc": 0.77, "ncc_edit": 0.8, "integrated_gradients": 0.21, "occlusion": 0.33, "n": 8}},
        "disentanglement": {"mig": {"value": 0.4, "low": 0.3, "high": 0.5, "floor": 0.0, "ceiling": 0.7}},
    }
    text = "\n".join(summary(evaluation))
    assert "36 scans" in text
    assert "RCE of no edit" in text
    assert "tumour +15: ventricles  0.12" in re.sub("  +", "  ", text)
    assert "0.77  0.80  0.21" in re.sub("  +", "  ", text)
    assert "0.91" in text


def test_the_app_is_named_after_the_package():
    assert app.info.name == "medisent"
