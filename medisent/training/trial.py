"""What training would take, found out by a step or two of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from medisent.checkpoints import MODEL_FILE, STUDY_FILE, build_model
from medisent.config import Study
from medisent.progress import Silence
from medisent.training.loop import LOG, Loop
from medisent.training.splits import load_split, study_cohort
from medisent.training.states import CHECKPOINT


def dry_run(study: Study, device: str = "cpu") -> Mapping[str, object]:
    """What training would take: parameters, seconds a step (from two real ones), memory of the scans, files.

    Raises:
        CohortError: The table does not fit the study.
    """
    cohort = study_cohort(study).of("train")
    few = replace(cohort, rows=cohort.rows[: study.training.batch])
    shown = load_split(study, few, Silence(), "reading")
    network = build_model(study)
    network.fit(shown)
    loop = Loop(study, network.to(device), shown.to(torch.device(device)), Path())
    loop.take_step()
    start = time.monotonic()
    loop.take_step()
    seconds = time.monotonic() - start
    voxels = math.prod(study.grid.shape)
    return {
        "scans": len(cohort),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds_a_step": round(seconds, 3),
        "memory_of_scans_mb": round(len(cohort) * voxels * 4 * (2 + len(network.shaped)) / 2**20),
        "files": [STUDY_FILE, MODEL_FILE, LOG, CHECKPOINT, "evaluation.json", "manifest.json"],
    }
