"""Laws of the model: brightness moves its own latent alone, any grid will do, and the unknown stays at the prior."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medisent.augmentation import changed
from medisent.batches import Batch
from medisent.checkpoints import Trained
from medisent.factors import Factor, Nominal, Positive, Real
from medisent.model import Head, PartitionedVAE
from medisent.networks import Standardised
from medisent.objectives import TERMS, Objective
from medisent.posterior import PartitionedNormal
from medisent.readings import Reading, read_factors
from medisent.scanners import Scanner, measured_scale
from medisent.volumes import Volume

TUMOUR = Positive(name="tumour", role="anatomy", unit="mL", mask="tumour")
SIZE = Real(name="size", role="anatomy", column="size")
SITE = Nominal(name="site", role="nuisance", column="site", levels=("A", "B", "C"))
ALL = ("brightness", "contrast", "bias_field")


def built(
    shape: tuple[int, int, int],
    factors: tuple[Factor, ...] = (TUMOUR, SIZE),
    scanner: tuple[str, ...] = ALL,
    rest: int = 3,
) -> PartitionedVAE:
    torch.manual_seed(0)
    implied = tuple(Positive(name=name, role="nuisance") for name in scanner)
    return PartitionedVAE((*factors, *implied), scanner, shape, 1.7, width=4, rest=rest, nuisance_rest=2)


def batch_of(network: PartitionedVAE, scans: int = 3) -> Batch:
    """Smooth random scans, with everything known of them but the scanner's settings."""
    chance = torch.Generator().manual_seed(1)
    coarse = torch.rand(scans, 1, 4, 4, 4, generator=chance)
    image = torch.nn.functional.interpolate(coarse, network.shape, mode="trilinear")
    scale = torch.stack([measured_scale(one) for one in image])
    values = torch.full((scans, len(network.factors)), math.nan)
    values[:, : len(network.learned)] = 1 + torch.arange(scans)[:, None] % 2
    masks = torch.rand(scans, len(network.shaped), *network.shape, generator=chance)
    image = image / scale.reshape(-1, 1, 1, 1, 1)
    return Batch(
        image,
        torch.ones_like(image),
        scale.log(),
        values,
        masks,
        torch.full((scans, 1), -1),
        torch.full((scans, 1), torch.nan),
    )


def trained_a_step(network: PartitionedVAE) -> dict[str, Tensor]:
    batch = batch_of(network)
    network.fit(batch)
    costs: dict[str, Tensor] = Objective(network, dict.fromkeys(TERMS, 1.0))(
        network(changed(batch, network, torch.Generator().manual_seed(2)))
    )
    costs["total"].backward()
    return costs


# Brightness


def read_at(trained: Trained, scan: Volume, gain: float) -> Reading:
    return read_factors(trained, replace(scan, voxels=scan.voxels.astype("float64") * gain))


def log_brightness(reading: Reading) -> float:
    return float(reading.abduction.q["brightness"].loc)


@pytest.mark.parametrize("gain", [1.5, 1000.0, 1e-3])
def test_a_brighter_scan_has_another_brightness_and_the_same_anatomy(trained, scan, gain):
    here, there = read_at(trained, scan, 1.0), read_at(trained, scan, gain)
    assert log_brightness(there) - log_brightness(here) == pytest.approx(math.log(gain), abs=1e-4)
    others = [name for name in trained.network.partition if name != "brightness"]
    for name in others:
        assert torch.allclose(there.abduction.q[name].loc, here.abduction.q[name].loc, atol=1e-4), name
    assert torch.allclose(there.scene.canonical, here.scene.canonical, atol=1e-4)
    assert torch.allclose(there.scene.masks, here.scene.masks, atol=1e-4)
    assert there.readouts["tumour_volume"].estimate == pytest.approx(here.readouts["tumour_volume"].estimate, rel=1e-3)
    ratio = there.readouts["brightness"].estimate / here.readouts["brightness"].estimate
    assert ratio == pytest.approx(gain, rel=1e-4)


def test_a_gain_of_a_power_of_two_leaves_the_anatomy_bit_for_bit(trained, scan):
    here, there = read_at(trained, scan, 1.0), read_at(trained, scan, 1024.0)
    assert torch.equal(there.scene.canonical, here.scene.canonical)
    assert torch.equal(there.scene.masks, here.scene.masks)
    assert torch.equal(there.scene.z, here.scene.z)


@pytest.mark.parametrize("tissue", [41.0, 371.0, 246_000.0])
def test_the_units_of_raw_scans_from_41_to_246000_are_all_read_alike(trained, scan, tissue):
    here = read_at(trained, scan, 1.0)
    gain = tissue / float(measured_scale(torch.from_numpy(scan.voxels)))
    there = read_at(trained, scan, gain)
    assert all(math.isfinite(r.estimate) for r in there.readouts.values())
    assert log_brightness(there) - log_brightness(here) == pytest.approx(math.log(gain), abs=1e-3)
    for name, readout in here.readouts.items():
        if name != "brightness":
            assert there.readouts[name].estimate == pytest.approx(readout.estimate, rel=1e-3, abs=1e-4)


def test_a_cohort_of_raw_scans_without_a_known_gain_has_a_mean_brightness_of_one():
    network = built((16, 16, 16))
    batch = batch_of(network)
    batch = replace(batch, log_scale=torch.tensor([math.log(41.0), math.log(371.0), math.log(246_000.0)]))
    network.fit(batch)
    usual = Scanner.unstacked(network.scanner_prior(3).loc)
    brightness = network.log_brightness(usual, batch.log_scale)
    assert float(brightness.mean()) == pytest.approx(0, abs=1e-5)
    assert float(brightness[2] - brightness[0]) == pytest.approx(math.log(246_000 / 41), rel=1e-5)


def test_the_noise_of_air_does_not_steer_the_scanners_estimate():
    network = built((9, 8, 10))
    batch = batch_of(network)
    dark = batch.scan < 0.2
    noisy = torch.where(dark, 0.2 * torch.rand_like(batch.scan), batch.scan)
    settings = [network.see(replace(batch, scan=scan)).scanner.stacked() for scan in (batch.scan, noisy)]
    assert dark.any()
    assert torch.equal(*settings)
    assert not torch.equal(settings[0], network.see(replace(batch, scan=batch.scan + 0.2)).scanner.stacked())


@pytest.mark.parametrize("scanner", [ALL, ("contrast",), ()])
def test_the_noise_of_air_says_nothing_to_the_rest_of_the_anatomy_behind_a_scanner_layer(scanner):
    network = built((9, 8, 10), scanner=scanner)
    batch = batch_of(network)
    network.fit(batch)
    sight = network.see(batch)
    whole = torch.ones_like(batch.coverage)
    canonical = network.canonical(batch.scan, sight.scanner, whole)
    dark = canonical < 0.12
    noisy = torch.where(dark, 0.12 * torch.rand_like(canonical), canonical)
    assert dark.any()
    rests = [network.encode(seen, sight).loc[:, network.resting] for seen in (canonical, noisy, canonical + 0.05)]
    assert torch.equal(rests[0], rests[1]) == bool(scanner)
    assert not torch.equal(rests[0], rests[2])


def test_anatomy_does_not_steer_the_scanners_estimate():
    network = built((16, 16, 16))
    batch = batch_of(network)
    network.fit(batch)
    network.abduct(batch).masks.sum().backward()
    slopes = [p.grad for p in network.scanner_encoder.parameters()]
    assert all(slope is None or not slope.any() for slope in slopes)


# Shapes and settings


@pytest.mark.parametrize("shape", [(20, 28, 22), (15, 17, 19), (8, 33, 12), (5, 7, 6)])
def test_a_grid_of_any_shape_will_do(shape):
    network = built(shape)
    batch = batch_of(network)
    costs = trained_a_step(network)
    assert all(cost.isfinite() for cost in costs.values())
    with torch.no_grad():
        found = network.abduct(batch)
        assert found.canonical.shape == (3, 1, *shape)
        assert found.masks.shape == (3, 1, *shape)
        assert found.q.loc.shape == (3, network.partition.size)
        assert network.decode(found.q.loc).mean.shape == (3, 1, *shape)


@pytest.mark.parametrize("scanner", [("brightness",), ("contrast", "bias_field"), ("bias_field",), ()])
def test_a_scanner_may_vary_in_only_some_of_its_settings(scanner):
    network = built((12, 12, 12), scanner=scanner)
    costs = trained_a_step(network)
    assert all(cost.isfinite() for cost in costs.values())
    assert [name for name in network.partition if name in ALL] == list(scanner)
    with torch.no_grad():
        found = network.abduct(batch_of(network))
        readouts = network.readouts(found.q.loc)
    assert set(readouts) == {"tumour", "size", *scanner}
    settings = found.sight.scanner
    assert ("contrast" in scanner) == bool((settings.log_gamma != 0).any())
    assert ("bias_field" in scanner) == bool((settings.bias != 0).any())
    if scanner and "brightness" not in scanner:
        assert torch.equal(settings.log_gain, -network.pivot.expand(3))


def test_without_a_scanner_layer_scans_keep_their_scale_in_the_cohorts_unit():
    network = built((12, 12, 12), scanner=())
    batch = batch_of(network)
    network.fit(batch)
    louder = replace(batch, log_scale=batch.log_scale + 0.5)  # the same voxels, more of which was divided out
    with torch.no_grad():
        one, other = network.abduct(batch), network.abduct(louder)
    whole = (one.canonical > 0) & (other.canonical < 3)
    assert torch.allclose(other.canonical[whole], one.canonical[whole] * torch.tensor(0.5).exp(), rtol=1e-4)


def test_a_study_may_have_no_masks():
    network = built((12, 12, 12), factors=(SIZE, SITE))
    assert not network.shaped
    costs = trained_a_step(network)
    assert costs["mask"] == 0
    assert costs["total"].isfinite()


def test_a_study_may_have_nothing_but_the_scanner_and_no_rest():
    network = built((12, 12, 12), factors=(), rest=0)
    assert trained_a_step(network)["total"].isfinite()
    assert network.partition["anatomy_rest"].size == 0


def test_latents_are_named_by_their_blocks_anatomy_first():
    network = built((12, 12, 12), factors=(SITE, TUMOUR, SIZE), rest=2)
    assert list(network.partition) == ["tumour", "size", "anatomy_rest", "site", "nuisance_rest", *ALL]
    assert network.partition.columns[:4] == ("tumour.0", "size.0", "anatomy_rest.0", "anatomy_rest.1")
    assert network.code_size == network.partition["brightness"].start


def test_a_block_of_a_factor_with_a_mask_says_its_volume_and_nothing_else():
    network = built((12, 12, 12))
    batch = batch_of(network)
    network.fit(batch)
    with torch.no_grad():
        found = network.abduct(batch)
        volume = found.masks.sum((2, 3, 4))[:, 0] * network.voxel_ml
        assert torch.allclose(found.q["tumour"].loc, network.head("tumour").located(volume), atol=1e-5)


def test_the_prior_stands_where_the_known_factors_say_and_at_zero_elsewhere():
    network = built((12, 12, 12))
    batch = batch_of(network)
    network.fit(batch)
    batch.values[0] = math.nan
    with torch.no_grad():
        prior = network.prior(batch)
        assert torch.equal(prior["size"].loc[0], torch.zeros(1))
        assert torch.equal(prior["size"].scale[0], torch.ones(1))
        assert torch.equal(prior["size"].loc[1:], network.head("size").located(batch.values[1:, 1]))
        assert torch.equal(prior["anatomy_rest"].loc, torch.zeros(3, 3))


def test_what_lies_outside_the_field_of_view_is_not_seen():
    network = built((12, 12, 12)).eval()
    batch = batch_of(network)
    network.fit(batch)
    half = batch.coverage.clone()
    half[..., 6:] = 0
    one, other = replace(batch, coverage=half), replace(batch, coverage=half, scan=batch.scan * half)
    assert not torch.equal(one.scan, other.scan)
    with torch.no_grad():
        assert not network.abduct(one).canonical[..., 6:].any()
        assert torch.equal(network.abduct(one).q.loc, network.abduct(other).q.loc)


def test_each_scan_is_inferred_as_if_it_were_alone():
    network = built((12, 12, 12)).eval()
    batch = batch_of(network)
    network.fit(batch)
    with torch.no_grad():
        together = network.abduct(batch)
        alone = network.abduct(batch[torch.tensor([1])])
    assert torch.allclose(together.q.loc[1:2], alone.q.loc, atol=1e-5)
    assert torch.allclose(together.masks[1:2], alone.masks, atol=1e-5)


def test_embeddings_of_all_factors_come_back_as_values():
    network = built((12, 12, 12), factors=(TUMOUR, SIZE, SITE))
    network.fit(batch_of(network))
    for name in network.factors:
        value = torch.tensor([1.0, 0.0]) if name == "site" else torch.tensor([0.5, 3.0])
        assert torch.allclose(network.value(name, network.embed(name, value)), value, rtol=1e-4)


# The posterior


def posterior(loc: list[list[float]], scale: list[list[float]]) -> PartitionedNormal:
    return PartitionedNormal(torch.tensor(loc), torch.tensor(scale), built((8, 8, 8), (SIZE,), (), 0).partition)


def test_the_rate_is_a_number_a_block_and_zero_where_posterior_and_prior_agree():
    q = posterior([[1.0, 0, 0]], [[1.0, 1, 1]])
    rate = q.rate(posterior([[0.0, 0, 0]], [[1.0, 1, 1]]))
    assert list(rate) == list(q.partition)
    assert float(rate["size"]) == pytest.approx(0.5)
    assert float(rate["nuisance_rest"]) == 0


def test_scans_of_a_group_agree_on_what_they_share_and_on_nothing_else():
    q = posterior([[0.0, 1, 2], [2.0, 5, 6], [7.0, 8, 9]], [[1.0, 1, 1], [1.0, 1, 1], [1.0, 1, 1]])
    shared = q.shared(torch.tensor([4, 4, -1]), frozenset({"size"}))
    assert shared["size"].loc.tolist() == [[1.0], [1.0], [7.0]]
    assert torch.allclose(shared["size"].scale, torch.tensor([[0.5**0.5], [0.5**0.5], [1.0]]))
    assert torch.equal(shared["nuisance_rest"].loc, q["nuisance_rest"].loc)


def test_scans_of_no_group_share_nothing_even_with_each_other():
    q = posterior([[0.0, 1, 2], [2.0, 5, 6]], [[1.0, 1, 1], [2.0, 1, 1]])
    shared = q.shared(torch.tensor([-1, -1]), frozenset({"size"}))
    assert torch.allclose(shared.loc, q.loc)
    assert torch.allclose(shared.scale, q.scale)


def test_a_sample_is_drawn_from_the_posterior():
    torch.manual_seed(0)
    q = posterior([[3.0, -1, 0]] * 4000, [[0.5, 1, 2]] * 4000)
    drawn = q.rsample()
    assert torch.allclose(drawn.mean(0), torch.tensor([3.0, -1, 0]), atol=0.1)
    assert torch.allclose(drawn.std(0), torch.tensor([0.5, 1, 2]), rtol=0.05)


def test_what_named_blocks_tell_leaves_the_rest_and_comes_back_when_decoding():
    network = built((12, 12, 12)).eval()
    batch = batch_of(network)
    with torch.no_grad():
        found = network.abduct(batch)
        before = network.decode(found.q.loc).mean
        network.rest_remainder.weight.fill_(0.1)
        network.setting_remainder.weight.fill_(0.01)
        network.turn.fit(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), 2)
        apart = network.apart(found)
        after = network.decode(apart.q.loc).mean
    assert not torch.allclose(apart.q["anatomy_rest"].loc, found.q["anatomy_rest"].loc)
    assert torch.allclose(before, after, atol=1e-5)
    shown = apart.sight.scanner.apply(apart.canonical, network.basis)
    inside = (batch.coverage > 0) & (apart.canonical < 2.9)
    assert torch.allclose(shown[inside], batch.scan.clamp(min=0)[inside], atol=1e-4)


def test_a_turned_rest_hears_little_of_a_scanner_taken_out_wrong():
    network = built((12, 12, 12)).eval()
    batch, chance = batch_of(network, scans=48), torch.Generator().manual_seed(3)
    with torch.no_grad():
        answers = network.answers(network.abduct(batch), chance)
        network.turn.fit(answers, 2)
        anew = network.turn(network.answers(network.abduct(batch), chance))
    assert answers.abs().max() > 0
    assert anew[:, :3].square().mean() < 0.7 * anew[:, 3:].square().mean()


def test_a_picture_says_nothing_to_blocks_that_have_labels():
    network = built((12, 12, 12)).train()
    named = [network.partition[name].start for name in ("tumour", "size")]
    z = torch.randn(2, network.partition.size, requires_grad=True)
    network.decode(network._untaught(z)).mean.square().sum().backward()
    assert z.grad is not None
    moved = z.grad.abs().sum(0) > 0
    assert not moved[named].any()
    assert moved[: network.code_size].sum() == network.code_size - len(named)


def test_features_are_standardised_by_running_moments_and_not_by_their_batch():
    chance = torch.Generator().manual_seed(0)
    layer = Standardised(4)
    for _ in range(400):
        layer(5 + 3 * torch.randn(4, 4, generator=chance))
        layer.learn()
    layer.eval()
    many = layer(5 + 3 * torch.randn(5000, 4, generator=chance))
    assert torch.allclose(many.mean(0), torch.zeros(4), atol=0.3)
    assert torch.allclose(many.std(0), torch.ones(4), atol=0.2)
    one = 5 + 3 * torch.randn(1, 4, generator=chance)
    assert torch.equal(layer(one), layer(torch.cat([one, 100 * one]))[:1])


def bent(volume: Tensor) -> Tensor:
    """What masks of these volumes hold: too much of small ones, too little of large ones."""
    return 10 * (volume / 10) ** torch.where(volume > 10, 0.7, 0.8)


def test_volumes_that_masks_hold_in_part_are_read_whole():
    head = Head(Positive(name="tumour_volume", role="anatomy", unit="mL"))
    truth = torch.logspace(math.log10(2), math.log10(50), 200)
    head.fit(truth)
    head.eval().refit(head.located(bent(truth)), truth)
    read = head.value(head.described(head.located(bent(truth)))[:, :1])
    assert ((read - truth).abs() / truth).max() < 0.1
    assert (read.diff() > 0).all(), "a larger block reads larger"


def test_a_line_is_not_bent_by_a_few_values():
    head = Head(Positive(name="tumour_volume", role="anatomy", unit="mL"))
    truth = torch.logspace(0.3, 1.7, 30)
    head.fit(truth)
    head.eval().refit(head.located(bent(truth)), truth)
    block = torch.linspace(-3, 3, 50)[:, None].expand(-1, head.factor.size)
    assert torch.equal(head.described(block), head.readout(block))


def test_the_slope_of_a_readout_is_its_derivative():
    head = Head(Positive(name="tumour_volume", role="anatomy", unit="mL"))
    truth = torch.logspace(0.3, 1.7, 200)
    head.fit(truth)
    head.eval().refit(head.located(bent(truth)), truth)
    block = torch.randn(20, head.factor.size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (derivative,) = torch.autograd.grad(head.described(block)[:, 0].sum(), block)
    torch.testing.assert_close(head.slope(block).detach(), derivative)
