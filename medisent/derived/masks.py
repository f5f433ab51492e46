"""What a model takes for a structure, as a Segmentation over its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from jaxtyping import Bool
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from medisent.derived.origin import MANUFACTURER, Origin, derived_uid, short
from medisent.derived.units import own_concept
from medisent.version import __version__
from medisent.words import words


@dataclass(frozen=True, eq=False)
class Segment:
    """A structure that was written, for a report to refer to.

    Attributes:
        image: The Segmentation, whose only segment it is.
        volume_ml: Of its voxels.
    """

    image: Segmentation
    volume_ml: float


def write_mask(
    mask: Bool[np.ndarray, "x y z"], path: Path, origin: Origin, *, factor: str, series_number: int
) -> Segment:
    """Write a structure as a binary Segmentation.

    Args:
        mask: The voxels of the structure, in the scan's space; at least one.
        path: Where to.
        origin: What found it.
        factor: The factor that tells the structure's volume.
        series_number: Of the new series.

    Raises:
        MachineError: The file cannot be written.
    """
    named = words(factor)
    voxels = np.ascontiguousarray(mask.T)  # (slices, rows, columns)
    series = derived_uid("mask", origin.entropy, factor, np.packbits(voxels).tobytes())
    segment = SegmentDescription(
        segment_number=1,
        segment_label=short(named),
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=own_concept(factor, named),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=MANUFACTURER, family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
        tracking_uid=derived_uid("structure", series),
        tracking_id=short(named),
    )
    image = Segmentation(
        **origin.equipment(series),
        source_images=origin.stand_ins,
        pixel_array=voxels.astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        content_description=short(f"what the model takes for {named}"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    image.SeriesDescription, image.SeriesNumber = short(f"medisent mask {factor}"), series_number
    origin.write(image, path)
    return Segment(image, float(mask.sum()) * origin.scan.geometry.voxel_ml)
