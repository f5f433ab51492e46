"""A first study file for a cohort: what its table and its scans say, and what to beware of."""

from medisent.config.proposing.proposal import Proposal, propose_study
from medisent.config.proposing.sizes import Machine
from medisent.config.proposing.survey import Unreadable

__all__ = ["Machine", "Proposal", "Unreadable", "propose_study"]
