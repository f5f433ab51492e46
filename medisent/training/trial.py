"""What training would take: an estimate, held against two real steps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medisent.checkpoints import MODEL_FILE, STUDY_FILE, build_model
from medisent.config import Study, dump_study
from medisent.progress import Silence
from medisent.stores import usual_store
from medisent.training.faults import told_of_memory
from medisent.training.loop import LOG, Loop
from medisent.training.memory import Peak, free_bytes, manner_of, needed_bytes
from medisent.training.splits import load_split, refuse_unvaried, study_cohort
from medisent.training.states import CHECKPOINT

_MB = 2**20


@dataclass(frozen=True)
class Forecast:
    """What training would take.

    Attributes:
        scans: In the training split.
        parameters: Weights that are learned.
        precision: Of the convolutional networks.
        recompute: Whether they compute again what they could keep.
        memory_of_scans_mb: What the training split takes: of memory, or of the disk where a store keeps it.
        memory_needed_mb: The most that training takes, as estimated: the process, the scans and a step.
        memory_measured_mb: The most that was taken, with one batch of scans: by the process, or on a GPU by PyTorch.
            None if no step was tried, since memory would not have sufficed.
        memory_free_mb: What is free on the device. None where nobody tells.
        seconds_a_step: Of the second step.
        steps: That training has, or has time for.
        minutes: That all steps take, without reading scans and evaluating.
        files: What will be written, with sizes in MB as far as they are known.
    """

    scans: int
    parameters: int
    precision: str
    recompute: bool
    memory_of_scans_mb: int
    memory_needed_mb: int
    memory_measured_mb: int | None
    memory_free_mb: int | None
    seconds_a_step: float | None
    steps: int | None
    minutes: float | None
    files: Mapping[str, float | None]


def dry_run(study: Study, device: str = "cpu") -> Forecast:
    """What training would take, from two real steps where memory suffices for them; nothing is written.

    Raises:
        CohortError: The table does not fit the study.
        StudyError: There are clamped groups in which nothing varies.
        MachineError: Memory does not suffice, although it seemed to.
    """
    cohort = study_cohort(study).of("train")
    refuse_unvaried(study, cohort)
    few = replace(cohort, rows=cohort.rows[: study.training.batch])
    place = torch.device(device)
    shown = load_split(study, few, Silence(), "reading")
    torch.manual_seed(study.training.seed)
    network = build_model(study)
    network.fit(shown)
    network = network.to(place)
    network.manner = manner_of(study, network, shown)
    loop, peak = Loop(study, network, shown, Path()), Peak(place)
    peak.watch()
    scans = len(cohort) * math.prod(study.grid.shape) * 4 * (2 + shown.masks.shape[1])
    # From the store's file, or for a GPU from the host's memory, scans are fetched as they are needed.
    stays = place.type == "cpu" and usual_store(study.grid, study.scanner.air) is None
    needed = peak.bytes() + scans * stays + needed_bytes(study, network, shown, network.manner)
    free = free_bytes(place)
    seconds = None
    if free is None or needed - peak.bytes() < free:
        with told_of_memory(study, device):
            peak.watch()
            seconds = _seconds_a_step(loop)
    steps, minutes = _duration(study, len(cohort), seconds)
    return Forecast(
        scans=len(cohort),
        parameters=sum(p.numel() for p in network.parameters()),
        precision=str(network.manner.precision).removeprefix("torch."),
        recompute=network.manner.recompute,
        memory_of_scans_mb=round(scans / _MB),
        memory_needed_mb=round(needed / _MB),
        memory_measured_mb=None if seconds is None else round(peak.bytes() / _MB),
        memory_free_mb=None if free is None else round(free / _MB),
        seconds_a_step=None if seconds is None else round(seconds, 3),
        steps=steps,
        minutes=minutes,
        files=_files(study, loop, steps),
    )


def _seconds_a_step(loop: Loop) -> float:
    """What a step takes once all that happens at the first is done."""
    loop.take_step()
    start = time.monotonic()
    costs = loop.take_step()
    float(costs["total"])  # a GPU is done only then
    return time.monotonic() - start


def _duration(study: Study, scans: int, seconds: float | None) -> tuple[int | None, float | None]:
    """Steps and minutes, of which the study says one and a real step the other."""
    settings = study.training
    if settings.minutes is not None:
        return None if seconds is None else math.ceil(settings.minutes * 60 / seconds), settings.minutes
    steps = settings.steps or (settings.epochs or 1) * math.ceil(scans / settings.scans_a_step)
    return steps, None if seconds is None else round(steps * seconds / 60, 1)


def _files(study: Study, loop: Loop, steps: int | None) -> dict[str, float | None]:
    """What will be written, with sizes in MB as far as they are known."""
    weights = sum(t.numel() * t.element_size() for t in loop.network.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in loop.network.parameters())
    others = (study.training.ema > 0) + (study.training.keep == "best")
    logged = None if steps is None else steps / 10 * 30 * (len(loop.objective.terms) + 3)
    sizes = {
        STUDY_FILE: len(dump_study(study)),
        MODEL_FILE: weights,
        CHECKPOINT: weights * (1 + others) + moments,
        LOG: logged,
        "training.html": None,
        "evaluation.json": None,
        "evaluation.html": None,
        "manifest.json": None,
    }
    return {name: None if size is None else round(size / _MB, 3) for name, size in sizes.items()}
