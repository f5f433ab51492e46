"""What some latents tell of others is taken out, and can be put back; what answers to the scanner is turned aside."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from medisent.remainders import Remainder, Turn

NOTHING = torch.zeros(1, 0)


def _latents(scans: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    telling = torch.randn(scans, 2, generator=chance)
    own = torch.randn(scans, 3, generator=chance)
    told = 5 + own + telling @ torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]) + telling[:, :1].square()
    return telling, told


def test_what_is_told_is_taken_out_and_what_is_not_stays() -> None:
    telling, told = _latents(8000)
    remainder = Remainder(2, 3)
    remainder.fit(telling[:4000], told[:4000], NOTHING.expand(4000, 0))
    left = told[4000:] - remainder(telling[4000:])
    both = torch.cat([telling[4000:], telling[4000:].square(), left], 1).T
    assert torch.corrcoef(both)[:4, 4:].abs().max() < 0.06  # by chance up to 0.05
    assert torch.allclose(left.mean(0), torch.tensor([6.0, 6.0, 6.0]), atol=0.1)
    assert torch.allclose(left.std(0), torch.ones(3), atol=0.1)


def test_what_goes_with_both_is_not_laid_to_those_who_tell() -> None:
    chance = torch.Generator().manual_seed(0)
    gain, own = torch.randn(4000, 1, generator=chance), torch.randn(4000, 1, generator=chance)
    tumour, field = 0.8 * gain + 0.6 * own, 0.5 * gain + 0.1 * torch.randn(4000, 1, generator=chance)
    blind, seeing = Remainder(1, 1), Remainder(1, 1)
    blind.fit(tumour, field, NOTHING.expand(4000, 0))
    seeing.fit(tumour, field, gain)
    alone = torch.randn(4000, 1, generator=chance)  # where tumours do not go with the gain
    assert blind(alone).std() > 0.3
    assert seeing(alone).std() < 0.02


@given(st.integers(0, 1000))
def test_taking_out_and_putting_back_is_nothing(seed: int) -> None:
    telling, told = _latents(60, seed)
    remainder = Remainder(2, 3)
    remainder.fit(telling, told, NOTHING.expand(len(told), 0))
    assert torch.allclose(told - remainder(telling) + remainder(telling), told, atol=1e-5)


def test_far_from_all_that_was_seen_the_prediction_stays_where_it_was() -> None:
    telling, told = _latents(100)
    remainder = Remainder(2, 3)
    remainder.fit(telling, told, NOTHING.expand(len(told), 0))
    far, farther = remainder(torch.full((1, 2), 50.0)), remainder(torch.full((1, 2), 500.0))
    assert torch.equal(far, farther)


def test_too_few_scans_tell_nothing() -> None:
    remainder = Remainder(2, 3)
    remainder.fit(*_latents(15), NOTHING.expand(15, 0))
    assert not remainder(torch.ones(4, 2)).any()


def test_nobody_who_tells_is_no_fault() -> None:
    remainder = Remainder(0, 3)
    remainder.fit(torch.zeros(20, 0), torch.randn(20, 3), NOTHING.expand(20, 0))
    assert remainder(torch.zeros(4, 0)).shape == (4, 3)
    assert not remainder(torch.zeros(4, 0)).any()


def _answers(seed: int = 0, latents: int = 6) -> torch.Tensor:
    """Changes along two directions above all."""
    chance = torch.Generator().manual_seed(seed)
    along = torch.randn(2, latents, generator=chance)
    return torch.randn(100, 2, generator=chance) @ along + 0.01 * torch.randn(100, latents, generator=chance)


@given(st.integers(0, 1000))
def test_what_answers_is_turned_into_the_last_latents_and_back(seed: int) -> None:
    turn, answers = Turn(6), _answers(seed)
    turn.fit(answers, 2)
    turned = turn(answers)
    assert turned[:, :-2].square().sum() < 0.01 * turned[:, -2:].square().sum()
    assert torch.allclose(turn.back(turned), answers, atol=1e-5)
    assert torch.allclose(turn.matrix @ turn.matrix.T, torch.eye(6), atol=1e-5)


def test_latents_that_never_answer_stay_what_they_were() -> None:
    turn = Turn(6)
    turn.fit(torch.cat([torch.zeros(100, 2), _answers(latents=2), torch.zeros(100, 2)], 1), 2)
    some = torch.randn(5, 6)
    assert torch.allclose(turn(some)[:, :2], some[:, :2], atol=1e-5)
    assert torch.allclose(turn(some)[:, 2:4].square().sum(), some[:, 4:].square().sum(), rtol=1e-4)  # changed places


def test_deviations_are_those_of_turned_samples() -> None:
    turn = Turn(4)
    turn.fit(_answers(latents=4), 2)
    scale = torch.tensor([[0.1, 1.0, 2.0, 0.5]])
    samples = scale * torch.randn(20000, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(turn(samples).std(0), turn.deviations(scale)[0], rtol=0.03)


def test_nothing_turns_without_answers_or_without_a_place_for_them() -> None:
    for answers, last in ((torch.zeros(100, 6), 2), (_answers()[:20], 2), (_answers(), 0)):
        turn = Turn(6)
        turn.fit(answers, last)
        assert torch.equal(turn.matrix, torch.eye(6))


def test_answers_count_as_shares_of_what_latents_do_anyway():
    chance = torch.Generator().manual_seed(5)
    wide = torch.tensor([10.0, 1.0, 1.0])
    latents = wide * torch.randn(500, 3, generator=chance)
    answers = torch.tensor([2.0, 0.9, 0.01]) * torch.randn(500, 3, generator=chance)
    turn = Turn(3)
    turn.fit(answers, 1, spread=torch.cov(latents.T))
    assert (
        torch.corrcoef(torch.stack([turn(latents)[:, -1], latents[:, 1]])).abs()[0, 1] > 0.99
    )  # 0.9 of 1, not 2 of 10
    assert torch.allclose(turn(latents).std(0), torch.ones(3), rtol=0.05)
    assert torch.allclose(turn.back(turn(latents)), latents, atol=1e-4)
