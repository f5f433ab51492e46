"""The page of a training: says how it goes and what is wrong, asks nothing of the network, tells nobody's name."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reports import HOSTILE, Reading

from medisent.reports import Block, Ending, Film, training_page
from medisent.reports.curves import HEIGHT, WIDTH, chart

BLOCKS = [Block("dose", "anatomy", 2, "mL"), Block("anatomy_rest", "anatomy", 4), Block("gain", "nuisance", 1)]


def look(step, total=10.0, dose=0.9, leak=0.05, rest=4, scans=48):
    return {
        "step": step,
        "seconds": step / 10,
        "validation": {
            "scans": scans,
            "nats": {"distortion": total - 1, "total": total},
            "readout": {"dose": {"r2": dose, "mae": 1.5}, "gain": {"r2": None, "mae": 0.1}},
            "active_units": {"dose": 2, "anatomy_rest": rest, "gain": 1},
            "leakage": {"dose": {"dose": 0.9, "gain": leak}, "anatomy_rest": {"dose": leak / 2, "gain": 0.0}},
        },
    }


def steps(count):
    return [
        {"step": 10 * i, "seconds": i, "scans_a_second": 40.0, "distortion": 100 / i, "total": 101 / i, "scanner": 0.0}
        for i in range(1, count + 1)
    ]


def film(moments=(10, 20)):
    rng = np.random.default_rng(0)
    cells = rng.integers(1, 255, (len(moments), 4, 6, 5)).astype(np.uint8)
    cells[0, 3] = 0
    originals = rng.integers(1, 255, (2, 6, 5)).astype(np.uint8)
    return Film(originals, ("dose 1 mL", "dose 9 mL"), 1, list(zip(moments, cells, strict=True)))


DONE = Ending("done", 80)


def page(records=None, *, share=1.0, ending=DONE, **changes):
    records = [*steps(8), look(40), look(80)] if records is None else records
    given = {"title": "Rendered heads.", "written": "2026-01-01 12:00", "blocks": BLOCKS, "film": film(), "gate": 0.2}
    return training_page(records, share=share, ending=ending, **(given | changes))


def warned(records, **changes):
    text = page(records, **changes)
    found = re.search(r'class="warnings".*?</div></div>', text, re.DOTALL)
    return found[0] if found else ""


def test_the_page_says_how_the_training_ended():
    reading = Reading(page())
    assert "Done: 80 steps in 8 seconds. R² of readouts on 48 held-out scans: dose 0.90." in " ".join(
        reading.text.split()
    )
    assert "refresh" not in {attrs.get("http-equiv") for _, attrs in reading.tags}
    assert warned(None) == ""


def test_a_training_that_goes_on_says_how_long_and_loads_itself_again():
    reading = Reading(page(share=0.25, ending=None))
    assert "Training: 80 steps in 8 seconds, about 24 seconds left." in reading.text
    assert ("refresh", "60") in {(attrs.get("http-equiv"), attrs.get("content")) for _, attrs in reading.tags}
    assert "Training has begun." in page([], share=0.0, ending=None, film=None)


def test_a_training_that_was_stopped_or_failed_says_so_and_what_to_do():
    stopped = Reading(page(share=0.25, ending=Ending("stopped", 84)))
    assert "Stopped at step 84; the same command goes on. R² of readouts" in " ".join(stopped.text.split())
    assert "% of the training done" in stopped.text
    failing = Ending("failed", 234, "It went astray. Lower it.")
    failed = page(share=0.25, ending=failing)
    assert "Failed at step 234." in failed
    assert "It went astray. Lower it." in warned(
        None, share=0.25, ending=Ending("failed", 234, "It went astray. Lower it.")
    )
    for text in (Reading(failed), stopped):
        assert "refresh" not in {attrs.get("http-equiv") for _, attrs in text.tags}


def test_the_page_asks_nothing_of_the_network_and_runs_no_script():
    reading = Reading(page(share=0.5, ending=None))
    assert all(address.startswith("data:image/png;base64,") for address in reading.addresses())
    assert not re.search(r"url\(|@import|//", reading.style)
    assert reading.scripts == []
    assert page() == page()


def test_names_stay_text():
    records = [{"step": 1, "seconds": 1.0, HOSTILE: 2.0, "total": 2.0}, look(1)]
    records[1]["validation"]["readout"] = {HOSTILE: {"r2": 0.1, "mae": HOSTILE}}
    records[1]["validation"]["leakage"] = {HOSTILE: {HOSTILE + "x": 0.9}}
    records[1]["validation"]["active_units"] = {HOSTILE: 0}
    blocks = [Block(HOSTILE, "anatomy", 2, HOSTILE)]
    reading = Reading(page(records, blocks=blocks, title=HOSTILE, film=None))
    assert {"img", "script"}.isdisjoint(tag for tag, _ in reading.tags)
    assert reading.text.count("<script>alert(1)</script>") >= 5


def test_a_held_out_cost_that_rises_is_warned_of_and_one_that_falls_is_not():
    falling = [look(step, total) for step, total in ((10, 90.0), (20, 50.0), (30, 40.0), (40, 38.0), (50, 37.0))]
    rising = [look(step, total) for step, total in ((10, 90.0), (20, 50.0), (30, 55.0), (40, 58.0), (50, 60.0))]
    assert "rising since step 20" in warned(rising)
    assert warned(falling) == ""


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([look(80, rest=0)], "anatomy rest moves from scan to scan: the block has collapsed"),
        ([look(80, leak=0.5)], "a linear probe reads gain from dose (0.50), dose from anatomy rest (0.25)"),
        ([look(80, dose=0.05)], "Dose is hardly read: R² 0.05"),
        ([look(80, scans=4)], "Only 4 held-out scans"),
        (steps(8), "There is no validation split"),
    ],
)
def test_what_is_wrong_is_said_at_the_top(records, said):
    assert said in warned(records)


def test_without_a_gate_no_leak_is_too_large():
    assert warned([look(80, leak=0.5)], gate=None) == ""


def test_a_look_that_tells_costs_alone_leaves_the_figures_of_the_one_before():
    later = {"step": 90, "seconds": 9.0, "validation": {"scans": 48, "nats": {"total": 8.0}}}
    text = page([look(80), later])
    assert "dose 0.90" in text
    assert ">8<" in text.replace("\n", "")


def test_a_term_that_never_costs_anything_is_not_drawn():
    reading = Reading(page())
    labels = " ".join(attrs.get("aria-label") or "" for _, attrs in reading.tags)
    assert "distortion over" in labels
    assert "scanner over" not in labels


def test_every_picture_of_every_moment_is_shown_and_what_finds_nothing_says_so():
    reading = Reading(page())
    pictures = [attrs for tag, attrs in reading.tags if tag == "img"]
    assert len(pictures) == 4 + 2 * 4 - 1
    assert all(attrs["alt"] for attrs in pictures)
    assert reading.text.count("nothing found") == 1


finite = st.floats(-1e9, 1e9)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.one_of(finite, st.just(math.nan), st.just(math.inf))), max_size=30),
    st.lists(st.tuples(st.integers(0, 10**6), finite), max_size=10),
)
def test_a_curve_stays_on_its_drawing_whatever_it_is(seen, held):
    drawing = chart("cost", sorted(seen), sorted(held), end=max([1, *(s for s, _ in [*seen, *held])]), limit=0.5)
    numbers = [float(n) for n in re.findall(r"-?[0-9.]+(?:e[+-]?\d+)?", drawing.line + " " + drawing.held)]
    places = [*zip(numbers[::2], numbers[1::2], strict=True), *drawing.dots]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert len(drawing.dots) == len(held)
    assert len(drawing.up) > 1
    assert all(0 <= tick.at <= HEIGHT for tick in drawing.up)
    assert "nan" not in drawing.line + drawing.held
