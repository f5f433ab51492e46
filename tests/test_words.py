"""Numbers, percents and edits as people read them: one way everywhere, both ends of an edit in the same digits."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import medisent
from medisent.counterfactuals import parse_wish
from medisent.words import amount, edit, edit_decimals, fixed, readout, readout_decimals, small

SOURCES = Path(medisent.__file__).parent
SIZES = st.floats(1e-4, 1e5)


def test_percents_are_written_in_one_place():
    own_ways = re.compile(r":[^{}\"']*%\}|\d%(?=[ .,;:)<\"']|$)")
    assert own_ways.search('f"{share:.0%}"')
    assert own_ways.search("<p>90% interval</p>")
    found = []
    for path in sorted([*SOURCES.rglob("*.py"), *SOURCES.rglob("*.jinja")]):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"\b(max-)?width:100%", "", text)
        if path.suffix == ".jinja":  # without what is Jinja's or CSS
            text = re.sub(r"\{%.*?%\}|style=\".*?\"|[\w-]+:[^;{}<>]*[;}]", "", text)
        found += [f"{path.name}: {line.strip()}" for line in text.splitlines() if own_ways.search(line)]
    assert found == []


@given(SIZES, SIZES, st.integers(0, 3))
def test_both_ends_of_an_edit_have_equal_digits_and_are_told_apart(before, after, own):
    assume(abs(after - before) > 1e-3 * before)
    decimals = edit_decimals(before, after, own)
    ends = [amount(value, "mL", decimals) for value in (before, after)]
    assert len({len(end.removesuffix(" mL").partition(".")[2]) for end in ends}) == 1
    assert ends[0] != ends[1]
    assert all(re.search(r"[1-9]", end) for end in ends)


@given(SIZES, SIZES, SIZES)
def test_an_estimate_has_the_digits_of_its_interval_which_never_pretend(estimate, below, above):
    low, high = estimate - below, estimate + above
    text, interval = readout(estimate, low, high)
    decimals = {len(part.partition(".")[2]) for part in (text, *interval.split(" to "))}
    assert len(decimals) == 1
    step = 10.0 ** -decimals.pop()
    assert step >= 1 or step > (high - low) / 2 / 200 or fixed(estimate, readout_decimals(estimate, low, high)) == text
    assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(
        estimate, abs=step / 2 + 1e-9 * abs(estimate)
    )


@given(
    st.from_regex(r"[a-z]{1,6}_[a-z]{1,6}", fullmatch=True),
    st.sampled_from(["=", "*=", "+="]),
    st.one_of(SIZES, SIZES.map(float.__neg__)).map(lambda value: f"{value:.4g}"),
)
def test_every_edit_that_a_command_takes_is_written_without_its_signs(name, operation, value):
    wish = parse_wish(f"{name}{operation}{value}")
    text = edit(str(wish), "mL")
    assert not re.search(r"[*+]=|\w=\w|_", text)
    assert text.startswith(name.replace("_", " "))
    shown = re.search(r"([−+=×]) ([−\d.,]+)", text)
    number = float(shown[2].replace("−", "-").replace(",", ""))
    assert number * (-1 if shown[1] == "−" else 1) == pytest.approx(float(value), rel=1e-4)
    assert ("mL" in text) == (operation != "*=")


@given(st.floats(1e-9, 10), st.integers(1, 4))
def test_a_small_figure_never_reads_as_nothing(value, decimals):
    assert re.search(r"[1-9]", small(value, decimals))
    assert math.isclose(float(small(value, decimals).removeprefix("< ")), value, abs_tol=10.0**-decimals)
