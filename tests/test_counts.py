"""Laws of counting: a volume without masks is the integral of a density, and is learned from its labels alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch.nn.functional import pad

from medisent.batches import Batch
from medisent.calibration import calibrate
from medisent.checkpoints import build_model, load_model, save_model
from medisent.config import Study
from medisent.counts import Counter, Line, Patches
from medisent.factors import Positive, Real
from medisent.metrics import r2

SHAPE = (12, 12, 12)
TRAINING = 28
CHEESES = 40


def cheese(seed: int) -> tuple[torch.Tensor, float]:
    """A ball with a few bright voxels in it, and how many they are."""
    chance = np.random.default_rng(seed)
    image = chance.normal(0.6, 0.03, SHAPE) * (np.square(np.indices(SHAPE) - 5.5).sum(0) < 27)
    count = int(chance.integers(3, 40))
    inside = np.argwhere(np.square(np.indices(SHAPE) - 5.5).sum(0) < 12)
    rows = inside[chance.permutation(len(inside))[:count]]
    image[tuple(rows.T)] = 1.0
    return torch.from_numpy(image).float()[None], float(count)


@pytest.fixture(scope="module")
def cheeses() -> tuple[torch.Tensor, torch.Tensor]:
    images, volumes = zip(*(cheese(seed) for seed in range(CHEESES)), strict=True)
    return torch.stack(images), torch.tensor(volumes)[:, None]


@pytest.fixture(scope="module")
def fitted(cheeses: tuple[torch.Tensor, torch.Tensor]) -> tuple[Counter, torch.Tensor]:
    """A counter of what there is to count, of what too few labels tell, and of what is not to be seen; its guesses."""
    images, volumes = (part[:TRAINING] for part in cheeses)
    few = torch.where(torch.arange(TRAINING)[:, None] < 19, volumes, torch.nan)
    unseen = volumes[torch.randperm(TRAINING, generator=torch.Generator().manual_seed(1))]
    counter = Counter(3)
    return counter, counter.fit(images, torch.cat([volumes, few, unseen], 1))


@pytest.fixture(scope="module")
def counter(fitted: tuple[Counter, torch.Tensor]) -> Counter:
    return fitted[0]


def test_volumes_are_learned_from_their_labels_alone(counter, cheeses):
    images, volumes = cheeses
    assert r2(counter(images[TRAINING:])[:, 0].numpy(), volumes[TRAINING:, 0].numpy()) > 0.8


def test_a_volume_is_the_integral_of_its_density(counter, cheeses):
    for image in cheeses[0][:4]:
        whole = counter.density(image[0]).sum((1, 2, 3)) + counter.offsets
        assert float(counter(image[None])[0, 0]) == pytest.approx(
            float(whole[0].clamp(*counter.bounds[:, 0])), abs=1e-2
        )


def test_there_is_no_density_outside(counter, cheeses):
    image = cheeses[0][0, 0]
    assert not counter.density(image)[0][image == 0].any()


def test_the_volume_of_a_scan_does_not_depend_on_the_scans_beside_it(counter, cheeses):
    together = counter(cheeses[0][:4])
    alone = torch.cat([counter(image[None]) for image in cheeses[0][:4]])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-2, equal_nan=True)


def test_the_same_scans_give_the_same_counter(cheeses):
    counters = [Counter(1), Counter(1)]
    for counter in counters:
        counter.fit(cheeses[0][:20, :, :9], cheeses[1][:20])
    first, second = (counter.state_dict() for counter in counters)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_counter_that_was_not_fitted_says_nothing(cheeses):
    assert Counter(2)(cheeses[0][:3]).isnan().all()


def test_what_too_few_labels_tell_or_no_scan_shows_is_not_counted(fitted):
    counter, guesses = fitted
    assert counter.fitted.tolist() == [True, False, False]
    assert guesses[:, 0].isfinite().all()
    assert guesses[:, 1:].isnan().all()


def test_a_guess_of_a_scan_is_further_off_when_it_is_left_out(fitted, cheeses):
    counter, guesses = fitted
    images, volumes = (part[:TRAINING] for part in cheeses)
    known = (counter(images) - volumes)[:, 0].square().sum()
    assert (guesses - volumes)[:, 0].square().sum() > known


def test_an_image_without_an_inside_has_no_neighbourhoods(counter):
    nothing = torch.zeros(1, 1, *SHAPE)
    assert len(Patches.of(nothing[0, 0]).where) == 0
    assert counter(nothing)[0, 0].isfinite()


@given(st.integers(0, 10_000), st.integers(8, 16), st.integers(1, 30))
@settings(max_examples=20)
def test_a_left_out_row_is_predicted_by_the_others(seed, rows, inputs):
    chance = np.random.default_rng(seed)
    x, y = chance.normal(size=(rows, inputs)), chance.normal(size=rows)
    found = Line.fitted(x, y)
    scaled, others = x / x.std(0), np.arange(rows) != seed % rows
    there = Ridge(alpha=found.penalty).fit(scaled[others], y[others]).predict(scaled[~others])
    assert np.allclose(found.left_out[~others], there)
    assert np.allclose(x @ found.weights + found.offset, Ridge(alpha=found.penalty).fit(scaled, y).predict(scaled))


# In the model


@pytest.fixture(scope="module")
def plain(study: Study) -> Study:
    """The study, its tumour without masks."""
    tumour = replace(study.factors[0], mask=None)
    return replace(study, factors=(tumour, *study.factors[1:]))


@pytest.mark.parametrize(
    ("factor", "counted"),
    [
        (Positive(name="lesion", role="anatomy", unit="mL", column="x"), True),
        (Positive(name="lesion", role="anatomy", unit="mm3", column="x"), True),
        (Positive(name="lesion", role="anatomy", unit="mL", column="x", mask="y"), False),
        (Positive(name="age", role="anatomy", unit="years", column="x"), False),
        (Positive(name="dose", role="nuisance", unit="mL", column="x"), False),
        (Real(name="change", role="anatomy", unit="mL", column="x"), False),
    ],
)
def test_volumes_of_anatomy_without_masks_are_counted_and_nothing_else(study, factor, counted):
    network = build_model(replace(study, factors=(factor,)))
    assert network.counted == ([factor.name] if counted else [])
    without = replace(study, factors=(factor,), network=replace(study.network, counts=False))
    assert build_model(without).counted == []


def _ball_batch(shown: Batch, cheeses: tuple[torch.Tensor, torch.Tensor]) -> Batch:
    """Balls in place of heads, their volumes in place of the tumours'."""
    images, volumes = pad(cheeses[0], [2] * 6), cheeses[1]
    values = torch.full((CHEESES, shown.values.shape[1]), torch.nan)
    values[:, 0] = volumes[:, 0]
    one = torch.ones_like(images)
    group = torch.full((CHEESES, *shown.group.shape[1:]), -1, dtype=shown.group.dtype)
    order = torch.full((CHEESES, *shown.order.shape[1:]), torch.nan)
    return Batch(images, one, torch.zeros(CHEESES), values, images[:, :0], group, order)


def test_a_model_reads_a_volume_as_its_counter_does_also_once_saved(plain, shown, cheeses, tmp_path):
    torch.manual_seed(0)
    batch = _ball_batch(shown, cheeses)
    network = build_model(plain)
    network.fit(batch)
    subjects = [str(i) for i in range(CHEESES)]
    few = batch[torch.arange(12)]
    card = calibrate(network, batch, few, subjects=subjects, validation_subjects=subjects[:12], steps=0)
    assert network.counter is not None
    with torch.no_grad():
        found = network.abduct(few)
        # Counting comes first; what named blocks tell of the scanner is taken out of the canonical scans after it.
        counted = network.counter(network.canonical(few.scan, network.see(few).scanner, few.coverage))[:, 0]
        read = network.value("tumour_volume", network.readouts(found.q.loc)["tumour_volume"].mean[:, None])
    torch.testing.assert_close(read, counted, rtol=1e-3, atol=1e-3)
    save_model(plain, network, card, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors").network
    with torch.no_grad():
        assert torch.equal(again.abduct(few).q.loc, found.q.loc)


def test_without_counts_the_network_places_the_block_itself(plain, shown):
    torch.manual_seed(0)
    network = build_model(plain).eval()
    scans = replace(shown, masks=shown.masks[:, :0])[torch.arange(2)]
    with torch.no_grad():
        counted = network.abduct(scans).q.loc
        network.counter = None
        assert torch.equal(network.abduct(scans).q.loc, counted)
