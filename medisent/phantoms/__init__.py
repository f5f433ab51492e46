"""Rendered heads with known factors, the scanners that see them, cohorts of them, and a ruler to measure edits with."""

from medisent.phantoms.acquisition import Acquisition, acquire, bias_field, bias_strength
from medisent.phantoms.cohort import write_cohort
from medisent.phantoms.heads import Anatomy, Head, Masks, render
from medisent.phantoms.ruler import Measurement, Ruler, measure_tumour_ml, measure_ventricle_ml
from medisent.phantoms.sampling import Plan, Visit, sample
from medisent.phantoms.tissues import T1_WEIGHTED, Tones

__all__ = [
    "T1_WEIGHTED",
    "Acquisition",
    "Anatomy",
    "Head",
    "Masks",
    "Measurement",
    "Plan",
    "Ruler",
    "Tones",
    "Visit",
    "acquire",
    "bias_field",
    "bias_strength",
    "measure_tumour_ml",
    "measure_ventricle_ml",
    "render",
    "sample",
    "write_cohort",
]
