"""What training and explaining take on a GPU: one command, one table in Markdown.

    python examples/benchmarks/gpu.py [--device cuda] [--small] [-o gpu.md]

Measured are one training step of the whole model at 96 x 96 x 96 in bfloat16, beside float32 and beside the most that
this device does in a product of matrices (the roofline; a step that is bound by memory lies below it); the memory of a
step at 128 x 128 x 128 with two scans; the demo's training, from rendering to its readouts; and `explain`. `--small`
does all of it on little grids, for trying the program out on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from medisent.batches import Batch
from medisent.checkpoints import Trained, build_model
from medisent.config import Study, load_study
from medisent.evaluation import evaluate
from medisent.explanations import explain
from medisent.formats import read
from medisent.manner import Manner
from medisent.phantoms import write_cohort
from medisent.progress import Silence
from medisent.training import Loop, load_split, study_cohort, train

GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        side: Voxels along each axis of the grid on which a step is timed.
        large: And of the grid on which its memory is measured.
        batch: Scans of the step that is timed.
        matrix: Rows and columns of the matrices that are multiplied.
        repeats: Timed steps, after two that do not count.
        heads: Of the demo's cohort.
        demo_side: Its grid.
        demo_steps: Its training; as many as five minutes on two cores gave.
    """

    side: int = 96
    large: int = 128
    batch: int = 4
    matrix: int = 8192
    repeats: int = 10
    heads: int = 400
    demo_side: int = 32
    demo_steps: int = 2000


SMALL = Sizes(side=16, large=24, batch=2, matrix=128, repeats=1, heads=12, demo_side=16, demo_steps=2)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    value: str
    note: str = ""


class Bench:
    """A device, a folder to work in, and the sizes of things."""

    def __init__(self, device: str, folder: Path, sizes: Sizes) -> None:
        self.device, self.folder, self.sizes = torch.device(device), folder, sizes
        self.on_gpu = self.device.type == "cuda"

    def seconds(self, work: Callable[[], object], repeats: int, idle: int = 2) -> float:
        """Median seconds of some work, once the device has finished it."""
        taken = []
        for turn in range(idle + repeats):
            start = time.perf_counter()
            work()
            if self.on_gpu:
                torch.cuda.synchronize(self.device)
            if turn >= idle:
                taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def peak(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second in a product of two large matrices."""
        size = self.sizes.matrix
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: left @ right, 10)

    def loop(self, side: int, batch: int, dtype: torch.dtype) -> Loop:
        """The training of the whole model on rendered heads, about to begin, its networks in a precision."""
        study, shown = self._shown(side, batch)
        torch.manual_seed(0)
        network = build_model(study)
        network.fit(shown)
        network.manner = Manner(dtype)
        return Loop(study, network.to(self.device).train(), shown.to(self.device), self.folder)

    def _shown(self, side: int, batch: int) -> tuple[Study, Batch]:
        place = self.folder / f"heads-{side}"
        if not place.exists():
            write_cohort(place, subjects=8, seed=3, spacing_mm=192 / side, shape=(side, side, side))
        study = load_study(place / "study.toml")
        study = replace(
            study,
            cohort=replace(study.cohort, table=place / "cohort.tsv"),
            training=replace(study.training, batch=batch),
        )
        return study, load_split(study, study_cohort(study).of("train"), Silence(), "reading")

    def steps(self) -> list[Row]:
        """Seconds of a step, and its share of the roofline."""
        side, batch = self.sizes.side, self.sizes.batch
        rows = []
        for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
            loop, peak = self.loop(side, batch, dtype), self.peak(dtype)
            with FlopCounterMode(display=False) as counter:
                loop.take_step()
            taken = self.seconds(loop.take_step, self.sizes.repeats)
            speed = counter.get_total_flops() / taken
            rows.append(
                Row(
                    f"a step at {side}^3, batch {batch}, {name}",
                    f"{taken:.3g} s",
                    f"{speed / 1e12:.3g} TFLOP/s, {speed / peak:.1%} of the {peak / 1e12:.3g} of a matrix product",
                )
            )
        return rows

    def memory(self) -> Row:
        """The most memory that a step with two scans takes on a large grid."""
        side = self.sizes.large
        loop = self.loop(side, 2, torch.bfloat16)
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        loop.take_step()
        if self.on_gpu:
            taken, note = torch.cuda.max_memory_allocated(self.device) / GIB, "allocated on the device"
        else:
            taken, note = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, "the whole process"
        return Row(f"memory of a step at {side}^3, batch 2, bfloat16", f"{taken:.2f} GiB", note)

    def demo(self) -> tuple[list[Row], Trained, Path]:
        """The demo's training with its readouts, the model, and a scan."""
        side, place = self.sizes.demo_side, self.folder / "demo"
        table = write_cohort(place, subjects=self.sizes.heads, spacing_mm=192 / side, shape=(side, side, side))
        study = load_study(place / "study.toml")
        training = replace(study.training, minutes=None, steps=self.sizes.demo_steps)
        study = replace(study, cohort=replace(study.cohort, table=table), training=training)
        start = time.perf_counter()
        trained = train(study, self.folder / "run", device=str(self.device))
        taken = time.perf_counter() - start
        evaluate(trained, None, split="test", seed=0).save(self.folder / "run")
        found = json.loads((self.folder / "run" / "evaluation.json").read_text(encoding="utf-8"))
        r2 = ", ".join(f"{name} {score['r2']:.2f}" for name, score in found["readout"].items() if score.get("r2"))
        what = f"training on {self.sizes.heads} heads of {side}^3, {self.sizes.demo_steps} steps"
        scan = min((place / "scans").glob("*.nii.gz"))
        return [Row(what, f"{taken:.3g} s", f"R2 on test heads: {r2}")], trained, scan

    def explaining(self, trained: Trained, scan: Path) -> Row:
        """Seconds that `explain` takes, report and all."""
        out, volume = self.folder / "explained", read(scan)
        taken = self.seconds(lambda: explain(trained, volume).save(out), min(3, self.sizes.repeats), 1)
        return Row("explaining one of them, files and report", f"{taken:.3g} s", "once the model is loaded")

    def rows(self) -> list[Row]:
        """All of it."""
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else platform.machine()
        found = [Row("device", name, f"PyTorch {torch.__version__}"), *self.steps(), self.memory()]
        demo, trained, scan = self.demo()
        return [*found, *demo, self.explaining(trained, scan)]


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    return "\n".join(["| what | value | |", "|---|---|---|", *(f"| {r.what} | {r.value} | {r.note} |" for r in rows)])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="little grids, to try the program out")
    parser.add_argument("-o", "--out", type=Path, help="file for the table")
    asked = parser.parse_args()
    if asked.device == "cpu" and not asked.small:
        parser.error("There is no GPU here. Add --small to try the program out on the CPU.")
    with tempfile.TemporaryDirectory() as folder:
        text = table(Bench(asked.device, Path(folder), SMALL if asked.small else Sizes()).rows())
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
