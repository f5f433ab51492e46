"""Knows how to measure a trained model on scans it has not seen: what it reads, what leaks, what its edits do."""

from medisent.evaluation.findings import Disturbance, EditScore, Evaluation, Readout, Reconstruction
from medisent.evaluation.gates import check_gate
from medisent.evaluation.measuring import evaluate

__all__ = ["Disturbance", "EditScore", "Evaluation", "Readout", "Reconstruction", "check_gate", "evaluate"]
