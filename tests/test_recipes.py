"""Laws of the recipes: each is a study that is understood, trains, and is a model afterwards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import medisent
from medisent.bench import ROWS
from medisent.bench.rows import Training
from medisent.config import load_study
from medisent.phantoms import write_cohort
from medisent.training import train

FOLDER = Path(__file__).parent.parent / "examples" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of eighteen tiny heads with all that weak supervision takes."""
    out = tmp_path_factory.mktemp("recipes")
    repeats = {"travelling": 2, "clamped": 1, "clamped_size": 2, "pairs": 2, "alike": 1}
    return write_cohort(out, subjects=18, seed=3, spacing_mm=12.0, shape=(16, 16, 16), **repeats)


@pytest.mark.filterwarnings("ignore::medisent.errors.MedisentWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_few_steps_and_loads(name, table, tmp_path):
    study = load_study(FOLDER / f"{name}.toml")
    study = replace(
        study,
        cohort=replace(study.cohort, table=table),
        grid=replace(study.grid, spacing_mm=12.0, shape=(16, 16, 16)),
        network=replace(study.network, width=4),
        training=replace(study.training, steps=3, minutes=None),
    )
    train(study, tmp_path)
    model = medisent.load(tmp_path)
    scan = medisent.read(next((table.parent / "scans").glob("*.nii.gz")))
    codes = model.encode([scan])
    assert np.isfinite(codes.to_numpy()).all()
    assert np.array_equal(model.counterfactual(scan).voxels, scan.voxels)
    assert model.explain(scan).factors["estimate"].notna().all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_stands_in_the_benchmark_and_says_what_it_keeps(name):
    assert name in {row.work.recipe for row in ROWS if isinstance(row.work, Training)}
    head = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").split("[cohort]")[0]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert name == "ours" or ("# Kept:" in head and "# Otherwise:" in head)


def test_every_recipe_is_in_the_table_beside_it():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.toml)" in text for name in RECIPES)


def test_the_recipes_are_there():
    assert {"ours", "beta_vae", "diva", "gvae", "ml_vae", "ada_gvae", "dc_ign"} <= set(RECIPES)
