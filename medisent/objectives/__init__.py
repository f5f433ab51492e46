"""What training minimises: a weighted sum of terms, each in nats a scan, over one record (the draw)."""

from medisent.objectives.objective import TERMS, Objective
from medisent.objectives.term import Term

__all__ = ["TERMS", "Objective", "Term"]
