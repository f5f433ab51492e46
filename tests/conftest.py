"""What test files share: a rendered cohort, a study of it, a calibrated model that has learned nothing, scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Server

from medisent.batches import Batch
from medisent.calibration import calibrate
from medisent.checkpoints import Trained, build_model, load_model, save_model
from medisent.cohorts import Cohort
from medisent.config import CohortSettings, NetworkSettings, Study, TrainingSettings
from medisent.factors import Nominal, Positive, Real
from medisent.formats import read
from medisent.grids import Grid
from medisent.phantoms import Acquisition, Anatomy, acquire, render, write_cohort
from medisent.phantoms.heads import Head
from medisent.progress import Silence
from medisent.training import load_split, study_cohort
from medisent.volumes import Geometry, Volume

GRID = Grid(12.0, (16, 16, 16))
TUMOUR_ML = 30.0


@pytest.fixture(scope="session", autouse=True)
def _no_cache() -> Iterator[None]:
    """Tests leave nothing in the user's cache and find nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDISENT_CACHE", "off")
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A process that forks one child for each command."""
    started = Server.start()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def cohort_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of ten rendered heads: six for training, two each for validation and test."""
    out = tmp_path_factory.mktemp("rendered")
    return write_cohort(out, subjects=10, seed=3, spacing_mm=GRID.spacing_mm, shape=GRID.shape)


@pytest.fixture(scope="session")
def study(cohort_table: Path) -> Study:
    """A study with a factor that has a mask, a plain one, one with levels, and the whole scanner."""
    return Study(
        cohort=CohortSettings(table=cohort_table, split="split"),
        grid=GRID,
        factors=(
            Positive(name="tumour_volume", role="anatomy", unit="mL", column="tumour_ml", mask="tumour_mask"),
            Real(name="head_size", role="anatomy", unit="mm", column="head_size_mm"),
            Nominal(name="site", role="nuisance", column="site", levels=("site-1", "site-2", "site-3", "site-4")),
            Positive(name="brightness", role="nuisance", column="gain"),
        ),
        training=TrainingSettings(steps=6, batch=4),
        network=NetworkSettings(width=4, rest=4),
    )


@pytest.fixture(scope="session")
def cohort(study: Study) -> Cohort:
    """The rows of the study's table."""
    return study_cohort(study)


@pytest.fixture(scope="session")
def shown(study: Study, cohort: Cohort) -> Batch:
    """The training scans on the grid."""
    return load_split(study, cohort.of("train"), Silence(), "reading")


@pytest.fixture(scope="session")
def model_file(study: Study, cohort: Cohort, shown: Batch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model whose weights are as they were drawn."""
    torch.manual_seed(0)
    network = build_model(study)
    network.fit(shown)
    held = load_split(study, cohort.of("validation"), Silence(), "reading")
    subjects, others = ([row.subject for row in cohort.of(split).rows] for split in ("train", "validation"))
    card = calibrate(network, shown, held, subjects=subjects, validation_subjects=others, steps=0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(study, network, card, path)
    return path


@pytest.fixture(scope="session")
def trained(model_file: Path) -> Trained:
    """That model. Its units, ranges and intervals are set; what it reads is arbitrary, but the laws hold for it."""
    return load_model(model_file)


@pytest.fixture(scope="session")
def scan(cohort: Cohort) -> Volume:
    """A scan of the test split, on the very voxels of the model's grid."""
    return read(cohort.of("test").rows[0].scan)


@pytest.fixture(scope="session")
def fine_head() -> Head:
    """A head with a tumour, in voxels finer than the grid's, oblique, anisotropic, one axis the other way round."""
    turn = np.radians(20)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    shape = (28, 34, 22)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-6.5, 6.0, 8.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return render(Anatomy(tumour_ml=TUMOUR_ML, seed=2), Geometry(affine, shape))


@pytest.fixture(scope="session")
def fine_scan(fine_head: Head) -> Volume:
    """That head as a scanner saw it, float32."""
    return Volume(acquire(fine_head, Acquisition(gain=1.2, bias=(0.1, 0.0, -0.1), noise=0.02)), fine_head.geometry)


@pytest.fixture(scope="session")
def stored_scan(fine_scan: Volume) -> Volume:
    """That scan as int16 with a slope and an intercept would give it back: float64, many voxels of one value."""
    stored = np.round(fine_scan.voxels.astype(np.float64) * 4000).astype(np.int16)
    return replace(fine_scan, voxels=stored * 0.0625)
