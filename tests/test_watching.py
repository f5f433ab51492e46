"""Laws of looking on: training takes no notice, what was seen survives an interruption, the page holds no name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medisent.batches import Batch
from medisent.checkpoints import Trained
from medisent.cohorts import Cohort
from medisent.config import Study
from medisent.errors import MachineError
from medisent.progress import Silence
from medisent.reports import Ending
from medisent.training import Board, load_split
from medisent.training.loop import logged
from medisent.training.pictures import Album
from medisent.training.validating import MOST_SCANS, some, validated
from medisent.training.watching import Watch


@pytest.fixture(scope="module")
def held(study: Study, cohort: Cohort) -> Batch:
    """The validation scans on the grid."""
    return load_split(study, cohort.of("validation"), Silence(), "reading")


@pytest.fixture(scope="module")
def many(shown: Batch) -> tuple[Batch, list[str]]:
    """Scans enough that leaks can be told, and whose they are."""
    return shown, [f"Jane Doe {row}" for row in range(len(shown))]


@pytest.fixture
def watch(study: Study, trained: Trained, shown: Batch, many: tuple[Batch, list[str]], tmp_path: Path) -> Watch:
    return Watch(study, tmp_path, trained.network, shown, *many)


def test_a_look_tells_every_labelled_factor_every_block_and_every_leak(trained, many):
    found = validated(trained.network, *many, batch=4)
    blocks = {name for name, block in trained.network.partition.items() if block.size}
    assert set(found.readout) == {"tumour_volume", "head_size", "site", "brightness"}
    assert set(found.leakage) == blocks
    assert set(found.active_units) == blocks - {"brightness", "contrast", "bias_field"}
    assert all(0 <= count <= trained.network.partition[name].size for name, count in found.active_units.items())
    assert {name for row in found.leakage.values() for name in row} <= set(found.readout)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["scans"] == len(many[0])


def test_a_look_draws_nothing_by_chance_and_leaves_the_network_as_it_is(trained, many):
    network = trained.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chance = torch.get_rng_state()
    album = Album.of(network, many[0], many[0])
    first, second = album.drawn(network), album.drawn(network)
    assert validated(network, *many, batch=4) == validated(network, *many, batch=4)
    assert (first == second).all()
    assert bool((torch.get_rng_state() == chance).all())
    assert all(bool((tensor == before[name]).all()) for name, tensor in network.state_dict().items())


def test_readouts_of_a_finished_network_are_those_that_it_gives_to_scans(trained, many):
    found = validated(trained.network, *many, batch=4, calibrated=True)
    again = validated(trained.network, *many, batch=1, calibrated=True)
    assert found.calibrated
    assert found.readout["brightness"].mae == pytest.approx(again.readout["brightness"].mae, rel=1e-3)


def test_few_scans_are_looked_at_however_many_there_are(shown):
    rows = torch.arange(500) % len(shown)
    few, owners = some(shown[rows], [str(row) for row in range(500)])
    assert len(few) == len(owners) == MOST_SCANS
    assert (owners[0], owners[-1]) == ("0", "499")
    assert len(some(shown, ["x"] * len(shown))[0]) == len(shown)


def test_pictures_show_the_scans_redrawn_and_one_of_them_at_a_low_and_a_high_value(trained, shown, held):
    album = Album.of(trained.network, shown, held)
    cells = album.drawn(trained.network)
    assert len(album.originals()) == len(held) == 2
    assert len(cells) == len(held) + len(album.asked())
    assert cells.shape[1:] == (16, 16)
    names = {edit.name for edit in album.edits}
    assert {"tumour_volume", "head_size", "brightness", "contrast", "bias_field"} <= names
    low, high = (i for i, edit in enumerate(album.edits) if edit.name == "brightness")
    assert cells[len(held) + high].mean() > cells[len(held) + low].mean()


def test_a_redrawn_bright_right_side_is_on_the_left_of_its_picture(trained, shown, held):
    scan = held.scan.clone()
    scan[:, :, 8:] *= 3  # the grid's first axis goes to the right
    turned = Batch(**{**vars(held), "scan": scan})
    for picture in Album.of(trained.network, shown, turned).originals():
        assert picture[:, :8].mean() > 1.5 * picture[:, 8:].mean()


def test_what_was_seen_survives_in_the_state_and_damage_is_refused(watch, study, trained, shown, many, tmp_path):
    watch.stepped(1, 0.1, {})
    for step in (1000, 1100, 3000):
        for _ in range(400):
            watch.stepped(step, 0.1, {})
        assert watch.validated(step, {}, trained.network, shown)
    state = watch.state()
    assert {name for name in state if name.startswith("drawn")} == {"drawn.1000", "drawn.3000"}
    other = Watch(study, tmp_path, trained.network, shown, *many)
    other.restore(state)
    assert all(bool((tensor == other.state()[name]).all()) for name, tensor in state.items())
    with pytest.raises(ValueError, match="no pictures"):
        other.restore({**state, "drawn.5": torch.zeros(3)})


def test_looks_are_passed_over_while_they_would_cost_more_than_they_tell(watch, trained, shown):
    assert watch.validated(1, {}, trained.network, shown) == {}
    for step in range(len(shown) * 15):
        watch.stepped(step, 0.1, {})
    assert watch.validated(90, {}, trained.network, shown)
    assert watch.validated(91, {}, trained.network, shown) == {}


def test_the_page_is_written_and_names_nobody(watch, trained, tmp_path):
    said = watch.finished(6, trained.network)
    record = json.dumps({"step": 6, "seconds": 1.0, "validation": said})
    watch.saved(0.5, [])
    assert "Training has begun" in (tmp_path / "training.html").read_text(encoding="utf-8")
    watch.conclude(1.0, [record], Ending("done", 6))
    page = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "Done: 6 steps" in page
    assert "as scanned" in page
    for name in ("Jane", "sub-0", ".nii", str(tmp_path)):
        assert name not in page


def test_without_held_out_scans_there_is_a_page_all_the_same(study, trained, shown, tmp_path):
    watch = Watch(study, tmp_path, trained.network, shown, None, [])
    assert watch.finished(6, trained.network) == {}
    ending = Ending("done", 10)
    watch.conclude(1.0, ['{"step": 10, "seconds": 1.0, "distortion": 5.0, "total": 5.0}'], ending)
    assert "no validation split" in (tmp_path / "training.html").read_text(encoding="utf-8")


def test_the_log_stays_short_however_long_a_training_takes():
    steps = np.arange(1, 2_000_000)
    lines = [int(step) for step in steps[steps % 10 == 0] if logged(int(step))]
    assert len(lines) < 4000
    assert lines[:3] == [10, 20, 30]


LINES = [
    {"step": 10, "seconds": 1.0, "scans_a_second": 40.0, "learning_rate": 0.003, "distortion": 5.0, "total": 6.0},
    {
        "step": 10,
        "seconds": 1.0,
        "validation": {
            "scans": 4,
            "nats": {"total": 7.0},
            "readout": {"dose": {"r2": 0.5, "mae": 2.0}, "site": {"r2": None, "mae": 0.1}},
            "active_units": {"dose": 2},
            "leakage": {"dose": {"dose": 0.9, "gain": 0.2}},
        },
    },
    {"step": 20, "seconds": 2.0, "scans_a_second": 41.0, "learning_rate": 0.002, "distortion": 4.0, "total": 5.0},
]


# TensorBoard's own protocol buffers and NumPy's.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_shows_what_the_log_says_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = [json.dumps(line) for line in LINES]
    killed = Board(tmp_path)
    killed.saved(0.5, lines[:2])
    killed.close()
    resumed = Board(tmp_path)
    resumed.saved(0.5, lines[:2])
    resumed.saved(1.0, lines)
    resumed.close()
    shown = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    curves = {tag: [(e.step, round(e.value, 4)) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert curves["nats/distortion"] == [(10, 5.0), (20, 4.0)]
    assert curves["nats_held_out/total"] == [(10, 7.0)]
    assert curves["readout_r2/dose"] == [(10, 0.5)]
    assert curves["readout_mae/site"] == [(10, 0.1)]
    assert curves["largest_leak/dose"] == [(10, 0.2)]
    assert curves["active_units/dose"] == [(10, 2.0)]
    assert "readout_r2/site" not in curves


def test_without_tensorboard_the_refusal_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MachineError, match=r"pip install 'medisent\[tensorboard\]'"):
        Board(tmp_path)
