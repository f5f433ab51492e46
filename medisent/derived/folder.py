"""Where each derived object of a run is put, and the number of its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from medisent.derived.maps import write_map
from medisent.derived.masks import Segment, write_mask
from medisent.derived.origin import Origin
from medisent.derived.readouts import write_readouts
from medisent.derived.series import write_series
from medisent.readings import Readout
from medisent.volumes import Volume

_FIRST_SERIES = 9001  # above what scanners count to


@dataclass(frozen=True, eq=False)
class DerivedFolder:
    """A folder of objects derived from one scan; every object is a series of its own.

    Attributes:
        place: The folder.
        origin: What the objects come from.
    """

    place: Path
    origin: Origin
    _numbers: count[int] = field(default_factory=lambda: count(_FIRST_SERIES))
    _segments: dict[str, Segment] = field(default_factory=dict)

    def add_series(self, volume: Volume, name: str, said: str) -> None:
        """Add a counterfactual, in a folder of its own."""
        write_series(volume, self.place / name, self.origin, said=said, series_number=next(self._numbers))

    def add_map(self, volume: Volume, factor: str, unit: str) -> None:
        """Add a factor's map."""
        path = self.place / "maps" / f"{factor}.dcm"
        write_map(volume, path, self.origin, factor=factor, unit=unit, series_number=next(self._numbers))

    def add_mask(self, voxels: Bool[np.ndarray, "x y z"], factor: str) -> None:
        """Add the structure whose volume a factor is; the readouts will refer to it."""
        path = self.place / "masks" / f"{factor}.dcm"
        number = next(self._numbers)
        self._segments[factor] = write_mask(voxels, path, self.origin, factor=factor, series_number=number)

    def add_readouts(self, readouts: Sequence[Readout], levels: Mapping[str, str]) -> None:
        """Add what was read, once the masks are there."""
        write_readouts(
            readouts,
            self.place / "readouts.dcm",
            self.origin,
            levels=levels,
            segments=self._segments,
            series_number=next(self._numbers),
        )
