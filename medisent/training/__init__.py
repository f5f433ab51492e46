"""Knows how a model learns: what it is shown, the loop and its schedule, and the checkpoints from which it goes on."""

from medisent.training.boards import Board
from medisent.training.distributed import joined, own_device
from medisent.training.loop import LOG, Loop, Observer
from medisent.training.making import train
from medisent.training.plans import entries_of, schedule, weights_of
from medisent.training.splits import load_split, study_cohort
from medisent.training.states import CHECKPOINT
from medisent.training.trial import Forecast, dry_run

__all__ = [
    "CHECKPOINT",
    "LOG",
    "Board",
    "Forecast",
    "Loop",
    "Observer",
    "dry_run",
    "entries_of",
    "joined",
    "load_split",
    "own_device",
    "schedule",
    "study_cohort",
    "train",
    "weights_of",
]
