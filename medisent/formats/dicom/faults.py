"""The names of what can be wrong with DICOM images, and the verdict on those that should make one volume."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer

from medisent.errors import FormatError, GeometryError, MedisentError


class Fault(StrEnum):
    """What is wrong, by the name that a refusal's ``code`` ends in."""

    GAP = "gap"
    UNEVEN = "uneven"
    CROOKED = "crooked"
    TILT = "tilt"
    DUPLICATE = "duplicate"
    FOUR_D = "4d"
    ORIENTATION = "orientation"
    SIZE = "size"
    SPACING = "spacing"
    FRAME_OF_REFERENCE = "frame_of_reference"
    SINGLE_SLICE = "single_slice"
    LOCALISER = "localiser"
    NO_POSITION = "no_position"
    NO_ORIENTATION = "no_orientation"
    NO_SPACING = "no_spacing"
    AXES = "axes"
    FRAMES = "frames"
    MOSAIC = "mosaic"
    SEVERAL_SERIES = "several_series"
    SEVERAL_PEOPLE = "several_people"
    RGB = "rgb"
    NO_PIXELS = "no_pixels"
    BITS = "bits"
    MODALITY_LUT = "modality_lut"
    TRANSFER_SYNTAX = "transfer_syntax"
    DAMAGED = "damaged"

    def refusal(self, path: Path, words: str) -> MedisentError:
        """The refusal of ``path``, which carries the fault's name."""
        kind = FormatError if self in _OF_CONTENT else GeometryError
        return kind(f"{path} {words}", f"{kind.code}.{self}")


_OF_CONTENT = frozenset(
    {
        *(Fault.SEVERAL_SERIES, Fault.SEVERAL_PEOPLE, Fault.RGB, Fault.NO_PIXELS, Fault.BITS, Fault.MODALITY_LUT),
        *(Fault.TRANSFER_SYNTAX, Fault.DAMAGED),
    }
)


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether images make a volume.

    Attributes:
        level: ``ok``, ``warned`` or ``refused``.
        fault: What is refused, or first warned of.
        words: The refusal after the name of what is refused.
        remarks: Sentences about what had to be decided or corrected.
        order: Which image lies where: for each volume, its images along the normal; empty where that is not known.
        affine: Voxel index to millimetres, RAS+; None where it is not known.
    """

    level: Literal["ok", "warned", "refused"]
    fault: Fault | None = None
    words: str = ""
    remarks: tuple[str, ...] = ()
    order: Integer[np.ndarray, "volumes places"] | None = None
    affine: Float[np.ndarray, "4 4"] | None = None

    @property
    def refused(self) -> bool:
        """Whether the images must not be used."""
        return self.level == "refused"


def refused(fault: Fault, words: str) -> Verdict:
    """The verdict on images that cannot be used."""
    return Verdict("refused", fault, words)
