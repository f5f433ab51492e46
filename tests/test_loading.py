"""Laws of loading: scan and masks come onto one grid, brightness is divided out and kept, refusals stay refusals."""

import math
import pickle

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityd

from medisent import formats
from medisent.errors import FormatError
from medisent.grids import Grid, sample
from medisent.loading import loading
from medisent.scanners import measured_scale
from medisent.volumes import Geometry, Volume

GRID = Grid(6.0, (8, 8, 6))


def place(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> Geometry:
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [30.0, -40.0, 12.0]
    return Geometry(affine, shape)


def head(geometry: Geometry, tissue: float = 500.0, air: float = 0.0) -> Volume:
    radius = np.linalg.norm(np.moveaxis(np.indices(geometry.shape), 0, -1) * geometry.spacing - 22, axis=-1)
    return Volume(np.where(radius < 18, tissue, air) + np.where(radius < 6, tissue / 5, 0), geometry)


def mask(geometry: Geometry) -> Volume:
    radius = np.linalg.norm(np.moveaxis(np.indices(geometry.shape), 0, -1) * geometry.spacing - 22, axis=-1)
    return Volume((radius < 12).astype(np.uint8), geometry)


@pytest.fixture
def scan() -> Volume:
    return head(place((1.5, 1.5, 2.0), (30, 30, 22)))


def test_a_scan_comes_onto_the_grid_with_its_brightness_beside_it(scan):
    item = loading(GRID)({"scan": scan})
    assert item["scan"].shape == item["coverage"].shape == (1, 8, 8, 6)
    assert item["scan"].dtype == item["coverage"].dtype == item["log_scale"].dtype == torch.float32
    assert item["geometry"] == scan.geometry
    assert item["placed"] == GRID.place(scan.geometry)
    sampled = torch.from_numpy(sample(scan, item["placed"]))
    assert item["log_scale"] == measured_scale(sampled).log()
    assert torch.allclose(item["scan"][0] * item["log_scale"].exp(), sampled, rtol=1e-5)


@pytest.mark.parametrize("gain", [1.5, 300.0, 0.01])
def test_a_brighter_scan_has_another_scale_and_the_same_picture(scan, gain):
    once = loading(GRID)({"scan": scan})
    again = loading(GRID)({"scan": scan.with_voxels(scan.voxels * gain)})
    assert float(again["log_scale"] - once["log_scale"]) == pytest.approx(math.log(gain), abs=1e-5)
    assert torch.allclose(again["scan"], once["scan"], atol=1e-5)


def test_a_file_and_its_volume_give_the_same(scan, tmp_path):
    formats.write(scan, tmp_path / "scan.nii.gz", description="")
    formats.write(mask(scan.geometry), tmp_path / "mask.nii.gz", description="")
    chain = loading(GRID, masks=["tumour"])
    from_files = chain({"scan": tmp_path / "scan.nii.gz", "tumour": str(tmp_path / "mask.nii.gz")})
    from_memory = chain({"scan": scan, "tumour": mask(scan.geometry)})
    for key in ("scan", "log_scale", "coverage", "tumour"):
        assert torch.equal(from_files[key], from_memory[key])


def test_a_mask_of_another_place_falls_where_it_lies(scan):
    fine = Geometry(scan.affine @ np.diag([0.5, 0.5, 0.5, 1.0]), (60, 60, 44))
    chain = loading(GRID, masks=["coarse", "fine"])
    item = chain({"scan": scan, "coarse": mask(scan.geometry), "fine": mask(fine)})
    cell = item["placed"].voxel_ml
    for key, own in (("coarse", mask(scan.geometry)), ("fine", mask(fine))):
        ml = own.voxels.sum() * own.geometry.voxel_ml
        assert float(item[key].sum()) * cell == pytest.approx(ml, rel=0.01)
        assert item[key].min() >= 0
        assert item[key].max() <= 1
    assert (item["coarse"] - item["fine"]).abs().max() < 0.15


def test_an_unknown_mask_is_not_a_number_and_an_empty_one_is_zero(scan, tmp_path):
    empty = mask(scan.geometry).with_voxels(np.zeros(scan.geometry.shape, np.uint8))
    formats.write(empty, tmp_path / "empty.nii", description="")
    item = loading(GRID, masks=["absent", "none", "empty"])(
        {"scan": scan, "none": None, "empty": tmp_path / "empty.nii"}
    )
    assert item["absent"].isnan().all()
    assert item["none"].isnan().all()
    assert item["absent"].shape == (1, 8, 8, 6)
    assert not item["empty"].any()


def test_air_is_zero_whatever_it_measures():
    geometry = place((1.5, 1.5, 2.0), (30, 30, 22))
    mr = loading(GRID)({"scan": head(geometry, 1000.0)})
    ct = head(geometry, 1000.0)
    item = loading(GRID, air=-1000.0)({"scan": ct.with_voxels(ct.voxels - 1000)})
    assert torch.allclose(item["scan"], mr["scan"], atol=1e-5)
    assert float(item["log_scale"]) == pytest.approx(float(mr["log_scale"]), abs=1e-5)
    assert not item["scan"][item["coverage"] == 0].any()


def test_a_refusal_within_the_chain_is_the_readers_own(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        loading(GRID)({"scan": tmp_path / "missing.nii"})


def test_users_append_transforms_of_their_own(scan):
    item = Compose([loading(GRID), ScaleIntensityd(["scan"], 0.0, 1.0)])({"scan": scan})
    assert float(item["scan"].min()) == 0
    assert float(item["scan"].max()) == 1


def test_the_chain_travels_to_other_processes(scan):
    chain = pickle.loads(pickle.dumps(loading(GRID, masks=["tumour"])))
    assert torch.equal(chain({"scan": scan})["scan"], loading(GRID)({"scan": scan})["scan"])
