"""Pages that the program writes about itself: its commands, its study file, its exit codes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import Any

import typer

from medisent import errors
from medisent.cli import app
from medisent.config import schema
from medisent.config.schema import attributes_of, class_of, summary_of
from medisent.factors import FACTOR_TYPES, Factor

_KINDS = {int: "N", int | None: "N", float: "X"}


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    return "\n".join(line for name, command in _commands().items() for line in _command(name, command))


def study_file() -> str:
    """Every section and key of a study file with type, default and meaning, as Markdown."""
    return "\n".join(line for name, part in schema()["properties"].items() for line in _section(name, part))


def exit_codes() -> str:
    """The classes of refusals with their codes, as a table in Markdown."""
    rows = ["| class | `code` begins with | exit code | meaning |", "|---|---|---|---|"]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.MedisentError) and kind is not errors.MedisentError:
            rows.append(f"| `{kind.__name__}` | `{kind.code}` | {kind.exit_code} | {getdoc(kind)} |")
    return "\n".join(rows)


def _commands() -> Mapping[str, Any]:
    known: Mapping[str, Any] = typer.main.get_command(app).commands
    return known


def _command(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401 - a command of Typer's own
    takes = " ".join(p.metavar or p.name.upper() for p in _arguments(command))
    yield from (f"## {name}", "", "```text", f"medisent {name} [OPTIONS] {takes}".rstrip(), "```", "")
    yield from (cleandoc(command.help or ""), "")
    if any(parameter.help for parameter in _arguments(command)):
        yield from ("| argument | |", "|---|---|")
        yield from (f"| `{p.metavar or p.name.upper()}` | {_cell(p.help)} |" for p in _arguments(command))
        yield ""
    yield from ("| option | default | |", "|---|---|---|")
    yield from (_option(p) for p in command.params if p.param_type_name == "option" and p.name != "help")
    yield ""


def _arguments(command: Any) -> list[Any]:  # noqa: ANN401
    return [p for p in command.params if p.param_type_name == "argument"]


def _option(parameter: Any) -> str:  # noqa: ANN401
    value = (
        "" if parameter.is_flag else f" {parameter.metavar or _KINDS.get(parameter.type_descriptor.annotation, 'TEXT')}"
    )
    plain = parameter.default is None or parameter.is_flag or callable(parameter.default)
    default = "required" if parameter.required else "" if plain else f"`{_shown(parameter.default)}`"
    return f"| `{', '.join(parameter.opts)}{value}` | {default} | {_cell(parameter.help)} |"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _section(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    listed = part.get("type") == "array"
    yield from (f"## {f'[[{name}]]' if listed else f'[{name}]'}", "")
    kind = class_of(name)
    yield from (summary_of(kind), "")
    if name == "factors":
        yield from _factors()
        return
    yield from _keys(part["items"] if listed else part, attributes_of(kind))


def _factors() -> Iterator[str]:
    """The keys that all kinds of factors have, then what each kind adds."""
    kinds = {one["properties"]["kind"]["const"]: one for one in schema()["properties"]["factors"]["items"]["oneOf"]}
    common = set.intersection(*(set(one["properties"]) for one in kinds.values()))
    first = next(iter(kinds.values()))
    shared = {**first, "properties": {key: first["properties"][key] for key in first["properties"] if key in common}}
    shared["properties"]["kind"] = {"enum": list(kinds)}
    said = {**attributes_of(Factor), "kind": "What values it takes, see below."}
    yield from _keys(shared, said)
    yield from ("", "| kind | what it is | further keys |", "|---|---|---|")
    for kind, one in kinds.items():
        own = [
            f"`{key}`: {attributes_of(FACTOR_TYPES[kind]).get(key, '')}"
            for key in one["properties"]
            if key not in common
        ]
        yield f"| `{kind}` | {_cell(summary_of(FACTOR_TYPES[kind]))} | {_cell(' '.join(own))} |"
    yield ""


def _keys(part: Mapping[str, Any], said: Mapping[str, str]) -> Iterator[str]:
    yield from ("| key | values | default | |", "|---|---|---|---|")
    for key, one in part["properties"].items():
        default = "needed" if key in part.get("required", ()) else _default(one.get("default"))
        yield f"| `{key}` | {_cell(_values(one))} | {default} | {_cell(said.get(key, ''))} |"
    yield ""


def _default(value: object) -> str:
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
    return f"`{text.replace(chr(39), chr(34))}`"


def _values(one: Mapping[str, Any]) -> str:
    """What a key may hold, in words."""
    if "anyOf" in one:
        return " or ".join(_values(choice) for choice in one["anyOf"] if choice.get("type") != "null")
    if one.get("type") == "object":
        return "a table of such"
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    if one.get("type") == "array":
        length = one.get("minItems") if one.get("minItems") == one.get("maxItems") else None
        return f"{length or 'list'} of: {_values(one.get('items', {}))}"
    words = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "multipleOf": "a multiple of"}
    limits = [f"{word} {one[bound]:g}" for bound, word in bounds.items() if bound in one]
    return ", ".join([words.get(str(one.get("type")), "text"), *limits])


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ").replace("``", "`")


_GENERATED: dict[str, Callable[[], str]] = {"commands": commands, "study-file": study_file, "exit-codes": exit_codes}
_DOCS = Path(__file__).parent
_ELSEWHERE = {  # pages of the site that are files elsewhere in the repository
    "README.md": "index.md",
    "AGENTS.md": "scripts.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/recipes/README.md": "recipes.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def filled(text: str, page: Path) -> str:
    """A page of the site with what it takes from elsewhere in place, and links that hold within the site.

    Arguments:
        text: Of the page; ``<!-- generated: NAME -->`` stands for what the program says of itself,
            ``<!-- page: PATH -->`` for a file of the repository.
        page: Where the page is.
    """
    text = re.sub(r"<!-- generated: (\S+) -->", lambda mark: _GENERATED[mark[1]](), text)
    if found := re.search(r"<!-- page: (\S+) -->", text):
        source = (page.parent / found[1]).resolve()
        return relinked(source.read_text(encoding="utf-8"), source, page)
    return relinked(text, page, page)


def relinked(text: str, source: Path, page: Path) -> str:
    """The text of a file with its links as they have to be on a page; those to files without a page are plain text."""

    def link(match: re.Match[str]) -> str:
        target = (source.parent / match[3]).resolve()
        name = str(target.relative_to(_DOCS.parent))
        if name in _ELSEWHERE:
            target = _DOCS / _ELSEWHERE[name]
        if not target.is_relative_to(_DOCS):
            return match[2]
        return f"{match[1]}[{match[2]}]({os.path.relpath(target, page.parent)}{match[4] or ''})"

    return _LINK.sub(link, text)


def setup(site: Any) -> dict[str, bool]:  # noqa: ANN401 - Sphinx's application
    """Let Sphinx fill pages as it reads them."""

    def fill(_: object, name: str, source: list[str]) -> None:
        source[0] = filled(source[0], _DOCS / f"{name}.md")

    site.connect("source-read", fill)
    return {"parallel_read_safe": True}
