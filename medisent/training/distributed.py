"""Several processes that train as one: where each computes, who reads first, and how all of them end together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from medisent.errors import Interrupted, MachineError, MedisentError, UsageError
from medisent.processes import ALONE, Crew

# One process may read scans, calibrate or evaluate while the others wait; who dies is noticed at once all the same.
_PATIENCE = timedelta(days=2)
_FAILED = "medisent/failed"
_LINGER = 2.0  # seconds


@contextmanager
def joined(device: str = "cpu") -> Iterator[Crew]:
    """The processes that ``torchrun`` started together with this one; one process alone where it did not.

    All leave the block together. Where one fails the others end, too, and the first to fail is the one that says why.

    Arguments:
        device: Where this process computes; messages go by NCCL between GPUs and by gloo between processors.

    Raises:
        UsageError: The environment names other processes but not where to meet them.
        SystemExit: Another process has failed and says why.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield ALONE
        return
    if distributed.is_initialized():  # by whoever called
        yield Crew(distributed.get_rank(), distributed.get_world_size())
        return
    if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UsageError(
            f"WORLD_SIZE is {size}, but RANK, MASTER_ADDR and MASTER_PORT do not say where the other processes are. "
            "Start with torchrun, or unset WORLD_SIZE."
        )
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    crew = Crew(rank, size)
    try:
        yield crew
        crew.meet()
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        if not _first_to_fail(store, crew):
            raise SystemExit(_exit_code(error)) from error
        raise
    distributed.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: of several on one machine each has the GPU of its own number.

    Raises:
        UsageError: One GPU is named for all of them.
        MachineError: There are fewer GPUs than processes.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if here == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UsageError(f"--device is {device}, but {here} processes share this machine. Use --device cuda.")
    if here > torch.cuda.device_count():
        raise MachineError(
            f"{here} processes were started on this machine, but it has {torch.cuda.device_count()} GPUs. "
            "Give --nproc-per-node as many as there are, or use --device cpu."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def one_a_machine_first(crew: Crew) -> Iterator[None]:
    """A block that one process of each machine runs first, so that the others find what it kept."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if crew.size > 1 and not first:
        crew.meet()
    yield
    if crew.size > 1 and first:
        crew.meet()


def _first_to_fail(store: torch._C._distributed_c10d.Store, crew: Crew) -> bool:
    try:
        first = bool(store.add(_FAILED, 1) == 1)
        given_up = time.monotonic() + _LINGER
        # Without torchrun the first process keeps the store, which others may have to ask, too.
        while crew.rank == 0 and store.add(_FAILED, 0) < crew.size and time.monotonic() < given_up:
            time.sleep(0.01)
    except RuntimeError:  # it went with the process that kept it
        return True
    return first


def _exit_code(error: BaseException) -> int:
    if isinstance(error, MedisentError | Interrupted):
        return error.exit_code
    return Interrupted.exit_code if isinstance(error, KeyboardInterrupt) else 1
