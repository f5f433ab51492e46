"""Many scans: what is done with each, here or on several machines, and gone on with where a killed run stopped."""

from medisent.many.engine import Engine, Item, Outcome, here
from medisent.many.journal import Journal
from medisent.many.sources import Source, limited, sources_of, stem, unique_names
from medisent.many.summary import Line, write_summary
from medisent.many.works import Encoding, Explained, Explaining, Looking, ModelFile, Moving, Work

__all__ = [
    "Encoding",
    "Engine",
    "Explained",
    "Explaining",
    "Item",
    "Journal",
    "Line",
    "Looking",
    "ModelFile",
    "Moving",
    "Outcome",
    "Source",
    "Work",
    "here",
    "limited",
    "sources_of",
    "stem",
    "unique_names",
    "write_summary",
]
