"""DICOM objects derived from a DICOM scan, for a PACS: they lie over their source and name nobody.

It is imported where such objects are asked for, and nowhere else: highdicom comes with it.
"""

from __future__ import annotations

from medisent.derived.folder import DerivedFolder
from medisent.derived.maps import write_map
from medisent.derived.masks import Segment, write_mask
from medisent.derived.origin import Origin
from medisent.derived.readouts import write_readouts
from medisent.derived.series import write_series

__all__ = ["DerivedFolder", "Origin", "Segment", "write_map", "write_mask", "write_readouts", "write_series"]
