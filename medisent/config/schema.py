"""The JSON schema of study files: every section and key with its type, bounds, default and sentence, for editors."""

from __future__ import annotations

import json
from inspect import cleandoc, getdoc
from typing import Any

from medisent.config import settings
from medisent.config.reading import FACTORS, SECTIONS, SUPERVISION, TABLES, schema_of
from medisent.factors import FACTOR_TYPES, Factor
from medisent.grids import Grid

_CLASSES: dict[str, type] = {
    "cohort": settings.CohortSettings,
    "grid": Grid,
    "scanner": settings.ScannerSettings,
    "factors": Factor,
    "supervision": settings.Supervision,
    "training": settings.TrainingSettings,
    "network": settings.NetworkSettings,
    "weights": settings.Weights,
    "objective": settings.ObjectiveSettings,
    "gate": settings.Gate,
}
_KIND = "What values the factor takes."


def schema() -> dict[str, Any]:
    """The JSON schema of study files (draft 7, which editors know), with a description of every key."""
    tables = {name: _described(schema_of(adapter), _CLASSES[name]) for name, adapter in TABLES.items()}
    kinds = []
    for kind, adapter in FACTORS.items():
        one = _described(schema_of(adapter), FACTOR_TYPES[kind])
        one["properties"]["kind"] = {"const": kind, "description": _KIND}
        one["required"] = [*one.get("required", []), "kind"]
        kinds.append(one)
    entry = _described(schema_of(SUPERVISION), settings.Supervision)
    lists = {
        "factors": {"type": "array", "description": summary_of(Factor), "items": {"oneOf": kinds}},
        "supervision": {"type": "array", "description": entry["description"], "items": entry},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "medisent study file",
        "type": "object",
        "properties": {name: {**tables, **lists}[name] for name in SECTIONS},
        "required": ["cohort", "grid"],
        "additionalProperties": False,
    }


def schema_text() -> str:
    """The schema as a file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def class_of(section: str) -> type:
    """The class that a section is read into."""
    return _CLASSES[section]


def summary_of(kind: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((getdoc(kind) or "").split("\n\n")[0].split())


def attributes_of(kind: type) -> dict[str, str]:
    """The sentence about each attribute in a class's docstring and those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = cleandoc(base.__doc__ or "").partition("Attributes:\n")
        name = ""
        for line in listed.splitlines():
            if not line.strip() or not line.startswith("    "):
                break
            if not line.startswith("     "):
                name, _, said = line.strip().partition(": ")
                found[name] = said
            else:
                found[name] += " " + line.strip()
    return found


def _described(part: dict[str, Any], kind: type) -> dict[str, Any]:
    """The schema of a section with the sentences of its class; a tuple of equal parts as a list of that length."""
    said = attributes_of(kind)
    properties = {name: _plain({**one}) for name, one in part["properties"].items()}
    for name, one in properties.items():
        one.pop("title", None)
        if name in said:
            one["description"] = said[name].replace("``", "`")
    return {**part, "title": kind.__name__, "description": summary_of(kind), "properties": properties}


def _plain(one: dict[str, Any]) -> dict[str, Any]:
    """A value's schema in words of draft 7, and without null, which TOML does not have."""
    if listed := one.pop("anyOf", one.pop("oneOf", None)):
        choices = [_plain({**choice}) for choice in listed if choice.get("type") != "null"]
        one = {**one, **(choices[0] if len(choices) == 1 else {"anyOf": choices})}
    if one.get("default", ...) is None:
        del one["default"]
    parts = one.pop("prefixItems", None)
    if parts and all(part == parts[0] for part in parts):
        one["items"] = parts[0]
    return one
