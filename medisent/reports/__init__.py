"""The pages people open: a scan explained, a model measured, a training, methods compared. Plain values in, HTML."""

from medisent.reports.benched import BenchCell, BenchTable, bench_page
from medisent.reports.evaluated import evaluation_page
from medisent.reports.explained import Answer, Comparison, EditCheck, FactorMap, explanation_page, scan_page
from medisent.reports.harmonised import Columns, Pair, harmonisation_page
from medisent.reports.trained import Block, Ending, Film, training_page
from medisent.reports.traversals import Traversal
from medisent.volumes.pictures import Window, planes

__all__ = [
    "Answer",
    "BenchCell",
    "BenchTable",
    "Block",
    "Columns",
    "Comparison",
    "EditCheck",
    "Ending",
    "FactorMap",
    "Film",
    "Pair",
    "Traversal",
    "Window",
    "bench_page",
    "evaluation_page",
    "explanation_page",
    "harmonisation_page",
    "planes",
    "scan_page",
    "training_page",
]
