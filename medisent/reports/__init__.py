"""The pages people open: one scan explained, one model measured, methods compared. Plain values in, HTML out."""

from medisent.reports.benched import BenchTable, bench_page
from medisent.reports.evaluated import evaluation_page
from medisent.reports.explained import Answer, Comparison, EditCheck, FactorMap, explanation_page
from medisent.reports.harmonised import Columns, Pair, harmonisation_page
from medisent.volumes.pictures import Window, planes

__all__ = [
    "Answer",
    "BenchTable",
    "Columns",
    "Comparison",
    "EditCheck",
    "FactorMap",
    "Pair",
    "Window",
    "bench_page",
    "evaluation_page",
    "explanation_page",
    "harmonisation_page",
    "planes",
]
