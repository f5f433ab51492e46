"""Training as a whole: a study in, a run folder with a trained model out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from shutil import rmtree

import torch

from medisent.calibration import calibrate
from medisent.checkpoints import MODEL_FILE, STUDY_FILE, Trained, build_model, load_model, save_model
from medisent.config import Study, differences, dump_study, parse_study
from medisent.errors import MedisentWarning, StudyError
from medisent.files import file_digest, only_process, write_text
from medisent.progress import Progress, Silence
from medisent.reports import Ending
from medisent.training.boards import BOARD
from medisent.training.distributed import joined, one_a_machine_first, own_device
from medisent.training.faults import ending_of
from medisent.training.loop import LOG, Loop, Observer
from medisent.training.memory import manner_of
from medisent.training.splits import Splits, doubts, read_splits
from medisent.training.states import CHECKPOINT
from medisent.training.stopping import listening
from medisent.training.watching import PAGE, Watch
from medisent.version import versions

MANIFEST = "manifest.json"
_MADE = (CHECKPOINT, MODEL_FILE, LOG, PAGE, MANIFEST, "evaluation.json", "evaluation.html")


def train(
    study: Study,
    run: Path,
    *,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
) -> Trained:
    """The trained model of a study, also written into a run folder; a run that was cut short goes on where it was.

    Warns (`MedisentWarning`) of groups and of batches from which too little can be learned.

    Arguments:
        study: What to learn, from what, for how long.
        run: The folder; receives ``study.toml``, ``model.safetensors``, ``metrics.jsonl``, ``training.html``,
            ``checkpoint.safetensors``.
        device: Where to compute.
        fresh: Begin anew where a run could be resumed.
        progress: Is told how far the work is.
        observers: Are told of every step and every look at the validation split.

    Raises:
        CohortError: The table and its scans do not fit the study.
        StudyError: The run in this folder belongs to another study.
        MachineError: The folder cannot be written, another process trains in it, or memory does not suffice.
    """
    own = own_device(device)
    if not fresh:
        _refuse_another_study(run, study)
        if _finished(run):
            return load_model(run / MODEL_FILE, own)
    with listening() as stop, joined(own) as crew:
        told = (progress or Silence()) if crew.rank == 0 else Silence()
        for doubt in doubts(study) if crew.rank == 0 else ():
            warnings.warn(doubt, MedisentWarning, stacklevel=2)
        with one_a_machine_first(crew):
            splits = read_splits(study, told)
        torch.manual_seed(study.training.seed)
        network = build_model(study)
        network.fit(splits.shown)
        with only_process(run, "training in it") if crew.rank == 0 else nullcontext():
            if crew.rank == 0:
                _begin(study, run, fresh=fresh)
            crew.meet()
            watch = Watch(study, run, network, splits.shown, splits.held, splits.owners)
            watching = (watch, *observers) if crew.rank == 0 else ()
            network = network.to(own)
            network.manner = manner_of(study, network, splits.shown)
            loop = Loop(study, network, splits.shown, run, splits.held, watching, crew, stop)
            with _told_on(watch, loop) if crew.rank == 0 else nullcontext():
                loop.run_to_end(told)
                if crew.rank == 0:
                    _end(loop, splits, watch, told, own)
                crew.meet()
    return load_model(run / MODEL_FILE, own)


def _finished(run: Path) -> bool:
    """Whether nothing is left to do; a run that was killed before its last file was written is not."""
    return (run / MODEL_FILE).is_file() and ((run / MANIFEST).is_file() or not (run / CHECKPOINT).is_file())


def _begin(study: Study, run: Path, *, fresh: bool) -> None:
    """Make the folder ready; not before all is read, since what cannot begin must not cost what there is."""
    if fresh:
        for name in _MADE:
            (run / name).unlink(missing_ok=True)
        rmtree(run / BOARD, ignore_errors=True)
    write_text(run / STUDY_FILE, dump_study(study))


@contextmanager
def _told_on(watch: Watch, loop: Loop) -> Iterator[None]:
    """A block of which the page says it where it is stopped, or fails."""
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # such as a full disk, which may be the very error
            watch.conclude(loop.share, loop.records, ending_of(error, loop.step))
        raise


def _end(loop: Loop, splits: Splits, watch: Watch, progress: Progress, device: str) -> None:
    """Calibrate what was trained, look at it once more, and write it."""
    progress.stage("calibrating")
    card = calibrate(
        loop.network,
        splits.shown,
        splits.held,
        subjects=[row.subject for row in splits.training.rows],
        validation_subjects=splits.owners,
        steps=loop.step,
        entries=loop.sampler.entries,
    )
    said = watch.finished(loop.step, loop.network)
    if said:
        loop.records.append(json.dumps({"step": loop.step, "seconds": round(loop.seconds, 3), "validation": said}))
    loop.publish()
    watch.conclude(1.0, loop.records, Ending("done", loop.step))
    save_model(loop.study, loop.network, card, loop.run / MODEL_FILE)
    _write_manifest(loop, device)


def _write_manifest(loop: Loop, device: str) -> None:
    """What the run was made with and from, and what came of it."""
    study, run = loop.study, loop.run
    files = (STUDY_FILE, MODEL_FILE, LOG, PAGE)
    manifest = {
        "schema": 1,
        "command": "train",
        "versions": versions(),
        "device": device,
        "precision": str(loop.network.manner.precision).removeprefix("torch."),
        "processes": loop.crew.size,
        "threads": torch.get_num_threads(),
        "seed": study.training.seed,
        "steps": loop.step,
        "seconds": round(loop.seconds, 1),
        "seconds_waiting": round(loop.feed.waited, 1),
        "inputs": {"table_sha256": file_digest(study.cohort.table)},
        "outputs": {name: file_digest(run / name) for name in files},
    }
    write_text(run / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _refuse_another_study(run: Path, study: Study) -> None:
    """Refuse to go on with a run whose study says something else.

    Raises:
        StudyError: It does; the sentence names what changed.
    """
    path = run / STUDY_FILE
    if not path.is_file():
        return
    before = parse_study(path.read_text(encoding="utf-8"), str(path))
    changed = differences(before, parse_study(dump_study(study), "the study"))
    if changed:
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise StudyError(
            f"{run} belongs to a study that says something else ({'; '.join(changed[:4])}{more}). "
            "Choose another folder with -o, or begin anew with --fresh."
        )
