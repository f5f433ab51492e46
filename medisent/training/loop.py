"""The loop: step after step, each told to whoever watches, with a checkpoint every so often."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medisent.augmentation import changed, jittered
from medisent.batches import Batch
from medisent.config import Study
from medisent.errors import Interrupted, MachineError, StudyError
from medisent.files import write_text
from medisent.model import PartitionedVAE
from medisent.objectives import Objective
from medisent.processes import ALONE, Crew
from medisent.progress import Progress
from medisent.supervision import Sampler
from medisent.training.plans import entries_of, schedule, weights_of
from medisent.training.states import (
    CHECKPOINT,
    Chance,
    Clock,
    Kept,
    Moments,
    Weights,
    restore_checkpoint,
    save_checkpoint,
)
from medisent.training.stopping import Stop

LOG = "metrics.jsonl"
_CHECKPOINT_SECONDS = 20.0
_LOG_EVERY = 10


@runtime_checkable
class Observer(Protocol):
    """Somebody who is told of every step that was taken, and changes nothing."""

    def stepped(self, step: int, seconds: float, costs: Mapping[str, Tensor]) -> None:
        """A step was taken.

        Args:
            step: Steps taken so far.
            seconds: What this one took.
            costs: Mean cost of each term, in nats a scan, and their weighted sum as ``total``; on their device, so
                that whoever does not look at them waits for nothing.
        """
        ...


@dataclass
class Loop:
    """A training that can stop at any step and go on as if it had not.

    Attributes:
        study: What is trained, and for how long.
        network: On its device.
        shown: The training scans, on the same device.
        run: Where checkpoints go.
        observers: Are told what happens.
        crew: Who takes the steps, and which of them this process is.
        stop: Whether somebody has asked for the end.
        clock: How far the training is.
        records: Lines of the log.
    """

    study: Study
    network: PartitionedVAE
    shown: Batch
    run: Path
    observers: Sequence[Observer] = ()
    crew: Crew = ALONE
    stop: Stop = field(default_factory=Stop)
    clock: Clock = field(default_factory=Clock)
    records: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.study.training
        device = self.shown.scan.device
        self.chance = torch.Generator().manual_seed(settings.seed)
        objective = Objective(self.network, weights_of(self.study), self.study.objective, len(self.shown))
        self.objective = objective.to(device)
        # Terms may learn too, as adversaries do.
        self.learned = [*self.network.parameters(), *self.objective.parameters()]
        self.optimiser = torch.optim.AdamW(self.learned, lr=settings.learning_rate, weight_decay=1e-3, fused=True)
        self.sampler = Sampler(self.shown, entries_of(self.study, self.network), settings.batch, self.chance)
        self._refuse_unequal_shares()
        self.kept: dict[str, Kept] = {
            "network": Weights(self.network),
            "objective": Weights(self.objective),
            "optimiser": Moments(self.optimiser),
            "sampler": self.sampler,
            "chance": Chance(self.chance, device),
            "clock": self.clock,
        }

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.clock.step

    @property
    def seconds(self) -> float:
        """Time taken by them."""
        return self.clock.seconds

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        settings = self.study.training
        if settings.minutes is not None:
            return self.seconds / (60 * settings.minutes)
        total = settings.steps or (settings.epochs or 1) * math.ceil(len(self.shown) / settings.batch)
        return self.step / total

    def run_to_end(self, progress: Progress) -> None:
        """Train until the study's time, epochs or steps are over, from the last checkpoint if there is one."""
        self.resume()
        progress.stage("training", 1.0)
        progress.advance(self.share)
        self.network.train()
        saved = time.monotonic()
        self.stop.patient, asked = True, False
        while self.share < 1 and not asked:
            before, start = self.share, time.monotonic()
            costs = self.take_step()
            taken, asked = self._agreed(time.monotonic() - start)
            self.clock.seconds += taken
            for observer in self.observers:
                observer.stepped(self.step, taken, costs)
            note = ""
            if self.step % _LOG_EVERY == 0:
                note = self._record(costs)
            progress.advance(min(1.0, self.share) - before, note)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()
        self.stop.patient = False
        if asked:
            self.crew.meet()  # whoever ends first takes the others along
            raise Interrupted(f"Interrupted after step {self.step}. The same command goes on from there.")
        self.network.eval()

    def _agreed(self, seconds: float) -> tuple[float, bool]:
        """The mean of what a step took over processes, and whether any of them was asked to stop."""
        own = torch.tensor([seconds, float(self.stop.asked)], dtype=torch.float64)
        taken, asked = self.crew.mean(own).tolist()
        return taken, asked > 0

    def take_step(self) -> dict[str, Tensor]:
        """One step; the mean cost of each term, in nats a scan."""
        settings = self.study.training
        rate = settings.learning_rate * schedule(self.share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        device = self.shown.scan.device
        rows, tie = self.sampler.next()
        plain = self.shown[self.crew.own(rows).to(device)]
        leader = tie.leader if tie and tie.still else None
        plain = jittered(plain, self.chance, settings.jitter, mirror=settings.mirror, leader=leader, crew=self.crew)
        change = changed(plain, self.network, self.chance, tie, self.crew)
        draw = self.network(change, tie.to(device) if tie else None)
        costs: dict[str, Tensor] = self.objective(draw)
        self.optimiser.zero_grad(set_to_none=True)
        # A scan's nats grow with its voxels; the mean over them keeps gradients of one size on every grid.
        (costs["total"] / 1000).backward()
        self.crew.average_gradients(self.learned)
        # Each by itself, or the decoder's gradient would silence the others.
        for part in (*self.network.children(), *self.objective.terms.children()):
            if any(True for _ in part.parameters()):
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        self.optimiser.step()
        self.network.settle(self.crew)
        self.clock.step += 1
        means = self.crew.mean(torch.stack(list(costs.values())))
        return dict(zip(costs, means, strict=True))

    def _record(self, costs: Mapping[str, Tensor]) -> str:
        record = {"step": self.step, "seconds": round(self.seconds, 3)}
        nats = {name: round(float(cost.detach()), 4) for name, cost in costs.items()}
        self.records.append(json.dumps({**record, **nats}))
        return f"{nats['total']:.0f} nats"

    def save(self) -> None:
        """Write the checkpoint, and the log so far; the first process does."""
        if self.crew.rank:
            return
        save_checkpoint(self.kept, self.study, "\n".join(self.records), self.run / CHECKPOINT)
        write_text(self.run / LOG, "".join(f"{line}\n" for line in self.records))

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one.

        Raises:
            ModelError: It is damaged.
            MachineError: Not all processes find it.
        """
        if (self.run / CHECKPOINT).is_file():
            self.records = restore_checkpoint(self.kept, self.run / CHECKPOINT).splitlines()
        step = torch.tensor(self.step, dtype=torch.float64)
        if self.crew.mean(step) != step:
            raise MachineError(
                f"The processes find different checkpoints in {self.run}. "
                "Choose a folder with -o that lies on a disk which all of them share."
            )

    def _refuse_unequal_shares(self) -> None:
        """Refuse steps that cannot be dealt out evenly.

        Raises:
            StudyError: The scans of a step cannot.
        """
        batch, size = self.sampler.batch, self.crew.size
        if batch % size:
            why = "[training] batch" if batch == self.study.training.batch else "there are no more training scans"
            raise StudyError(
                f"A step has {batch} scans ({why}), which {size} processes cannot share evenly. "
                f"Choose a batch that {size} divides, or start fewer processes."
            )
