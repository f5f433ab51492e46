"""Laws of the gallery: every example runs, ends in a picture, and is shown in the documents."""

import runpy
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples" / "gallery").glob("*.py"))
PICTURES = ROOT / "docs" / "pictures" / "gallery"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_shown_with_its_picture(example):
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert f"(pictures/gallery/{example.stem}.png)" in page
    assert f"../examples/gallery/{example.name}" in page
    assert (PICTURES / f"{example.stem}.png").is_file()


def test_every_picture_has_its_example():
    assert {path.stem for path in PICTURES.iterdir()} == {path.stem for path in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_ends_in_the_picture_that_is_shown(example, tmp_path):
    picture = tmp_path / "picture.png"
    runpy.run_path(str(example))["main"](picture)
    drawn, shown = imread(picture), imread(PICTURES / f"{example.stem}.png")
    assert drawn.shape == shown.shape
    assert abs(drawn - shown).mean() < 0.05
