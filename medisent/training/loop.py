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
from medisent.model import Change, PartitionedVAE
from medisent.objectives import Objective
from medisent.processes import ALONE, Crew
from medisent.progress import Progress
from medisent.supervision import Sampler, Tie
from medisent.training.averages import Average
from medisent.training.faults import refuse_astray, told_of_memory
from medisent.training.feeding import Feed
from medisent.training.looks import Best, aside, costs_of
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
_LOOKS_SHARE = 0.05
# The scanner's encoder has no normalisation: at the full learning rate its estimates wander.
_SLOW = 0.4
"""Of a training for a number of minutes looks may take so much besides."""


def logged(step: int) -> bool:
    """Whether the log has a line about this step: every tenth, later every hundredth, and so on; it stays short."""
    every: int = max(_LOG_EVERY, 10 ** (len(str(step)) - 3))
    return step % every == 0


@runtime_checkable
class Observer(Protocol):
    """Somebody who is told what happens, and changes nothing; whatever chance it uses is given back."""

    def stepped(self, step: int, seconds: float, costs: Mapping[str, Tensor]) -> None:
        """A step was taken.

        Args:
            step: Steps taken so far.
            seconds: What this one took.
            costs: Mean cost of each term, in nats a scan, and their weighted sum as ``total``; on their device, so
                that whoever does not look at them waits for nothing.
        """
        ...

    def validated(
        self, step: int, costs: Mapping[str, float], network: PartitionedVAE, held: Batch
    ) -> Mapping[str, object]:
        """The validation split was looked at; what the log is to say of it besides, in terms of JSON.

        Gradients are off and the network is in its eval mode.

        Args:
            step: Steps taken so far.
            costs: Mean cost of each term over the validation scans, in nats a scan, and their weighted
                sum as ``total``.
            network: With the weights that were judged, which may be a running mean.
            held: The validation scans.
        """
        ...

    def saved(self, share: float, records: Sequence[str]) -> None:
        """A checkpoint was written, or the log has come to its end.

        Args:
            share: How much of the training is done, 0 to 1.
            records: The lines of the log so far.
        """
        ...


@dataclass
class Loop:
    """A training that can stop at any step and go on as if it had not.

    Attributes:
        study: What is trained, and for how long.
        network: On its device.
        shown: The training scans, wherever they are.
        run: Where checkpoints go.
        held: The validation scans, wherever they are; None where there are none.
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
    held: Batch | None = None
    observers: Sequence[Observer] = ()
    crew: Crew = ALONE
    stop: Stop = field(default_factory=Stop)
    clock: Clock = field(default_factory=Clock)
    records: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.study.training
        device = self.network.pivot.device
        self.feed = Feed(self.shown, device)
        self.chance = torch.Generator().manual_seed(settings.seed)
        objective = Objective(self.network, weights_of(self.study), self.study.objective, len(self.shown))
        self.objective = objective.to(device)
        # Terms may learn too, as adversaries do.
        self.learned = [*self.network.parameters(), *self.objective.parameters()]
        slow = list(self.network.scanner_encoder.parameters())
        others = [p for p in self.learned if not any(p is one for one in slow)]
        groups = [{"params": others, "pace": 1.0}, {"params": slow, "pace": _SLOW}]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=1e-3, fused=True)
        self.sampler = Sampler(self.shown, entries_of(self.study, self.network), settings.batch, self.chance)
        self._refuse_unequal_shares()
        self.average, self.best = Average(self.network, settings.ema), Best()
        self._paced, self._look_seconds = (0, 0.0), 0.0
        self.kept: dict[str, Kept] = {
            "network": Weights(self.network),
            "objective": Weights(self.objective),
            "optimiser": Moments(self.optimiser),
            "sampler": self.sampler,
            "chance": Chance(self.chance, device),
            "clock": self.clock,
            "average": self.average,
            "best": self.best,
        }
        self.kept |= {type(it).__name__.lower(): it for it in self.observers if isinstance(it, Kept)}

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
        total = settings.steps or (settings.epochs or 1) * math.ceil(len(self.shown) / settings.scans_a_step)
        return self.step / total

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: the time is over, or looking on has no use."""
        patience = self.study.training.patience
        return self.share >= 1 or (patience > 0 and self.best.misses >= patience)

    def run_to_end(self, progress: Progress) -> None:
        """Train until the study's time, epochs or steps are over, from the last checkpoint if there is one.

        Raises:
            MachineError: Memory or the disk does not suffice; the checkpoint before is as it was.
            StudyError: A cost came out as no number; the checkpoint before is as it was.
            Interrupted: Somebody asked for the end.
        """
        self.resume()
        if self.step and self.crew.rank == 0:
            self.publish()  # or the page would go on saying that it was stopped
        progress.stage("training", 1.0)
        progress.advance(self.share)
        self.network.train()
        saved = time.monotonic()
        self.stop.patient, asked = True, False
        with told_of_memory(self.study, str(self.feed.device)):
            while not self.over and not asked:
                before = self.share
                note, asked = self.go_on()
                progress.advance(min(1.0, self.share) - before, note)
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
        self.save()
        self.stop.patient = False
        if asked:
            self.crew.meet()  # whoever ends first takes the others along
            raise Interrupted(f"Interrupted after step {self.step}. The same command goes on from there.")
        self._choose()

    def go_on(self) -> tuple[str, bool]:
        """Take a step, and look at the validation split if it is time to.

        Returns:
            What is worth saying, and whether somebody has asked for the end.
        """
        start = time.monotonic()
        costs = self.take_step()
        taken, asked = self._agreed(time.monotonic() - start)
        self.clock.seconds += taken
        for observer in self.observers:
            observer.stepped(self.step, taken, costs)
        note = self._told(costs) if self.step % _LOG_EVERY == 0 else ""
        due = math.floor(min(1.0, self.share) * self.study.training.looks)
        if self.held is not None and due > self.best.looks and self._may_look():
            self.best.looks = due
            start = time.monotonic()
            self.look(self.held)
            self._look_seconds, _ = self._agreed(time.monotonic() - start)
            self.clock.looked += self._look_seconds
        return note, asked

    def _may_look(self) -> bool:
        """Whether there is time for another look; where steps are counted there is, so that what is told is the same.

        The last weights are always judged where the best are wanted.
        """
        settings = self.study.training
        if settings.minutes is None or (settings.keep == "best" and self.share >= 1):
            return True
        return self.clock.looked + self._look_seconds <= _LOOKS_SHARE * self.seconds

    def _agreed(self, seconds: float) -> tuple[float, bool]:
        """The mean of what a step took over processes, and whether any of them was asked to stop."""
        own = torch.tensor([seconds, float(self.stop.asked)], dtype=torch.float64)
        taken, asked = self.crew.mean(own).tolist()
        return taken, asked > 0

    def take_step(self) -> dict[str, Tensor]:
        """One step; the mean cost of each term, in nats a scan.

        Raises:
            StudyError: A cost or a gradient is no number; weights and what the optimiser remembers are as before.
        """
        settings = self.study.training
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * group["pace"] * schedule(self.share)
        self.optimiser.zero_grad(set_to_none=True)
        parts = [self.learn_from(*self.next_batch()) for _ in range(settings.accumulate)]
        self.crew.average_gradients(self.learned)
        refuse_astray(self._clip(), self.step + 1, self.study)
        self.optimiser.step()
        self.average.take_in()
        self.clock.step += 1
        return {name: torch.stack([costs[name] for costs in parts]).mean() for name in parts[0]}

    def next_batch(self) -> tuple[Change, Tie | None]:
        """This process's share of the next scans, moved and seen by other scanners, and what all have in common.

        What is drawn for them is drawn here, but for the samples of the posterior and what terms draw.
        """
        settings = self.study.training
        rows, tie = self.sampler.next()
        plain = self.feed.take(self.crew.own(rows))
        leader = tie.leader if tie and tie.still else None
        plain = jittered(plain, self.chance, settings.jitter, mirror=settings.mirror, leader=leader, crew=self.crew)
        change = changed(plain, self.network, self.chance, tie, self.crew)
        self.feed.expect(self.crew.own(self.sampler.foreseen()))
        return change, tie.to(self.feed.device) if tie else None

    def learn_from(self, change: Change, tie: Tie | None) -> dict[str, Tensor]:
        """The costs of a batch, the same in all processes, once its gradient is added to that of the step."""
        costs: dict[str, Tensor] = self.objective(self.network(change, tie))
        means = dict(zip(costs, self.crew.mean(torch.stack(list(costs.values()))), strict=True))
        refuse_astray(means, self.step + 1, self.study)
        # A scan's nats grow with its voxels; the mean over them keeps gradients of one size on every grid.
        (costs["total"] / (1000 * self.study.training.accumulate)).backward()
        self.network.settle(self.crew)
        return means

    def _clip(self) -> dict[str, Tensor]:
        """Clip gradients, each part's by itself, or the decoder's would silence the others; what they were."""
        parts = {**dict(self.network.named_children()), **dict(self.objective.terms.named_children())}
        return {
            f"the gradient of {name}": nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            for name, part in parts.items()
            if any(True for _ in part.parameters())
        }

    def look(self, held: Batch) -> None:
        """See what held-out scans cost, and remember the weights if none did better."""
        settings = self.study.training
        with aside(self.network, self.objective), self.average.shown():
            costs = costs_of(self.network, self.objective, held, settings.batch, settings.seed)
            if settings.patience or settings.keep == "best":
                self.best.judge(costs["total"], self.network)
            said: dict[str, object] = {"scans": len(held), "nats": {n: round(cost, 4) for n, cost in costs.items()}}
            for observer in self.observers:
                said |= observer.validated(self.step, costs, self.network, held)
        self.records.append(json.dumps({"step": self.step, "seconds": round(self.seconds, 3), "validation": said}))

    def _choose(self) -> None:
        """Give the network the weights that the study wants: the last, their mean, or those that did best."""
        if self.study.training.keep == "best" and self.best.weights:
            self.network.load_state_dict(self.best.weights)
        else:
            self.average.exchange()
        self.network.eval()

    def _told(self, costs: Mapping[str, Tensor]) -> str:
        """What to say of the last step in a line; every so often it goes into the log too."""
        nats = {name: round(float(cost.detach()), 4) for name, cost in costs.items()}
        pace = self._pace()
        if logged(self.step):
            record = {
                "step": self.step,
                "seconds": round(self.seconds, 3),
                "scans_a_second": float(f"{pace:.3g}"),
                "learning_rate": float(f"{self.optimiser.param_groups[0]['lr']:.3g}"),
            }
            self.records.append(json.dumps({**record, **nats}))
        terms = ", ".join(f"{name} {_short(cost)}" for name, cost in nats.items() if name != "total" and cost)
        return f"step {self.step:,}, {_short(pace)} scans/s, {_short(nats['total'])} nats: {terms}"

    def _pace(self) -> float:
        """Scans a second since this was last asked."""
        steps, seconds = self.step - self._paced[0], self.seconds - self._paced[1]
        self._paced = self.step, self.seconds
        return steps * self.sampler.batch * self.study.training.accumulate / max(seconds, 1e-9)

    def save(self) -> None:
        """Write the checkpoint, and the log so far; the first process does."""
        if self.crew.rank:
            return
        save_checkpoint(self.kept, self.study, "\n".join(self.records), self.run / CHECKPOINT)
        self.publish()

    def publish(self) -> None:
        """Write the log so far, and tell whoever watches.

        Raises:
            MachineError: It cannot be written.
        """
        write_text(self.run / LOG, "".join(f"{line}\n" for line in self.records))
        for observer in self.observers:
            observer.saved(self.share, self.records)

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one.

        Raises:
            ModelError: It is damaged.
            MachineError: Not all processes find it.
        """
        if (self.run / CHECKPOINT).is_file():
            self.records = restore_checkpoint(self.kept, self.run / CHECKPOINT).splitlines()
            self._paced = self.step, self.seconds
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


def _short(value: float) -> str:
    """A number in at most three digits, or without decimals."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
