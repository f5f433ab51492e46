"""Laws of privacy: what tells who was scanned reaches no output and no message, also where a command fails."""

from __future__ import annotations

import base64
import gzip
import os
import shutil
from pathlib import Path

import pydicom
import pytest
from canaries import (
    DATES,
    NIFTI_CANARIES,
    UIDS,
    canary,
    dicom_canaries,
    found_in,
    leaks,
    mark_dicom,
    mark_nifti,
)

from medisent.cli import main
from medisent.cohorts import read_table
from medisent.phantoms import write_cohort

DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))
WORDS = [*dicom_canaries(), *NIFTI_CANARIES]
TYPED = [canary("folder"), canary("nifti file")]  # what a user types, a message may repeat
UNTYPED = [word for word in WORDS if word not in TYPED]


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """A DICOM series full of identifiers."""
    root = tmp_path_factory.mktemp("marked")
    table = write_cohort(root / "cohort", subjects=1, seed=3, spacing_mm=12.0, shape=(16, 16, 16), dicom=True)
    series = table.parent / read_table(table)["scan"][0]
    return mark_dicom(series, root / "in")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.delenv("MEDISENT_MODEL", raising=False)
    return tmp_path / "out"


def said(capsys) -> bytes:
    captured = capsys.readouterr()
    return (captured.out + captured.err).encode()


def test_there_are_forty_canaries_and_the_search_finds_each(marked):
    assert len(WORDS) >= 40
    raw = b"".join(path.read_bytes() for path in marked.iterdir())
    held = found_in(raw + str(list(marked.iterdir())).encode(), dicom_canaries())
    assert set(held) == set(dicom_canaries())


def test_the_search_looks_into_what_is_packed():
    word = canary("PatientName")
    packed = gzip.compress(word.lower().encode("utf-16-le"))
    page = b'<img src="data:image/png;base64,' + base64.b64encode(packed) + b'">'
    assert found_in(page, [word, "other"]) == [word]


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_no_identifier_of_a_dicom_series_is_in_what_commands_write_or_say(marked, model_file, place, capsys, debug):
    scan, model = str(marked), ["--model", str(model_file), "--device", "cpu", *debug]
    assert main(["counterfactual", scan, "--set", "brightness*=1.1", "--extrapolate", "-o", "c.nii.gz", *model]) == 0
    assert main(["encode", scan, scan, "-o", "codes.tsv", *model]) == 0
    assert main(["harmonize", scan, "-o", "h.nii.gz", "--json", *model]) == 0
    if not debug:
        assert main(["explain", scan, "-o", "explained", *model]) == 0
    assert found_in(said(capsys), WORDS) == []
    assert leaks(place, WORDS) == {}
    assert len(list(place.iterdir())) >= 5


def test_no_identifier_of_a_nifti_file_is_in_what_commands_write_or_say(marked, model_file, cohort, place, capsys):
    scan = mark_nifti(cohort.of("test").rows[0].scan, place.parent / "in")
    assert set(found_in(scan.read_bytes(), WORDS) + found_in(str(scan).encode(), WORDS)) == set(NIFTI_CANARIES)
    model = ["--model", str(model_file), "--device", "cpu", "--debug"]
    assert main(["counterfactual", str(scan), "-o", "c.nii", *model]) == 0
    assert main(["encode", str(scan), "-o", "codes.tsv", *model]) == 0
    assert found_in(said(capsys), WORDS) == []
    assert leaks(place, WORDS) == {}


def broken(folder: Path, target: Path, fault: str) -> Path:
    """The series with a fault that makes reading it fail, if possible by a message that quotes what was read."""
    shutil.copytree(folder, target / folder.name)
    for number, file in enumerate(sorted((target / folder.name).iterdir())):
        image = pydicom.dcmread(file)
        if fault == "text for a number":
            raw = file.read_bytes()
            slope = str(image["RescaleSlope"].value).encode()
            file.write_bytes(raw.replace(slope, b"GEHEIMNIS"[: len(slope)].ljust(len(slope))))
            continue
        if fault == "truncated":
            file.write_bytes(file.read_bytes()[: -len(image.PixelData) // 2])
            continue
        if fault == "two series" and number % 2:
            image.SeriesInstanceUID += ".2"
        if fault == "gap" and number == 3:
            file.unlink()
            continue
        if fault == "no place":
            del image.ImagePositionPatient
        if fault == "colour":
            image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
        if fault == "strange date":
            image.add_new("AcquisitionDate", "LO", canary("PatientName"))
            del image.PixelSpacing
        image.save_as(file, enforce_file_format=True)
    return target / folder.name


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_no_identifier_is_in_what_a_refusal_says(marked, model_file, place, capsys, debug):
    for fault in ("text for a number", "truncated", "two series", "gap", "no place", "colour", "strange date"):
        scan = broken(marked, place.parent / fault, fault)
        ended = main(["encode", str(scan), "-o", "codes.tsv", "--model", str(model_file), "--device", "cpu", *debug])
        told = said(capsys)
        assert ended == 3 or fault == "truncated", (fault, told)
        assert found_in(told, [*UNTYPED, "GEHEIM"]) == [], (fault, told)
        assert ("Traceback" in told.decode()) == bool(debug), fault
    assert leaks(place, WORDS) == {}


def test_a_bug_while_reading_is_told_without_what_was_read(marked, model_file, place, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ValueError(f"could not convert {UNTYPED[0]}")

    monkeypatch.setattr("medisent.formats.refuse_unfit", fail)
    assert main(["encode", str(marked), "--model", str(model_file), "--device", "cpu", "--debug"]) == 1
    told = said(capsys)
    assert b"withheld" in told
    assert found_in(told, UNTYPED) == []


def test_the_canaries_are_dates_and_identifiers_as_scanners_write_them():
    assert all(len(date) == 8 for date in DATES.values())
    assert all(len(uid) > 30 for uid in UIDS.values())


# Every command, each in a process of its own, on a whole cohort of marked scans


@pytest.fixture(scope="module")
def cohort_of_marked(tmp_path_factory) -> Path:
    """The table of ten people, whose names stand in their scans, in the table, and in the names of folders."""
    root = tmp_path_factory.mktemp("people")
    table = write_cohort(root / "plain", subjects=10, seed=3, spacing_mm=12.0, shape=(16, 16, 16), dicom=True)
    rows = read_table(table)
    for index in rows.index:
        folder = mark_dicom(table.parent / rows["scan"][index], root / "marked" / f"{canary('parent')}_{index}")
        rows.loc[index, "scan"] = str(folder)
        rows.loc[index, "tumour_mask"] = str(table.parent / rows["tumour_mask"][index])
        rows.loc[index, "subject"] = f"{canary('subject')}_{index}"
    rows["comment"] = [f"{canary('comment')}_{index}" for index in rows.index]
    rows = rows.drop(columns=["ventricle_mask"])
    (root / "cohort.tsv").write_text(rows.to_csv(sep="\t", index=False))
    return root / "cohort.tsv"


@pytest.mark.slow
def test_no_identifier_of_a_cohort_is_in_anything_that_any_command_writes_or_says(server, cohort_of_marked, tmp_path):
    table, out = cohort_of_marked, tmp_path / "out"
    out.mkdir()
    scans, split = list(read_table(table)["scan"]), read_table(table)["split"][0]
    damaged = broken(Path(scans[0]), tmp_path / "damaged", "truncated")
    bad = table.with_name("bad.tsv")
    bad.write_text(table.read_text().replace(scans[0], str(damaged)))

    def run(*words: object, code: int = 0) -> None:
        for debug in ([], ["--debug"]):
            log = f"{words[0]}{code}{''.join(debug)}"
            ended = server.run(out, *words, *debug, log=log)
            assert ended == code, (words, (out / f"{log}.err").read_text())

    assert server.run(out, "init", table, "-o", "study.toml", log="init") == 0
    study = (out / "study.toml").read_text().replace("minutes = 5 ", "steps = 2  ")
    (out / "study.toml").write_text(study)
    run("train", "study.toml", "-o", "run", "--dry-run")
    run("train", "study.toml", "-o", "run")
    run("runs", ".")
    run("evaluate", "run", "-o", "evaluation")
    run("info", "run")
    run("check")
    run("explain", scans[0], "--model", "run", "-o", "explained")
    run("counterfactual", scans[0], "--model", "run", "--set", "brightness*=1.01", "--extrapolate", "-o", "e.nii")
    run("harmonize", scans[0], "--to", scans[1], "--model", "run", "-o", "harmonized.nii")
    run("encode", *scans, "--model", "run", "-o", "codes.tsv", "--json")
    assert server.run(out, "init", bad, "-o", "told.toml", "--debug", log="told") == 0  # of the scan, and goes on
    (out / "bad.toml").write_text(study.replace("cohort.tsv", "bad.tsv"))
    run("train", "bad.toml", "-o", "never", code=3)
    run("evaluate", "run", "--cohort", bad, "--split", split, "-o", "never", code=3)
    for command in ("explain", "counterfactual", "harmonize", "encode"):
        run(command, damaged, "--model", "run", "-o", "never.nii", code=3)
    words = [*UNTYPED, *map(canary, ("subject", "comment"))]
    paths = [canary("parent"), canary("folder")]
    for log in (*out.glob("*.out"), *out.glob("*.err")):
        assert found_in(log.read_bytes(), words) == [], log.name
        log.unlink()
    assert leaks(out, [*words, *paths]) == {}
    assert (out / "run" / "checkpoint.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
def test_no_identifier_of_a_real_series_is_in_what_commands_write_or_say(server, tmp_path):
    folder = next((DATA / "pgbm_dicom").rglob("*T1post*"))
    image = pydicom.dcmread(next(folder.rglob("*.dcm")), stop_before_pixels=True)
    words = {str(e.value) for e in image.iterall() if e.VR in ("PN", "LO", "SH", "DA", "TM", "UI", "AE", "ST", "LT")}
    standard = {str(uid) for uid in pydicom.uid.UID_dictionary}
    telling = sorted(word for word in words - standard if len(word) >= 8)
    assert len(telling) >= 10
    for asked in (("encode", folder, "-o", "codes.tsv"), ("explain", folder, "-o", "explained")):
        assert server.run(tmp_path, *asked, "--debug") == 0, (tmp_path / "log.err").read_text()
        for log in ("log.out", "log.err"):
            assert found_in((tmp_path / log).read_bytes(), telling) == []
    assert leaks(tmp_path, telling) == {}
