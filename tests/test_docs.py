"""Laws of the documents: their code compiles, their commands are understood, their links lead somewhere."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import typer

from medisent.checkpoints import PACKAGED_MODEL
from medisent.cli import app, main
from medisent.config import parse_study
from medisent.formats import write

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]{2,}")
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


def programs():
    """The Python blocks of each document, one after the other; slow where they need a model."""
    found: dict[Path, list[str]] = {}
    for document in DOCUMENTS:
        for match in BLOCK.finditer(document.read_text(encoding="utf-8")):
            if match[1] == "python":
                found.setdefault(document, []).append(match[2])
    for document, parts in found.items():
        text = "\n".join(parts)
        marks = [pytest.mark.slow] if "medisent.load" in text else []
        yield pytest.param(text, id=str(document.relative_to(ROOT)), marks=marks)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder as the documents assume it: a scan, a run, a few rendered heads."""
    folder = tmp_path_factory.mktemp("workplace")
    assert main(["phantom", str(folder / "heads"), "--subjects", "6", "--quiet"]) == 0
    shutil.copy(folder / "heads" / "scans" / "sub-0001_synthetic.nii.gz", folder / "scan.nii.gz")
    (folder / "runs" / "first").mkdir(parents=True)
    shutil.copy(PACKAGED_MODEL, folder / "runs" / "first" / "model.safetensors")
    return folder


@pytest.mark.parametrize("text", list(programs()))
def test_python_in_the_documents_runs(text, request, monkeypatch, tmp_path):
    monkeypatch.chdir(request.getfixturevalue("workplace") if "medisent.load" in text else tmp_path)
    exec(compile(text, "the document", "exec"), {})


@pytest.mark.slow
def test_the_tour_runs_from_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for document_block in BLOCK.finditer((ROOT / "docs" / "tour.md").read_text(encoding="utf-8")):
        if document_block[1] != "console":
            continue
        for words in commands(document_block[2]):
            if "train" in words:
                study = Path("study.toml")
                study.write_text(re.sub(r"minutes = \S+", "steps = 2", study.read_text(encoding="utf-8")), "utf-8")
            expanded = [
                str(hit) for word in words[1:] for hit in (sorted(Path().glob(word)) if "/*" in word else [word])
            ]
            assert main([*expanded, "--quiet"]) == (3 if "tumour_volume=500" in words else 0), words
    assert {path.name for path in tmp_path.iterdir()} >= {
        "explained",
        "wider.nii.gz",
        "codes.tsv",
        "harmonised",
        "runs",
    }
    assert not Path("huge.nii.gz").exists()


def told_keys():
    """By command, the keys that scripts are told to expect."""
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+)[^|]*\| ([^|]*) \|", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", keys.partition("(")[0])) for name, keys in rows if "`" in keys}


def printed(words, capsys):
    capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == 0
    return set(json.loads(capsys.readouterr().out))


def test_commands_print_the_keys_that_scripts_are_told(scan, model_file, tmp_path, capsys):
    told, path, cohort = told_keys(), tmp_path / "scan.nii.gz", tmp_path / "cohort"
    write(scan, path, description="rendered")
    model = ["--model", str(model_file)]
    calls = {
        "phantom": [str(cohort), "--subjects", "6", "--spacing", "12", "--shape", "16", "16", "16"],
        "init": [str(cohort / "cohort.tsv"), "-o", str(tmp_path / "study.toml")],
        "counterfactual": [str(path), *model, "-o", str(tmp_path / "out.nii.gz")],
        "harmonize": [str(path), *model, "-o", str(tmp_path / "harmonized")],
        "encode": [str(path), *model, "-o", str(tmp_path / "codes.tsv")],
        "info": [str(model_file)],
        "check": [],
    }
    for name, words in calls.items():
        assert told[name], name
        assert told[name] <= printed([name, *words], capsys), name


@pytest.fixture(scope="module")
def described():
    """The module that writes reference pages."""
    spec = importlib.util.spec_from_file_location("described", ROOT / "docs" / "described.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_and_every_key_of_a_study_has_its_sentence(described):
    rows = [line for line in (described.commands() + described.study_file()).splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.rstrip(" |").endswith("`")] == []


def test_every_command_and_section_is_described(described):
    text = described.commands() + described.study_file()
    assert {f"## {name}" for name in typer.main.get_command(app).commands} <= set(text.splitlines())
    assert "[weights]" in text
    assert "[[supervision]]" in text


def test_pages_of_the_site_link_within_the_site(described):
    docs = ROOT / "docs"
    for page in sorted(docs.rglob("*.md")):
        text = described.filled(page.read_text(encoding="utf-8"), page)
        for target in LINK.findall(text):
            assert (page.parent / target).exists(), f"{page}: {target} is not there"
            assert (page.parent / target).resolve().is_relative_to(docs), f"{page}: {target} is not on the site"


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


def misread(text):
    """Runs of letters that are UTF-8 once read as another encoding, and written so."""
    for run in BEYOND_ASCII.findall(text):
        try:
            run.encode("cp1252").decode("utf-8")
        except UnicodeError:
            continue
        yield run


@pytest.mark.parametrize("document", [pytest.param(d, id=str(d.relative_to(ROOT))) for d in DOCUMENTS])
def test_letters_of_the_documents_are_what_was_meant(document):
    assert list(misread(document.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(("text", "found"), [("R² – µm, ×1.5", []), ("R\u00c2\u00b2", ["\u00c2\u00b2"])])
def test_misread_letters_are_found(text, found):
    assert list(misread(text)) == found


def test_figures_of_the_readme_are_those_of_the_demo():
    measured = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(shown) > 8
    assert set(shown) <= set(measured), "update docs/demo.md, then copy its first two tables into the README"


def test_there_are_documents_to_check():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {d.name for d in DOCUMENTS}
    assert blocks("python")
    assert blocks("toml")
    assert blocks("console")
