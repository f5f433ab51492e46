"""A batch on several processes or machines, by Dask: each scan is a task, and goes to another worker where one dies."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from medisent.errors import MachineError, ModelError, UsageError
from medisent.many.engine import Item, Outcome, fetched, finished
from medisent.many.works import Work
from medisent.version import __version__

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")

_ANSWER_S = 20
_ALONE = threading.Lock()  # a worker may have several threads, but the model and PyTorch's seed are one


@dataclass(frozen=True)
class Cluster:
    """Workers that a scheduler of Dask hands scans to.

    Attributes:
        client: Speaks with the scheduler.
        threads: Of PyTorch in each worker; None is what the worker was started with.
    """

    client: Client
    threads: int | None

    def __call__(self, work: Work[Result], items: Sequence[Item], seed: int) -> Iterator[Outcome[Result]]:
        """What becomes of each scan, as soon as a worker has told.

        A scan whose worker dies goes to another one, three times at most.

        Raises:
            ModelError: A worker has another version of this package.
            MachineError: The scheduler went away.
        """
        from distributed import CancelledError, KilledWorker, as_completed

        futures = {
            self.client.submit(_done, work, item, seed, self.threads, __version__, pure=False): item for item in items
        }
        try:
            for future in as_completed(list(futures), loop=self.client.loop):
                try:
                    outcome: Outcome[Result] = future.result()
                except KilledWorker:
                    item = futures[future]
                    said = f"{item.source.words} ended every process that worked on it. Check it, or the memory."
                    outcome = Outcome(item, error=MachineError(said))
                except CancelledError as error:
                    raise MachineError("The Dask scheduler went away. Give the same command again to go on.") from error
                future.release()
                yield outcome
        finally:
            self.client.cancel([future for future in futures if not future.done()], force=True)


def _done(work: Work[Result], item: Item, seed: int, threads: int | None, version: str) -> Outcome[Result]:
    """What becomes of a scan, in a worker."""
    if version != __version__:
        raise ModelError(f"This is medisent {version}, but a worker has {__version__}. Install the same on all.")
    with _ALONE:
        if threads is not None:
            torch.set_num_threads(threads)
        return finished(work, item, fetched(work, item), seed)


@contextmanager
def cluster(where: str) -> Iterator[Cluster]:
    """Workers: ``local:N`` starts N processes on this machine, an address joins the scheduler that listens there.

    Local processes listen on the loopback interface, and only to who has the key that is made for this run. There is no
    dashboard.

    Raises:
        UsageError: It is neither.
        MachineError: Dask is not installed, or no scheduler answers.
    """
    local = re.fullmatch(r"local:([1-9]\d{0,3})", where)
    if local is None and not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+:\d+", where):
        raise UsageError(
            f"--dask is {where!r}, but has to be local:N for N processes here, or the address of a scheduler, such as "
            "tcp://head:8786."
        )
    try:
        import dask
        import distributed
    except ImportError as error:
        raise MachineError(
            "--dask was given, but Dask is not installed. Install it: pip install 'medisent[dask]'."
        ) from error
    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say is said here
    try:
        if local is not None:
            with _local(int(local[1])) as found:
                yield found
            return
        with dask.config.set({"distributed.comm.timeouts.connect": f"{_ANSWER_S}s"}):
            client = distributed.Client(where, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise MachineError(
            f"No Dask scheduler answers at {where}. Start one with: dask scheduler --no-dashboard."
        ) from error
    with client:
        yield Cluster(client, torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None)


@contextmanager
def _local(workers: int) -> Iterator[Cluster]:
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, threads // workers)
    silent: dict[str, list[str]] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
    with (
        dask.config.set(silent),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=Security.temporary(),
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            worker_dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as machines,
        Client(machines, set_as_default=False) as client,
    ):
        yield Cluster(client, threads)
