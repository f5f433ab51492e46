"""Readouts as a Structured Report (TID 1500): each factor with value, unit, interval, and the segment it tells of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from medisent.derived.masks import Segment
from medisent.derived.origin import MANUFACTURER, MODEL_NAME, Origin, derived_uid
from medisent.derived.units import own_concept, unit_code
from medisent.readings import Readout
from medisent.version import __version__
from medisent.words import words

Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def write_readouts(
    readouts: Sequence[Readout],
    path: Path,
    origin: Origin,
    *,
    levels: Mapping[str, str],
    segments: Mapping[str, Segment],
    series_number: int,
) -> None:
    """Write what a model reads from a scan as a Comprehensive 3D SR.

    Args:
        readouts: One a factor.
        path: Where to.
        origin: What they were read from.
        levels: For factors with levels, the one that was read.
        segments: For factors whose structure was written, the segment.
        series_number: Of the new series.

    Raises:
        MachineError: The file cannot be written.
    """
    told = [repr(readouts), repr(dict(levels)), *(segment.image.SOPInstanceUID for segment in segments.values())]
    series = derived_uid("readouts", origin.entropy, *told)
    observer = DeviceObserverIdentifyingAttributes(
        uid=derived_uid("model", origin.model, __version__),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=origin.model[:16],
    )
    context = ObservationContext(ObserverContext(codes.DCM.Device, observer))
    groups = [_group(readout, origin, levels.get(readout.name), segments.get(readout.name)) for readout in readouts]
    report = MeasurementReport(
        observation_context=context,
        procedure_reported=CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
    )
    document = Comprehensive3DSR(
        **origin.equipment(series),
        evidence=[*origin.stand_ins, *(segment.image for segment in segments.values())],
        content=report,
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    document.SeriesDescription, document.SeriesNumber = "medisent readouts", series_number
    origin.write(document, path)


def _group(readout: Readout, origin: Origin, level: str | None, segment: Segment | None) -> Group:
    concept = own_concept(readout.name, words(readout.name))
    identifier = TrackingIdentifier(derived_uid("readout", origin.entropy, readout.name), readout.name[:64])
    algorithm = AlgorithmIdentification(MANUFACTURER, __version__, [f"model {origin.model[:16]}"])
    if level is not None:
        evaluation = QualitativeEvaluation(concept, own_concept(level, level))
        return MeasurementsAndQualitativeEvaluations(
            identifier, algorithm_id=algorithm, finding_type=concept, qualitative_evaluations=[evaluation]
        )
    measurements = _measurements(readout, concept)
    if segment is None:
        return MeasurementsAndQualitativeEvaluations(
            identifier, algorithm_id=algorithm, finding_type=concept, measurements=measurements
        )
    reference = ReferencedSegment(
        segment.image.SOPClassUID,
        segment.image.SOPInstanceUID,
        1,
        source_series=SourceSeriesForSegmentation(origin.source.series),
    )
    measurements.append(Measurement(codes.SCT.Volume, segment.volume_ml, unit_code("mL")))
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        identifier,
        referenced_segment=reference,
        algorithm_id=algorithm,
        finding_type=concept,
        measurements=measurements,
    )


def _measurements(readout: Readout, concept: CodedConcept) -> list[Measurement]:
    """The estimate, how sure it is, and where it stands."""
    unit, percent = unit_code(readout.unit), CodedConcept("%", "UCUM", "percent")
    found = [Measurement(concept, readout.estimate, unit)]
    if math.isfinite(readout.low):
        level = f"{100 * readout.level:g} % interval"
        found.append(Measurement(own_concept("interval_low", f"lower end of the {level}"), readout.low, unit))
        found.append(Measurement(own_concept("interval_high", f"upper end of the {level}"), readout.high, unit))
        found.append(Measurement(own_concept("interval_level", "level of the interval"), 100 * readout.level, percent))
    if math.isfinite(readout.percentile):
        found.append(
            Measurement(own_concept("percentile", "percentile among the training scans"), readout.percentile, percent)
        )
    return found
