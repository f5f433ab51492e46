"""What may go wrong in the middle of training, and what to say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from medisent.config import Study
from medisent.errors import Interrupted, MachineError, MedisentError, StudyError, short_of_memory
from medisent.reports import Ending


def refuse_astray(found: Mapping[str, Tensor], step: int, study: Study) -> None:
    """Refuse to learn from what is no number.

    Arguments:
        found: What was computed in this step.
        step: The step.
        study: What it is a step of.

    Raises:
        StudyError: Something is infinite or no number; the sentence names it.
    """
    finite = torch.stack([value.detach() for value in found.values()]).isfinite().tolist()
    if all(finite):
        return
    names = [name for name, well in zip(found, finite, strict=True) if not well]
    named = [name for name in names if name != "total"] or names
    settings = study.training
    advice = f"Lower learning_rate in [training] (it is {settings.learning_rate:g})"
    if settings.precision != "float32":
        advice += ', or set precision = "float32"'
    raise StudyError(
        f"Training went astray: in step {step}, {', '.join(named[:4])} came out infinite or as no number.\n"
        f"What was saved is from before that step. {advice}, and begin anew with --fresh.",
        code="study.astray",
    )


@contextmanager
def told_of_memory(study: Study, device: str) -> Iterator[None]:
    """A block that says what to lower where memory does not suffice.

    Raises:
        MachineError: It does not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error):
            raise
        raise MachineError(_too_much(study, device), code="machine.memory") from error


def ending_of(error: BaseException, step: int) -> Ending:
    """How a training ends that an error brings to its end after some step: somebody stopped it, or it failed."""
    if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
        return Ending("stopped", step)
    own = f"medisent failed by a fault of its own ({type(error).__name__}). What was saved is kept."
    return Ending("failed", step, " ".join(str(error).split()) if isinstance(error, MedisentError) else own)


def _too_much(study: Study, device: str) -> str:
    settings = study.training
    sides = " x ".join(map(str, study.grid.shape))
    advice = ["a coarser [grid]", "a smaller width in [network]"]
    if settings.recompute != "always":
        advice.insert(0, 'recompute = "always" in [training]')
    if settings.batch > 1:
        advice.insert(0, f"a smaller batch in [training] than {settings.batch}, with accumulate raised")
    return (
        f"Memory of {device} does not suffice to train with {settings.batch} scans of {sides} voxels at once.\n"
        f"What was saved is kept. Any of these takes less: {'; '.join(advice)}.\n"
        "`medisent train --dry-run` says what it would take."
    )
