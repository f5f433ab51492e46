"""Families of networks compared: seconds a training step, held-out likelihood after equal time, and peak memory.

    python examples/benchmarks/networks.py [--seconds S] [--seeds N] [--repeats N] [--json FILE] [--picture FILE]

Every family is a plain VAE with as many latents, on rendered heads of 64 x 64 x 64 voxels of 3 mm, batches of four, a
Gaussian likelihood of fixed noise. Steps of all families are timed by turns in one process; each then trains for as
many seconds of processor time, and is judged on heads it has not seen by the evidence's lower bound, in nats a voxel.
Memory is the peak of a process of its own, above what it began with. One thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from families import FAMILIES, LATENTS, REFERENCE, VAE, Shape
from matplotlib.figure import Figure
from torch import Tensor, nn

from medisent.networks import Standardised
from medisent.phantoms import Plan, render, sample

NOISE = 0.02  # of the scans
SIGMA = 0.1  # of the likelihood
RATE = 3e-3  # of learning, at its highest


@dataclass(frozen=True)
class Asked:
    """How much is measured.

    Attributes:
        side: Voxels along each axis of the grid.
        heads: To train on; a quarter as many are held out.
        batch: Scans a step.
        seconds: Of processor time that each training gets.
        seeds: Trainings of each family.
        repeats: Timed steps of each family, after one that does not count.
        memory_sides: Grids on which the memory of a step with two scans is measured.
        families: Which ones.
    """

    side: int = 64
    heads: int = 256
    batch: int = 4
    seconds: float = 40.0
    seeds: int = 2
    repeats: int = 5
    memory_sides: tuple[int, ...] = (64, 96, 128)
    families: tuple[str, ...] = tuple(FAMILIES)


@dataclass
class Found:
    """What was measured of a family.

    Attributes:
        parameters: How many.
        step: Median seconds a step, the reference's in the same round = 1, by precision.
        nats: Lower bound on the evidence of held-out scans after equal time, in nats a voxel, one a seed.
        steps: Taken in that time.
        memory_mb: Peak of a step with two scans, by the side of the grid.
    """

    parameters: int
    step: dict[str, float] = field(default_factory=dict)
    nats: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    memory_mb: dict[int, int] = field(default_factory=dict)


def cube(side: int) -> Shape:
    """A grid."""
    return side, side, side


def rendered(count: int, side: int, seed: int = 7) -> Tensor:
    """Canonical heads with a little noise."""
    plan = Plan(count, seed, 192 / side, cube(side))
    heads = [torch.from_numpy(render(visit.anatomy, plan.geometry).canonical).float() for visit in sample(plan)]
    scans = torch.stack(heads)[:, None]
    return scans + NOISE * torch.randn(scans.shape, generator=torch.Generator().manual_seed(seed))


def bound(scans: Tensor, vae: VAE) -> Tensor:
    """The lower bound on the log evidence of each scan, in nats."""
    picture, mean, log_variance = vae(scans)
    misses = (picture.float() - scans).square().flatten(1).sum(1)
    fit = -misses / (2 * SIGMA**2) - scans[0].numel() * math.log(SIGMA * math.sqrt(2 * math.pi))
    mean, log_variance = mean.float(), log_variance.float()
    return fit - 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class Training:
    """A VAE of a family with its optimiser."""

    def __init__(self, name: str, side: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.family = FAMILIES[name]
        self.vae = self.family.build(cube(side)).train()
        if self.family.channels_last:
            self.vae = self.vae.to(memory_format=torch.channels_last_3d)
        self.optimiser = torch.optim.AdamW(self.vae.parameters(), lr=RATE, weight_decay=1e-3, fused=True)

    def step(self, scans: Tensor, *, bf16: bool = False) -> None:
        """Learn from scans."""
        if self.family.channels_last:
            scans = scans.to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = -bound(scans, self.vae).mean() / scans[0].numel()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for part in self.vae.children():
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        self.optimiser.step()
        for layer in self.vae.modules():
            if isinstance(layer, Standardised):
                layer.learn()

    def run(self, scans: Tensor, seconds: float, batch: int, seed: int) -> int:
        """Train for so much processor time; returns the steps taken."""
        chance, spent, steps = torch.Generator().manual_seed(seed), 0.0, 0
        while spent < seconds:
            share = spent / seconds
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * min(1.0, share / 0.03 + 0.05) * (0.505 + 0.495 * math.cos(math.pi * share))
            shown = scans[torch.randint(len(scans), (batch,), generator=chance)]
            start = time.process_time()
            self.step(shown)
            spent += time.process_time() - start
            steps += 1
        return steps

    @torch.no_grad()
    def judged(self, held: Tensor) -> float:
        """The mean bound of held-out scans, in nats a voxel."""
        self.vae.eval()
        torch.manual_seed(0)
        nats = torch.cat([bound(scans, self.vae) for scans in held.split(8)])
        return float(nats.mean()) / held[0].numel()


def time_steps(asked: Asked, found: dict[str, Found]) -> None:
    """Time steps of all families by turns, each in both precisions."""
    scans = torch.rand(asked.batch, 1, *cube(asked.side))
    trainings = {name: Training(name, asked.side) for name in asked.families}
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(asked.repeats + 1):
        for name, training in trainings.items():
            for precision in ("float32", "bfloat16"):
                if turn > 2 and min(taken[name, precision]) > 2 * min(taken[name, "float32"]):
                    continue  # a precision that takes twice as long is known by now
                start = time.process_time()
                training.step(scans, bf16=precision == "bfloat16")
                if turn:
                    taken.setdefault((name, precision), []).append(time.process_time() - start)
    best = min((statistics.median(taken[REFERENCE, p]), p) for p in ("float32", "bfloat16"))[1]
    reference = taken[REFERENCE, best]
    for (name, precision), seconds in taken.items():
        ratios = [mine / other for mine, other in zip(seconds, reference, strict=False)]
        found[name].step[precision] = round(statistics.median(ratios), 3)


def train_all(asked: Asked, found: dict[str, Found]) -> None:
    """Train the families for equal time and judge them on held-out heads."""
    scans = rendered(asked.heads + asked.heads // 4, asked.side)
    shown, held = scans[: asked.heads], scans[asked.heads :]
    for seed in range(asked.seeds):
        for name in asked.families:
            if FAMILIES[name].trained:
                training = Training(name, asked.side, seed)
                found[name].steps.append(training.run(shown, asked.seconds, asked.batch, seed))
                found[name].nats.append(round(training.judged(held), 4))
                print(f"{name} {found[name].steps[-1]} steps, {found[name].nats[-1]} nats a voxel", flush=True)


def _peak(name: str, side: int, answer: Connection) -> None:
    """Tell the peak memory of a step in MB, above what this process began with."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Training(name, side).step(torch.rand(2, 1, *cube(side)))
    answer.send(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measure_memory(asked: Asked, found: dict[str, Found]) -> None:
    """Measure the peak memory of a step with two scans, each in a process of its own."""
    forked = multiprocessing.get_context("fork")
    for name in asked.families:
        for side in asked.memory_sides:
            here, there = forked.Pipe()
            child = forked.Process(target=_peak, args=(name, side, there))
            child.start()
            found[name].memory_mb[side] = here.recv()
            child.join()


def measured(asked: Asked) -> dict[str, Found]:
    """All figures of all families."""
    found = {}
    for name in asked.families:
        net = FAMILIES[name].build(cube(asked.side))
        found[name] = Found(sum(p.numel() for p in net.parameters()))
    measure_memory(asked, found)  # first, while this process is small
    time_steps(asked, found)
    train_all(asked, found)
    return found


def table(found: dict[str, Found], sides: Sequence[int]) -> str:
    """The figures as Markdown."""
    memory = "".join(f" {side}^3 |" for side in sides)
    lines = [f"| family | parameters | step | bfloat16 | nats a voxel |{memory}", "|---" * (5 + len(sides)) + "|"]
    for name, row in found.items():
        bf16 = f"{row.step['bfloat16']:.2f}" if "bfloat16" in row.step else ""
        nats = f"{statistics.mean(row.nats):.3f} ({min(row.nats):.3f} to {max(row.nats):.3f})" if row.nats else ""
        cells = "".join(f" {row.memory_mb[side]} MB |" for side in sides)
        title, size = FAMILIES[name].title, f"{row.parameters / 1e6:.2f} M"
        lines.append(f"| {title} | {size} | {row.step['float32']:.2f} | {bf16} | {nats} |{cells}")
    return "\n".join(lines)


def draw(found: dict[str, Found], path: Path) -> None:
    """Held-out likelihood against the time of a step, with the front that nothing beats in both."""
    points = {n: (min(row.step.values()), statistics.mean(row.nats)) for n, row in found.items() if row.nats}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for name, (step, nats) in points.items():
        row = found[name]
        ahead = not any(s < step and n > nats for s, n in points.values())
        colour = "C3" if ahead else "0.45"
        axis.errorbar(step, nats, [[nats - min(row.nats)], [max(row.nats) - nats]], fmt="o", color=colour, capsize=3)
        axis.annotate(FAMILIES[name].title, (step, nats), (7, 5), textcoords="offset points", color=colour)
    axis.set_xlabel("seconds of processor time a step, MONAI's VarAutoEncoder = 1")
    axis.set_ylabel("held-out evidence, nats a voxel\nafter equal time (bound; higher is better)")
    axis.margins(0.2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=Asked.seconds)
    parser.add_argument("--seeds", type=int, default=Asked.seeds)
    parser.add_argument("--repeats", type=int, default=Asked.repeats)
    parser.add_argument("--side", type=int, default=Asked.side)
    parser.add_argument("--heads", type=int, default=Asked.heads)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    asked = Asked(side=given.side, heads=given.heads, seconds=given.seconds, seeds=given.seeds, repeats=given.repeats)
    print(f"{LATENTS} latents, {asked.side}^3, batch {asked.batch}, {asked.seconds:g} s, {asked.seeds} seeds")
    found = measured(asked)
    print(table(found, asked.memory_sides))
    if given.json:
        given.json.write_text(json.dumps({n: asdict(row) for n, row in found.items()}, indent=2) + "\n", "utf-8")
    if given.picture:
        draw(found, given.picture)


if __name__ == "__main__":
    main()
