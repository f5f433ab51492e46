"""How a synthetic scan leaves: as NIfTI that says what it is, with a sidecar of what was asked, from what, by what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medisent.files import digests, whole_folder, write_text
from medisent.formats import write
from medisent.version import __version__
from medisent.volumes import Stored, Volume
from medisent.words import edit as in_words

_SYNTHETIC = "synthetic: medisent, research use only"


@dataclass(frozen=True)
class Edit:
    """A factor's new value.

    Attributes:
        factor: Its name.
        value: In its unit; the number of the level where it has levels.
        unit: Of the value.
    """

    factor: str
    value: float
    unit: str


@dataclass(frozen=True, eq=False)
class Making:
    """What a synthetic scan was made of.

    Attributes:
        scan: What was edited.
        model: SHA-256 of the model file.
        wishes: What was asked, in words such as ``tumour_volume=20``.
        edits: What that came to, where it is known.
        command: Which command made it.
        step: Of the values that are not the scan's own, where they were rounded to steps.
    """

    scan: Volume
    model: str
    wishes: tuple[str, ...]
    edits: tuple[Edit, ...] = ()
    command: str = "counterfactual"
    step: float = 0.0

    @property
    def asked(self) -> str:
        """All wishes in one line."""
        return ", ".join(self.wishes) or "nothing changed"

    @property
    def description(self) -> str:
        """What a header says about the scan."""
        return f"{_SYNTHETIC}; {self.asked}"

    @property
    def caption(self) -> str:
        """What people are told of the scan."""
        units = {edit.factor: edit.unit for edit in self.edits}
        asked = ", ".join(in_words(wish, units.get(wish.split("=")[0], "")) for wish in self.wishes)
        return f"{_SYNTHETIC}; {asked or self.asked}. No patient looked like this. Not for diagnosis."


def write_synthetic(volume: Volume, path: Path, making: Making, beside: Callable[[Path], None] | None = None) -> None:
    """Write a synthetic scan as NIfTI, stored as the scan it was made from if that loses nothing, and its sidecar.

    Args:
        volume: The synthetic scan.
        path: Where to.
        making: What it was made of.
        beside: Writes into a folder what else is to come into that of the scan, all at once.

    Raises:
        UsageError: The name does not end in ``.nii`` or ``.nii.gz``.
        MachineError: A file cannot be written.
    """
    with whole_folder(path.parent, record=sidecar_name(path)) as place:
        stored = write(volume, place / path.name, description=making.description, like=making.scan)
        if beside is not None:
            beside(place)
        write_text(place / sidecar_name(path), _sidecar(making, stored, digests(place)))


def _sidecar(making: Making, stored: Stored, outputs: Mapping[str, str]) -> str:
    said = {
        "synthetic": True,
        "Description": making.caption,
        "GeneratedBy": [{"Name": "medisent", "Version": __version__}],
        "SourceVoxelsSHA256": voxels_digest(making.scan),
        "ModelSHA256": making.model,
        "set": making.wishes,
        "edits": [asdict(edit) for edit in making.edits],
        "DataType": stored.dtype,
        "Slope": stored.slope,
        "Intercept": stored.intercept,
        "Step": making.step or None,  # of the values that are not the scan's own
        "command": making.command,
        "outputs": outputs,  # what the next run under this name replaces
    }
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


def sidecar_name(path: Path) -> str:
    """The name of the file beside a NIfTI file that says what it is."""
    return path.name.removesuffix(".gz").removesuffix(".nii") + ".json"


def voxels_digest(scan: Volume) -> str:
    """SHA-256 of a scan's values and place."""
    return hashlib.sha256(np.ascontiguousarray(scan.voxels).tobytes() + scan.affine.tobytes()).hexdigest()
