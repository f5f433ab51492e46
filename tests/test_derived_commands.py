"""Laws of ``--dicom``: what is written as NIfTI is also there as DICOM, for scans that were DICOM."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread

from medisent.cli import main
from medisent.explanations import explain
from medisent.formats import read, write
from medisent.phantoms.dicom import write_series
from medisent.volumes import Volume


@pytest.fixture(scope="module")
def series(fine_scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "series"
    write_series(fine_scan, folder, name="HEAD", description="rendered", entropy="commands")
    return folder


@pytest.fixture(scope="module")
def explained(series, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "explained"
    explanation = explain(trained, read(series))
    explanation.save(out, dicom=True)
    return explanation, out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def halfway(folder: Path) -> float:
    """Half of the largest step between stored values."""
    return max(float(dcmread(path).RescaleSlope) for path in folder.iterdir()) / 2


def test_every_map_and_counterfactual_of_an_explanation_is_there_as_dicom(explained):
    _, out = explained
    maps = sorted(path.name.removesuffix(".nii.gz") for path in (out / "maps").iterdir())
    assert sorted(path.stem for path in (out / "dicom/maps").iterdir()) == maps
    stems = {path.name.removesuffix(".nii.gz") for path in (out / "counterfactuals").glob("*.nii.gz")}
    assert {path.name for path in (out / "dicom/counterfactuals").iterdir()} == stems
    for stem in [*(f"counterfactuals/{stem}" for stem in sorted(stems)[:3]), "canonical"]:
        found, wanted = read(out / "dicom" / stem), read(out / f"{stem}.nii.gz")
        np.testing.assert_allclose(found.affine, wanted.affine, rtol=0, atol=1e-5)
        slack = 1.01 * halfway(out / "dicom" / stem) + 1e-6
        np.testing.assert_allclose(found.voxels, wanted.voxels, rtol=0, atol=slack)


def test_the_explanations_lists_hold_its_dicom_objects(explained):
    _, out = explained
    objects = {name for name in files(out) if name.startswith("dicom/")}
    assert objects < set(json.loads((out / "factors.json").read_text())["files"])
    assert objects < set(json.loads((out / "manifest.json").read_text())["outputs"])


def test_the_mask_is_as_large_as_the_soft_one_and_the_report_says_how_large(explained):
    explanation, out = explained
    mask = explanation.masks["tumour_volume"].voxels
    segment = highdicom.seg.segread(out / "dicom/masks/tumour_volume.dcm")
    assert int((segment.pixel_array > 0).sum()) == int(mask.sum()) > 0
    (group,) = highdicom.sr.srread(out / "dicom/readouts.dcm").content.get_volumetric_roi_measurement_groups()
    told = {m.name.value: m.value for m in group.get_measurements()}
    readout = explanation.reading.readouts["tumour_volume"]
    assert (told["tumour_volume"], told["interval_low"]) == (readout.estimate, readout.low)
    assert told["118565006"] == pytest.approx(mask.sum() * explanation.scan.geometry.voxel_ml)


def test_counterfactual_writes_the_series_beside_the_file(series, model_file, tmp_path, capsys):
    asked = ["counterfactual", str(series), "--model", str(model_file), "--device", "cpu", "--set", "brightness*=1.1"]
    out = tmp_path / "bright.nii.gz"
    assert main([*asked, "--extrapolate", "-o", str(out), "--dicom", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dicom"] == str(tmp_path / "bright_dicom")
    first = files(tmp_path)
    found, wanted = read(tmp_path / "bright_dicom"), read(out)
    slack = 1.01 * halfway(tmp_path / "bright_dicom") + 1e-6
    np.testing.assert_allclose(found.voxels, wanted.voxels, rtol=0, atol=slack)
    assert {dcmread(p).SeriesDescription for p in (tmp_path / "bright_dicom").iterdir()} == {
        "SYNTHETIC medisent brightness*=1.1"
    }
    # without --dicom the images of the run before do not stay beside a scan that they are not of
    assert main([*asked, "--extrapolate", "-o", str(out), "-q"]) == 0
    assert set(first) - set(files(tmp_path)) == {name for name in first if name.endswith(".dcm")}


@pytest.mark.parametrize("command", ["explain", "counterfactual"])
def test_dicom_objects_of_a_scan_that_is_not_dicom_are_refused(command, fine_scan, model_file, tmp_path, capsys):
    write(fine_scan, tmp_path / "scan.nii", description="")
    asked = [command, str(tmp_path / "scan.nii"), "--model", str(model_file), "--device", "cpu", "--dicom"]
    assert main([*asked, "-o", str(tmp_path / "out.nii.gz")]) == 3
    assert "the scan is not DICOM" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
