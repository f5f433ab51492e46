import math
from dataclasses import replace

import pytest
import torch

from medisent.config import Supervision
from medisent.factors import Partition
from medisent.posterior import PartitionedNormal
from medisent.training import Loop

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


def test_a_study_of_groups_shows_mates_together_and_learns(study, trained, shown, tmp_path):
    group = torch.arange(len(shown)) // 2
    grouped = replace(shown, group=group)
    groups = replace(study, supervision=(Supervision(kind="groups", by="subject", share=("anatomy",)),))
    loop = Loop(groups, trained.network, grouped, tmp_path)
    assert loop.agreed == {n for n, b in trained.network.partition.items() if b.role == "anatomy"}
    rows = loop._next_rows()
    assert len(rows) == study.training.batch
    taken = -(-len(rows) // 2)
    for first, mate in zip(rows[:taken].tolist(), rows[taken:].tolist(), strict=False):
        assert group[first] == group[mate]
        assert first != mate


def test_scans_without_mates_still_fill_a_batch(study, trained, shown, tmp_path):
    groups = replace(study, supervision=(Supervision(kind="groups", by="subject", share=("anatomy",)),))
    loop = Loop(groups, trained.network, replace(shown, group=torch.arange(len(shown))), tmp_path)
    assert len(loop._next_rows()) == study.training.batch
