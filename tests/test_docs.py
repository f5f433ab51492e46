"""Laws of the documents: their code compiles, their commands are understood, their links lead somewhere."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from medisent.cli import app
from medisent.config import parse_study

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
MAKE = re.compile(r"^([a-z]+):", re.MULTILINE)


def blocks(language):
    found = []
    for document in DOCUMENTS:
        for i, match in enumerate(BLOCK.finditer(document.read_text(encoding="utf-8"))):
            if match[1] == language:
                found.append(pytest.param(match[2], id=f"{document.relative_to(ROOT)}-{i}"))
    return found


def commands(text):
    """What stands behind the prompts of a console block, or on every line of a block without prompts."""
    joined = text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in joined if line.startswith("$ ")]
    for line in prompted or joined:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


def options_of(command):
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("text", blocks("python"))
def test_python_in_the_documents_compiles(text):
    ast.parse(re.sub(r"^(>>>|\.\.\.) ?", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("text", blocks("toml"))
def test_studies_in_the_documents_are_understood(text):
    data = tomllib.loads(text)
    if {"cohort", "grid"} <= set(data):
        parse_study(text, "the document")


@pytest.mark.parametrize("text", [b for b in blocks("toml") if b.values[0].startswith("[[supervision]]")])
def test_supervision_in_the_documents_is_understood(text):
    study = """[cohort]
    table = "cohort.tsv"
    [grid]
    spacing_mm = 6.0
    shape = [32, 32, 32]
    [[factors]]
    name = "tumour_volume"
    role = "anatomy"
    kind = "positive"
    column = "tumour_ml"
    """
    assert parse_study(study + text, "the document").supervision


@pytest.mark.parametrize("text", blocks("console"))
def test_commands_in_the_documents_exist_with_their_options(text):
    known = typer.main.get_command(app).commands
    targets = set(MAKE.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    for words in commands(text):
        name = Path(words[0]).name
        if name == "make":
            assert set(words[1:]) <= targets
        if name == "medisent" and not words[1].startswith("-"):
            assert words[1] in known, f"there is no command {words[1]}"
            asked = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
            assert asked <= options_of(known[words[1]])


@pytest.mark.parametrize("document", [pytest.param(d, id=str(d.relative_to(ROOT))) for d in DOCUMENTS])
def test_links_in_the_documents_lead_somewhere(document):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{target} is not there"


def test_there_are_documents_to_check():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {d.name for d in DOCUMENTS}
    assert blocks("python")
    assert blocks("toml")
    assert blocks("console")
