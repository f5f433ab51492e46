"""Knows what a model has to say about one scan: factors, maps, counterfactuals, and the report."""

from medisent.explanations.explanation import SCHEMA, Explanation, deriving, explain

__all__ = ["SCHEMA", "Explanation", "deriving", "explain"]
