"""Laws of explanations: the files of the contract, in the scan's own space, the same every time, with nobody's name."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisent import models
from medisent.checkpoints import FactorCard, Trained
from medisent.counterfactuals import with_values
from medisent.errors import InterventionError, MachineError
from medisent.explanations import Explanation, explain
from medisent.explanations.choices import shown_values, standing
from medisent.explanations.traversals import stops, traversals
from medisent.factors import Real
from medisent.formats import read, write
from medisent.readings import percentile, read_batch, read_factors
from medisent.volumes import Volume
from medisent.volumes.pictures import Upright

COLUMNS = ["name", "role", "unit", "estimate", "low", "high", "level", "percentile"]
NAMES = ["tumour_volume", "head_size", "site", "brightness", "contrast", "bias_field"]
PATIENT = ("Quxmeier", "Xantippe", "19501231", "ACC4711")


@pytest.fixture(scope="module")
def named(fine_scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scan in a file whose path and header name a patient."""
    path = tmp_path_factory.mktemp("Quxmeier_Xantippe") / "ACC4711_19501231.nii"
    image = nibabel.Nifti1Image(fine_scan.voxels, fine_scan.affine)
    image.header["descrip"] = b"Quxmeier^Xantippe 19501231"
    image.header["db_name"] = b"ACC4711"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Quxmeier^Xantippe"))
    nibabel.save(image, path)
    return path


@pytest.fixture(scope="module")
def explanation(trained: Trained, named: Path) -> Explanation:
    return explain(trained, read(named))


@pytest.fixture(scope="module")
def folder(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    explanation.save(out)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def strict(text: str) -> dict:
    """JSON without the NaN that Python would let through."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


# The folder


def test_the_files_of_the_contract_are_there_and_listed(folder):
    names = set(digests(folder))
    assert names >= {"factors.json", "factors.csv", "canonical.nii.gz", "report.html", "manifest.json"}
    assert {"maps/brightness.nii.gz", "maps/head_size.nii.gz", "maps/contrast.nii.gz"} <= names
    assert any(name.startswith("counterfactuals/brightness_") for name in names)
    assert set(strict((folder / "factors.json").read_text())["files"]) == names


def test_every_volume_lies_where_the_scan_lies(folder, named):
    scan = nibabel.load(named)
    volumes = list(folder.rglob("*.nii.gz"))
    assert len(volumes) > 6
    for path in volumes:
        found = nibabel.load(path)
        assert found.shape == scan.shape
        assert np.array_equal(found.affine, scan.affine)
        for name in ("sform_code", "qform_code", "xyzt_units"):
            assert found.header[name] == scan.header[name]
        assert np.isfinite(found.get_fdata()).all()


def test_maps_are_float32_and_counterfactuals_have_their_sidecars(folder):
    for path in (folder / "maps").iterdir():
        assert nibabel.load(path).get_data_dtype() == np.float32
    for path in [*(folder / "counterfactuals").glob("*.nii.gz"), folder / "canonical.nii.gz"]:
        assert b"synthetic" in nibabel.load(path).header["descrip"].item()
        sidecar = strict(path.with_name(path.name.removesuffix(".nii.gz") + ".json").read_text())
        assert sidecar["synthetic"] is True


def test_counterfactuals_are_named_by_factor_and_value(folder):
    for path in (folder / "counterfactuals").glob("*.nii.gz"):
        sidecar = strict(path.with_name(path.name.removesuffix(".nii.gz") + ".json").read_text())
        name, _, value = path.name.removesuffix(".nii.gz").rpartition("_")
        (edit,) = sidecar["edits"]
        assert name == edit["factor"]
        if name == "site":
            assert value == f"site-{edit['value'] + 1:.0f}"
        else:
            assert float(value) == pytest.approx(edit["value"], rel=0.01)


def test_factors_json_says_what_the_contract_says(folder, trained):
    found = strict((folder / "factors.json").read_text())
    assert found["schema"] == 1
    assert found["model"] == trained.digest
    assert [row["name"] for row in found["factors"]] == NAMES
    for row in found["factors"]:
        assert list(row) == COLUMNS
        assert row["role"] in ("anatomy", "nuisance")
        assert 0 <= row["percentile"] <= 100
        assert row["level"] == 0.9
    numbers = [row for row in found["factors"] if row["name"] != "site"]
    assert all(row["low"] <= row["estimate"] <= row["high"] for row in numbers)
    (site,) = (row for row in found["factors"] if row["name"] == "site")
    assert site["estimate"] in ("site-1", "site-2", "site-3", "site-4")
    assert site["low"] is None
    assert site["high"] is None
    for check in found["quality"].values():
        assert set(check) == {"ok", "value", "low", "high", "note"}


def test_factors_csv_is_the_same_table(folder):
    rows = strict((folder / "factors.json").read_text())["factors"]
    table = pd.read_csv(folder / "factors.csv", keep_default_na=False)
    assert list(table.columns) == COLUMNS
    assert table["name"].tolist() == NAMES
    for row, (_, line) in zip(rows, table.iterrows(), strict=True):
        for column in COLUMNS:
            value = "" if row[column] is None else row[column]
            assert line[column] == value or float(line[column]) == pytest.approx(value, rel=1e-12)


def test_the_manifest_knows_every_other_file_by_its_hash(folder, trained):
    manifest = strict((folder / "manifest.json").read_text())
    found = digests(folder)
    del found["manifest.json"]
    assert manifest["outputs"] == found
    assert manifest["inputs"]["model_sha256"] == trained.digest
    assert {"medisent", "torch", "numpy", "python"} <= set(manifest["versions"])


def test_the_same_scan_and_model_give_the_same_bytes(trained, named, folder, tmp_path):
    explain(trained, read(named)).save(tmp_path)
    assert digests(tmp_path) == digests(folder)


def test_no_file_knows_who_the_patient_is_or_where_the_scan_lay(folder, named):
    for path in folder.rglob("*"):
        assert not any(word in str(path.relative_to(folder)) for word in PATIENT)
        if path.is_file():
            raw = path.read_bytes()
            raw = nibabel.load(path).header.binaryblock if path.suffix == ".gz" else raw
            assert not any(word.encode() in raw for word in (*PATIENT, str(named.parent)))


class References(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"src", "srcset", "poster", "data", "action"} | ({"href"} if tag == "link" else set())
        self.found += [value or "" for name, value in attrs if name in wanted]


def test_the_report_opens_without_a_network(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(reference.startswith(("data:", "#")) for reference in References(page).found)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page)
    assert "tumour volume" in page.lower()


def test_a_folder_that_cannot_be_written_is_refused_and_gets_nothing(explanation, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        explanation.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# What it says


def test_the_canonical_scan_has_its_scanner_at_the_reference(trained, scan):
    found = explain(trained, scan)  # this scan lies on the grid
    reference = found.reading.scene.canonical.numpy() * math.exp(float(trained.network.reference))
    inside = found.reading.scene.canonical.numpy() < 2.9
    assert np.allclose(found.canonical.voxels[inside], reference[inside], rtol=1e-3, atol=1e-5)


def test_a_map_is_what_the_scan_gains_per_unit_with_its_sign(explanation):
    scan = explanation.scan
    bright = explanation.maps["brightness"].voxels
    present = explanation.reading.readouts["brightness"].estimate
    assert np.allclose(bright, scan.voxels / present, rtol=2e-2, atol=1e-4)
    wanted = explanation.reading.readouts["head_size"].estimate + 1
    moved = with_values(explanation.trained, explanation.reading, [("head_size", wanted)])
    gained = moved.voxels.astype(float) - scan.voxels
    head = explanation.maps["head_size"].voxels
    assert np.corrcoef(gained.ravel(), head.ravel())[0, 1] > 0.9


def test_maps_are_of_factors_that_a_number_can_be_added_to(explanation):
    assert "site" not in explanation.maps
    assert set(explanation.maps) <= set(NAMES)
    assert {name.rpartition("_")[0] for name in explanation.counterfactuals} <= set(NAMES)


def test_a_part_of_a_scan_shows_at_a_stop_what_the_whole_counterfactual_shows_there(explanation):
    trained, reading = explanation.trained, explanation.reading
    part = Upright(reading.scan).slabs((9, 20, 12))[0]
    found = {one.factor: one for one in traversals(trained, reading)}
    assert found.keys() <= set(trained.network.factors)
    assert len(found) >= 4
    for name, one in found.items():
        present = reading.readouts[name].estimate
        values = stops(trained.network.factors[name], trained.card.factors[name], present)
        assert values[one.own] == present
        assert len(values) == len(one.labels)
        assert one.show(part, one.own) is part
        whole = with_values(trained, reading, [(name, values[0])])
        wanted = Upright(whole).slabs((9, 20, 12))[0].voxels
        shown = one.show(part, 0).voxels
        assert np.allclose(shown, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


def test_no_edit_is_shown_that_leads_further_than_to_the_half_or_the_double(trained):
    factor, entry = trained.network.factors["brightness"], trained.card.factors["brightness"]
    for present in (entry.low / 100, entry.low, entry.high, 100 * entry.high):
        assert all(present / 2 <= value <= present * 2 for value in shown_values(trained, factor, present))
    assert len(shown_values(trained, factor, (entry.low * entry.high) ** 0.5)) == 2


def test_a_place_among_training_scans_is_said_in_words_where_it_is_at_an_end():
    assert standing(0.0) == "smaller than in any of the training scans"
    assert standing(100.0) == "larger than in any of the training scans"
    assert standing(63.2) == "larger than in 63 % of the training scans"


@given(st.floats(0.01, 100), st.floats(0.1, 10), st.floats(-0.5, 1.5))
def test_stops_go_up_through_the_cohorts_middle_and_stand_once_at_the_scans_own_value(low, width, place):
    quantiles = tuple(np.linspace(low, low + width, 101).tolist())
    card = FactorCard(quantiles, low, low + width, 1.0, 10)
    present = low + place * width
    values = stops(Real(name="size", role="anatomy"), card, present)
    if not low <= present <= low + width:
        assert values == []
        return
    assert values.count(present) == 1
    assert values == sorted(values)
    assert len(values) in (7, 8)
    assert (values[0] == min(present, quantiles[5])) or present == values[0]
    assert values[-1] in (present, quantiles[95])


def test_the_headline_is_one_sentence_with_the_first_factor_of_the_anatomy(explanation):
    text = explanation.headline()
    assert text.startswith("Tumour volume is ")
    assert " mL" in text
    assert "90 % interval" in text


def test_a_notebook_shows_the_table_and_the_warnings(explanation):
    page = explanation._repr_html_()
    assert all(name in page for name in NAMES)
    for warning in explanation.reading.warnings:
        assert warning in page


@pytest.mark.parametrize("measure", ["typical_error", "typical_distance"])
def test_a_scan_unlike_those_of_training_is_explained_with_a_warning(trained, scan, measure):
    nearer = replace(trained.card, **{measure: tuple(value / 9 for value in getattr(trained.card, measure))})
    reading = read_factors(replace(trained, card=nearer), scan)
    assert sum("do not rely" in warning for warning in reading.warnings) == 1
    assert not any("do not rely" in warning for warning in read_factors(trained, scan).warnings)


def test_a_scan_that_covers_little_is_explained_with_a_warning(trained, scan):
    part = replace(scan, voxels=scan.voxels[4:9], geometry=replace(scan.geometry, shape=(5, 16, 16)))
    reading = read_factors(trained, part)
    assert not reading.checks["field_of_view"].ok
    assert any("covers 31 %" in warning for warning in reading.warnings)


def test_what_the_reader_had_to_decide_is_a_warning(trained, scan):
    reading = read_factors(trained, replace(scan, remarks=("Two places were given; the sform was taken.",)))
    assert "Two places were given; the sform was taken." in reading.warnings


def test_scans_read_together_are_read_as_if_alone(trained, scan, fine_scan):
    together, alone = read_batch(trained, [scan, fine_scan]), [read_factors(trained, s) for s in (scan, fine_scan)]
    for one, other in zip(together, alone, strict=True):
        for name in NAMES:
            assert one.readouts[name].estimate == pytest.approx(other.readouts[name].estimate, rel=1e-4, abs=1e-5)
        assert one.log_scale == other.log_scale


@pytest.mark.parametrize(("value", "rank"), [(-1.0, 0.0), (0.0, 0.5), (49.5, 50.0), (200.0, 100.0)])
def test_a_percentile_is_where_a_value_stands_among_quantiles(value, rank):
    assert percentile(value, [float(i) for i in range(100)]) == rank
    assert math.isnan(percentile(value, []))


# The model as users hold it


@pytest.fixture(scope="module")
def model(trained: Trained) -> models.Model:
    return models.Model(trained)


def test_a_model_takes_volumes_and_paths_alike(model, named):
    scan = read(named)
    one, other = model.encode([scan, named]).to_numpy()
    assert np.array_equal(one, other)
    assert model.encode([scan]).columns.tolist() == list(model.trained.network.partition.columns)
    assert model.encode([]).empty


def test_a_counterfactual_by_name_is_the_counterfactual_by_wish(model, named):
    scan = read(named)
    assert np.array_equal(model.counterfactual(scan).voxels, scan.voxels)
    brighter = model.counterfactual(scan, brightness=3.0, extrapolate=True)
    assert not np.array_equal(brighter.voxels, scan.voxels)
    assert np.array_equal(model.counterfactual(named, brightness="3.0", extrapolate=True).voxels, brighter.voxels)
    elsewhere = model.counterfactual(scan, site="site-2")
    assert elsewhere.geometry == scan.geometry
    with pytest.raises(InterventionError, match="no factor 'gain'"):
        model.counterfactual(scan, gain=3.0)


def test_a_model_says_what_it_knows(model, model_file):
    assert list(model.factors) == NAMES
    assert "training saw" in model._repr_html_()
    assert models.load(model_file).trained.digest == model.trained.digest


def test_an_explanation_of_what_was_written_is_that_of_what_was_read(model, explanation, tmp_path):
    write(explanation.scan, tmp_path / "again.nii.gz", description="")
    again = model.explain(tmp_path / "again.nii.gz")
    pd.testing.assert_frame_equal(again.factors, explanation.factors)
