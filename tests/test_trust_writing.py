"""Laws of who writes: the package's source holds no way to a final name but the one in ``medisent/files.py``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import medisent

SOURCE = Path(medisent.__file__).parent
WRITERS = frozenset(
    {
        *("write_text", "write_bytes", "tofile", "to_filename", "save_as", "save_file", "savefig", "imsave", "imwrite"),
        *("to_csv", "to_json", "to_html", "to_excel", "to_parquet", "to_pickle", "to_feather", "to_hdf", "WriteImage"),
        *("copy2", "copyfile", "copytree", "move", "rename", "touch", "symlink", "symlink_to", "hardlink_to", "link"),
        *("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory", "make_archive"),
        *(
            "extractall",
            "savez",
            "savez_compressed",
            "savetxt",
            "memmap",
            "open_memmap",
            "unpack_archive",
            "urlretrieve",
        ),
    }
)
BLOCKS = frozenset({"whole_file", "whole_folder"})
ALLOWED = {
    ("bench/claims.py", "os.open"): "a lock that other processes look for under its own name",
    ("formats/dicom/pixels.py", "tempfile.TemporaryDirectory"): "pixels alone, for the decoder's process; no output",
    ("formats/dicom/pixels.py", "-.save_as"): "into that folder",
    ("formats/child.py", "os.fdopen"): "the decoder's pipe",
    ("training/memory.py", "-.write_text"): "a word to the kernel, that it may forget the peak of memory; no file",
    ("explanations/explanation.py", "TemporaryDirectory"): "a report to be shown in a notebook; no output",
    ("sklearn.py", "tempfile.TemporaryDirectory"): "a table of the rows to fit, for the time of the fit",
    ("sklearn.py", "-.to_csv"): "into that folder",
}


def writing_calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every call that may write a file outside a block that makes it whole: what is called, and in which line."""
    streams = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and called(node.value) in ("io.BytesIO", "io.StringIO")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    left: list[tuple[ast.AST, bool]] = [(tree, False)]
    while left:
        node, guarded = left.pop()
        if isinstance(node, ast.With):
            guarded = guarded or any(called(item.context_expr) in BLOCKS for item in node.items)
        if isinstance(node, ast.Call) and not guarded and writes(node, streams):
            yield called(node), node.lineno
        left += [(child, guarded) for child in ast.iter_child_nodes(node)]


def called(node: ast.AST) -> str:
    """The dotted name of what a call calls; what is not a name stands as a dash."""
    return dotted(node.func) if isinstance(node, ast.Call) else ""


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "-"


def writes(call: ast.Call, streams: set[str]) -> bool:
    whole = called(call)
    name = whole.split(".")[-1]
    told = [*call.args, *(k.value for k in call.keywords if k.arg not in ("encoding", "errors", "dicom"))]
    if whole == "write_text" or any(isinstance(a, ast.Name) and a.id in streams for a in told):
        return False  # the function of medisent.files, or into memory
    if name in ("open", "fdopen"):
        told = told[1:] if whole in ("open", "io.open", "os.fdopen") else told  # what comes first is the path
        modes = [a.value for a in told if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        flags = [dotted(part) for a in told for part in ast.walk(a) if isinstance(part, ast.Attribute)]
        writing = ("os.O_CREAT", "os.O_WRONLY", "os.O_RDWR", "os.O_APPEND", "os.O_TRUNC")
        return any(set(mode) & set("wax+") for mode in modes) or any(flag in writing for flag in flags)
    if name == "save":  # our own results are saved by one argument, whole; libraries ask for more, or are named
        if whole == "save":  # of safetensors, which gives bytes
            return False
        return len(told) > 1 or whole.split(".")[0] in ("torch", "np", "nib", "image", "figure", "numpy")
    if name == "replace":  # of a path; texts take two arguments, dataclasses are replaced by a plain name
        return whole == "os.replace" or ("." in whole and len(call.args) == 1 and not call.keywords)
    if name == "rename" and any(k.arg in ("columns", "index") for k in call.keywords):  # of a table
        return False
    if name in ("to_csv", "to_json", "to_html"):
        return bool(call.args) or any(k.arg in ("path_or_buf", "buf") for k in call.keywords)
    return name in WRITERS or whole in ("json.dump", "shutil.copy", "np.save", "pickle.dump")


def test_nothing_but_the_one_writer_writes():
    found = {
        (str(path.relative_to(SOURCE)), what): f"{path.relative_to(SOURCE)}:{line} {what}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "files.py"
        for what, line in writing_calls(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert [place for key, place in found.items() if key not in ALLOWED] == []
    assert set(ALLOWED) <= set(found)  # no reason outlives its line


@pytest.mark.parametrize(
    "line",
    [
        *("open('x', 'w')", "open(p, mode='ab')", "p.open('wb')", "p.open('r+')", "os.open(p, os.O_CREAT)"),
        *("p.write_text('x')", "p.write_bytes(b)", "p.touch()", "p.replace(q)", "os.replace(p, q)", "p.rename(q)"),
        *("np.save(p, x)", "np.savez(p, x)", "x.tofile(p)", "np.memmap(p, mode='w+')", "json.dump(x, f)"),
        *("t.to_csv(p)", "t.to_csv(path_or_buf=p)", "torch.save(x, p)", "save_file(x, p)", "pickle.dump(x, f)"),
        *("nib.save(x, p)", "sitk.WriteImage(x, p)", "ds.save_as(p)", "figure.savefig(p)", "image.save(p)"),
        *("shutil.copy(p, q)", "shutil.move(p, q)", "tempfile.mkdtemp()", "archive.extractall(p)"),
        *("with other(p) as f: f.write_text('x')", "def f(): return p.write_text('x')"),
    ],
)
def test_each_way_of_writing_is_found(line):
    assert len(list(writing_calls(ast.parse(line)))) == 1


@pytest.mark.parametrize(
    "line",
    [
        *("open('x')", "p.open('rb')", "os.open(p, os.O_RDONLY)", "'a'.replace('b', 'c')", "replace(study, seed=1)"),
        *(
            "t.to_csv(sep='x')",
            "explanation.save(folder)",
            "stream = io.BytesIO()\nfigure.savefig(stream, format='png')",
        ),
        *(
            "with whole_file(p) as t: t.write_text('x')",
            "with whole_folder(p, record='r') as t:\n  np.save(t / 'x', x)",
        ),
    ],
)
def test_what_does_not_write_is_not_found(line):
    assert list(writing_calls(ast.parse(line))) == []
