"""A volume of real numbers as a Parametric Map: single precision, in a unit, over its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.uid import ExplicitVRLittleEndian

from medisent.derived.origin import Origin, derived_uid, short
from medisent.derived.units import per_unit
from medisent.volumes import Volume


def write_map(volume: Volume, path: Path, origin: Origin, *, factor: str, unit: str, series_number: int) -> None:
    """Write what the scan gains per unit of a factor, in float32.

    Args:
        volume: The map, in the scan's space.
        path: Where to.
        origin: What it was made from.
        factor: The factor's name.
        unit: Of the factor.
        series_number: Of the new series.

    Raises:
        MachineError: The file cannot be written.
    """
    reach = float(np.percentile(np.abs(volume.voxels), 99.9)) or 1.0
    image = _map(volume, origin, f"intensity gained for each {unit or 'unit'} of {factor}", unit, (0, 2 * reach))
    image.SeriesDescription, image.SeriesNumber = short(f"medisent map {factor}"), series_number
    origin.write(image, path)


def write_synthetic_map(volume: Volume, path: Path, origin: Origin, *, said: str, series_number: int) -> None:
    """Write a counterfactual of a modality whose images cannot be made without its acquisition; see ``write_series``.

    Raises:
        MachineError: The file cannot be written.
    """
    low, high = np.percentile(origin.scan.voxels, [0.5, 99.5])
    window = (float(low + high) / 2, max(float(high - low), 1e-3))
    image = _map(volume, origin, f"SYNTHETIC intensity, {said}", None, window)
    image.SeriesDescription, image.SeriesNumber = short(f"SYNTHETIC medisent {said}"), series_number
    image.ImageComments = "SYNTHETIC: no patient looked like this. For research, not for diagnosis."
    origin.write(image, path)


def _map(volume: Volume, origin: Origin, meaning: str, unit: str | None, window: tuple[float, float]) -> ParametricMap:
    voxels = np.ascontiguousarray(volume.voxels.T, np.float32)  # (slices, rows, columns)
    series = derived_uid("map", origin.entropy, meaning, voxels.tobytes())
    mapping = RealWorldValueMapping(
        lut_label="INTENSITY",
        lut_explanation=short(meaning),
        unit=per_unit(unit, origin.source.modality),
        value_range=(float(voxels.min()), float(voxels.max())),
        slope=1.0,
        intercept=0.0,
    )
    image = ParametricMap(
        **origin.equipment(series),
        source_images=origin.stand_ins,
        pixel_array=voxels,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(*window, voi_lut_function="LINEAR_EXACT")],
        contains_recognizable_visual_features=False,
        content_description=short(meaning),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    image.Laterality = ""
    return image
