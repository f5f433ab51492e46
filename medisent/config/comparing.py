"""What two studies say differently, setting by setting."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from medisent.config.reading import dump_study
from medisent.config.settings import Study


def differences(there: Study, here: Study) -> list[str]:
    """Each setting of which two studies say something else, as ``[training] batch: 4 there, 8 here``."""
    old, new = dict(_settings(there)), dict(_settings(here))
    return [
        f"{name}: {old.get(name, 'nothing')} there, {new.get(name, 'nothing')} here"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name)
    ]


def _settings(study: Study) -> Iterator[tuple[str, str]]:
    """Every setting under its name, as the study file has it."""
    data: Mapping[str, Any] = tomllib.loads(dump_study(study))
    for section, part in data.items():
        entries = part if isinstance(part, list) else [part]
        for number, entry in enumerate(entries):
            own = f" {entry.get('name', number + 1)}" if isinstance(part, list) else ""
            place = f"[[{section}]]{own}" if isinstance(part, list) else f"[{section}]"
            yield from ((f"{place} {key}", str(value)) for key, value in entry.items())
