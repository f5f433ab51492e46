"""The notebook in examples runs from its first cell to its last, shows what it says, and what it shows is true."""

import ast
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"


def run(source: str, names: dict[str, object]) -> object:
    """What a cell shows: the value of its last expression, unless a semicolon ends it."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return None if source.rstrip().endswith(";") else value


def code() -> list[str]:
    """The cells with code."""
    cells = [c for c in json.loads(TOUR.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "what a notebook shows is made, not kept"
    return ["".join(cell["source"]) for cell in cells]


def test_the_tour_begins_with_a_scan_and_a_model_and_all_its_cells_compile():
    cells = code()
    assert all(ast.parse(cell) for cell in cells)
    names: dict[str, object] = {}
    assert [type(run(cell, names)).__name__ for cell in cells[:2]] == ["Volume", "Model"]


@pytest.mark.slow
def test_the_tour_runs_and_what_it_shows_is_true():
    names: dict[str, object] = {}
    shown, drawn = [], 0
    with mpl.rc_context({"backend": "agg"}):
        for cell in code():
            value = run(cell, names)
            shown += [] if value is None else [value]
            drawn += len(plt.get_fignums())
            plt.close("all")
    assert drawn == 2
    rich = [value for value in shown if hasattr(value, "_repr_html_")]
    assert [type(value).__name__ for value in rich] == [
        "Volume", "Model", "Explanation", "DataFrame", "DataFrame", "DataFrame", "Page",
    ]  # fmt: skip
    assert all(value._repr_html_() for value in rich)
    read_out = names["read_out"]
    for name, truth in names["truths"].items():
        assert abs(read_out.loc[name, "estimate"] - truth) < 0.25 * truth
    assert names["error"] < 1, "better than doing nothing"
    anatomy = ["tumour_volume", "ventricle_volume", "head_size"]
    assert np.allclose(names["again"][anatomy], read_out.loc[anatomy, "estimate"], rtol=0.01)
    assert np.array_equal(names["edited"].affine, names["image"].affine)
    assert names["scores"].mean() >= 0.8
