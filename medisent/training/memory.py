"""How much memory a step of training takes, how much there is, and in what manner networks run for it."""

from __future__ import annotations

import math
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from medisent.batches import Batch
from medisent.checkpoints import build_model
from medisent.config import Study
from medisent.manner import Manner
from medisent.model import PartitionedVAE
from medisent.training.loop import Loop

_SIDE = 32
# Between what a forward pass keeps and the most that a step takes: gradients of what is kept, and room to convolve in.
_ROOM = 1.5
_SPARED = 0.8  # the share of free memory that a step may take before it computes again what it could keep

# What a container or a batch system allows: the limit, and what is used of it.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def manner_of(study: Study, network: PartitionedVAE, shown: Batch) -> Manner:
    """How the networks of a study run on their device."""
    settings, device = study.training, network.pivot.device
    manner = Manner(_precision(settings.precision, device), settings.recompute == "always", settings.compile)
    if settings.recompute != "auto" or math.prod(study.grid.shape) * min(settings.batch, len(shown)) < 4 * 64**3:
        return manner
    free = free_bytes(device)
    tight = free is not None and needed_bytes(study, network, shown, manner) > _SPARED * free
    return replace(manner, recompute=tight)


def needed_bytes(study: Study, network: PartitionedVAE, shown: Batch, manner: Manner) -> int:
    """About what a step takes besides what is held already, in bytes: gradients, moments, and what is kept on the way.

    What is kept goes with the number of voxels, so a small copy of the study, with every so many voxels, tells.
    """
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    moments = 3 + (study.training.ema > 0) + (study.training.keep == "best")
    voxels = math.prod(network.encoder.padded) * min(study.training.batch, len(shown))
    kept = _kept_a_voxel(study, shown, manner, network.pivot.device)
    if manner.recompute:  # one network at a time is computed again; the largest is half of all
        kept += (_kept_a_voxel(study, shown, replace(manner, recompute=False), network.pivot.device) - kept) / 2
    return int(moments * weights + _ROOM * kept * voxels)


@dataclass(frozen=True)
class Peak:
    """The most memory that this process, or a device, has held since it was asked to watch.

    Attributes:
        device: Which memory.
    """

    device: torch.device

    def watch(self) -> None:
        """Forget what was before, where the system can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        """The most since then."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        unit = 1 if sys.platform == "darwin" else 1 << 10
        return _told("/proc/self/status", "VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_told("/proc/meminfo", "MemAvailable:"), *(_room_below(*names) for names in _LIMITS)]
    return min((found for found in free if found is not None), default=None)


def _told(file: str, name: str) -> int | None:
    """What a table of the system says of something, in bytes."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), None)


def _room_below(limit: str, used: str) -> int | None:
    try:
        return max(0, int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    pays = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if pays else torch.float32


def _kept_a_voxel(study: Study, shown: Batch, manner: Manner, device: torch.device) -> float:
    """Bytes that a forward pass keeps for each voxel of a scan, in a copy of the study of few voxels."""
    every = math.ceil(max(study.grid.shape) / _SIDE)
    few = _thinned(shown[torch.arange(1)], every)
    shape = few.scan.shape[2:]
    grid = replace(study.grid, shape=(shape[0], shape[1], shape[2]))
    small = replace(study, grid=grid, training=replace(study.training, batch=1), supervision=())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        network = build_model(small).to(device)
        network.manner = replace(manner, compile=False)
        network.pivot.fill_(0.0)
        loop = Loop(small, network, few, Path())
        kept: dict[int, tuple[int, Tensor]] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = loop.objective(loop.network(*loop.next_batch()))["total"]
    assert bool(total.requires_grad)
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    return sum(size for place, (size, _) in kept.items() if place not in own) / math.prod(shape)


def _thinned(batch: Batch, every: int) -> Batch:
    """The scans with every so many voxels along each axis, in a shape that needs no padding."""
    x, y, z = (max(8, -(-side // every) // 8 * 8) for side in batch.scan.shape[2:])
    changes = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        changes[field.name] = value[..., ::every, ::every, ::every][..., :x, :y, :z] if value.ndim == 5 else value
    return Batch(**changes)
