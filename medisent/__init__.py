"""medisent explains 3D medical scans by known factors of variation. Importing it loads nothing else.

The public names are found when they are first used, so that ``import medisent`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medisent.version import __version__

if TYPE_CHECKING:
    from medisent import metrics as metrics
    from medisent.errors import MedisentError as MedisentError
    from medisent.formats import read as read
    from medisent.models import load as load
    from medisent.views import view as view

__all__ = ["MedisentError", "__version__", "load", "metrics", "read", "view"]

_HOMES = {
    "MedisentError": ("medisent.errors", "MedisentError"),
    "load": ("medisent.models", "load"),
    "metrics": ("medisent.metrics", None),
    "read": ("medisent.formats", "read"),
    "view": ("medisent.views", "view"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes have any type
    """The public name, imported now that it is needed."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medisent' has no attribute {name!r}. It has {', '.join(__all__)}.")
    module, attribute = _HOMES[name]
    home = importlib.import_module(module)
    value = home if attribute is None else getattr(home, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
