"""Laws of place: a bright voxel stays where it is in the world, however a scan lies in its file."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_formats_matrix import CONFLICTS

from medisent import formats
from medisent.counterfactuals import counterfactual, parse_wish
from medisent.explanations import explain
from medisent.grids import sample

SHAPE, MARKER = (13, 11, 12), (9, 3, 7)
SPACING = np.array([14.0, 15.0, 13.0])
NEAR_MM = 0.01


def straight() -> list[np.ndarray]:
    """The forty-eight ways in which axes can lie along the body."""
    return [
        np.array([sign * np.eye(3)[axis] for sign, axis in zip(signs, axes, strict=True)]).T * SPACING
        for axes in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


def oblique() -> list[np.ndarray]:
    """Twenty rotations, some of them mirrored."""
    rng = np.random.default_rng(5)
    return [np.linalg.qr(rng.normal(size=(3, 3)))[0] * SPACING for _ in range(20)]


PLACES = [*straight(), *oblique()]


def head(path: Path, matrix: np.ndarray, **fields: object) -> np.ndarray:
    """Write a ball with one bright voxel; returns the place of that voxel as the standard gives it, in mm."""
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.array([3.0, -5.0, 8.0]) - matrix @ ((np.array(SHAPE) - 1) / 2)
    places = (matrix @ (np.indices(SHAPE).reshape(3, -1) - (np.array(SHAPE)[:, None] - 1) / 2)).reshape(3, *SHAPE)
    voxels = 300 * (np.linalg.norm(places, axis=0) < 60).astype(np.float32) + np.float32(1)
    voxels[MARKER] = 3000
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    for name, value in {"vox_offset": 352, **fields}.items():
        image.header[name] = value
    data = image.header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    path.write_bytes(data)
    header = nib.Nifti1Header(data[:348], check=False)
    used = header.get_best_affine() if "srow_x" not in fields or fields.get("qform_code") == 0 else None
    if used is None:
        sform = header.get_sform()
        usable = np.isfinite(sform).all() and abs(np.linalg.det(sform[:3, :3])) > 1e-3 and np.abs(sform).max() < 1e9
        used = sform if usable else header.get_qform()
    return (used @ [*MARKER, 1])[:3]


def marked(path: Path, true: np.ndarray) -> bool:
    """Whether a written volume has its largest value there, in mm; read as the scan was, and by nibabel if it can."""
    volume, image = formats.read(path), nib.load(path)
    brightest = np.unravel_index(np.abs(volume.voxels).argmax(), volume.geometry.shape)
    usable = abs(np.linalg.det(image.affine[:3, :3])) > 1e-3 and np.abs(image.affine).max() < 1e9
    affines = [volume.affine, image.affine] if usable else [volume.affine]
    return all(np.linalg.norm((affine @ [*brightest, 1])[:3] - true) < NEAR_MM for affine in affines)


def assert_stays(trained, folder: Path, true: np.ndarray) -> None:
    scan = formats.read(folder / "scan.nii")
    assert np.linalg.norm((scan.affine @ [*MARKER, 1])[:3] - true) < NEAR_MM
    edited = counterfactual(trained, scan, [parse_wish("brightness*=1.2")], extrapolate=True)
    explanation = explain(trained, scan)
    for name, volume in (("edit", edited), ("map", explanation.map_of("brightness")), ("canon", explanation.canonical)):
        formats.write(volume, folder / f"{name}.nii", description="marker")
        assert marked(folder / f"{name}.nii", true), name
    marker = scan.with_voxels((scan.voxels == 3000).astype(np.float32))
    placed = trained.study.grid.place(scan.geometry)
    cells = sample(marker, placed)
    middle = (np.indices(cells.shape) * cells).reshape(3, -1).sum(1) / cells.sum()
    assert (
        np.abs(placed.affine[:3, :3] @ middle + placed.affine[:3, 3] - true).max() < trained.study.grid.spacing_mm / 2
    )


@pytest.mark.parametrize("number", [*range(0, 48, 12), *range(48, 68, 10)])
def test_a_marker_stays_in_its_place_through_explanation_and_edit(trained, tmp_path, number):
    assert_stays(trained, tmp_path, head(tmp_path / "scan.nii", PLACES[number]))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PLACES)))
def test_a_marker_stays_in_its_place_however_the_scan_lies(trained, tmp_path, number):
    assert_stays(trained, tmp_path, head(tmp_path / "scan.nii", PLACES[number]))


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_marker_stays_where_the_rule_puts_it_when_sform_and_qform_disagree(trained, tmp_path, name):
    fields = dict(CONFLICTS[name][0])
    if fields.get("srow_x", [0])[0] == -0.9:  # a shear in voxels of these sizes
        fields["srow_x"] = [14.0, 6.0, 0.0, -80.0]
    if "pixdim" in fields:
        fields["pixdim"] = [1, 9, 9, 9, 1, 1, 1, 1]
    assert_stays(trained, tmp_path, head(tmp_path / "scan.nii", straight()[0], **fields))
