"""Laws of the time that is said to be left: silent without evidence, right at an even pace, no finer than is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisent.cli.pace import Pace, duration, rounded


def told(total, reports, at):
    """The seconds that are said to be left when such reports (when, how much) were made of a stage."""
    pace = Pace(total)
    for now, done in reports:
        pace.report(done, now)
    return pace.left(at)


def test_nothing_is_said_of_the_time_left_before_there_is_something_to_tell_it_by():
    assert told(0, [(second, 1) for second in range(50)], 50) is None
    assert told(100, [(1000 + second, 1) for second in range(4)], 1005) is None
    assert told(100, [(0.01 * i, 1) for i in range(50)], 0.5) is None
    assert told(100, [(second, 0) for second in range(50)], 50) is None


@given(pace=st.floats(0.1, 10), late=st.floats(0, 1e4), before=st.floats(0, 90), count=st.integers(20, 400))
def test_work_at_an_even_pace_ends_when_that_was_said_however_late_it_began_and_much_was_there(
    pace, late, before, count
):
    reports = [(late, before), *((late + i / pace, 0.02) for i in range(1, count))]
    now, done = reports[-1][0], before + 0.02 * (count - 1)
    found = told(100, reports, now)
    if found is not None:
        assert found == pytest.approx((100 - done) / (0.02 * pace), rel=1e-3)


def test_a_slow_start_is_forgotten_and_a_pause_makes_it_later():
    reports = [(0, 1), (60, 1), *((60 + i, 1) for i in range(1, 80))]
    assert told(200, reports, 139) == pytest.approx(119, rel=0.1)
    assert told(200, reports, 139.5) < told(200, reports, 139)
    assert told(200, reports, 300) > 300


def test_time_left_is_told_no_finer_than_it_can_be_foretold():
    said = ["0 s", "1:00 min", "3:10 min", "33:00 min", "2:05 h"]
    assert [duration(rounded(seconds)) for seconds in (2, 58, 187, 2000, 7500)] == said


def test_time_is_told_as_people_write_it():
    assert [duration(s) for s in (0, 59.4, 187, 7500)] == ["0 s", "59 s", "3:07 min", "2:05 h"]
