"""People who are rendered to show what varies: clamped groups, in which one factor does or none, and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from medisent.errors import UsageError
from medisent.phantoms.heads import head_frame
from medisent.phantoms.sampling import FACTORS, GAIN_SPREAD, GAMMA_SPREAD, Plan, Visit, place_tumour

REST = "rest"
"""What varies where none of the factors does."""

_BODY = ("tumour", "ventricles", "head_size")


def with_repeats(visits: Sequence[Visit], plan: Plan) -> tuple[Visit, ...]:
    """The visits, those of some people for training replaced by the plan's clamped groups, pairs and people alike.

    Raises:
        UsageError: There are too few such people.
    """
    free = [visit.subject for visit in visits if visit.split == "train" and visit.of == 1]
    shown = [factor for factor in FACTORS for _ in range(plan.clamped)] + [""] * plan.pairs
    crowd = plan.alike * plan.clamped_size
    if len(free) < len(shown) + crowd:
        raise UsageError(
            f"{plan.clamped} clamped groups for each of {len(FACTORS)} factors, {plan.pairs} pairs and {plan.alike} "
            f"groups of {plan.clamped_size} people alike take {len(shown) + crowd} people for training who neither "
            f"travel nor return, but there are {len(free)}. Ask for fewer, or for more --subjects."
        )
    chosen = np.random.default_rng([plan.seed, 11]).permutation(free).tolist()
    factor_of = dict(zip(chosen, shown, strict=False))
    others = chosen[len(shown) : len(shown) + crowd]
    first_of = {person: others[index - index % plan.clamped_size] for index, person in enumerate(others)}
    visit_of = {visit.subject: visit for visit in visits}
    found: list[Visit] = []
    for visit in visits:
        factor, first = factor_of.get(visit.subject), first_of.get(visit.subject)
        if first is not None:
            found.append(alike(visit, visit_of[first], plan))
        else:
            found += [visit] if factor is None else repeated(visit, factor, plan)
    return tuple(found)


def alike(visit: Visit, first: Visit, plan: Plan) -> Visit:
    """The visit of somebody with the five factors of the first of a group; all else stays, but for a tumour's place."""
    rng = np.random.default_rng([plan.seed, 13, visit.subject])
    there = first.anatomy
    person = replace(
        visit.anatomy, tumour_ml=there.tumour_ml, ventricle_ml=there.ventricle_ml, head_size=there.head_size
    )
    setting = replace(visit.acquisition, gain=first.acquisition.gain, gamma=first.acquisition.gamma)
    placed = place_tumour(person, 0.0, rng)
    return replace(visit, anatomy=placed, acquisition=setting, clamp=REST, group=first.subject)


def repeated(first: Visit, factor: str, plan: Plan) -> list[Visit]:
    """The visits of a clamped group of one factor or, without one, of a pair that differs in one or two.

    Nothing else varies but the noise. Values are drawn as a cohort's are, one from each of so many equal parts of their
    distribution. A tumour's place in the head is the same in all visits, and is one where the largest of them fits.
    """
    rng = np.random.default_rng([plan.seed, 12, first.subject])
    varying = [factor] if factor else rng.permutation(FACTORS)[: rng.integers(1, 3)].tolist()
    count = plan.clamped_size if factor else 2
    drawn = {name: _drawn(name, plan, (rng.permutation(count) + rng.random(count)) / count) for name in varying}
    visits = [first] * count
    for name, values in drawn.items():
        visits = [_with(visit, name, float(value)) for visit, value in zip(visits, values, strict=True)]
    if set(varying) & set(_BODY):
        visits = _placed(visits, rng)
    return [
        replace(
            visit,
            session=session,
            of=count,
            acquisition=replace(visit.acquisition, seed=int(rng.integers(2**31))),
            clamp=factor,
            paired=not factor,
        )
        for session, visit in enumerate(visits, 1)
    ]


def _with(visit: Visit, factor: str, value: float) -> Visit:
    """The visit with another value of a factor."""
    person, setting = visit.anatomy, visit.acquisition
    if factor == "tumour":
        person = replace(person, tumour_ml=value)
    elif factor == "ventricles":
        person = replace(person, ventricle_ml=value)
    elif factor == "head_size":
        person = replace(person, head_size=value)
    elif factor == "brightness":
        setting = replace(setting, gain=value)
    else:
        setting = replace(setting, gamma=value)
    return replace(visit, anatomy=person, acquisition=setting)


def _drawn(factor: str, plan: Plan, rank: Float[np.ndarray, " visits"]) -> Float[np.ndarray, " visits"]:
    """Values of a factor that exceed these shares of all values."""
    volume = plan.scale**3
    if factor == "head_size":
        return np.asarray(plan.scale * (80 + 3.2 * norm.ppf(rank)).clip(73, 87))
    if factor in _BODY:
        low = 2 if factor == "tumour" else 8
        return np.asarray(volume * low * (50 / low) ** rank)
    return np.asarray(np.exp((GAIN_SPREAD if factor == "brightness" else GAMMA_SPREAD) * norm.ppf(rank)))


def _placed(visits: Sequence[Visit], rng: np.random.Generator) -> list[Visit]:
    """The same person on several days, the tumour at one place of the head, where there is room on all of them."""
    people = [visit.anatomy for visit in visits]
    widest = replace(
        people[0],
        tumour_ml=max(person.tumour_ml for person in people),
        ventricle_ml=max(person.ventricle_ml for person in people),
        head_size=min(person.head_size for person in people),
    )
    placed = place_tumour(widest, 0.0, rng)
    centre = head_frame(placed) @ np.append(placed.tumour_mm, 1.0)
    found = []
    for visit, person in zip(visits, people, strict=True):
        x, y, z, _ = np.linalg.inv(head_frame(person)) @ centre
        found.append(replace(visit, anatomy=replace(person, tumour_mm=(float(x), float(y), float(z)))))
    return found
