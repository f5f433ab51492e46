"""Laws of the installation: what is imported is asked for, and what is asked for has a version that was tested."""

import ast
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = {"medisent": ("", "dask", "tensorboard"), "examples": ("", "dev"), "tests": ("", "dev"), "docs": ("", "dev")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLAIMS = re.compile(r"(?:importorskip|import_module|find_spec)$")


def asked_for(*extras: str) -> set[str]:
    """The distributions that pyproject.toml names for these extras and the extras in them; "" is for everyone."""
    named: set[str] = set()
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
            wanted = Requirement(line)
            own = wanted.name == PROJECT["name"]
            named |= asked_for(*wanted.extras) if own else {canonicalize_name(wanted.name)}
    return named


@cache
def brought_by() -> Mapping[str, list[str]]:
    """The distributions that bring each module that can be imported here."""
    return packages_distributions()


def imported(source: str) -> set[str]:
    """The top-level modules that a file imports, at its head, in functions, or by a name written out."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and CLAIMS.search(ast.unparse(node.func)) and node.args:
            first = node.args[0]
            found |= {first.value} if isinstance(first, ast.Constant) else set()
    return {name.partition(".")[0] for name in found}


def foreign(folder: str) -> dict[str, str]:
    """Modules that neither Python nor this project brings, each with a file that imports it."""
    files = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in EXTRAS}
    own = {PROJECT["name"], *sys.stdlib_module_names, *(path.stem for paths in files.values() for path in paths)}
    found = {name: path for path in files[folder] for name in imported(path.read_text(encoding="utf-8"))}
    return {name: str(path.relative_to(ROOT)) for name, path in found.items() if name not in own}


@pytest.mark.parametrize("folder", EXTRAS)
def test_what_is_imported_is_asked_for(folder):
    named = asked_for(*EXTRAS[folder])
    lost = {
        name: path
        for name, path in foreign(folder).items()
        if not named & {canonicalize_name(distribution) for distribution in brought_by().get(name, ())}
    }
    assert not lost, f"pyproject.toml names nothing that brings {lost}"


def test_what_is_asked_for_has_a_version_that_was_tested():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fixed = {canonicalize_name(Requirement(line).name): line for line in lines if line and not line.startswith("#")}
    assert asked_for("", "dev") <= set(fixed)
    assert all("==" in line for line in fixed.values())


def test_an_import_is_found_wherever_it_stands():
    source = (
        "import a.b\nfrom c.d import e\ndef f():\n    import g\n    pytest.importorskip('h.i')\n    from . import j\n"
    )
    assert imported(source) == {"a", "c", "g", "h"}
