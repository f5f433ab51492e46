"""How a model learns: what it is shown, the loop and its schedule, and the checkpoints from which it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medisent.augmentation import changed, jittered
from medisent.batches import Batch
from medisent.calibration import calibrate
from medisent.checkpoints import (
    MODEL_FILE,
    STUDY_FILE,
    Trained,
    build_model,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
    study_factors,
    without_place,
)
from medisent.cohorts import Cohort, load_cohort, read_cohort
from medisent.config import Study, dump_study
from medisent.errors import CohortError, ModelError, StudyError
from medisent.files import file_digest, write_text
from medisent.loading import loading
from medisent.model import PartitionedVAE
from medisent.objectives import Objective
from medisent.progress import Progress, Silence
from medisent.stores import usual_store
from medisent.supervision import Entry, Sampler
from medisent.version import versions

CHECKPOINT = "checkpoint.safetensors"
_CHECKPOINT_SECONDS = 20.0
_LOG_EVERY = 10
# What the names of their tensors begin with in a checkpoint.
_NETWORK, _OBJECTIVE = "network.", "objective."


def train(
    study: Study, run: Path, *, device: str = "cpu", fresh: bool = False, progress: Progress | None = None
) -> Trained:
    """The trained model of a study, also written into a run folder; a run that was cut short goes on where it was.

    Arguments:
        study: What to learn, from what, for how long.
        run: The folder; receives ``study.toml``, ``model.safetensors``, ``metrics.jsonl``, ``checkpoint.safetensors``.
        device: Where to compute.
        fresh: Begin anew where a run could be resumed.
        progress: Is told how far the work is.

    Raises:
        CohortError: The table and its scans do not fit the study.
        StudyError: The run in this folder belongs to another study.
        MachineError: The folder cannot be written, or memory does not suffice.
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
    if fresh:  # not before: what cannot begin must not cost what there is
        for name in (CHECKPOINT, MODEL_FILE, "metrics.jsonl", "manifest.json", "evaluation.json", "evaluation.html"):
            (run / name).unlink(missing_ok=True)
    write_text(run / STUDY_FILE, text)
    loop = Loop(study, network.to(device), shown.to(torch.device(device)), run)
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
    files = (STUDY_FILE, MODEL_FILE, "metrics.jsonl")
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


def study_cohort(study: Study, table: Path | None = None) -> Cohort:
    """The cohort of a study, or of another table with the same columns.

    Raises:
        CohortError: The table does not fit.
    """
    settings = study.cohort
    return read_cohort(
        table or settings.table,
        study_factors(study),
        scan=settings.scan,
        subject=settings.subject,
        split=settings.split,
        groups=[entry.by for entry in study.supervision],
        orders=[entry.order for entry in study.supervision],
        seed=study.training.seed,
    )


def load_split(study: Study, cohort: Cohort, progress: Progress, stage: str) -> Batch:
    """All scans of a cohort on the study's grid.

    Raises:
        CohortError: Scans cannot be read.
    """
    progress.stage(stage, len(cohort))
    masks = [factor.name for factor in cohort.factors if factor.mask]
    loader = loading(study.grid, masks, air=study.scanner.air)
    store = usual_store(study.grid, study.scanner.air)
    return load_cohort(cohort, loader, study.grid.spacing_mm**3 / 1000, lambda done, total: progress.advance(1), store)


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
        "files": [STUDY_FILE, MODEL_FILE, "metrics.jsonl", CHECKPOINT, "evaluation.json", "manifest.json"],
    }


@dataclass
class Loop:
    """The state of a training that can stop at any step and go on as if it had not.

    Attributes:
        study: What is trained, and for how long.
        network: On its device.
        shown: The training scans, on the same device.
        run: Where checkpoints go.
        step: Steps taken.
        seconds: Time taken by them.
    """

    study: Study
    network: PartitionedVAE
    shown: Batch
    run: Path
    step: int = 0
    seconds: float = 0.0
    records: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.study.training
        self.chance = torch.Generator().manual_seed(settings.seed)
        objective = Objective(self.network, weights_of(self.study), self.study.objective, len(self.shown))
        self.objective = objective.to(self.shown.scan.device)
        learned = [*self.network.parameters(), *self.objective.parameters()]  # terms may learn too, as adversaries do
        self.optimiser = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=1e-3, fused=True)
        self.sampler = Sampler(self.shown, entries_of(self.study, self.network), settings.batch, self.chance)

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
        self._resume()
        progress.stage("training", 1.0)
        progress.advance(self.share)
        self.network.train()
        saved = time.monotonic()
        while self.share < 1:
            before, start = self.share, time.monotonic()
            costs = self.take_step()
            self.seconds += time.monotonic() - start
            note = ""
            if self.step % _LOG_EVERY == 0:
                note = self._record(costs)
            progress.advance(min(1.0, self.share) - before, note)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
        self._save()
        self.network.eval()

    def take_step(self) -> dict[str, Tensor]:
        """One step; the mean cost of each term, in nats a scan."""
        settings = self.study.training
        rate = settings.learning_rate * schedule(self.share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        device = self.shown.scan.device
        rows, tie = self.sampler.next()
        plain = self.shown[rows.to(device)]
        leader = tie.leader if tie and tie.still else None
        plain = jittered(plain, self.chance, settings.jitter, mirror=settings.mirror, leader=leader)
        draw = self.network(changed(plain, self.network, self.chance, tie), tie.to(device) if tie else None)
        costs: dict[str, Tensor] = self.objective(draw)
        self.optimiser.zero_grad(set_to_none=True)
        # A scan's nats grow with its voxels; the mean over them keeps gradients of one size on every grid.
        (costs["total"] / 1000).backward()
        # Each by itself, or the decoder's gradient would silence the others.
        for part in (*self.network.children(), *self.objective.terms.children()):
            if any(True for _ in part.parameters()):
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        self.optimiser.step()
        self.network.settle()
        self.step += 1
        return costs

    def _record(self, costs: Mapping[str, Tensor]) -> str:
        record = {"step": self.step, "seconds": round(self.seconds, 3)}
        nats = {name: round(float(cost.detach()), 4) for name, cost in costs.items()}
        self.records.append(json.dumps({**record, **nats}))
        return f"{nats['total']:.0f} nats"

    def _save(self) -> None:
        """One file with all that resuming needs, and the log so far."""
        tensors = {f"{_NETWORK}{n}": t for n, t in self.network.state_dict().items()}
        tensors |= {f"{_OBJECTIVE}{n}": t for n, t in self.objective.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors |= {"chance": self.chance.get_state(), "torch": torch.get_rng_state()}
        tensors |= {f"sampler.{name}": tensor for name, tensor in self.sampler.state().items()}
        tensors["clock"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
        header = {
            "schema": "1",
            "kind": "medisent checkpoint",
            "study": dump_study(without_place(self.study)),
            "log": "\n".join(self.records),
        }
        save_tensors(
            {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, header, self.run / CHECKPOINT
        )
        write_text(self.run / "metrics.jsonl", "".join(f"{line}\n" for line in self.records))

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one.

        Raises:
            ModelError: It is damaged.
        """
        path = self.run / CHECKPOINT
        if not path.is_file():
            return
        try:
            tensors, header = load_tensors(path, kind="medisent checkpoint")
            self.records = header["log"].splitlines()
            self._restore(tensors)
        except Exception as error:  # whatever a stranger's file makes the parts say
            raise ModelError(f"The checkpoint {path} is damaged. Begin anew with --fresh.") from error

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        parts: tuple[tuple[str, nn.Module], ...] = ((_NETWORK, self.network), (_OBJECTIVE, self.objective))
        for prefix, part in parts:
            part.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        state = self.optimiser.state_dict()
        state["state"] = {}
        learned = [p for group in self.optimiser.param_groups for p in group["params"]]
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, entry = name.split(".")
                if tensor.shape != (() if entry == "step" else learned[int(index)].shape):
                    raise ValueError("this is the optimiser of another network")
                state["state"].setdefault(int(index), {})[entry] = tensor
        if any(entry.keys() != {"step", "exp_avg", "exp_avg_sq"} for entry in state["state"].values()):
            raise ValueError("this is another optimiser")
        self.optimiser.load_state_dict(state)
        self.chance.set_state(tensors["chance"])
        torch.set_rng_state(tensors["torch"])
        prefix = "sampler."
        self.sampler.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        self.step, self.seconds = int(tensors["clock"][0]), float(tensors["clock"][1])


def weights_of(study: Study) -> dict[str, float]:
    """How much each term counts; those of kinds of supervision that the study does not have are left out."""
    kinds = {said.kind for said in study.supervision}
    idle = {name for name, kind in (("invariance", "clamp"), ("ranks", "ranks")) if kind not in kinds}
    return {n: getattr(study.weights, n) for n in study.weights.__dataclass_fields__ if n not in idle}


def entries_of(study: Study, network: PartitionedVAE) -> tuple[Entry, ...]:
    """Each [[supervision]] of a study, its names resolved to the blocks and scanner settings of a model."""
    entries = []
    for column, said in enumerate(study.supervision):
        blocks = frozenset(network.partition)
        blocks = network.named(said.share) if said.share else blocks - network.named(said.vary or ())
        own = frozenset(network.scanner_names)
        if said.kind == "ranks":
            entries.append(Entry("ranks", column, factors=said.share or (), batches=said.batches))
            continue
        entries.append(
            Entry(
                said.kind,
                column,
                # The scanner of every scan is changed while training; its own blocks go by that change, not by sharing.
                blocks=blocks - own,
                alike=blocks & own,
                pool=said.pool or "product",
                batches=said.batches,
                repeats=said.kind == "clamp" and not own <= blocks,
            )
        )
    return tuple(entries)


def schedule(share: float) -> float:
    """The learning rate's share of its highest: a short linear rise, then half a cosine down to a hundredth."""
    warm = min(1.0, (share + 0.002) / 0.03)
    return warm * (0.505 + 0.495 * math.cos(math.pi * min(1.0, share)))


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
