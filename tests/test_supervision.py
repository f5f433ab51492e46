"""Laws of weak supervision: whole groups, every scan seen, no chance but the generator's, the same after resuming."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from medisent.augmentation import changed, jittered
from medisent.batches import Batch
from medisent.checkpoints import build_model
from medisent.config import CohortSettings, Study, Supervision
from medisent.errors import StudyError
from medisent.grids import Grid
from medisent.objectives import TERMS
from medisent.posterior import PartitionedNormal
from medisent.progress import Silence
from medisent.scanners import Scanner
from medisent.supervision import COPIES, Entry, Sampler, Tie
from medisent.training import Loop, entries_of, train, weights_of
from medisent.training.splits import doubts, read_splits

NAN = float("nan")
DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))


def scans(*groups: list[int], order: list[float] | None = None) -> Batch:
    """So many empty scans, with a column of groups for each entry."""
    count = len(groups[0])
    group = torch.tensor(groups).T
    orders = torch.full((count, len(groups)), NAN)
    if order is not None:
        orders[:, 0] = torch.tensor(order)
    none = torch.zeros(count, 1, 1, 1, 1)
    return Batch(none, none, torch.zeros(count), torch.zeros(count, 0), none[:, :0], group, orders)


def sampler(shown: Batch, *entries: Entry, batch: int = 4, seed: int = 0) -> Sampler:
    return Sampler(shown, entries, batch, torch.Generator().manual_seed(seed))


def parts_of(rows: torch.Tensor, tie: Tie) -> list[list[int]]:
    """The scans of each group in a batch."""
    return [rows[tie.group == number].tolist() for number in tie.group[tie.group >= 0].unique()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=4, max_size=24), st.integers(2, 7), st.integers(0, 3))
def test_groups_come_whole_where_they_fit_and_each_once_a_pass(group, batch, seed):
    entry = Entry("groups", 0)
    drawn = sampler(scans(group), entry, batch=batch, seed=seed)
    sizes = Counter(g for g in group if g >= 0)
    wanted = {g for g, size in sizes.items() if size > 1}
    seen: Counter[int] = Counter()
    while wanted - {group[row] for row in seen}:
        rows, tie = drawn.next()
        if tie is None:
            continue
        for part in parts_of(rows, tie):
            (name,) = {group[row] for row in part}
            assert len(part) > 1
            assert len(set(part)) == len(part)
            if sizes[name] <= drawn.batch:
                assert len(part) == sizes[name]
            seen.update(part)
        assert len(rows) >= min(batch, len(group))
        assert drawn.turn < 200
    if len(drawn.queues[0]) == 0 and max(sizes.values(), default=0) <= drawn.batch:
        assert set(seen.values()) <= {1}


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_group_larger_than_a_batch_comes_in_parts_until_all_of_it_was_seen(batch):
    drawn = sampler(scans([0] * 7), Entry("groups", 0), batch=batch)
    seen: set[int] = set()
    for _ in range(2 * 4):
        rows, tie = drawn.next()
        if tie:
            assert all(1 < len(part) <= batch for part in parts_of(rows, tie))
            seen |= set(rows[tie.group >= 0].tolist())
    assert seen == set(range(7))


def test_pairs_are_pairs_and_an_odd_scan_meets_a_mate_again():
    drawn = sampler(scans([0, 0, 0, 1, 1, -1]), Entry("pairs", 0), batch=5)
    seen: set[int] = set()
    for _ in range(6):
        rows, tie = drawn.next()
        if tie:
            assert len(rows) == 5
            assert all(len(set(part)) == 2 for part in parts_of(rows, tie))
            seen |= set(rows[tie.group >= 0].tolist())
    assert seen == {0, 1, 2, 3, 4}


def test_a_clamped_scan_alone_is_repeated_only_where_its_scanner_may_change():
    for repeats in (True, False):
        drawn = sampler(scans([0, 1, -1, -1]), Entry("clamp", 0, repeats=repeats), batch=4)
        drawn.next()
        rows, tie = drawn.next()
        assert tie is not None
        parts = parts_of(rows, tie)
        assert len(parts) == int(repeats)
        assert not repeats or (len(set(parts[0])) == 1 and len(parts[0]) == COPIES)


def test_scans_without_what_orders_them_are_not_ranked():
    drawn = sampler(scans([0, 0, 0, 0], order=[1.0, NAN, 3.0, NAN]), Entry("ranks", 0, factors=("size",)), batch=2)
    drawn.next()
    rows, tie = drawn.next()
    assert tie is not None
    assert sorted(rows.tolist()) == [0, 2]
    assert tie.order.tolist() == [1.0 + 2 * (row == 2) for row in rows.tolist()]


def test_plain_batches_and_those_of_each_entry_take_turns():
    shown = scans([0, 0, 1, 1], [2, 2, 2, 2])
    drawn = sampler(shown, Entry("groups", 0), Entry("clamp", 1, batches=2))
    kinds = [tie.entry.kind if tie else "plain" for _, tie in (drawn.next() for _ in range(8))]
    assert kinds == ["plain", "groups", "clamp", "clamp"] * 2


def test_every_scan_is_in_plain_batches_once_before_any_comes_again():
    drawn = sampler(scans([0, 0, 1, 1, -1, -1]), Entry("groups", 0), batch=4)
    plain = [row for _ in range(12) for rows, tie in [drawn.next()] if tie is None for row in rows.tolist()]
    assert all(sorted(plain[i : i + 6]) == list(range(6)) for i in range(0, 24, 6))


def test_a_column_without_groups_leaves_plain_batches():
    drawn = sampler(scans([0, 1, 2, -1]), Entry("groups", 0))
    drawn.next()
    rows, tie = drawn.next()
    assert len(rows) == 4
    assert tie is not None
    assert (tie.group == -1).all()


ENTRIES = {
    "groups": Entry("groups", 0),
    "pairs": Entry("pairs", 0),
    "clamp": Entry("clamp", 0, repeats=True),
    "ranks": Entry("ranks", 0, factors=("size",)),
}


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_a_sampler_goes_on_where_its_state_was_taken(kind, taken):
    shown = scans([0, 0, 0, 1, 1, 2, -1], order=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    first = sampler(shown, ENTRIES[kind])
    for _ in range(taken):
        first.next()
    state, chance = {n: t.clone() for n, t in first.state().items()}, first.chance.get_state()
    second = sampler(shown, ENTRIES[kind], seed=9)
    second.restore(state)
    second.chance.set_state(chance)
    for _ in range(12):
        (rows, tie), (others, other) = first.next(), second.next()
        assert torch.equal(rows, others)
        assert (tie is None) == (other is None)
        assert tie is None or other is None or torch.equal(tie.group, other.group)


# Terms


@pytest.fixture
def draw(trained, paired):
    """One pass over four scans, a clamped group of three and one alone, with gradients at the encoder's means."""
    four = paired[torch.arange(4)]
    entry = Entry("clamp", 0, blocks=frozenset({"head_size", "anatomy_rest"}))
    tie = Tie(entry, torch.tensor([0, 0, 0, -1]), torch.full((4,), NAN))
    return trained.network(changed(four, trained.network, torch.Generator().manual_seed(1)), tie)


def test_the_gradient_of_inactive_latents_is_their_distance_from_the_mean_over_a_hundred(trained, draw):
    loc = draw.encoded.loc.detach().clone().requires_grad_()
    encoded = PartitionedNormal(loc, draw.encoded.scale.detach(), draw.encoded.partition)
    term = TERMS["invariance"](trained.network)
    (slope,) = torch.autograd.grad(term(replace(draw, encoded=encoded, q=draw.tie.applied(encoded))).sum(), loc)
    inactive = encoded.latents(draw.tie.entry.blocks)
    mean = loc[:3].mean(0)
    assert torch.allclose(slope[:3, inactive], ((loc - mean) / 100)[:3, inactive], atol=1e-9)
    assert (slope[:3, inactive] != 0).any()
    assert (slope[:, ~inactive] == 0).all()
    assert (slope[3] == 0).all()


def test_settings_of_the_scanner_that_a_group_shares_are_drawn_together_in_the_scans_as_they_are(trained, draw):
    term, network = TERMS["invariance"](trained.network), trained.network
    alike = Entry("clamp", 0, blocks=frozenset(), alike=frozenset({"brightness", "bias_field"}))
    gain = draw.before.scanner.log_gain.detach().clone().requires_grad_()
    contrast = draw.before.scanner.log_gamma.detach().clone().requires_grad_()
    seen = replace(draw.before, scanner=Scanner(gain, contrast, draw.before.scanner.bias.detach()))
    cost = term(replace(draw, before=seen, tie=replace(draw.tie, entry=alike)))
    slope, other = torch.autograd.grad(cost.sum(), (gain, contrast), allow_unused=True, materialize_grads=True)
    brightness = network.log_brightness(seen.scanner, seen.batch.log_scale).detach()
    assert torch.allclose(slope[:3], (brightness[:3] - brightness[:3].mean()) / 100, atol=1e-9)
    assert (slope[:3] != 0).all()
    assert slope[3] == 0
    assert not other.any()
    assert not term(replace(draw, tie=replace(draw.tie, entry=replace(alike, alike=frozenset())))).any()


def test_differences_cost_the_log_of_the_share_of_them_that_is_left(trained, draw):
    term, whole = TERMS["differences"](trained.network), draw.batch.coverage
    true = draw.canonical * whole
    parts = true[:3] - true[:3].mean(0)

    def cost(made):
        spread = draw.likelihood.scale.detach()
        return term(replace(draw, likelihood=Normal(made, spread)))

    half = torch.cat([parts / 2, true[3:]])
    expected = whole[:3].sum((1, 2, 3, 4)).mean() * torch.tensor(0.25).log() / 2
    assert torch.allclose(cost(half)[:3].mean(), expected, rtol=1e-3)
    assert torch.allclose(cost(half + 7.0), cost(half), rtol=1e-3)  # what all scans of the group have is no difference
    assert cost(torch.zeros_like(true))[:3].mean().abs() < 1e-2 * expected.abs()
    assert cost(half)[3] == 0
    little = replace(draw, canonical=draw.canonical / 10, likelihood=Normal(half / 10, 1.0))
    assert torch.allclose(term(little), cost(half), rtol=1e-2)


def test_differences_learn_from_every_scan_of_the_group(trained, draw):
    term, made = TERMS["differences"](trained.network), draw.likelihood.mean.detach()

    def cost(step):
        moved = made.clone()
        moved[1] = moved[1] + step * draw.canonical[2].detach()
        return term(replace(draw, likelihood=Normal(moved, 1.0))).sum()

    step = torch.tensor(0.0, requires_grad=True)
    (slope,) = torch.autograd.grad(cost(step), step)
    measured = (cost(torch.tensor(0.01)) - cost(torch.tensor(-0.01))) / 0.02
    assert torch.allclose(slope, measured, rtol=0.02)


def test_clamped_latents_are_drawn_once_for_a_group(draw):
    drawn = ((draw.z - draw.q.loc) / draw.q.scale)[:, draw.q.latents(draw.tie.entry.blocks)]
    own = ((draw.z - draw.q.loc) / draw.q.scale)[:, draw.q.partition["tumour_volume"].where]
    assert torch.allclose(drawn[0], drawn[2], atol=1e-3)
    assert not torch.isclose(drawn[0], drawn[3], atol=1e-3).any()
    assert own.flatten().unique().numel() == own.numel()


def test_clamped_latents_learn_nothing_from_the_picture(draw):
    inactive = draw.q.latents(draw.tie.entry.blocks)
    (slope,) = torch.autograd.grad(draw.likelihood.mean.square().sum(), draw.encoded.loc)
    assert (slope[:3, inactive] == 0).all()
    assert (slope[3, : slope.shape[1]] != 0).any()
    assert (slope[:3, draw.q.partition["tumour_volume"].where] != 0).any()


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3))
def test_ranks_push_apart_only_what_is_wrongly_or_barely_ordered(trained_ranks, distance):
    draw, term = trained_ranks
    where = torch.tensor([distance, 0.0], requires_grad=True)
    ranked = replace(draw, readouts={**draw.readouts, "head_size": Normal(where, 1.0)})
    (slope,) = torch.autograd.grad(term(ranked).sum(), where)
    assert slope[0] <= 0 <= slope[1]  # the larger one is pushed up, never down
    if distance < 0.1:
        assert slope[0] < -1
    if distance > 1.5:
        assert slope[0] > -1e-4


def test_ranks_compare_only_scans_of_a_group_whose_order_is_known(trained_ranks):
    draw, term = trained_ranks
    ranked = replace(draw, readouts={**draw.readouts, "head_size": Normal(torch.tensor([-1.0, 1.0]), 1.0)})
    assert (term(ranked) > 10).all()
    for group, order in (([0, 1], [2.0, 1.0]), ([-1, -1], [2.0, 1.0]), ([0, 0], [2.0, NAN]), ([0, 0], [2.0, 2.0])):
        tie = Tie(draw.tie.entry, torch.tensor(group), torch.tensor(order))
        assert (term(replace(ranked, tie=tie)) == 0).all()


def test_what_a_group_shares_is_said_once_for_all_of_it(trained, paired):
    entry = Entry("groups", 0, blocks=frozenset({"head_size"}))
    tie = Tie(entry, torch.tensor([5, 5, 5, -1]), torch.full((4,), NAN))
    assert tie.counted("head_size").tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert tie.counted("anatomy_rest").tolist() == [1, 1, 1, 1]
    change = changed(paired[torch.arange(4)], trained.network, torch.Generator().manual_seed(1))
    draw = trained.network(change, tie)
    rates = draw.q.rate(draw.prior)
    saved = TERMS["rate"](trained.network)(replace(draw, tie=None)) - TERMS["rate"](trained.network)(draw)
    assert torch.allclose(saved[:3], rates["head_size"][:3] * 2 / 3, rtol=1e-3, atol=1e-3)
    assert saved[3] == 0


def test_terms_of_kinds_that_a_study_does_not_have_are_left_out(study):
    for kind, terms in {
        "groups": set(),
        "ranks": {"ranks"},
        "match": {"ranks"},
        "clamp": {"invariance", "differences"},
    }.items():
        assert {"invariance", "differences", "ranks"} & set(
            weights_of(replace(study, supervision=(WEAK[kind],)))
        ) == terms
    assert not {"invariance", "differences", "ranks"} & set(weights_of(study))


# Likeness


def test_matched_readouts_attract_each_other_however_far_apart_and_only_within_their_group(trained, paired):
    entry = Entry("groups", 0, blocks=frozenset({"head_size"}), factors=("head_size",))
    tie = Tie(entry, torch.tensor([7, 7, -1, -1]), torch.full((4,), NAN))
    change = changed(paired[torch.arange(4)], trained.network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        draw, term = trained.network.train()(change, tie), TERMS["ranks"](trained.network)
    column = trained.network.partition["head_size"].start
    for distance in (0.01, 0.1, 1.0, 10.0):
        loc = draw.encoded.loc.clone()
        loc[0, column], loc[1, column] = distance, 0.0
        loc.requires_grad_()
        cost = term(replace(draw, encoded=replace(draw.encoded, loc=loc)))
        (slope,) = torch.autograd.grad(cost.sum(), loc)
        assert (cost[:2] > 0).all()
        assert slope[0, column] == -slope[1, column] > 0
        assert (cost[2:] == 0).all()
        slope[:2, column] = 0
        assert (slope == 0).all()
    trained.network.eval()
    same = replace(draw.encoded, loc=torch.zeros_like(draw.encoded.loc))
    assert term(replace(draw, encoded=same)).abs().max() < 1e-6


def test_named_factors_are_matched_where_labels_teach_them_and_roles_never(study, trained):
    def factors(*share: str) -> tuple[str, ...]:
        said = Supervision(kind="groups", by="subject", share=share)
        return entries_of(replace(study, supervision=(said,)), trained.network)[0].factors

    assert factors("head_size") == ("head_size",)
    assert factors("anatomy") == ()
    assert factors("tumour_volume", "brightness", "head_size", "site") == ("head_size", "site")


@pytest.mark.parametrize("kind", ["match", "ranks"])
def test_batches_of_named_factors_leave_the_rest_of_the_nuisance_to_the_whole_batch(kind, study, trained, paired):
    network = trained.network
    (entry,) = entries_of(replace(study, supervision=(WEAK[kind],)), network)
    change = changed(paired[torch.arange(4)], network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        named = network(change, Tie(entry, paired.group[:4, 0], paired.order[:4, 0])).q["nuisance_rest"].loc
        (entry,) = entries_of(replace(study, supervision=(WEAK["groups"],)), network)
        person = network(change, Tie(entry, paired.group[:4, 0], paired.order[:4, 0])).q["nuisance_rest"].loc
    assert torch.allclose(named, named[:1].expand_as(named))
    assert not torch.allclose(person, person[:1].expand_as(person))


def test_where_the_rests_are_said_to_vary_they_do(study, trained, paired):
    network, rests = trained.network, ("anatomy_rest", "nuisance_rest")
    said = Supervision(kind="clamp", by="subject", vary=rests)
    (entry,) = entries_of(replace(study, supervision=(said,)), network)
    change = changed(paired[torch.arange(4)], network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        draw = network(change, Tie(entry, paired.group[:4, 0], paired.order[:4, 0]))
    assert all(torch.equal(draw.q[name].loc, draw.encoded[name].loc) for name in rests)
    assert not torch.equal(draw.q["head_size"].loc, draw.encoded["head_size"].loc)


# In a study


WEAK = {
    "groups": Supervision(kind="groups", by="subject", share=("anatomy",)),
    "mean": Supervision(kind="groups", by="subject", share=("anatomy",), pool="mean"),
    "pairs": Supervision(kind="pairs", by="subject", share=("anatomy", "nuisance")),
    "clamp": Supervision(kind="clamp", by="subject", vary=("tumour_volume",)),
    "scan": Supervision(kind="clamp", by="scan", share=("anatomy",)),
    "ranks": Supervision(kind="ranks", by="site", share=("head_size",), order="head_size_mm"),
    "match": Supervision(kind="groups", by="subject", share=("head_size",)),
}


@pytest.fixture
def paired(shown):
    """The training scans, two of each group, in an order."""
    order = torch.arange(len(shown), dtype=torch.float32)[:, None]
    return replace(shown, group=torch.arange(len(shown))[:, None] // 2, order=order)


@pytest.fixture(scope="module")
def trained_ranks(trained, shown):
    """One pass over two scans, the first of which has the larger head, and the term."""
    tie = Tie(Entry("ranks", 0, factors=("head_size",)), torch.tensor([0, 0]), torch.tensor([2.0, 1.0]))
    change = changed(shown[torch.arange(2)], trained.network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return trained.network(change, tie), TERMS["ranks"](trained.network)


def test_training_with_all_kinds_at_once_resumes_bit_for_bit(study, paired, tmp_path):
    weak = replace(study, supervision=tuple(WEAK.values()))
    columns = [0] * len(WEAK)
    all_paired = replace(paired, group=paired.group[:, columns], order=paired.order[:, columns])

    def loop() -> Loop:
        torch.manual_seed(5)
        network = build_model(weak)
        network.fit(all_paired)
        return Loop(weak, network, all_paired, tmp_path)

    first, second = loop(), loop()
    for _ in range(2):
        first.take_step()
    first.save()
    expected = [first.take_step() for _ in range(1 + len(WEAK))]
    torch.manual_seed(99)
    second.resume()
    found = [second.take_step() for _ in range(1 + len(WEAK))]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


# Kinds together

SIZE = torch.tensor([0, 1, 1, 2, 2, 3])
"""How large each head is said to be, from the smallest on; those of one number are matched."""


@pytest.fixture(scope="module")
def mixed(study, shown):
    """A study of four kinds, with labels of the smallest and the largest head alone, and its scans by head size."""
    kinds = ("match", "pairs", "scan", "ranks")
    found = replace(
        study,
        supervision=tuple(WEAK[kind] for kind in kinds),
        training=replace(study.training, batch=6, steps=80, jitter=0.0),
        network=replace(study.network, family="lean"),
    )
    column = [factor.name for factor in study.factors].index("head_size")
    scans = shown[shown.values[:, column].argsort()]
    scans.values[1:5, column] = NAN
    row, unknown = torch.arange(6), torch.full((6,), NAN)
    group = torch.stack([torch.where((SIZE == 1) | (SIZE == 2), SIZE, -1), row // 2, row, 0 * row], 1)
    return found, replace(scans, group=group, order=torch.stack([unknown, unknown, unknown, SIZE.float()], 1))


def test_in_a_study_of_many_kinds_each_batch_is_of_its_own_entry_and_does_what_that_kind_does(mixed, tmp_path):
    study, scans = mixed
    torch.manual_seed(0)
    network = build_model(study)
    network.fit(scans)
    loop, terms = (
        Loop(study, network, scans, tmp_path),
        {name: TERMS[name](network) for name in ("invariance", "ranks")},
    )
    for entry in (None, *loop.sampler.entries) * 2:
        change, tie = loop.next_batch()
        assert (tie and tie.entry) == entry
        with torch.no_grad():
            draw = network(change, tie)
        costs = {name: bool((term(draw) > 0).any()) for name, term in terms.items()}
        assert costs == {
            "invariance": entry is not None and entry.kind == "clamp",
            "ranks": entry is not None and bool(entry.factors),
        }
        if tie is None:
            continue
        moved = (draw.q.loc != draw.encoded.loc) & draw.q.latents(frozenset(network.partition) - {"nuisance_rest"})
        pooled = draw.q.latents(tie.entry.blocks)
        assert not moved[:, ~pooled].any()
        for number in tie.group[tie.group >= 0].unique():
            mates = draw.q.loc[tie.group == number]
            alike = torch.isclose(mates, mates[:1], atol=1e-6).all(0)
            assert alike[pooled].all() or (tie.entry.kind == "pairs" and alike.any() and not alike.all())


def test_after_training_with_many_kinds_at_once_each_has_taught_what_it_knows(mixed, tmp_path):
    study, scans = mixed
    torch.manual_seed(0)
    network = build_model(study)
    network.fit(scans)
    loop = Loop(study, network, scans, tmp_path)
    network.train()
    for _ in range(study.training.steps):
        loop.take_step()
    network.eval()
    size = network.partition["head_size"].start
    repeated = scans[torch.arange(6).repeat_interleave(COPIES)]
    with torch.no_grad():
        read = network.abduct(scans).q.loc[:, size]
        seen = network.abduct(changed(repeated, network, torch.Generator().manual_seed(1)).changed).q.loc[:, size]
    apart = read[None] - read[:, None]
    assert (apart[SIZE[:, None] < SIZE[None]] > 0).float().mean() > 0.9  # ranks
    assert read[5] - read[0] > 0.8  # labels
    assert (apart[1, 2].abs() + apart[3, 4].abs()) / 2 < 0.3 * read.std()  # likeness
    seen = seen.reshape(6, COPIES)
    assert seen.std(1).mean() < 0.3 * seen.mean(1).std()  # the clamped scanner


def test_what_varies_and_what_is_shared_are_two_ways_to_say_one_thing(study, trained):
    network = trained.network
    vary, share = (
        replace(study, supervision=(Supervision(kind="clamp", by="subject", **{how: names}),))
        for how, names in (
            ("vary", ("tumour_volume", "nuisance")),
            ("share", ("head_size", "anatomy_rest")),
        )
    )
    assert entries_of(vary, network) == entries_of(share, network)
    (entry,) = entries_of(vary, network)
    assert entry.blocks == {"head_size", "anatomy_rest"}
    assert entry.repeats


def test_settings_of_the_scanner_that_are_shared_change_alike_in_a_group(study, paired, trained):
    weak = replace(study, supervision=(Supervision(kind="clamp", by="subject", vary=("contrast",)),))
    (entry,) = entries_of(weak, trained.network)
    assert entry.alike == {"brightness", "bias_field"}
    tie = Tie(entry, paired.group[:, 0], paired.order[:, 0])
    found = changed(paired, trained.network, torch.Generator().manual_seed(0), tie).scanner
    for first, second in ((0, 1), (2, 3)):
        assert found.log_gain[first] == found.log_gain[second]
        assert torch.equal(found.bias[first], found.bias[second])
        assert found.log_gamma[first] != found.log_gamma[second]
    assert found.log_gain[0] != found.log_gain[2]


@pytest.mark.parametrize(("scanner", "share"), [((), ("anatomy",)), (("brightness",), ("anatomy", "brightness"))])
def test_a_clamped_scan_between_whose_repeats_nothing_varies_is_refused_and_nothing_is_written(
    scanner, share, study, tmp_path
):
    said = Supervision(kind="clamp", by="scan", share=share)
    still = replace(study, scanner=replace(study.scanner, factors=scanner), supervision=(said,))
    with pytest.raises(
        StudyError, match=r"clamps groups by scan, but no two training scans agree.*\[scanner\] factors"
    ):
        train(still, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_repeats_of_a_clamped_scan_differ_in_what_varies_and_show_one_patient_in_one_pose(study, shown, tmp_path):
    weak = replace(study, supervision=(Supervision(kind="clamp", by="scan", share=("anatomy", "brightness")),))
    every = replace(shown, group=torch.arange(len(shown))[:, None], order=torch.full((len(shown), 1), NAN))
    loop = Loop(weak, build_model(weak), every, tmp_path)
    loop.next_batch()
    change, tie = loop.next_batch()
    assert tie is not None
    assert (tie.group == tie.group[0]).all()
    assert all(torch.equal(scan, change.plain.scan[0]) for scan in change.plain.scan)
    assert len(set(change.scanner.log_gain.tolist())) == 1
    assert len(set(change.scanner.log_gamma.tolist())) == COPIES
    assert (change.changed.scan[1:] - change.changed.scan[0]).flatten(1).abs().mean(1).min() > 0.01


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
def test_real_scans_without_any_label_are_clamped_by_changing_their_scanner(study, tmp_path):
    scans = sorted((DATA / "hippocampus" / "images").iterdir())[:4]
    (tmp_path / "cohort.tsv").write_text("scan\tsplit\n" + "".join(f"{scan}\ttrain\n" for scan in scans))
    real = Study(
        cohort=CohortSettings(table=tmp_path / "cohort.tsv", split="split"),
        grid=Grid(3.0, (16, 20, 16)),
        supervision=(WEAK["scan"],),
        training=study.training,
        network=study.network,
    )
    shown = read_splits(real, Silence()).shown
    network = build_model(real)
    network.fit(shown)
    loop = Loop(real, network, shown, tmp_path)
    assert doubts(real) == ()
    assert [bool(loop.take_step()["invariance"] > 0) for _ in range(4)] == [False, True] * 2
    loop.next_batch()
    looks = loop.next_batch()[0].changed.scan
    assert ((looks[1:] - looks[0]).abs().flatten(1).mean(1) > 0.02).all()


def test_what_teaches_nothing_is_told_before_training(study, cohort_table):
    def told(**said: object) -> list[str]:
        return list(doubts(replace(study, supervision=(Supervision(**said),))))

    assert "No two training scans agree in column scan" in told(kind="groups", by="scan", share=("head_size",))[0]
    assert told(kind="clamp", by="scan", share=("anatomy",)) == []
    (masked,) = told(kind="ranks", by="split", share=("tumour_volume",), order="tumour_ml")
    assert "teaches nothing of tumour_volume" in masked
    assert told(kind="ranks", by="split", share=("head_size",), order="head_size_mm") == []


def test_scans_that_share_their_pose_are_moved_alike(paired):
    twice = paired[torch.tensor([0, 0, 1, 1])]
    leader = torch.tensor([0, 0, 2, 2])
    moved = jittered(twice, torch.Generator().manual_seed(0), 1.0, mirror=True, leader=leader)
    assert torch.equal(moved.scan[0], moved.scan[1])
    assert torch.equal(moved.scan[2], moved.scan[3])
    apart = jittered(twice, torch.Generator().manual_seed(0), 1.0, mirror=True)
    assert not torch.equal(apart.scan[0], apart.scan[1])
