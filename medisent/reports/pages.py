"""The shell of every page: one file that asks nothing of the network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medisent import words

_PERCENT = re.compile(r"(?<=\d) %")


def rendered(template: str, scripts: tuple[str, ...], facts: object, admitted: tuple[str, ...] = ()) -> str:
    """The HTML of a template.

    Args:
        template: Its name, without the ending.
        scripts: Names of the script templates that the page may run, in order.
        facts: What the template calls ``page``.
        admitted: Sources of further scripts that those scripts may start.
    """
    environment = _environment()
    sources = [environment.get_template(f"{name}.html.jinja").render() for name in scripts]
    page = environment.get_template(f"{template}.html.jinja")
    return page.render(page=facts, policy=policy([*sources, *admitted]), scripts=[Markup(source) for source in sources])


def policy(scripts: list[str]) -> str:
    """The content security policy: pictures from the page itself, inline style, these very scripts, nothing else."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def data_uri(png: bytes) -> str:
    """A picture as an address that holds the picture."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def embedded(content: str) -> Markup:
    """JSON as the content of a script element, which it cannot end."""
    return Markup(content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _unbroken(value: object) -> object:
    """Text with a thin space, at which no line breaks, before each percent sign; all else as it is."""
    if isinstance(value, str) and " %" in value and not isinstance(value, Markup):
        return _PERCENT.sub("\u202f%", value)
    return value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    environment.filters.update(
        number=words.number,
        percent=words.percent,
        measured=words.measured,
        words=words.words,
        sentence=words.sentence,
        ordinal=words.ordinal,
        path=lambda name: quote(str(name)),
        embedded=embedded,
    )
    return environment
