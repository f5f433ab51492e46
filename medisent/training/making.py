"""Training as a whole: a study in, a run folder with a trained model out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from medisent.calibration import calibrate
from medisent.checkpoints import MODEL_FILE, STUDY_FILE, Trained, build_model, load_model, save_model
from medisent.cohorts import Cohort
from medisent.config import Study, dump_study
from medisent.errors import CohortError, StudyError
from medisent.files import file_digest, only_process, write_text
from medisent.progress import Progress, Silence
from medisent.training.loop import LOG, Loop, Observer
from medisent.training.splits import load_split, study_cohort
from medisent.training.states import CHECKPOINT
from medisent.version import versions

_MADE = (CHECKPOINT, MODEL_FILE, LOG, "manifest.json", "evaluation.json", "evaluation.html")


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

    Arguments:
        study: What to learn, from what, for how long.
        run: The folder; receives ``study.toml``, ``model.safetensors``, ``metrics.jsonl``, ``checkpoint.safetensors``.
        device: Where to compute.
        fresh: Begin anew where a run could be resumed.
        progress: Is told how far the work is.
        observers: Are told of every step.

    Raises:
        CohortError: The table and its scans do not fit the study.
        StudyError: The run in this folder belongs to another study.
        MachineError: The folder cannot be written, another process trains in it, or memory does not suffice.
    """
    progress = progress or Silence()
    text = dump_study(study)
    if not fresh:
        _refuse_another_study(run, text)
        if (run / MODEL_FILE).is_file():
            return load_model(run / MODEL_FILE, device)
    cohort = study_cohort(study)
    training, validation = cohort.of("train"), _part(cohort, "validation")
    shown = load_split(study, training, progress, "reading training scans")
    held = load_split(study, validation, progress, "reading validation scans") if validation else None
    torch.manual_seed(study.training.seed)
    network = build_model(study)
    network.fit(shown)
    with only_process(run, "training in it"):
        if fresh:  # not before: what cannot begin must not cost what there is
            for name in _MADE:
                (run / name).unlink(missing_ok=True)
        write_text(run / STUDY_FILE, text)
        loop = Loop(study, network.to(device), shown.to(torch.device(device)), run, observers)
        loop.run_to_end(progress)
        progress.stage("calibrating")
        card = calibrate(
            network,
            shown,
            held,
            subjects=[row.subject for row in training.rows],
            validation_subjects=[row.subject for row in validation.rows] if validation else [],
            steps=loop.step,
        )
        save_model(study, network, card, run / MODEL_FILE)
        _write_manifest(study, run, loop, device)
    return load_model(run / MODEL_FILE, device)


def _write_manifest(study: Study, run: Path, loop: Loop, device: str) -> None:
    """What the run was made with and from, and what came of it."""
    files = (STUDY_FILE, MODEL_FILE, LOG)
    manifest = {
        "schema": 1,
        "command": "train",
        "versions": versions(),
        "device": device,
        "threads": torch.get_num_threads(),
        "seed": study.training.seed,
        "steps": loop.step,
        "seconds": round(loop.seconds, 1),
        "inputs": {"table_sha256": file_digest(study.cohort.table)},
        "outputs": {name: file_digest(run / name) for name in files},
    }
    write_text(run / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _part(cohort: Cohort, split: str) -> Cohort | None:
    try:
        return cohort.of(split)
    except CohortError:
        return None


def _refuse_another_study(run: Path, text: str) -> None:
    """Refuse to go on with a run whose study says something else.

    Raises:
        StudyError: It does; the sentence names what changed.
    """
    path = run / STUDY_FILE
    if not path.is_file():
        return
    before, now = path.read_text(encoding="utf-8").splitlines(), text.splitlines()
    if before != now:
        different = sorted({line.strip() for line in set(before) ^ set(now)})
        raise StudyError(
            f"{run} belongs to a study that says something else ({'; '.join(different[:4])}). "
            "Choose another folder with -o, or begin anew with --fresh."
        )
