"""Laws of the objective: each term is zero where it should be, grows with what it costs, and pushes the right way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medisent.augmentation import changed
from medisent.batches import Batch
from medisent.checkpoints import build_model
from medisent.config import ObjectiveSettings, Study
from medisent.factors import Partition
from medisent.model import Draw, PartitionedVAE
from medisent.objectives import TERMS, Objective, too_few_told
from medisent.objectives.adversary import forbidden_pairs
from medisent.objectives.classic import (
    _stratified_weights,
    away_from_identity,
    permuted,
    stratified_total_correlation,
)
from medisent.objectives.guards import active_units, information
from medisent.objectives.independence import (
    _hsic,
    _kernel,
    _normalised_hsic,
    gaussian_total_correlation,
    independent_groups,
)
from medisent.objectives.queue import Queue, amplified
from medisent.objectives.terms import bounded_rate
from medisent.supervision import Entry, Tie

PARTITION = Partition(
    [
        ("tumour", "anatomy", 1),
        ("anatomy_rest", "anatomy", 2),
        ("nuisance_rest", "nuisance", 2),
        ("brightness", "nuisance", 1),
    ]
)
GROUPS = [[0, 1], [2, 3]]


@pytest.fixture(scope="module")
def network(study: Study, shown: Batch) -> PartitionedVAE:
    torch.manual_seed(1)
    network = build_model(study)
    network.fit(shown)
    return network


@pytest.fixture(scope="module")
def draw(network: PartitionedVAE, shown: Batch) -> Draw:
    torch.manual_seed(2)
    with torch.no_grad():
        found: Draw = network(changed(shown[torch.arange(4)], network, torch.Generator().manual_seed(3)))
    return found


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


def correlated(rows: int, r: float, seed: int = 0) -> Tensor:
    """Four columns; the first and the third are correlated."""
    codes = normal(rows, 4, seed)
    codes[:, 2] = r * codes[:, 0] + math.sqrt(1 - r * r) * codes[:, 2]
    return codes


# The queue


def test_a_queue_keeps_the_last_rows_and_forgets_the_oldest():
    queue = Queue(5, 1)
    assert len(queue) == 0
    assert queue.recent().shape == (0, 1)
    for start in (0, 3):
        queue.push(torch.arange(start, start + 3.0)[:, None])
    assert sorted(queue.recent()[:, 0].tolist()) == [1, 2, 3, 4, 5]


def test_a_queue_holds_no_gradient_and_fresh_rows_keep_theirs():
    queue, fresh = Queue(8, 2), torch.ones(3, 2, requires_grad=True)
    queue.push(fresh * 2)
    joined = queue.joined(fresh)
    joined.sum().backward()
    assert not queue.rows.requires_grad
    assert torch.equal(fresh.grad, torch.ones(3, 2))
    assert torch.equal(joined[3:], torch.full((3, 2), 2.0))


def test_amplifying_changes_the_gradient_and_not_the_value():
    x = torch.tensor(3.0, requires_grad=True)
    value = amplified(x.square(), 4, 20)
    value.backward()
    assert value.item() == 9
    assert x.grad.item() == 30


# Gaussian total correlation


def test_the_total_correlation_of_a_gaussian_pair_is_its_mutual_information():
    for r in (0.3, 0.6, 0.9):
        found = float(gaussian_total_correlation(correlated(20000, r), GROUPS))
        assert found == pytest.approx(-0.5 * math.log(1 - r * r), rel=0.1)


def test_the_total_correlation_is_near_zero_for_independent_groups_whatever_they_hold_within():
    codes = normal(4000, 4)
    codes[:, 1] = codes[:, 0] + 0.1 * codes[:, 1]
    assert 0 <= float(gaussian_total_correlation(codes, GROUPS)) < 0.005


def test_the_total_correlation_grows_with_the_correlation_over_a_queue_of_recent_codes():
    costs = [float(gaussian_total_correlation(correlated(256, r), GROUPS)) for r in (0, 0.3, 0.6, 0.9, 0.99)]
    assert costs == sorted(costs)
    assert costs[-1] > 10 * costs[0]


def test_no_linear_map_within_a_group_changes_the_total_correlation():
    codes = correlated(256, 0.7)
    mixed = codes.clone()
    mixed[:, :2] = codes[:, :2] @ torch.tensor([[2.0, 1.0], [-3.0, 0.5]]).double() + 7
    mixed[:, 2:] = codes[:, 2:] @ torch.tensor([[0.1, 0.4], [0.3, -0.2]]).double()
    one, other = (float(gaussian_total_correlation(c, GROUPS)) for c in (codes, mixed))
    assert other == pytest.approx(one, rel=2e-2)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_the_total_correlation_is_finite_for_fewer_codes_than_latents_and_for_dead_or_doubled_ones(rows):
    codes = normal(rows, 4)
    codes[:, 1] = 0
    codes[:, 2] = codes[:, 0]
    codes.requires_grad_()
    cost = gaussian_total_correlation(codes, GROUPS)
    cost.backward()
    assert cost.isfinite()
    assert codes.grad.isfinite().all()


def test_descending_the_total_correlation_by_a_few_codes_a_step_makes_groups_independent():
    torch.manual_seed(0)
    leak = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    queue, before = Queue(128, 4), None
    for _ in range(150):
        source = torch.randn(4, 4).double()
        fresh = torch.cat([source[:, :2], source[:, 2:3] + leak * source[:, :1], source[:, 3:]], 1)
        codes = queue.joined(fresh.float()).double() if len(queue) else fresh
        queue.push(fresh.float())
        cost = amplified(gaussian_total_correlation(codes, GROUPS), 4, len(codes))
        before = before or float(cost.detach())
        (slope,) = torch.autograd.grad(cost, leak)
        with torch.no_grad():
            leak -= 0.05 * slope.clamp(-2, 2)
    assert abs(leak.item()) < 0.35


# HSIC


def test_hsic_without_bias_is_zero_on_average_for_independent_blocks_and_large_for_any_dependence():
    few = [_normalised_hsic(_kernel(normal(40, 1, s)), _kernel(normal(40, 1, s + 100))) for s in range(60)]
    assert abs(float(torch.stack(few).mean())) < 0.02
    x = normal(200, 1)
    for y in (x.square(), x.abs(), (3 * x).sin(), -x):
        assert float(_normalised_hsic(_kernel(x), _kernel(y))) > 0.15


def test_hsic_agrees_with_the_sum_over_quadruples_that_defines_it():
    one, other = _kernel(normal(6, 2)), _kernel(normal(6, 2, 9))
    total, count = 0.0, 0
    for i, j, k, m in np.ndindex(6, 6, 6, 6):
        if len({i, j, k, m}) == 4:
            total += float(one[i, j] * (other[i, j] + other[k, m] - 2 * other[i, k]))
            count += 1
    assert float(_hsic(one, other)) == pytest.approx(total / count, abs=1e-9)


def test_a_block_depends_wholly_on_itself_and_hsic_does_not_see_scales():
    x = normal(100, 2)
    assert float(_normalised_hsic(_kernel(x), _kernel(5 * x + 1))) == pytest.approx(1)


# Which blocks


def test_what_has_to_be_independent_is_a_choice():
    named = ["tumour", "brightness"]
    assert independent_groups(PARTITION, named, "unlabelled") == [[[0], [5]], [[1, 2]], [[3, 4]]]
    assert independent_groups(PARTITION, ["tumour"], "unlabelled") == [[[0]], [[1, 2]], [[3, 4]], [[5]]]
    assert independent_groups(PARTITION, named, "roles") == [[[0], [1, 2]], [[3, 4], [5]]]
    assert len(independent_groups(PARTITION, named, "blocks")) == len(PARTITION)


def test_a_block_may_always_tell_its_own_factor():
    for between in ("unlabelled", "roles", "blocks"):
        pairs = forbidden_pairs(PARTITION, ["tumour", "brightness"], between)
        assert ("tumour", "tumour") not in pairs
        assert ("nuisance_rest", "tumour") in pairs
    assert ("anatomy_rest", "tumour") not in forbidden_pairs(PARTITION, ["tumour"], "roles")


# Classic terms


def test_stratified_weights_sum_to_one_and_are_even_where_the_batch_is_the_cohort():
    assert torch.allclose(_stratified_weights(8, 100).sum(1), torch.ones(8))
    assert torch.allclose(_stratified_weights(8, 8), torch.full((8, 8), 1 / 8))


def test_the_stratified_total_correlation_of_a_whole_cohort_is_that_of_the_aggregate_posterior():
    loc = correlated(1500, 0.9).float()
    scale = torch.full_like(loc, 0.3)
    torch.manual_seed(0)
    sample = loc + scale * torch.randn_like(loc)
    r = 0.9 / (1 + 0.09)
    found = float(stratified_total_correlation(sample, loc, scale, len(loc)).mean())
    assert found == pytest.approx(-0.5 * math.log(1 - r * r), abs=0.25)
    loc = normal(1500, 4).float()
    sample = loc + scale * torch.randn_like(loc)
    apart = float(stratified_total_correlation(sample, loc, scale, len(loc)).mean())
    assert apart < found


def test_one_latent_has_no_total_correlation():
    z = normal(8, 1).float()
    assert torch.allclose(stratified_total_correlation(z, z, torch.ones_like(z), 100), torch.zeros(8), atol=1e-5)


def test_permuted_codes_have_the_same_marginals_and_no_correlation():
    torch.manual_seed(0)
    codes = correlated(2000, 0.95)
    other = permuted(codes)
    assert torch.equal(other.sort(0).values, codes.sort(0).values)
    assert abs(float(torch.corrcoef(other.T)[0, 2])) < 0.08


def test_the_discriminator_learns_to_tell_correlated_codes_and_the_model_gets_the_opposite_of_its_gradient(
    network, draw
):
    torch.manual_seed(0)
    term = TERMS["density_ratio"](network, ObjectiveSettings(queue=64))
    size = network.code_size
    optimiser = torch.optim.Adam(term.parameters(), lr=1e-2)

    def coupled() -> Tensor:
        z = torch.randn(4, network.partition.size)
        z[:, 1] = z[:, 0]
        return z

    for _ in range(60):
        optimiser.zero_grad()
        term(replace(draw, z=coupled())).mean().backward()
        optimiser.step()
    with torch.no_grad():
        odds = term.discriminator(torch.cat([coupled() for _ in range(50)])[:, :size]).mean()
        apart = term.discriminator(torch.randn(200, size)).mean()
    assert odds > apart + 0.5


def test_a_discriminators_own_loss_does_not_reach_the_model(network, draw):
    term = TERMS["density_ratio"](network, ObjectiveSettings(queue=16))
    z = draw.z.clone().requires_grad_()
    cost = term(replace(draw, z=z))
    (slope,) = torch.autograd.grad(cost.sum(), z, retain_graph=True)
    odds = term.discriminator(z[:, : network.code_size]).sum()
    assert torch.allclose(cost, term.discriminator(z[:, : network.code_size])[:, 0])
    assert torch.allclose(slope, torch.autograd.grad(odds, z)[0])
    assert all(g is not None for g in torch.autograd.grad(cost.sum(), list(term.parameters()), allow_unused=True))


def test_dip_costs_nothing_at_the_identity_and_weighs_the_diagonal():
    assert float(away_from_identity(torch.eye(3), 10)) == 0
    assert float(away_from_identity(2 * torch.eye(3), 10)) == 30
    off = torch.eye(2) + torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    assert float(away_from_identity(off, 10)) == 0.5


def test_dip_two_is_content_with_posteriors_that_have_the_priors_variance_and_dip_one_is_not(network, draw):
    q = replace(draw.q, loc=torch.zeros_like(draw.q.loc), scale=torch.ones_like(draw.q.scale))
    still = replace(draw, q=q)
    assert float(TERMS["dip_two"](network)(still).mean()) == pytest.approx(0, abs=1e-6)
    assert float(TERMS["dip_one"](network)(still).mean()) == pytest.approx(10 * network.code_size)


# The rate


def test_free_nats_cost_themselves_and_push_nothing():
    rate = torch.tensor([0.2, 0.6], requires_grad=True)
    cost = bounded_rate(rate, 0.0, 1.0)
    assert cost.mean().item() == 1
    assert torch.equal(torch.autograd.grad(cost.sum(), rate)[0], torch.zeros(2))
    assert torch.equal(bounded_rate(rate, 0.0, 0.3), rate)


def test_beta_scales_the_rate_of_its_blocks_and_of_no_other(network, draw):
    def costs(**said: float | dict[str, float]) -> Tensor:
        found: Tensor = TERMS["rate"](network, ObjectiveSettings(**said))(draw)
        return found

    plain, rates = costs(), draw.q.rate(draw.prior)
    assert torch.equal(costs(beta={"anatomy": 1.0}), plain)
    assert torch.allclose(costs(beta=3.0), 3 * plain)
    assert torch.allclose(costs(beta={"head_size": 3.0}) - plain, 2 * rates["head_size"], atol=1e-3)
    anatomy = rates["tumour_volume"] + rates["head_size"] + rates["anatomy_rest"]
    assert torch.allclose(plain - costs(beta={"anatomy": 0.0}), anatomy, atol=1e-3)
    settings = [plain - costs(beta={name: 0.0}) for name in ("brightness", "contrast", "bias_field")]
    learned = sum(rates[name] for name in rates if name not in network.scanner_names)
    assert torch.allclose(plain - torch.stack(settings).sum(0), learned, atol=1e-3)
    assert all((setting > 0).all() for setting in settings)


@pytest.mark.parametrize("setting", ["capacity", "free_nats"])
def test_bounds_of_one_block_leave_the_rate_of_all_others_alone(setting, network, draw):
    def cost(bound: float) -> float:
        term = TERMS["rate"](network, ObjectiveSettings(**{setting: {"head_size": bound}}))
        return float(term(draw).mean())

    own = float(draw.q.rate(draw.prior)["head_size"].mean())
    high = own + 5.0
    plain = float(TERMS["rate"](network)(draw).mean())
    wanted = high if setting == "free_nats" else 5.0
    assert cost(high) - plain == pytest.approx(wanted - own, abs=1e-2)
    assert cost(0.0) == plain


def test_capacity_costs_the_distance_of_the_mean_rate_and_pulls_towards_it_from_both_sides():
    rate = torch.tensor([1.0, 3.0], requires_grad=True)
    for capacity, sign in ((5.0, -1), (0.5, 1)):
        cost = bounded_rate(rate, capacity, 0.0)
        assert cost.mean().item() == pytest.approx(abs(2 - capacity))
        assert (torch.autograd.grad(cost.sum(), rate)[0] == sign).all()


# Guards


def test_a_latent_tells_as_much_as_a_gaussian_channel_of_its_signal_and_noise():
    loc, scale = normal(50000, 1), torch.full((10, 1), 0.5).double()
    assert float(information(2 * loc, scale)) == pytest.approx(0.5 * math.log(1 + 4 / 0.25), rel=0.02)
    assert float(information(torch.zeros(100, 1), torch.ones(10, 1))) == pytest.approx(0)


def test_a_guard_costs_what_is_lacking_and_nothing_once_there_is_enough(network, draw):
    loud = replace(draw, q=replace(draw.q, loc=100 * draw.q.loc + draw.z, scale=0.01 * torch.ones_like(draw.q.scale)))
    quiet = replace(draw, q=replace(draw.q, loc=torch.zeros_like(draw.q.loc)))
    few = ObjectiveSettings(guarded_nats=0.1)
    assert float(TERMS["guard"](network, few)(loud).mean()) == 0
    assert float(TERMS["guard"](network, few)(quiet).mean()) > 0.1


def test_active_units_are_the_latents_whose_means_move():
    loc = normal(100, 6) * torch.tensor([1, 1, 0, 0.05, 0.2, 3.0])
    assert active_units(loc, PARTITION) == {"tumour": 1, "anatomy_rest": 1, "nuisance_rest": 1, "brightness": 1}


@pytest.mark.parametrize("name", ["dip_two", "guard"])
def test_a_queue_dilutes_neither_the_gradient_of_means_nor_blows_up_that_of_spreads(name, network, draw):
    def slopes(copies: int) -> list[Tensor]:
        term = TERMS[name](network, ObjectiveSettings(queue=4096, guarded_nats=50.0))
        for _ in range(copies):
            term.queue.push(draw.q.loc[:, : network.code_size])
        loc, scale = (values.clone().requires_grad_() for values in (draw.q.loc, draw.q.scale))
        cost = term(replace(draw, q=replace(draw.q, loc=loc, scale=scale))).mean()
        return list(torch.autograd.grad(cost, (loc, scale)))

    for alone, queued in zip(slopes(0), slopes(63), strict=True):
        assert torch.nn.functional.cosine_similarity(alone.flatten(), queued.flatten(), dim=0) > 0.9
        assert float(queued.norm() / alone.norm()) == pytest.approx(1, rel=0.5)


# The adversary


def test_an_adversary_finds_a_leak_and_pushes_the_model_away_from_it(network, draw, shown):
    torch.manual_seed(0)
    term = TERMS["adversary"](network, ObjectiveSettings(queue=64))
    optimiser = torch.optim.Adam(term.parameters(), lr=2e-2)
    column, where = list(network.factors).index("head_size"), network.partition["anatomy_rest"].start
    head = network.head("head_size")

    def leaking() -> Draw:
        values = draw.change.plain.values.clone()
        values[:, column] = head.value(torch.randn(4, 1))
        loc = torch.randn(draw.q.loc.shape)
        loc[:, where] = head.embed(values[:, column])[:, 0]
        change = replace(draw.change, plain=replace(draw.change.plain, values=values))
        return replace(draw, change=change, q=replace(draw.q, loc=loc.requires_grad_()))

    early = float(term(leaking()).mean().detach())
    for _ in range(160):
        optimiser.zero_grad()
        cost = term(leaking()).mean()
        cost.backward()
        optimiser.step()
    last = leaking()
    cost = term(last)
    (slope,) = torch.autograd.grad(cost.sum(), last.q.loc)
    assert early == 0
    assert float(cost.detach().mean()) > 0.3
    size = slope.abs().mean(0)
    assert size[where] > 2 * size[where + 1 : network.partition["anatomy_rest"].where.stop].max()


# The objective


def test_terms_that_need_more_scans_a_step_say_so_in_words():
    told = too_few_told({"rate": 1.0, "stratified_tc": 1.0, "density_ratio": 1.0, "hsic": 0.0}, 4)
    assert [note.split()[1] for note in told] == ["stratified_tc", "density_ratio"]
    assert all("4 scans" in note for note in told)
    assert too_few_told(dict.fromkeys(TERMS, 1.0), 128) == ()


def test_scans_chosen_for_what_they_share_are_kept_out_of_the_queue(network, draw):
    objective = Objective(network, {"total_correlation": 1.0, "rate": 1.0})
    entry = Entry("groups", 0, frozenset({"anatomy_rest"}))
    tie = Tie(entry, torch.zeros(4, dtype=torch.long), torch.full((4,), math.nan))
    costs = objective(replace(draw, tie=tie))
    assert float(costs["total_correlation"]) == 0
    assert len(objective.terms["total_correlation"].queue) == 0
    objective(draw)
    assert len(objective.terms["total_correlation"].queue) == 4


def test_only_terms_that_learn_have_weights(network):
    objective = Objective(network, dict.fromkeys(TERMS, 1.0))
    learning = {name for name, term in objective.terms.items() if any(True for _ in term.parameters())}
    assert learning == {"adversary", "density_ratio"}


def test_an_edit_that_is_encoded_as_another_costs_more(network, draw, monkeypatch):
    term = TERMS["consistency"](network)
    rows, where = torch.arange(2), network.partition["head_size"].where
    wanted = network.head("head_size").value(torch.tensor([[1.5], [-1.5]]))

    def encoded(step: float, aside: float) -> Tensor:
        loc = draw.q.loc[rows].clone()
        loc[:, where] = network.head("head_size").located(wanted).detach() + step
        loc[:, network.partition["anatomy_rest"].where] += aside
        return loc

    costs = []
    with torch.no_grad():
        for step, aside in ((0.0, 0.0), (3.0, 0.0), (0.0, 1.0), (0.0, 2.0)):
            q = replace(draw.q, loc=encoded(step, aside), scale=draw.q.scale[rows])
            monkeypatch.setattr(network, "encode", lambda canonical, sight, q=q: q)
            costs.append(float(term._factor(draw, rows, "head_size", wanted).mean()))
    right, elsewhere, aside, further = costs
    assert right < elsewhere
    assert right < aside < further


def test_the_same_anatomy_before_and_after_the_scanners_change_costs_nothing(network, draw, monkeypatch):
    rows = torch.arange(2)
    same = replace(draw.q, loc=draw.q.loc[rows], scale=draw.q.scale[rows])
    monkeypatch.setattr(network, "encode", lambda canonical, sight: same)
    term = TERMS["consistency"](network)
    assert torch.equal(term._scanner(draw, rows), torch.zeros(2))


def test_every_term_stands_in_the_weights_of_a_study(study: Study):
    assert set(TERMS) <= set(study.weights.__dataclass_fields__)


def test_masks_cost_least_where_they_fill_voxels_in_part_as_much_as_the_true_ones_do(network, draw):
    masks = draw.batch.masks.clamp(0.02, 0.98)
    told = replace(draw.change, changed=replace(draw.batch, masks=masks))
    term = TERMS["mask"](network)

    def cost(logits: Tensor) -> float:
        return float(term(replace(draw, change=told, mask_logits=logits)).sum())

    right = torch.logit(masks)
    assert all(cost(right) < cost(right * factor) for factor in (0.5, 0.8, 1.2, 2.0))
    assert all(cost(right) < cost(right + shift) for shift in (-1.0, -0.2, 0.2, 1.0))
