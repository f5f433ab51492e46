"""What a checkpoint holds: all that the next step depends on, each part under a name of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medisent.checkpoints import SCHEMA, load_tensors, save_tensors, without_place
from medisent.config import Study, dump_study
from medisent.errors import ModelError

CHECKPOINT = "checkpoint.safetensors"
_KIND = "medisent checkpoint"


@runtime_checkable
class Kept(Protocol):
    """A part of the training that can be taken out as tensors and put back."""

    def state(self) -> dict[str, Tensor]:
        """All that its next use depends on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the state was taken; whatever is wrong with it is an error of any kind."""
        ...


@dataclass(frozen=True)
class Weights:
    """Weights and buffers of a module."""

    module: nn.Module

    def state(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(dict(state))


@dataclass(frozen=True)
class Moments:
    """What AdamW remembers of each weight."""

    optimiser: torch.optim.AdamW

    def state(self) -> dict[str, Tensor]:
        entries = self.optimiser.state_dict()["state"].items()
        return {f"{i}.{name}": torch.as_tensor(value) for i, entry in entries for name, value in entry.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        found: dict[int, dict[str, Tensor]] = {}
        learned = [p for group in self.optimiser.param_groups for p in group["params"]]
        for name, tensor in state.items():
            index, entry = name.split(".")
            if tensor.shape != (() if entry == "step" else learned[int(index)].shape):
                raise ValueError("this is the optimiser of another network")
            found.setdefault(int(index), {})[entry] = tensor
        if any(entry.keys() != {"step", "exp_avg", "exp_avg_sq"} for entry in found.values()):
            raise ValueError("this is another optimiser")
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": found})


@dataclass(frozen=True)
class Chance:
    """The sources of chance: the loop's own, and torch's on host and device, from which samples are drawn."""

    own: torch.Generator
    device: torch.device

    def state(self) -> dict[str, Tensor]:
        found = {"own": self.own.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.own.set_state(state["own"])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


@dataclass
class Clock:
    """How far the training is.

    Attributes:
        step: Steps taken.
        seconds: Time taken by them.
        looked: Time taken by looks at the validation split.
    """

    step: int = 0
    seconds: float = 0.0
    looked: float = 0.0

    def state(self) -> dict[str, Tensor]:
        times = {"seconds": self.seconds, "looked": self.looked}
        told = {name: torch.tensor(time, dtype=torch.float64) for name, time in times.items()}
        return {"step": torch.tensor(self.step), **told}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        step, seconds, looked = state["step"], state["seconds"], state["looked"]
        if step.dtype != torch.int64 or not bool(seconds.isfinite() & looked.isfinite()):
            raise ValueError("this is no clock")
        self.step, self.seconds, self.looked = int(step), float(seconds), float(looked)


def save_checkpoint(kept: Mapping[str, Kept], study: Study, log: str, path: Path) -> None:
    """Write one file with the state of all parts and the log so far.

    Raises:
        MachineError: It cannot be written; the one before is as it was.
    """
    tensors = {f"{part}.{name}": tensor for part, it in kept.items() for name, tensor in it.state().items()}
    header = {"schema": str(SCHEMA), "kind": _KIND, "study": dump_study(without_place(study)), "log": log}
    save_tensors({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, header, path)


def restore_checkpoint(kept: Mapping[str, Kept], path: Path) -> str:
    """Put all parts back where they were when the file was written; the log so far.

    Raises:
        ModelError: It is damaged.
    """
    try:
        tensors, header = load_tensors(path, kind=_KIND)
        for part, it in kept.items():
            prefix = f"{part}."
            it.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        return header["log"]
    except (ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # whatever a stranger's file makes the parts say
        raise ModelError(f"The checkpoint {path} is damaged. Begin anew with --fresh.") from error
