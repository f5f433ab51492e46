"""Laws that hold for every row of the tables: factor types, terms, mechanisms. A new row is tested here."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from medisent.augmentation import changed
from medisent.batches import Batch
from medisent.checkpoints import Trained
from medisent.config import ObjectiveSettings
from medisent.errors import InterventionError, StudyError
from medisent.factors import FACTOR_TYPES, Circular, Factor, Nominal, Ordinal, Partition, Positive, Real
from medisent.mechanisms import MECHANISMS, Mechanism, Scene, cautions, mechanism_of
from medisent.model import Change, Draw, Head, PartitionedVAE
from medisent.objectives import TERMS, Objective, Term
from medisent.processes import Crew
from medisent.readings import Reading, read_factors
from medisent.scanners import Scanner
from medisent.supervision import Entry, Tie
from medisent.volumes import Volume

# What a type needs besides a name and a role.
NEEDS: dict[str, dict[str, object]] = {
    "ordinal": {"levels": ("low", "middle", "high", "extreme")},
    "categorical": {"levels": ("A", "B", "C")},
    "circular": {"period": 24.0},
}
KINDS = pytest.mark.parametrize("kind", FACTOR_TYPES)


def factor_of(kind: str, name: str = "thing") -> Factor:
    return FACTOR_TYPES[kind](name=name, role="anatomy", **NEEDS.get(kind, {}))


def values_of(factor: Factor) -> Tensor:
    """Some of its values."""
    if isinstance(factor, Ordinal | Nominal):
        return torch.arange(len(factor.levels), dtype=torch.float32)
    if isinstance(factor, Circular):
        return torch.linspace(0.1, factor.period - 0.1, 11)
    low = 1e-3 if isinstance(factor, Positive) else -400.0
    return torch.linspace(low, 300.0, 11)


# Factor types


@KINDS
def test_a_kind_is_filed_under_its_name(kind):
    assert FACTOR_TYPES[kind].kind == kind


@KINDS
def test_an_embedding_stands_for_the_value_that_it_was_made_from(kind):
    factor = factor_of(kind)
    values = values_of(factor)
    embedding = factor.embed(values)
    assert embedding.shape == (len(values), factor.embedding_size)
    assert torch.allclose(factor.value(embedding), values, rtol=1e-5, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e9), st.sampled_from([0.0, 0.5]))
def test_a_positive_value_survives_its_logarithm_whatever_its_size(value, offset):
    factor = Positive(name="thing", role="anatomy", offset=offset)
    found = float(factor.value(factor.embed(torch.tensor([value], dtype=torch.float64))))
    assert found == pytest.approx(value, rel=1e-6, abs=1e-6 if offset else 0)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 1e4), st.integers(-3, 3))
def test_values_a_period_apart_are_one_value(value, turns):
    factor = Circular(name="thing", role="anatomy", period=24.0)
    here, there = (factor.embed(torch.tensor([v], dtype=torch.float64)) for v in (value, value + turns * 24.0))
    assert torch.allclose(here, there, atol=1e-8)


@KINDS
def test_the_unknown_stays_unknown_and_alone(kind):
    factor = factor_of(kind)
    values = torch.cat([torch.tensor([math.nan]), values_of(factor)[1:3]])
    embedding = factor.embed(values)
    assert embedding[0].isnan().all()
    assert embedding[1:].isfinite().all()


@KINDS
@pytest.mark.parametrize("size", [0.1, 3.0, 50.0])
def test_a_likelihood_is_finite_on_its_own_samples_whatever_the_network_says(kind, size):
    factor = factor_of(kind)
    chance = torch.Generator().manual_seed(1)
    parameters = size * torch.randn(64, factor.parameter_size, generator=chance)
    torch.manual_seed(1)
    likely = factor.likelihood(parameters)
    assert likely.batch_shape == (64,)
    assert likely.log_prob(likely.sample()).isfinite().all()


@KINDS
def test_the_likelihood_of_a_known_value_teaches_the_network(kind):
    factor = factor_of(kind)
    values = values_of(factor)[:3]
    parameters = torch.zeros(3, factor.parameter_size).add(0.1).requires_grad_()
    likely = factor.likelihood(parameters).log_prob(factor.target(factor.embed(values)))
    (slope,) = torch.autograd.grad(likely.sum(), parameters)
    assert slope.isfinite().all()
    assert (slope != 0).any(1).all()


@KINDS
def test_the_best_value_is_the_one_that_is_most_likely(kind):
    factor = factor_of(kind)
    parameters = torch.randn(16, factor.parameter_size, generator=torch.Generator().manual_seed(2))
    likely = factor.likelihood(parameters)
    best = likely.log_prob(factor.target(factor.best(parameters)))
    torch.manual_seed(2)
    for _ in range(20):
        assert (likely.log_prob(likely.sample()) <= best + 1e-4).all()


@KINDS
def test_what_is_shown_can_be_parsed_back(kind):
    factor = factor_of(kind)
    for value in values_of(factor).tolist():
        assert factor.parse(factor.show(value)) == pytest.approx(value, rel=1e-3)


@KINDS
@pytest.mark.parametrize("text", ["", "much", "nan", "inf", "-inf", "1,5", "12 mL", "0x10"])
def test_nonsense_is_refused_by_name(kind, text):
    with pytest.raises(InterventionError, match=r"^thing "):
        factor_of(kind).parse(text)


def test_a_positive_factor_takes_nothing_below_zero_and_zero_only_with_an_offset():
    factor = Positive(name="thing", role="anatomy", unit="mL")
    for text in ("-1", "0"):
        with pytest.raises(InterventionError, match="positive"):
            factor.parse(text)
    with_zero = replace(factor, offset=1.0)
    assert with_zero.parse("0") == 0
    with pytest.raises(InterventionError, match="positive"):
        with_zero.parse("-0.1")


@pytest.mark.parametrize("levels", [(), ("one",), ("one", "one")])
@pytest.mark.parametrize("kind", [Ordinal, Nominal])
def test_levels_have_to_be_several_and_different(kind, levels):
    with pytest.raises(StudyError, match="at least two"):
        kind(name="thing", role="anatomy", levels=levels)


@pytest.mark.parametrize("period", [0.0, -1.0, math.nan])
def test_a_period_has_to_be_positive(period):
    with pytest.raises(StudyError, match="positive"):
        Circular(name="thing", role="anatomy", period=period)


@KINDS
def test_a_head_finds_the_value_that_it_embedded_in_the_units_of_a_cohort(kind):
    factor = factor_of(kind)
    head, values = Head(factor), values_of(factor)
    head.fit(torch.cat([values, torch.tensor([math.nan])]))
    assert torch.allclose(head.value(head.embed(values)), values, rtol=1e-4, atol=1e-3)
    if factor.standardised:
        assert torch.allclose(head.embed(values).std(0), torch.ones(1), atol=1e-4)
    assert head.located(values).shape == (len(values), factor.size)


def test_blocks_follow_each_other_without_a_gap():
    partition = Partition([("a", "anatomy", 2), ("anatomy_rest", "anatomy", 3), ("b", "nuisance", 1)])
    assert partition.size == 6
    assert [partition[name].where for name in partition] == [slice(0, 2), slice(2, 5), slice(5, 6)]
    assert partition.columns == ("a.0", "a.1", "anatomy_rest.0", "anatomy_rest.1", "anatomy_rest.2", "b.0")
    assert partition.of_role("nuisance").tolist() == [False] * 5 + [True]


# Terms of the objective


@pytest.fixture(scope="module")
def network(shown: Batch) -> PartitionedVAE:
    """A model with a factor of every kind; one of them has a mask."""
    torch.manual_seed(3)
    factors = [factor_of(kind, kind) for kind in FACTOR_TYPES]
    factors = [replace(f, mask="mask") if isinstance(f, Positive) else f for f in factors]
    factors.append(Positive(name="brightness", role="nuisance"))
    settings = ("brightness", "contrast", "bias_field")
    shape = shown.scan.shape[2:]
    network = PartitionedVAE(factors, settings, (shape[0], shape[1], shape[2]), 1.728, width=4, rest=3)
    network.fit(labelled(shown, network))
    return network


def labelled(shown: Batch, network: PartitionedVAE) -> Batch:
    """Four scans with a known value of every factor."""
    few = shown[torch.arange(4)]
    columns = [
        torch.tensor([1.0, 2.0, 1.0, 2.0]) if f.name != "real" else few.values[:, 1] for f in network.factors.values()
    ]
    return replace(few, values=torch.stack(columns, 1))


@pytest.fixture(scope="module")
def change(shown: Batch, network: PartitionedVAE) -> Change:
    return changed(labelled(shown, network), network, torch.Generator().manual_seed(4))


def rows_of(thing, rows: Tensor):
    """The dataclass with the rows of its tensors in another order."""
    if isinstance(thing, Tensor):
        return thing[rows]
    if isinstance(thing, Crew):
        return thing
    assert is_dataclass(thing)
    return type(thing)(*(rows_of(getattr(thing, f.name), rows) for f in fields(thing)))


def forgetful(change: Change, rows: Tensor) -> Change:
    """The change of scans of which nothing is known in these rows."""

    def blank(batch: Batch) -> Batch:
        values, masks = batch.values.clone(), batch.masks.clone()
        values[rows], masks[rows] = math.nan, math.nan
        return replace(batch, values=values, masks=masks)

    return replace(change, plain=blank(change.plain), changed=blank(change.changed))


EVERY_TERM = pytest.mark.parametrize("name", TERMS)
CLAMPED = Entry("clamp", 0, blocks=frozenset({"real", "anatomy_rest"}), alike=frozenset({"brightness"}))
TIES = {
    "invariance": CLAMPED,
    "differences": CLAMPED,
    "ranks": Entry("ranks", 0, factors=("real", "ordinal", "brightness")),
}


def tie_of(name: str, rows: Tensor | None = None) -> Tie | None:
    """What four scans have in common where a term needs that."""
    rows = torch.arange(4) if rows is None else rows
    return Tie(TIES[name], torch.zeros(4).long()[rows], torch.tensor([3.0, 1, 2, 4])[rows]) if name in TIES else None


ALONE = pytest.mark.parametrize("name", [name for name, term in TERMS.items() if not term.together])
TOGETHER = pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.together])
# A short queue, that is soon full, and a guard that is never content.
OPTIONS = ObjectiveSettings(queue=16, guarded_nats=50.0)


@pytest.fixture(scope="module")
def ready(network: PartitionedVAE, change: Change) -> Callable[[str], Term]:
    """Terms that have seen a few batches, and learned from them if they can; each time a copy, of the same network."""
    known = cache(partial(_ready, network=network, change=change))
    return lambda name: deepcopy(known(name), {id(network): network})


def _ready(name: str, network: PartitionedVAE, change: Change) -> Term:
    torch.manual_seed(5)
    term = TERMS[name](network, OPTIONS, 100)
    with torch.no_grad():
        draws = [network(change) for _ in range(5 if term.together else 0)]
    learned = list(term.parameters())
    optimiser = torch.optim.Adam(learned, lr=0.1) if learned else None
    for draw in draws * (4 if optimiser else 1):
        cost = term(draw).sum()
        if optimiser and cost.requires_grad:
            optimiser.zero_grad()
            cost.backward()
            optimiser.step()
    return term


@EVERY_TERM
def test_a_term_costs_a_finite_number_of_nats_a_scan(name, network, change, ready):
    torch.manual_seed(5)
    cost = ready(name)(network(change, tie_of(name)))
    assert cost.shape == (4,)
    assert cost.isfinite().all()
    assert (cost != 0).any() if TERMS[name].together else (cost != 0).all()


@EVERY_TERM
def test_a_term_is_finite_from_the_first_step_on_whatever_is_unknown(name, network, change):
    torch.manual_seed(5)
    for rows in (torch.tensor([0, 2]), torch.arange(4)):
        term = TERMS[name](network, OPTIONS, 100)
        network.zero_grad(set_to_none=True)
        for _ in range(5):
            cost = term(network(forgetful(change, rows), tie_of(name)))
            assert cost.isfinite().all()
        if cost.requires_grad:
            cost.mean().backward()
        slopes = [p.grad for p in (*network.parameters(), *term.parameters()) if p.grad is not None]
        assert all(slope.isfinite().all() for slope in slopes)


@EVERY_TERM
def test_the_gradient_of_a_term_reaches_the_network(name, network, change, ready):
    torch.manual_seed(5)
    term = ready(name)
    network.zero_grad(set_to_none=True)
    term(network(change, tie_of(name))).sum().backward()
    slopes = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(slope.isfinite().all() for slope in slopes)
    assert any((slope != 0).any() for slope in slopes)


@ALONE
def test_scans_in_another_order_cost_the_same_in_that_order(name, network, change, monkeypatch):
    monkeypatch.setattr(Crew, "noise", lambda crew, like: torch.zeros_like(like))
    order, term = torch.tensor([2, 0, 3, 1]), TERMS[name](network)
    cost = term(network(change, tie_of(name)))
    assert torch.allclose(term(network(rows_of(change, order), tie_of(name, order))), cost[order], rtol=1e-4, atol=1e-3)
    assert cost.unique().numel() == 4


@ALONE
def test_what_is_known_of_one_scan_does_not_change_what_another_costs(name, network, change, monkeypatch):
    monkeypatch.setattr(Crew, "noise", lambda crew, like: torch.zeros_like(like))
    term = TERMS[name](network)
    tie, fewer_known = tie_of(name), forgetful(change, torch.tensor([0, 2]))
    cost, fewer = term(network(change, tie)), term(network(fewer_known, tie))
    assert fewer.isfinite().all()
    assert torch.equal(fewer[[1, 3]], cost[[1, 3]])


@TOGETHER
def test_a_term_goes_on_from_what_it_had_kept(name, network, change, ready):
    torch.manual_seed(5)
    term, draw = ready(name), network(change)
    other = TERMS[name](network, OPTIONS, 100)
    other.load_state_dict(term.state_dict())
    torch.manual_seed(6)
    cost = term(draw)
    torch.manual_seed(6)
    assert torch.equal(other(draw), cost)


@pytest.mark.parametrize("name", ["readout", "mask"])
def test_what_nobody_knows_costs_nothing(name, network, change):
    assert torch.equal(TERMS[name](network)(network(forgetful(change, torch.arange(4)))), torch.zeros(4))


def test_the_scanner_costs_least_where_both_estimates_lead_to_the_same_canonical_scan(network, change):
    with torch.no_grad():
        draw: Draw = network(change)
        term = TERMS["scanner"](network)
        right = change.scanner.after(draw.before.scanner).stacked()
        right[:, 0] -= change.log_rescale
        twice = [
            scanner.remove(batch.scan, network.basis)
            for scanner, batch in ((draw.before.scanner, change.plain), (Scanner.unstacked(right), change.changed))
        ]
        tissue = (change.plain.scan > 0.5) & (change.plain.coverage == 1)
        assert float((twice[0] - twice[1])[tissue].abs().mean()) < 0.05  # the noise that was added
        least = term(replace(draw, after=replace(draw.after, scanner=Scanner.unstacked(right))))
        for column in range(right.shape[1]):
            for step in (-0.1, 0.1):
                off = right.clone()
                off[:, column] += step
                assert (term(replace(draw, after=replace(draw.after, scanner=Scanner.unstacked(off)))) > least).all()


def test_a_mask_costs_least_where_it_is_the_known_one(network, change):
    with torch.no_grad():
        draw: Draw = network(change)
        term, known = TERMS["mask"](network), draw.batch.masks.clamp(1e-4, 1 - 1e-4)
        there = draw.batch.masks.flatten(1).sum(1) > 0
        assert there.sum() >= 2
        least = term(replace(draw, mask_logits=known.logit()))
        for other in (known.roll(2, 3), 0.5 * known, 0.5 + 0.5 * known, torch.zeros_like(known) + 1e-4):
            assert (term(replace(draw, mask_logits=other.logit())) > least)[there].all()


def test_the_distortion_grows_with_the_distance_and_only_inside_the_field_of_view(network, change):
    with torch.no_grad():
        draw: Draw = network(change)
        term, away = TERMS["distortion"](network), torch.zeros_like(draw.canonical)
        away[..., :8] = 0.5
        scale = draw.likelihood.scale
        near, far = (replace(draw, likelihood=Normal(draw.canonical + k * away, scale)) for k in (0, 1))
        assert (term(far) > term(near)).all()
        blind = replace(change.changed, coverage=change.changed.coverage * (away == 0))
        hidden = replace(change, changed=blind)
        assert torch.equal(term(replace(far, change=hidden)), term(replace(near, change=hidden)))


def test_a_readout_costs_least_where_it_is_sure_of_what_is_known(network, change):
    with torch.no_grad():
        draw: Draw = network(change)
        term, index = TERMS["readout"](network), list(network.factors).index("real")
        target = network.embed("real", change.plain.values[:, index])[:, 0]
        costs = [
            term(replace(draw, readouts={**draw.readouts, "real": Normal(target + away, 0.1)}))
            for away in (0, 0.1, -0.5)
        ]
        assert (costs[0] < costs[1]).all()
        assert (costs[1] < costs[2]).all()


def test_an_objective_weighs_its_terms_and_leaves_out_what_weighs_nothing(network, change):
    torch.manual_seed(5)
    with torch.no_grad():
        draw: Draw = network(change)
    costs = Objective(network, {"rate": 2.0, "readout": 0.5, "mask": 0.0})(draw)
    assert set(costs) == {"rate", "readout", "total"}
    assert costs["total"] == pytest.approx(float(2 * costs["rate"] + 0.5 * costs["readout"]), rel=1e-6)
    assert costs["rate"] == pytest.approx(float(TERMS["rate"](network)(draw).mean()))


def test_an_objective_has_no_weights_of_the_model_among_its_own(network):
    own = {id(p) for p in Objective(network, dict.fromkeys(TERMS, 1.0)).parameters()}
    assert not own & {id(p) for p in network.parameters()}


# Mechanisms


@pytest.fixture(scope="module")
def reading(trained: Trained, scan: Volume) -> Reading:
    return read_factors(trained, scan)


def same(one: Scene, other: Scene) -> bool:
    return (
        torch.equal(one.canonical, other.canonical)
        and torch.equal(one.masks, other.masks)
        and torch.equal(one.z, other.z)
        and torch.equal(one.scanner.stacked(), other.scanner.stacked())
    )


def served(mechanism: Mechanism, trained: Trained) -> list[str]:
    return [name for name in trained.network.factors if mechanism_of(trained.network, name) is mechanism]


EVERY_MECHANISM = pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=list(MECHANISMS))


@EVERY_MECHANISM
def test_the_present_value_as_the_wish_changes_nothing_bit_for_bit(mechanism, trained, reading):
    names = served(mechanism, trained)
    assert names
    for name in names:
        present = reading.readouts[name].estimate
        assert same(mechanism.intervene(trained.network, reading.scene, name, present, present), reading.scene)


def test_edits_of_volumes_whose_masks_training_never_saw_come_with_a_warning_and_no_others():
    volume = Positive(name="ventricle_volume", role="anatomy", unit="mL", column="v")
    size = Real(name="head_size", role="anatomy", unit="mm", column="h")

    def network(factor: Factor) -> PartitionedVAE:
        return PartitionedVAE((factor, size), ("brightness",), (16, 16, 16), 1.0, width=4, rest=2)

    (said,) = cautions(network(volume), ("ventricle_volume", "head_size"))
    assert "no masks of ventricle volume," in said
    assert cautions(network(replace(volume, mask="m")), ["ventricle_volume"]) == []
    assert cautions(network(volume), ["head_size"]) == []


@EVERY_MECHANISM
def test_another_value_changes_something_and_leaves_the_scene_at_hand_alone(mechanism, trained, reading):
    for name in served(mechanism, trained):
        before = deepcopy(reading.scene)
        present = reading.readouts[name].estimate
        wanted = (present + 1) % 4 if name == "site" else present * 1.3
        with torch.no_grad():
            after = mechanism.intervene(trained.network, reading.scene, name, present, wanted)
        assert not same(after, reading.scene)
        assert after.canonical.isfinite().all()
        assert same(reading.scene, before)


@EVERY_MECHANISM
def test_a_mechanism_moves_the_block_of_its_own_factor_and_no_other(mechanism, trained, reading):
    network = trained.network
    for name in served(mechanism, trained):
        present = reading.readouts[name].estimate
        wanted = (present + 1) % 4 if name == "site" else present * 1.3
        with torch.no_grad():
            after = mechanism.intervene(network, reading.scene, name, present, wanted)
        moved = (after.z != reading.scene.z)[0]
        own = torch.zeros_like(moved)
        if name in network.heads:
            own[network.partition[name].where] = True
        assert not (moved & ~own).any()
        assert (name in network.scanner_names) == (
            not torch.equal(after.scanner.stacked(), reading.scene.scanner.stacked())
        )


def test_every_factor_has_a_mechanism_and_an_unknown_one_is_refused_with_what_there_is(trained):
    assert sorted(name for m in MECHANISMS.values() for name in served(m, trained)) == sorted(trained.network.factors)
    with pytest.raises(InterventionError, match=r"no factor 'tumor'.*tumour_volume"):
        mechanism_of(trained.network, "tumor")


def test_the_scanner_cannot_be_asked_for_what_it_cannot_be(trained, reading):
    setting = MECHANISMS["scanner"]
    for name in ("brightness", "contrast"):
        with pytest.raises(InterventionError, match="above zero"):
            setting.intervene(trained.network, reading.scene, name, 1.0, 0.0)
    flat = replace(reading.scene.scanner, bias=torch.zeros_like(reading.scene.scanner.bias))
    with pytest.raises(InterventionError, match="no bias field"):
        setting.intervene(trained.network, replace(reading.scene, scanner=flat), "bias_field", 0.0, 0.2)


def test_a_volume_that_is_not_there_cannot_grow(trained, reading):
    nothing = replace(reading.scene, masks=torch.zeros_like(reading.scene.masks))
    with pytest.raises(InterventionError, match="nothing of it was found"):
        MECHANISMS["shape"].intervene(trained.network, nothing, "tumour_volume", 10.0, 20.0)
