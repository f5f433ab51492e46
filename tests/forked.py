"""Runs commands in processes of their own that share one start: what takes seconds to import is imported once."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PIECES = 4
_PAUSE = 0.01  # seconds


@dataclass
class Server:
    """A process that forks one child for each command."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls) -> Server:
        """Import what commands need; PyTorch with one thread, since others do not survive a fork."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        environment.pop("MEDISENT_MODEL", None)
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))

    def begin(
        self,
        cwd: Path,
        *arguments: object,
        log: str = "log",
        memory: int = 0,
        size: int = 0,
        environment: Mapping[str, str] | None = None,
        slowly: bool = False,
    ) -> int:
        """Begin a command and return its process; what it says goes into files LOG.out and LOG.err in the folder.

        Arguments:
            cwd: Its folder.
            arguments: Of the command line.
            log: See above.
            memory: Limit of the address space, in bytes, or none.
            size: Limit of the size of a file, in bytes, or none.
            environment: What it finds besides in its environment.
            slowly: Whether its checkpoints come after every step and take long to be written.
        """
        words = [str(argument) for argument in arguments]
        task: dict[str, object] = {"cwd": str(cwd), "words": words, "log": log, "memory": memory, "size": size}
        task |= {"environment": dict(environment or {}), "slowly": slowly}
        return int(self._ask(task))

    def end(self, process: int) -> int:
        """Wait for a command; its exit code, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(int(self._ask({"wait": process})))

    def run(self, cwd: Path, *arguments: object, **limits: int) -> int:
        """Run a command to its end."""
        return self.end(self.begin(cwd, *arguments, **limits))

    def stop(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def _ask(self, task: dict[str, object]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


def serve() -> None:
    """Fork for every line of stdin, and say which process it is or how it ended."""
    import torch
    import torch._dynamo  # which optimisers import when they are made

    import medisent.cli
    import medisent.evaluation
    import medisent.models
    import medisent.phantoms
    import medisent.training  # noqa: F401 - so that children need not

    torch.set_num_threads(1)
    for line in sys.stdin:
        task = json.loads(line)
        if "wait" in task:
            print(os.waitpid(task["wait"], 0)[1], flush=True)
            continue
        child = os.fork()
        if child == 0:
            run(task)
        print(child, flush=True)


def run(task: dict[str, object]) -> None:
    """Become the command."""
    from medisent.cli import main

    os.chdir(str(task["cwd"]))
    os.environ["MEDISENT_CACHE"] = "cache"
    os.environ.update(task["environment"])  # type: ignore[call-overload]
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{task['log']}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, number)
    if task["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (int(task["memory"]), -1))
    if task["size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(task["size"]), -1))
    if task["slowly"]:
        slow_down()
    code = 1
    try:
        code = main(list(task["words"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def slow_down() -> None:
    """Write checkpoints after every step, piece by piece, so that one is killed while it is half written."""
    from medisent.training import loop

    loop._CHECKPOINT_SECONDS = -1.0
    Path.write_bytes = piece_by_piece  # type: ignore[method-assign, assignment]


def piece_by_piece(path: Path, data: bytes) -> int:
    """Write a file slowly."""
    with path.open("wb") as file:
        for piece in range(_PIECES):
            file.write(data[piece * len(data) // _PIECES : (piece + 1) * len(data) // _PIECES])
            file.flush()
            time.sleep(_PAUSE)
    return len(data)


if __name__ == "__main__":
    serve()
