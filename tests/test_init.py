"""Laws of `init`: a study that trains as written, from a table or a folder, and every planted fault found."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_series import SECRETS, every, write_series
from pydicom.uid import generate_uid

from medisent.cli import main
from medisent.config import load_study
from medisent.config.proposing.columns import guess_factors
from medisent.config.proposing.listing import Listing
from medisent.config.proposing.sizes import Machine, propose_sizes
from medisent.config.proposing.survey import Survey, look_at
from medisent.formats import Outline
from medisent.phantoms import write_cohort
from medisent.training import study_cohort, train
from medisent.volumes import Geometry, Volume

DATA = os.environ.get("MEDISENT_TEST_DATA")


def save(path, seed, shape=(10, 12, 8), spacing=(5.0, 5.0, 6.0), voxels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxels is None:
        voxels = np.random.default_rng(seed).uniform(10, 100, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    return path


@pytest.fixture
def table(tmp_path):
    """A table with twenty small scans, tumour masks, and factors of which two go together and with the site."""
    rows = ["scan\tsubject\tsite\ttumour_ml\ttumour_mask\tgain\tgrade\tconstant\tcomment"]
    for i in range(20):
        save(tmp_path / f"scan{i}.nii.gz", i)
        save(tmp_path / f"mask{i}.nii.gz", i, voxels=(np.arange(960).reshape(10, 12, 8) > 900).astype(np.uint8))
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
            f"n {i}",
        )
        rows.append("\t".join(cells))
    path = tmp_path / "cohort.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def init(tmp_path, capsys):
    """Run ``init``; what it said as an object, its messages, and the study it wrote."""

    def run(cohort, *words, code=0):
        out = tmp_path / "written" / "study.toml"
        assert main(["init", str(cohort), "-o", str(out), "--json", *words]) == code
        said = capsys.readouterr()
        return json.loads(said.out), said.err, load_study(out) if code == 0 else None

    return run


def changed(table, **columns):
    rows = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    for name, cells in columns.items():
        rows[name] = cells
    rows.to_csv(table, sep="\t", index=False)
    return table


def trains(study, run):
    """Whether a step of training on the study, as it is but for its duration and the size of a step, ends well."""
    few = replace(study.training, minutes=None, steps=1, batch=2)
    return train(replace(study, training=few, network=replace(study.network, width=4)), run).card.steps == 1


def test_init_writes_a_study_that_reads_back(table, init):
    said, _, study = init(table)
    assert study.cohort.table == table
    assert (study.cohort.subject, study.cohort.site, study.cohort.split) == ("subject", "site", None)
    kinds = {f.name: (f.kind, f.role, f.column, f.mask) for f in study.factors}
    assert kinds == {
        "tumour_volume": ("positive", "anatomy", "tumour_ml", "tumour_mask"),
        "brightness": ("positive", "nuisance", "gain", None),
        "grade": ("ordinal", "anatomy", "grade", None),
    }
    assert said["factors"] == list(kinds)
    assert (said["scans"], said["subjects"], said["unreadable"]) == (20, 20, [])


def test_init_warns_of_what_can_mislead(table, init):
    said, err, _ = init(table)
    found = {(pair["one"], pair["other"]) for pair in said["confounding"]}
    assert {("tumour_volume", "brightness"), ("tumour_volume", "site")} <= found
    assert not any("measured brightness" in pair for pair in found), "the scans are all alike"
    assert re.search(r"tumour_volume and brightness go together \(distance correlation 0.9\d", err)
    assert "tumour_volume differs between sites" in err
    assert "5 % of column tumour_ml is empty" in err
    assert "Column constant has one value in all scans: it is no factor." in err
    assert "20 subjects are few" in err
    text = Path(said["study"]).read_text(encoding="utf-8")
    assert all(f"# Beware: {warning}" in text for warning in said["warnings"])


@pytest.mark.parametrize("name", ["study.toml", "cohort.tsv"])
def test_init_writes_over_nothing(name, tmp_path, init):
    save(tmp_path / "in" / "scan.nii.gz", 0)
    precious = tmp_path / "written" / name
    precious.parent.mkdir()
    precious.write_text("precious", encoding="utf-8")
    assert "not written over" in init(tmp_path / "in", code=2)[1]
    assert precious.read_text(encoding="utf-8") == "precious"
    assert [path.name for path in precious.parent.iterdir()] == [name]


def test_every_scan_that_cannot_be_read_is_listed_and_three_are_named(table, init):
    folder = table.parent
    (folder / "scan4.nii.gz").unlink()
    for number in (7, 9):
        path = folder / f"scan{number}.nii.gz"
        path.write_bytes(path.read_bytes()[: 900 + number])
    save(folder / "scan11.nii.gz", 0, voxels=np.full((10, 12, 8), 3.0, np.float32))
    (folder / "mask5.nii.gz").write_bytes(b"")
    said, err, study = init(table)
    assert [(f["row"], f["column"], f["code"]) for f in said["unreadable"]] == [
        *[(6, "scan", "format"), (7, "tumour_mask", "format"), (9, "scan", "format")],
        *[(11, "scan", "format"), (13, "scan", "format")],
    ]
    assert "5 of 20 rows name a scan or mask that cannot be read. Training refuses such rows." in err
    assert "... and 2 more; --json lists all of them." in err
    assert "scan4.nii.gz does not exist" in err
    assert "scan9" not in err
    assert study is not None


def test_a_cohort_without_a_readable_scan_is_refused(table, init, tmp_path):
    for path in tmp_path.glob("scan*.nii.gz"):
        path.unlink()
    said, err, _ = init(table, code=3)
    assert said["error"]["code"] == "cohort"
    assert "Not one of 20 scans can be read. The first: " in err
    assert not (tmp_path / "written").exists()


def test_a_subject_in_two_splits_is_found_and_the_study_trains_all_the_same(cohort_table, tmp_path, init):
    rows = pd.read_csv(cohort_table, sep="\t", dtype=str, keep_default_na=False)
    for column in ("scan", "tumour_mask", "ventricle_mask"):
        rows[column] = [str(cohort_table.parent / name) for name in rows[column]]
    rows.loc[rows.index[rows["split"] == "test"][0], "subject"] = rows["subject"][rows["split"] == "train"].iloc[0]
    rows.to_csv(tmp_path / "heads.tsv", sep="\t", index=False)
    said, err, study = init(tmp_path / "heads.tsv")
    assert "1 subject is in more than one split." in err
    assert study.cohort.split is None
    assert said["subjects"] == 9
    assert trains(study, tmp_path / "run")


def test_splits_of_other_names_are_told_and_left_out(table, init):
    _, err, study = init(changed(table, split=["train"] * 15 + ["val"] * 5))
    assert "5 cells of column split are none of train, validation, test." in err
    assert study.cohort.split is None


def test_a_copy_under_another_name_in_another_split_is_found(table, init, tmp_path):
    scan = nibabel.load(tmp_path / "scan2.nii.gz")
    header = nibabel.Nifti1Image(np.asarray(scan.dataobj), np.diag([5.0, 5.0, 6.5, 1.0]))
    nibabel.save(header, tmp_path / "scan17.nii.gz")  # the same voxels under another header
    splits = ["train"] * 14 + ["validation"] * 3 + ["test"] * 3
    said, err, _ = init(changed(table, split=splits))
    assert "1 scan is a copy of another, voxel for voxel; the first are those of rows 4, 19." in err
    assert "1 scan is in two splits under two subjects' names (rows 4, 19)" in err
    assert not any("name a scan that an earlier row names" in warning for warning in said["warnings"])


def test_mixed_scans_are_told(table, init, tmp_path):
    for number in range(5):
        voxels = np.random.default_rng(number).uniform(-1000, 900, (10, 12, 30)).astype(np.float32)
        save(tmp_path / f"scan{number}.nii.gz", 0, voxels=voxels, spacing=(5.0, 5.0, 20.0))
    _, err, _ = init(table)
    assert "5 of 20 scans whose voxels were read have intensities of CT, the others have not." in err
    assert "between 6 and 20 mm long: thick and thin slices are mixed." in err
    assert "Fields of view differ: bottom to top they measure 48 to 600 mm." in err


def test_ct_has_its_air(table, init, tmp_path):
    for number in range(20):
        voxels = np.full((10, 12, 8), -1000.0, np.float32)
        voxels[3:7, 3:9, 2:6] = np.random.default_rng(number).uniform(-80, 200, (4, 6, 4))
        save(tmp_path / f"scan{number}.nii.gz", 0, voxels=voxels)
    said, _, study = init(table)
    assert study.scanner.air == -1000.0
    assert not any("measured brightness" in pair.values() for pair in said["confounding"])
    assert study.grid.shape[0] * study.grid.spacing_mm < 50, "air needs no cells"


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("tumour_ml", ["1.5", "2.5", "30"], ("tumour_volume", "anatomy", "positive", "mL")),
        ("Tumour Volume (mL)", ["1.5", "2.5", "30"], ("tumour_volume", "anatomy", "positive", "mL")),
        ("hippocampus_mm3", ["1500", "2500.5", "3000"], ("hippocampus_volume", "anatomy", "positive", "mm3")),
        ("age_years", ["31.5", "40", "22"], ("age", "anatomy", "positive", "years")),
        ("Age", ["31", "40", "22"], ("age", "anatomy", "positive", "years")),
        ("sex", ["M", "F"], ("sex", "anatomy", "categorical", "")),
        ("sex", ["1", "2", "3"], ("sex", "anatomy", "categorical", "")),
        ("angle_deg", ["10", "350", "180"], ("angle", "anatomy", "circular", "degrees")),
        ("angle_deg", ["10", "35.5", "18"], ("angle", "anatomy", "positive", "degrees")),
        ("shift_mm", ["-2", "3", "0.5"], ("shift", "anatomy", "real", "mm")),
        ("grade", ["1", "2", "3", "4"], ("grade", "anatomy", "ordinal", "")),
        ("grade", ["II", "IV", "III"], ("grade", "anatomy", "ordinal", "")),
        ("atrophy", ["mild", "none", "severe"], ("atrophy", "anatomy", "ordinal", "")),
        ("diagnosis", ["AD", "MCI", "HC"], ("diagnosis", "anatomy", "categorical", "")),
        ("vendor", ["GE", "Siemens"], ("vendor", "nuisance", "categorical", "")),
        ("field_strength", ["1.5", "3.0"], ("field_strength", "nuisance", "positive", "")),
        ("gain", ["1.5", "0.7"], ("brightness", "nuisance", "positive", "")),
        ("scan", ["1.5", "0.7"], None),
        ("session", ["1", "2"], None),
        ("scan_date", ["20200101", "20210101"], None),
        ("patient_id", ["17", "18"], None),
        ("remark", ["a text", "another"], None),
    ],
)
def test_kind_role_and_unit_are_guessed_from_name_and_values(name, cells, expected, tmp_path):
    cells = cells * (1 if name == "remark" else 8)
    if name == "remark":
        cells = [f"{cell} {number}" for number in range(8) for cell in cells]
    rows = pd.DataFrame({"path": ["a.nii"] * len(cells), name: cells})
    listing = Listing(rows, tmp_path, "path", None, None, None, ())
    factors = guess_factors(listing, [True] * len(cells)).factors
    found = [(f.name, f.role, f.kind, f.unit) for f in factors]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["1.5", "2.5", "?"] * 4, "has numbers and 4 cells that are none; empty these cells"),
        (["1,5", "2,5", "3,5"] * 4, "has decimal commas; write points"),
        (["4"] * 12, "has one value in all scans"),
        (["4"] * 11 + ["5"], "has one value in all training scans"),
    ],
)
def test_a_column_that_cannot_be_a_factor_is_told(cells, reason, tmp_path):
    listing = Listing(pd.DataFrame({"path": ["a"] * 12, "size": cells}), tmp_path, "path", None, None, None, ())
    guesses = guess_factors(listing, [True] * 11 + [False])
    assert (guesses.factors, guesses.left_out) == ((), (("size", reason),))


def head_in_air(half, shape=(64, 64, 48), spacing=4.0):
    """A scan of an ellipsoid with these half axes in mm, in the middle of much air."""
    axes = [spacing * (np.arange(n) - (n - 1) / 2) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (x / half[0]) ** 2 + (y / half[1]) ** 2 + (z / half[2]) ** 2 <= 1
    return Volume(np.where(inside, 100.0, 0.0).astype(np.float32), Geometry(np.diag([spacing] * 3 + [1.0]), shape))


def surveyed(*volumes):
    outlines = tuple(Outline(volume.geometry, "", (), str(n)) for n, volume in enumerate(volumes))
    return Survey(outlines, {n: look_at(volume) for n, volume in enumerate(volumes)}, (), ())


def test_the_grid_holds_the_anatomy_of_all_scans_and_no_more_air_than_it_has_to():
    sizes = propose_sizes(surveyed(head_in_air((70, 90, 60)), head_in_air((60, 95, 80))), 200, Machine(8.0))
    edges = np.array(sizes.grid.shape) * sizes.grid.spacing_mm
    assert (edges >= 2 * np.array((70, 95, 80))).all()
    assert (edges <= 2 * np.array((70, 95, 80)) * 1.05 + 6 * sizes.grid.spacing_mm).all()
    assert sizes.cut == 0
    assert 0.05 < sizes.outside < 0.8
    assert max(sizes.grid.shape) <= 40


def test_cells_are_no_finer_than_voxels_and_grow_in_number_with_the_gpu():
    survey = surveyed(head_in_air((70, 90, 60)))
    grids = [propose_sizes(survey, 200, Machine(64.0, gpu)).grid for gpu in (0.0, 8.0, 24.0, 80.0)]
    assert all(grid.spacing_mm >= 4.0 for grid in grids)
    spacings = [grid.spacing_mm for grid in grids]
    assert spacings == sorted(spacings, reverse=True)
    assert spacings[0] > spacings[-1] == 4.0


def test_little_memory_makes_small_steps():
    survey = surveyed(head_in_air((70, 90, 60)))
    wide, narrow = (propose_sizes(survey, 200, Machine(gb)) for gb in (16.0, 2.0))
    assert (wide.batch, wide.width) == (4, 16)
    assert narrow.batch < 4 or narrow.grid.spacing_mm > wide.grid.spacing_mm
    assert propose_sizes(survey, 3, Machine(16.0)).batch == 3


def test_training_takes_longer_for_more_scans_and_more_cells():
    coarse, fine = surveyed(head_in_air((70, 90, 60))), surveyed(head_in_air((70, 90, 60), (128, 128, 96), 2.0))
    minutes = [propose_sizes(coarse, n, Machine(16.0)).minutes for n in (20, 200, 2000)]
    assert minutes == sorted(minutes)
    assert minutes[0] < minutes[-1]
    on_gpu, on_cpu = (propose_sizes(fine, 200, Machine(16.0, gpu)).grid for gpu in (24.0, 0.0))
    assert on_gpu.spacing_mm < on_cpu.spacing_mm


def written_table(said):
    path = Path(said["cohort"])
    rows = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    assert all((path.parent / scan).exists() for scan in rows["scan"])
    return rows


def test_a_folder_of_files_becomes_a_table_with_masks(tmp_path, init):
    for number in range(6):
        save(tmp_path / "in" / "imagesTr" / f"liver_{number}.nii.gz", number)
        mask = (np.arange(960).reshape(10, 12, 8) > 900 - 20 * number).astype(np.uint8)
        save(tmp_path / "in" / "labelsTr" / f"liver_{number}.nii.gz", 0, voxels=mask)
    (tmp_path / "in" / "imagesTr" / "liver_9.nii.gz").write_bytes(b"no scan")
    said, err, study = init(tmp_path / "in")
    rows = written_table(said)
    assert [Path(scan).name for scan in rows["scan"]] == [Path(mask).name for mask in rows["mask"]]
    assert rows["subject"].nunique() == len(rows) == 6
    assert [f.name for f in study.factors] == ["masked_volume"]
    assert "1 scan or mask cannot be read and is left out of the table." in err
    assert [Path(f["scan"]).name for f in said["unreadable"]] == ["liver_9.nii.gz"]


def test_a_folder_as_bids_has_it_brings_its_participants(tmp_path, init):
    people = ["participant_id\tage\tsex"]
    for number in range(1, 9):
        for kind in ("T1w", "FLAIR") if number < 4 else ("T1w",):
            save(tmp_path / "in" / f"sub-{number:02}" / "anat" / f"sub-{number:02}_{kind}.nii.gz", number)
        people.append(f"sub-{number:02}\t{40 + number}\t{'MF'[number % 2]}")
    save(tmp_path / "in" / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii.gz", 99)
    save(tmp_path / "in" / "derivatives" / "sub-01" / "sub-01_T1w.nii.gz", 98)
    (tmp_path / "in" / "participants.tsv").write_text("\n".join(people) + "\n", encoding="utf-8")
    said, err, study = init(tmp_path / "in")
    rows = written_table(said)
    assert "the 9 of t1w are taken; left out are 3 of flair" in err
    assert (len(rows), rows["subject"].nunique()) == (9, 8)
    assert list(rows["age"][:3]) == ["41", "41", "42"]
    assert {f.name: f.kind for f in study.factors} == {"age": "positive", "sex": "categorical"}


def test_a_folder_of_dicom_series_trains_and_names_nobody(tmp_path, init):
    for number in range(6):
        person = f"{SECRETS['PatientID']}-{number // 2}"
        write_series(tmp_path / "in" / f"a{number // 3}" / f"b{number}", every("PatientID", person), seed=number)
    write_series(tmp_path / "in" / "mixed", seed=11)
    write_series(tmp_path / "in" / "mixed", seed=12)
    said, err, study = init(tmp_path / "in")
    rows = written_table(said)
    assert list(rows["subject"]) == ["s0001", "s0001", "s0002", "s0002", "s0003", "s0003"]
    assert "Subjects are told by the patient IDs in the headers, which are not written anywhere." in err
    assert [f["code"] for f in said["unreadable"]] == ["format.several_series"]
    assert study.factors == ()
    assert trains(study, tmp_path / "run")
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "in" not in path.parts]
    assert not any(secret.encode() in text for text in [*everything, err.encode()] for secret in SECRETS.values())


def test_equal_patient_ids_of_different_studies_are_not_one_person(tmp_path, init):
    for number in range(3):
        study = every("StudyInstanceUID", generate_uid(entropy_srcs=[str(number)]))
        write_series(tmp_path / "in" / f"b{number}", study, seed=number)
    said, err, _ = init(tmp_path / "in")
    assert said["subjects"] == 3
    assert "Subjects are told by the study UIDs" in err


def test_a_folder_with_a_cohort_table_is_that_cohort(table, init):
    said, _, study = init(table.parent)
    assert (Path(said["cohort"]), study.cohort.table) == (table, table)


def test_an_empty_folder_is_refused(tmp_path, init):
    (tmp_path / "in").mkdir()
    assert "holds no scan that can be read" in init(tmp_path / "in", code=3)[1]


def test_the_same_cohort_gives_the_same_study(table, tmp_path):
    texts = []
    for name in ("a", "b"):
        assert main(["init", str(table), "-o", str(tmp_path / name / "study.toml"), "--quiet"]) == 0
        texts.append((tmp_path / name / "study.toml").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]


def test_a_seed_is_chosen_by_which_every_split_has_a_subject(table, init):
    lines = table.read_text(encoding="utf-8").splitlines()[:5]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _, err, study = init(table)
    assert "4 subjects are few" in err
    assert {row.split for row in study_cohort(study).rows} == {"train", "validation", "test"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_confounding_is_found_where_it_was_planted_and_nowhere_else(seed, tmp_path, init):
    table = write_cohort(tmp_path, subjects=60, seed=seed, spacing_mm=12.0, shape=(16, 16, 16), confound=0.8)
    said, _, _ = init(changed(table, gain=[""] * 60))
    pairs = {(pair["one"], pair["other"]) for pair in said["confounding"]}
    assert ("tumour_volume", "measured brightness") in pairs


@pytest.mark.realdata
@pytest.mark.skipif(DATA is None, reason="MEDISENT_TEST_DATA names no folder")
def test_the_hippocampi_make_a_study_that_trains(tmp_path, init):
    said, _, study = init(Path(DATA) / "hippocampus")
    assert (said["scans"], said["unreadable"]) == (195, [])
    assert [f.name for f in study.factors] == ["masked_volume"]
    assert (np.array(study.grid.shape) * study.grid.spacing_mm >= (35, 50, 36)).all()
    rows = written_table(said).iloc[::20]
    table = tmp_path / "few.tsv"
    for column in ("scan", "mask"):
        rows[column] = [str(Path(said["cohort"]).parent / name) for name in rows[column]]
    rows.to_csv(table, sep="\t", index=False)
    assert trains(replace(study, cohort=replace(study.cohort, table=table)), tmp_path / "run")


@pytest.mark.realdata
@pytest.mark.skipif(DATA is None, reason="MEDISENT_TEST_DATA names no folder")
def test_real_series_of_one_person_are_one_subject(tmp_path, init):
    said, _, study = init(Path(DATA) / "pgbm_dicom")
    assert (said["scans"], said["subjects"], said["unreadable"]) == (2, 1, [])
    assert trains(study, tmp_path / "run")
