import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from medisent.factors import Partition
from medisent.posterior import PartitionedNormal

PARTITION = Partition([("size", "anatomy", 1), ("anatomy_rest", "anatomy", 2), ("site", "nuisance", 1)])


@pytest.fixture
def posterior():
    chance = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(4, 4, generator=chance), torch.rand(4, 4, generator=chance) + 0.1
    return PartitionedNormal(loc, scale, PARTITION)


def test_a_group_agrees_on_shared_blocks_and_on_nothing_else(posterior):
    shared = posterior.shared(torch.tensor([7, 7, -1, 7]), frozenset({"size"}))
    for row in (1, 3):
        assert torch.allclose(shared.loc[row, :1], shared.loc[0, :1])
    assert torch.equal(shared.loc[:, 1:], posterior.loc[:, 1:])
    assert torch.allclose(shared.loc[2], posterior.loc[2])


def test_agreement_is_the_product_of_the_posteriors(posterior):
    shared = posterior.shared(torch.tensor([0, 0, 1, 1]), frozenset({"size"}))
    precision = posterior.scale[:2, 0] ** -2
    assert shared.scale[0, 0].item() == pytest.approx(float(precision.sum() ** -0.5), rel=1e-5)
    assert shared.loc[0, 0].item() == pytest.approx(
        float((precision * posterior.loc[:2, 0]).sum() / precision.sum()), rel=1e-4
    )


def test_scans_without_a_group_are_alone_even_together(posterior):
    shared = posterior.shared(torch.full((4,), -1), frozenset(PARTITION))
    assert torch.allclose(shared.loc, posterior.loc)
    assert torch.allclose(shared.scale, posterior.scale)


def test_the_rate_of_a_posterior_against_itself_is_nothing(posterior):
    assert all(float(rate.abs().max()) < 1e-6 for rate in posterior.rate(posterior).values())
    other = PartitionedNormal(posterior.loc + posterior.scale, posterior.scale, PARTITION)
    assert torch.allclose(posterior.rate(other)["anatomy_rest"], torch.full((4,), 2 * 0.5))
    assert math.isfinite(float(sum(r.sum() for r in posterior.rate(other).values())))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.floats(-3, 3), st.floats(0.1, 3))
def test_the_product_of_equal_posteriors_is_as_many_times_as_precise(scans, loc, scale):
    q = PartitionedNormal(torch.full((scans, 4), loc), torch.full((scans, 4), scale), PARTITION)
    shared = q.shared(torch.zeros(scans, dtype=torch.long), frozenset(PARTITION))
    assert torch.allclose(shared.scale**-2, scans * q.scale**-2, rtol=1e-4)
    assert torch.allclose(shared.loc, q.loc, atol=1e-5)


def test_the_mean_averages_means_and_variances(posterior):
    shared = posterior.shared(torch.tensor([0, 0, 0, -1]), frozenset({"size", "site"}), "mean")
    for latent in (0, 3):
        assert torch.allclose(shared.loc[:3, latent], posterior.loc[:3, latent].mean().expand(3))
        assert torch.allclose(shared.scale[:3, latent] ** 2, (posterior.scale[:3, latent] ** 2).mean().expand(3))
    assert torch.allclose(shared.loc[3], posterior.loc[3])
    assert torch.equal(shared.loc[:, 1:3], posterior.loc[:, 1:3])


GROUPS = torch.tensor([3, 1, 3, 1, -1, 3])


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(6)), st.sampled_from(["product", "mean"]), st.sampled_from(["shared", "adapted", "clamped"])
)
def test_the_order_of_scans_does_not_matter(order, pool, how):
    chance = torch.Generator().manual_seed(1)
    q = PartitionedNormal(torch.randn(6, 4, generator=chance), torch.rand(6, 4, generator=chance) + 0.1, PARTITION)
    group = torch.tensor([3, 1, 3, 1, -1, -1]) if how == "adapted" else GROUPS
    told = () if how == "clamped" else (pool,)
    blocks = frozenset({"size", "anatomy_rest"})
    rows = torch.tensor(order)
    whole = getattr(q, how)(group, blocks, *told)
    moved = getattr(PartitionedNormal(q.loc[rows], q.scale[rows], PARTITION), how)(group[rows], blocks, *told)
    assert torch.allclose(moved.loc, whole.loc[rows], atol=1e-6)
    assert torch.allclose(moved.scale, whole.scale[rows], atol=1e-6)


@pytest.mark.parametrize("pool", ["product", "mean"])
def test_a_pair_shares_exactly_the_latents_that_tell_it_apart_less_than_the_middle(posterior, pool):
    group, blocks = torch.tensor([5, -1, -1, 5]), frozenset({"size", "anatomy_rest"})
    here, there = ({"loc": posterior.loc[i, :3], "scale": posterior.scale[i, :3]} for i in (0, 3))
    apart = kl_divergence(Normal(**here), Normal(**there)) + kl_divergence(Normal(**there), Normal(**here))
    below = apart < (apart.min() + apart.max()) / 2
    assert 0 < int(below.sum()) < 3
    adapted, shared = (getattr(posterior, how)(group, blocks, pool) for how in ("adapted", "shared"))
    for row in (0, 3):
        assert torch.equal(adapted.loc[row, :3], torch.where(below, shared.loc[row, :3], posterior.loc[row, :3]))
        assert torch.equal(adapted.scale[row, :3], torch.where(below, shared.scale[row, :3], posterior.scale[row, :3]))
    assert torch.equal(adapted.loc[:, 3], posterior.loc[:, 3])
    assert torch.equal(adapted.loc[1:3], posterior.loc[1:3])


def test_clamped_blocks_are_the_mean_of_their_group_and_pass_no_gradient(posterior):
    loc = posterior.loc.clone().requires_grad_()
    q = PartitionedNormal(loc, posterior.scale, PARTITION)
    clamped = q.clamped(torch.tensor([0, 0, -1, 0]), frozenset({"anatomy_rest"}))
    assert torch.allclose(clamped.loc[0, 1:3], loc[[0, 1, 3], 1:3].mean(0))
    (slope,) = torch.autograd.grad(clamped.loc.sum(), loc)
    free = torch.ones(4, 4)
    free[[0, 1, 3], 1:3] = 0
    assert torch.equal(slope, free)
