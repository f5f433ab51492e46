"""The pages people open: one scan explained, one model measured. Plain values in, one HTML file out."""

from medisent.reports.evaluated import evaluation_page
from medisent.reports.explained import Comparison, FactorMap, explanation_page
from medisent.reports.pictures import Window, planes

__all__ = ["Comparison", "FactorMap", "Window", "evaluation_page", "explanation_page", "planes"]
