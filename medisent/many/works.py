"""What is done with each scan of a batch; every kind of work can be sent to another process, and skips what is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from medisent.checkpoints import Trained, load_model
from medisent.errors import MachineError, ModelError
from medisent.explanations import explain
from medisent.exports import Making, sidecar_name, voxels_digest, write_synthetic
from medisent.files import file_digest
from medisent.harmonisation import Look, Sketch, Target, harmonised_scan, look
from medisent.many.journal import Journal
from medisent.many.sources import Source
from medisent.readings import Readout, read_factors
from medisent.version import versions
from medisent.volumes import Volume

Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True)
class ModelFile:
    """A model as it is told to other processes: by its place, and by what it has to be.

    Attributes:
        path: The file, which every process that works has to see there.
        digest: Its SHA-256.
        device: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` for what each process has.
    """

    path: Path
    digest: str
    device: str

    @classmethod
    def of(cls, path: Path, device: str) -> ModelFile:
        """The model in a model file."""
        return cls(path.absolute(), file_digest(path), device)

    @property
    def trained(self) -> Trained:
        """The model, loaded once in a process.

        Raises:
            ModelError: It is not there, or not the one that is meant.
            MachineError: There is no such device.
        """
        return _loaded(self)


@lru_cache(maxsize=1)
def _loaded(model: ModelFile) -> Trained:
    device = model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(f"--device is {device}, but the machine that was to work has no CUDA device.")
    trained = load_model(model.path, device)
    if trained.digest != model.digest:
        raise ModelError(f"{model.path} is another model than when the batch began. Begin again, or put it back.")
    return trained


@runtime_checkable
class Work(Protocol[Result]):
    """What is done with each scan: first what takes a disk, then what takes a processor."""

    @property
    def model(self) -> ModelFile:
        """What it is done with."""
        ...

    def fetched(self, source: Source, name: str) -> Volume | Result:
        """The scan, or what is known to become of it."""
        ...

    def made(self, source: Source, name: str, scan: Volume) -> Result:
        """What becomes of the scan."""
        ...


@dataclass(frozen=True)
class Explained:
    """A scan that was explained.

    Attributes:
        folder: The name of its folder.
        said: The content of its ``factors.json``.
        found: Whether it was explained before, so that nothing was done.
    """

    folder: str
    said: Mapping[str, Any]
    found: bool


@dataclass(frozen=True)
class Explaining:
    """Explanations, each in a folder of its own.

    Attributes:
        model: By which.
        out: The folder of the folders.
        dicom: Whether to write DICOM objects too.
        fresh: Whether to do again what is done.
    """

    model: ModelFile
    out: Path
    dicom: bool
    fresh: bool

    def fetched(self, source: Source, name: str) -> Volume | Explained:
        """The scan, or what its folder holds if that is whole and of the same scan, model and program."""
        scan = source.read()
        said = None if self.fresh else self._kept(self.out / name, scan)
        return scan if said is None else Explained(name, said, found=True)

    def made(self, source: Source, name: str, scan: Volume) -> Explained:
        """Explain the scan into its folder."""
        explain(self.model.trained, scan).save(self.out / name, dicom=self.dicom)
        return Explained(name, json.loads((self.out / name / "factors.json").read_text(encoding="utf-8")), found=False)

    def _kept(self, folder: Path, scan: Volume) -> Mapping[str, Any] | None:
        inputs = {"scan_voxels_sha256": voxels_digest(scan), "model_sha256": self.model.digest}
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            outputs = manifest["outputs"]
            same = manifest["command"] == "explain" and manifest["inputs"] == inputs
            same = same and manifest["versions"] == versions()
            same = same and self.dicom == any(str(name).startswith("dicom/") for name in outputs)
            same = same and all((folder / name).is_file() for name in outputs)
            if not same or file_digest(folder / "factors.json") != outputs["factors.json"]:
                return None
            said: Mapping[str, Any] = json.loads((folder / "factors.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return said


@dataclass(frozen=True)
class Encoding:
    """Latents.

    Attributes:
        model: By which.
        journal: Where to note them.
    """

    model: ModelFile
    journal: Journal

    def fetched(self, source: Source, name: str) -> Volume | list[float]:
        """The scan, or its latents."""
        noted = self.journal.get(_key(source, "encode", self.model.digest))
        return [float(value) for value in noted] if isinstance(noted, list) else source.read()

    def made(self, source: Source, name: str, scan: Volume) -> list[float]:
        """Its latents."""
        row: list[float] = read_factors(self.model.trained, scan).abduction.q.loc[0].tolist()
        self.journal.put(_key(source, "encode", self.model.digest), row)
        return row


@dataclass(frozen=True)
class Looking:
    """What is kept of scans before they are harmonised.

    Attributes:
        model: By which.
        journal: Where to note it.
    """

    model: ModelFile
    journal: Journal

    def fetched(self, source: Source, name: str) -> Volume | Look:
        """The scan, or what is noted of it."""
        noted = self.journal.get(_key(source, "look", self.model.digest))
        return _look_of(noted) if isinstance(noted, dict) else source.read()

    def made(self, source: Source, name: str, scan: Volume) -> Look:
        """What is kept of the scan."""
        found = look(self.model.trained, scan)
        self.journal.put(_key(source, "look", self.model.digest), _noted(found))
        return found


@dataclass(frozen=True, eq=False)
class Moving:
    """Scans brought to one scanner.

    Attributes:
        model: By which.
        journal: Where to note what was seen of each afterwards.
        out: The folder of the harmonised scans.
        target: The scanner.
        goal: The same in words.
    """

    model: ModelFile
    journal: Journal
    out: Path
    target: Target
    goal: str

    def fetched(self, source: Source, name: str) -> Volume | Look:
        """The scan, or what is noted of the harmonised one."""
        noted = self.journal.get(self._key(source, name))
        if isinstance(noted, dict) and noted["digests"] == self._digests(name):
            return _look_of(noted["look"])
        return source.read()

    def made(self, source: Source, name: str, scan: Volume) -> Look:
        """Write the harmonised scan, and tell what is seen of it."""
        trained = self.model.trained
        moved = harmonised_scan(trained, read_factors(trained, scan), self.target)
        write_synthetic(moved, self.out / name, Making(scan, trained.digest, (self.goal,), command="harmonize"))
        after = look(trained, moved)
        self.journal.put(self._key(source, name), {"look": _noted(after), "digests": self._digests(name)})
        return after

    def _digests(self, name: str) -> list[str]:
        """What the harmonised scan and its sidecar hold, as far as they are there."""
        paths = [self.out / name, self.out / sidecar_name(self.out / name)]
        return [file_digest(path) for path in paths if path.is_file()]

    def _key(self, source: Source, name: str) -> str:
        target = [self.target.log_gain, self.target.log_gamma, self.target.bias.tolist(), self.target.known, self.goal]
        return _key(source, "move", self.model.digest, target, name)


def _key(source: Source, *more: object) -> str:
    """What names a result; empty where files do not tell what it is made of."""
    try:
        content = source.content()
    except OSError:  # reading it will say what is wrong
        return ""
    return "" if content is None else Journal.key(content, versions(), *more)


def _noted(found: Look) -> dict[str, object]:
    """A look in what JSON can tell, every bit of it."""
    parts = {part.name: getattr(found.sketch, part.name) for part in fields(Sketch)}
    return {
        "sketch": {name: [str(values.dtype), values.tolist()] for name, values in parts.items()},
        "readouts": [asdict(readout) for readout in found.readouts.values()],
        "known": found.known,
        "spread": found.spread,
    }


def _look_of(noted: Mapping[str, Any]) -> Look:
    parts = {name: np.array(values, dtype) for name, (dtype, values) in noted["sketch"].items()}
    readouts = [Readout(**row) for row in noted["readouts"]]
    return Look(Sketch(**parts), {row.name: row for row in readouts}, noted["known"], noted["spread"])
