"""Scans of several scanners brought to one: whether they differ at all, what is moved, and what it came to."""

from medisent.harmonisation.findings import Findings, Look, Visit, look, tested, visits_of
from medisent.harmonisation.page import page as page_of
from medisent.harmonisation.scanner import Target, harmonised_scan
from medisent.harmonisation.sites import SiteTest, Sketch, site_test, sketch, why_not

__all__ = [
    "Findings",
    "Look",
    "SiteTest",
    "Sketch",
    "Target",
    "Visit",
    "harmonised_scan",
    "look",
    "page_of",
    "site_test",
    "sketch",
    "tested",
    "visits_of",
    "why_not",
]
