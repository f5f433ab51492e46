"""The study file: what it may say, how it is read, and what to say where it is wrong."""

from medisent.config.comparing import differences
from medisent.config.reading import dump_study, load_study, parse_study
from medisent.config.schema import schema, schema_text
from medisent.config.settings import (
    CohortSettings,
    Gate,
    NetworkSettings,
    ObjectiveSettings,
    ScannerSettings,
    Study,
    Supervision,
    TrainingSettings,
    Weights,
)
from medisent.factors import SCANNER_FACTORS

__all__ = [
    "SCANNER_FACTORS",
    "CohortSettings",
    "Gate",
    "NetworkSettings",
    "ObjectiveSettings",
    "ScannerSettings",
    "Study",
    "Supervision",
    "TrainingSettings",
    "Weights",
    "differences",
    "dump_study",
    "load_study",
    "parse_study",
    "schema",
    "schema_text",
]
