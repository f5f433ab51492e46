"""Laws of cohort tables: every fault is named at once, the unknown stays unknown, subjects never straddle splits."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from medisent.cohorts import SPLITS, load_cohort, read_cohort, read_table
from medisent.errors import CohortError
from medisent.factors import Nominal, Positive, Real
from medisent.formats import read, write
from medisent.grids import Grid
from medisent.loading import loading
from medisent.volumes import Geometry, Volume

AGE = Real(name="age", role="anatomy", column="age")
SEX = Nominal(name="sex", role="anatomy", column="sex", levels=("F", "M"))
TUMOUR = Positive(name="tumour", role="anatomy", unit="mL", column="ml", mask="mask")
GRID = Grid(10.0, (8, 8, 8))


def table(folder: Path, text: str, files: bool = True, name: str = "cohort.tsv") -> Path:
    """A table from lines with spaces between the cells; ``-`` is an empty cell. Its files stand beside it."""
    rows = [["" if cell == "-" else cell for cell in line.split()] for line in text.strip().splitlines()]
    path = folder / name
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    if files:
        for row in rows[1:]:
            for column, cell in zip(rows[0], row, strict=False):
                if column in ("scan", "mask") and cell:
                    (folder / cell).touch()
    return path


GOOD = """
scan subject split age sex ml mask
a.nii A train 61 F 12.5 am.nii
b.nii A train 63 F - bm.nii
c.nii B validation - M 3 -
d.nii C test 70 - nan -
"""


def test_a_table_becomes_rows_with_paths_beside_it(tmp_path):
    cohort = read_cohort(table(tmp_path, GOOD), (AGE, SEX, TUMOUR), split="split")
    assert len(cohort) == 4
    assert [row.scan for row in cohort.rows] == [tmp_path / f"{x}.nii" for x in "abcd"]
    assert [row.subject for row in cohort.rows] == ["A", "A", "B", "C"]
    assert [row.split for row in cohort.rows] == ["train", "train", "validation", "test"]
    assert cohort.rows[0].values == (61, 0, 12.5)
    assert [row.masks["tumour"] for row in cohort.rows] == [tmp_path / "am.nii", tmp_path / "bm.nii", None, None]


@pytest.mark.parametrize("cell", ["-", "nan", "NaN", "NA", "n/a"])
def test_an_empty_cell_is_unknown(tmp_path, cell):
    text = f"scan age sex\na.nii 60 F\nb.nii {cell} {cell}\n"
    cohort = read_cohort(table(tmp_path, text), (AGE, SEX))
    assert all(math.isnan(value) for value in cohort.rows[1].values)
    assert cohort.rows[0].values == (60, 0)


def test_commas_or_tabs_a_byte_order_mark_and_windows_line_ends_are_all_read_alike(tmp_path):
    path = table(tmp_path, GOOD)
    text = path.read_text(encoding="utf-8")
    expected = read_cohort(path, (AGE, SEX, TUMOUR), split="split")
    for other in (text.replace("\t", ","), "\ufeff" + text, text.replace("\n", "\r\n")):
        path.write_bytes(other.encode("utf-8"))
        found = read_cohort(path, (AGE, SEX, TUMOUR), split="split")
        assert [row.scan for row in found.rows] == [row.scan for row in expected.rows]
        assert [row.split for row in found.rows] == [row.split for row in expected.rows]
        assert np.array_equal([r.values for r in found.rows], [r.values for r in expected.rows], equal_nan=True)


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    cohort = read_cohort(table(tmp_path, "scan subject\na.nii 007\nb.nii 7\n"), ())
    assert [row.subject for row in cohort.rows] == ["007", "7"]


# What is refused


def test_all_missing_files_are_listed_at_once(tmp_path):
    path = table(tmp_path, GOOD)
    for name in ("a.nii", "bm.nii", "d.nii"):
        (tmp_path / name).unlink()
    with pytest.raises(CohortError, match=r"3 files that are not there.*row 2: a\.nii; row 3: bm\.nii; row 5: d\.nii"):
        read_cohort(path, (AGE, TUMOUR))


def test_a_row_without_a_scan_is_refused(tmp_path):
    with pytest.raises(CohortError, match="row 3"):
        read_cohort(table(tmp_path, "scan age\na.nii 60\n- 61\n"), (AGE,))


def test_a_subject_in_two_splits_is_refused_with_its_rows(tmp_path):
    path = table(tmp_path, GOOD.replace("b.nii A train", "b.nii A test"))
    with pytest.raises(CohortError, match=r"1 subject\).*row 2; row 3\.") as refusal:
        read_cohort(path, (AGE,), split="split")
    assert "C" not in str(refusal.value).split("): ")[1]


def test_a_word_that_is_no_split_is_refused_with_its_row(tmp_path):
    path = table(tmp_path, GOOD.replace("validation", "val"))
    with pytest.raises(CohortError, match=r"train, validation, test, but 1 row has another.*row 4: 'val'"):
        read_cohort(path, (AGE,), split="split")


def test_all_values_that_are_none_are_listed_at_once(tmp_path):
    path = table(tmp_path, GOOD.replace("61", "old").replace("M 3", "X -3"))
    with pytest.raises(CohortError, match=r"3 values.*row 2: age.*'old'.*row 4: sex.*'X'.*row 4: tumour.*-3"):
        read_cohort(path, (AGE, SEX, TUMOUR))


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(CohortError, match=r"columns ml, weight.*has scan, age"):
        read_cohort(
            table(tmp_path, "scan age\na.nii 60\n"),
            (
                AGE,
                Positive(name="tumour", role="anatomy", column="ml"),
                Real(name="w", role="anatomy", column="weight"),
            ),
        )


def test_a_column_without_any_value_is_refused_unless_masks_can_tell(tmp_path):
    path = table(tmp_path, "scan age ml mask\na.nii - - am.nii\n")
    with pytest.raises(CohortError, match=r"age.*no value"):
        read_cohort(path, (AGE,))
    assert math.isnan(read_cohort(path, (TUMOUR,)).rows[0].values[0])


@pytest.mark.parametrize("content", [b"", b"scan\tage\n", b"\xff\xfe\x00broken\x80", b'scan\tage\n"a.nii\t3\n'])
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "cohort.tsv"
    path.write_bytes(content)
    with pytest.raises(CohortError, match=r"cohort\.tsv"):
        read_table(path)


@pytest.mark.parametrize("rows", ["a.nii\t60\t\nb.nii\t61\t\n", "a.nii\t60\t1\t2\nb.nii\t61\t3\t4\n"])
def test_a_table_whose_rows_are_longer_than_its_header_is_refused(tmp_path, rows):
    path = tmp_path / "cohort.tsv"
    path.write_text("scan\tage\n" + rows, encoding="utf-8")
    with pytest.raises(CohortError, match="more cells than"):
        read_table(path)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CohortError, match="does not exist"):
        read_table(tmp_path / "none.tsv")


def test_an_empty_split_is_refused_with_what_there_is(tmp_path):
    path = table(tmp_path, GOOD.replace("test", "train"))
    cohort = read_cohort(path, (AGE,), split="split")
    with pytest.raises(CohortError, match=r"test split.*train 3, validation 1, test 0"):
        cohort.of("test")
    assert len(cohort.of("train")) == 3


# Dealt splits


def many(tmp_path: Path, count: int = 300, shift: int = 0) -> Path:
    lines = [f"{i}.nii s{i // 2}" for i in range(shift, count + shift)]
    return table(tmp_path, "scan subject\n" + "\n".join(lines) + "\n")


def test_splits_are_dealt_by_subject_in_about_70_15_15(tmp_path):
    cohort = read_cohort(many(tmp_path), ())
    of_subject: dict[str, set[str]] = {}
    for row in cohort.rows:
        of_subject.setdefault(row.subject, set()).add(row.split)
    assert all(len(splits) == 1 for splits in of_subject.values())
    counts = Counter(row.split for row in cohort.rows)
    assert [counts[split] / 300 for split in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.08)


def test_a_subject_keeps_its_split_whoever_else_is_in_the_table(tmp_path):
    first = {row.subject: row.split for row in read_cohort(many(tmp_path), ()).rows}
    second = {row.subject: row.split for row in read_cohort(many(tmp_path, shift=100), ()).rows}
    common = first.keys() & second.keys()
    assert len(common) > 50
    assert all(first[subject] == second[subject] for subject in common)


def test_another_seed_deals_other_splits(tmp_path):
    path = many(tmp_path)
    one, other = ([row.split for row in read_cohort(path, (), seed=seed).rows] for seed in (0, 1))
    assert one != other


def test_without_a_column_of_subjects_every_scan_is_its_own(tmp_path):
    cohort = read_cohort(table(tmp_path, "scan\na.nii\nb.nii\n"), ())
    assert cohort.rows[0].subject != cohort.rows[1].subject


# Loading


def volume(tmp_path: Path, name: str, radius: float, gain: float = 0.0) -> None:
    """A ball, as a scan of that gain, or without one as a mask."""
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    distance = np.linalg.norm(np.moveaxis(np.indices((16, 16, 16)), 0, -1) - 7.5, axis=-1)
    inside = distance < radius
    voxels = (inside * gain).astype(np.float32) if gain else inside.astype(np.uint8)
    write(Volume(voxels, Geometry(affine, (16, 16, 16))), tmp_path / name, description="")


BALLS = """
scan group ml mask
a.nii x 5 am.nii
b.nii y - bm.nii
c.nii x 7 -
d.nii - - -
"""


@pytest.fixture
def balls(tmp_path) -> Path:
    path = table(tmp_path, BALLS, files=False)
    for index, name in enumerate("abcd"):
        volume(tmp_path, f"{name}.nii", 6, 100.0 * (index + 1))
    volume(tmp_path, "am.nii", 3)
    volume(tmp_path, "bm.nii", 4)
    return path


def test_a_cohort_becomes_one_batch_in_the_tables_order(balls):
    cohort = read_cohort(balls, (TUMOUR,), groups=["group"], orders=[None])
    told: list[tuple[int, int]] = []
    batch = load_cohort(cohort, loading(GRID, ["tumour"]), 1.0, lambda done, total: told.append((done, total)))
    assert batch.scan.shape == batch.coverage.shape == batch.masks.shape == (4, 1, 8, 8, 8)
    assert torch.allclose(batch.log_scale.exp() / 100, torch.tensor([1.0, 2, 3, 4]), rtol=0.2)
    assert batch.group.tolist() == [[0], [1], [0], [-1]]
    assert batch.order.isnan().all()
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_value_that_is_missing_is_measured_in_the_mask_and_stays_unknown_without_one(balls):
    batch = load_cohort(read_cohort(balls, (TUMOUR,)), loading(GRID, ["tumour"]), 1.0)
    values = batch.values[:, 0]
    measured = float(read(balls.parent / "bm.nii").voxels.sum()) * 0.125
    assert values[:3].tolist() == pytest.approx([5, measured, 7], rel=1e-3)
    assert math.isnan(values[3])
    assert batch.masks[:2].isfinite().all()
    assert batch.masks[2:].isnan().all()


def test_all_scans_that_cannot_be_read_are_listed_at_once(balls):
    for name in ("b.nii", "d.nii"):
        (balls.parent / name).write_bytes(b"not a scan")
    with pytest.raises(CohortError, match=r"2 of 4 scans.*b\.nii.*d\.nii"):
        load_cohort(read_cohort(balls, (TUMOUR,)), loading(GRID, ["tumour"]), 1.0)
