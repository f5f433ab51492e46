"""What training minimises: a weighted sum of terms, each in nats a scan, over one record (the draw)."""

from medisent.objectives.guards import active_units
from medisent.objectives.objective import TERMS, Objective, too_few_told
from medisent.objectives.term import Term

__all__ = ["TERMS", "Objective", "Term", "active_units", "too_few_told"]
