"""Laws of what shows itself in a notebook: results as HTML, tables and axes, with nothing that asks the network."""

import base64
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

import medisent
from medisent.errors import GeometryError
from medisent.evaluation import Evaluation, Readout, Reconstruction
from medisent.metrics import Score
from medisent.models import Model, load
from medisent.volumes import Geometry, Volume


@pytest.fixture(autouse=True)
def _no_window():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def explanation(trained, fine_scan):
    return Model(trained).explain(fine_scan)


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation(
        n=4,
        split="test",
        seed=0,
        readout={"tumour_volume": Readout(0.8, 2.0, 0.9, 4), "site": Readout(None, 0.5, None, 4)},
        leakage={"tumour_volume": {"tumour_volume": 0.8, "site": 0.1}, "rest": {"tumour_volume": 0.3, "site": -0.2}},
        leakage_floor={"tumour_volume": {"site": -0.1}},
        leakage_by_labels={},
        disentanglement={"mig": Score(0.4, 0.3, 0.5, 0.0, 1.0)},
        counterfactual={},
        side_effects={},
        commutativity={},
        maps={},
        reconstruction=Reconstruction(20.0, 0.9),
        robustness={},
        notes=("<b>few</b> scans",),
    )


def pictures(html):
    return [
        Image.open(io.BytesIO(base64.b64decode(found)))
        for found in re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    ]


def assert_asks_nothing(html):
    assert not re.search(r'(src|href)="?(https?:|//)', html)
    assert "<script" not in html


def test_a_scan_shows_three_planes_with_spacing_and_axis_codes(fine_scan):
    html = fine_scan._repr_html_()
    assert "28 × 34 × 22 voxels of 6.5 × 6 × 8 mm; axes LAS, tilted by 20°; float32" in html
    assert_asks_nothing(html)
    (sheet,) = pictures(html)
    assert sheet.width > 2 * sheet.height
    assert repr(fine_scan) == "Volume(28 x 34 x 22 voxels of 6.5 x 6 x 8 mm, LAS, float32)"


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
def test_the_patients_left_is_on_the_right_of_axes(signs):
    voxels = np.ones((9, 8, 7), np.float32)
    affine = np.diag([*signs, 1.0])
    left = (1 if signs[0] > 0 else 7, 4, 3)
    voxels[left] = 9
    scan = Volume(voxels, Geometry(affine, (9, 8, 7)))
    axial, coronal, _ = scan.plot(window=(0, 9), at=left)
    for axes in (axial, coronal):
        plane = axes.images[0].get_array()
        assert np.unravel_index(plane.argmax(), plane.shape)[1] == 7
        assert [text.get_text() for text in axes.texts][:2] == ["R", "L"]
        assert axes.texts[0].get_position()[0] < 0.5 < axes.texts[1].get_position()[0]


def test_a_map_is_drawn_over_its_scan_with_a_bar_and_axes_can_be_given(explanation, fine_scan):
    axes = fine_scan.plot(over=explanation.map_of("brightness"))
    assert all(isinstance(panel, Axes) and len(panel.images) == 2 for panel in axes)
    assert len(axes[0].figure.axes) == 4
    given = plt.subplots(1, 3)[1]
    assert fine_scan.plot(axes=given, at=(3, 4, 5)) == tuple(given)
    with pytest.raises(GeometryError, match="cannot lie over"):
        fine_scan.plot(over=Volume(np.ones((3, 3, 3), np.float32), Geometry(np.eye(4), (3, 3, 3))))


def test_odd_scans_show_themselves_too(fine_scan):
    for voxels in (np.zeros((3, 4, 5)), np.full((3, 4, 5), np.nan), np.arange(60, dtype=np.int16).reshape(3, 4, 5)):
        odd = Volume(voxels, Geometry(np.eye(4), (3, 4, 5)), remarks=("<script>alert(1)</script>",))
        assert pictures(odd._repr_html_())
        assert_asks_nothing(odd._repr_html_())


def test_an_explanation_shows_its_sentence_its_table_and_its_maps(explanation):
    html = explanation._repr_html_()
    assert explanation.headline().split(",")[0] in html
    assert all(name in html for name in ("tumour_volume", "head_size", "anatomy", "nuisance", "percentile"))
    shown = [name for name, change in explanation.maps.items() if change.voxels.any()]
    assert len(pictures(html)) == len(shown) > 0
    assert_asks_nothing(html)
    assert explanation.to_dataframe().equals(explanation.factors)


def test_an_explanation_is_plotted_by_percentiles(explanation):
    axes = explanation.plot()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.split(" (")[0] for label in labels] == [n.replace("_", " ") for n in explanation.factors["name"]]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("o", "s")]
    assert dots == pytest.approx(explanation.factors["percentile"].tolist())
    given = plt.subplots()[1]
    assert explanation.plot(given) is given


def test_views_are_whole_pages_in_a_frame(explanation, evaluation, tmp_path):
    for shown, word in ((explanation.view(), "Explanation of one scan"), (evaluation.view(), "Evaluation")):
        framed = shown._repr_html_()
        assert framed.startswith('<iframe srcdoc="')
        assert '"allow-scripts"' in framed
        shown.save(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert word in page
        assert "Content-Security-Policy" in page
        assert word not in repr(shown), "a page of megabytes is not printed"


def test_a_scan_is_viewed_alone_or_beside_an_edited_one_and_whatever_it_is_given_as(fine_scan, explanation):
    alone = medisent.view((fine_scan.voxels, fine_scan.affine)).html
    assert alone == medisent.view(fine_scan).html
    assert 'data-wipe="0"' not in alone
    assert "synthetic" not in alone.split("<style>")[0] + alone.split("</style>")[1]
    both = medisent.view(fine_scan, next(iter(explanation.counterfactuals.values()))).html
    assert 'data-wipe="0"' in both
    assert "The edited scan is synthetic" in both
    for page in (alone, both):
        assert "Methods" not in page
        assert "Explanation" not in page
    with pytest.raises(GeometryError, match="cannot lie over"):
        medisent.view(fine_scan, fine_scan.with_voxels(fine_scan.voxels[1:]))
    with pytest.raises(GeometryError, match="lies elsewhere"):
        medisent.view(fine_scan, (fine_scan.voxels, fine_scan.affine @ np.diag([1.1, 1, 1, 1])))


def test_an_evaluation_becomes_a_table_of_every_figure(evaluation):
    table = evaluation.to_dataframe().set_index(["part", "name", "figure"])["value"]
    assert table["readout", "tumour_volume", "mae"] == 2.0
    assert table["leakage", "rest", "site"] == -0.2
    assert table["disentanglement", "mig", "value"] == 0.4
    assert table["reconstruction", "", "psnr"] == 20.0
    assert pd.isna(table["readout", "site", "r2"])
    assert evaluation._repr_html_() == evaluation.view()._repr_html_()


def test_an_evaluation_is_plotted_as_readouts_and_leakage(evaluation):
    left, right = evaluation.plot()
    assert [bar.get_width() for bar in left.patches] == [0.8]
    assert {text.get_text() for text in right.texts} == {"0.80", "0.10", "0.30", "-0.20"}
    assert [label.get_text() for label in right.get_yticklabels()] == ["tumour volume", "rest"]


def test_a_model_shows_its_card(trained):
    model = Model(trained)
    html = model._repr_html_()
    assert "trained on 6 scans of 6 subjects" in html
    assert trained.digest in html
    assert "rendered heads" not in html
    assert "site-1" in html, "levels go by their names"
    assert_asks_nothing(html)
    assert list(model.to_dataframe()["name"]) == list(model.factors)
    assert repr(model).startswith("Model(tumour_volume, head_size, site, brightness")
    assert "knows no real scan" in load("rendered-heads")._repr_html_()
