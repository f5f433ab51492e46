"""The report in a real browser: it opens without a network, shows true sides, answers to hand and keyboard, prints."""

import io
import re

import numpy as np
import pytest
from browsers import CHROMIUM, MARKS, sync_api
from PIL import Image

from medisent.reports import Comparison, FactorMap, Traversal, explanation_page
from medisent.volumes import Geometry, Volume

pytestmark = MARKS
SOFTWARE_GL = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SHAPE, SPACING = (20, 24, 16), (8.0, 8.0, 10.0)
LEFT, RIGHT = (4, 12, 8), (15, 12, 8)  # upright indices (right, anterior, superior): low is the patient's left
OFTEN, SELDOM = ["LPS", "SAR", "IRP"], ["RAS", "LAS", "RPI", "ASL", "PIR"]
ORIENTATIONS = [*OFTEN, *(pytest.param(codes, marks=pytest.mark.slow) for codes in SELDOM)]


def stored(canonical, codes):
    """A volume in RAS order as a file of these axis codes would store it, in the same place."""
    order = [next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair) for code in codes]
    signs = [1 if code in "RAS" else -1 for code in codes]
    voxels = canonical.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * SPACING[world]
        affine[world, 3] = -sign * (canonical.shape[world] - 1) / 2 * SPACING[world]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(voxels.shape) - 1) / 2
    return Volume(np.ascontiguousarray(voxels), Geometry(affine, voxels.shape))


def report(codes="RAS", *, plain=False):
    """A page about a grey box with a bright cube on the patient's left; one edit adds another on the right."""
    canonical = np.full(SHAPE, 40, np.float32)
    canonical[0], canonical[-1] = 0, 0
    edited = canonical.copy()
    for voxels, (x, y, z) in ((canonical, LEFT), (edited, LEFT), (edited, RIGHT)):
        voxels[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 200
    scan, after = stored(canonical, codes), stored(edited, codes)
    assert scan.geometry.axis_codes == codes
    brighter = scan.voxels * np.float32(2)
    maps = [
        FactorMap("tumour_volume", "anatomy", "mL", after.voxels - scan.voxels, "maps/tumour_volume.nii.gz"),
        FactorMap("brightness", "nuisance", "", scan.voxels, "maps/brightness.nii.gz"),
    ]
    comparisons = [
        Comparison("tumour_volume", "anatomy", "tumour 10 → 20 mL", after.voxels, "edits/tumour.nii.gz"),
        Comparison("brightness", "nuisance", "brightness x2", brighter, "edits/brightness.nii.gz"),
    ]

    def dimmed(part, stop):
        return part.with_voxels(part.voxels * np.float32((stop + 1) / 4))

    def hotter(part, stop):
        return part.with_voxels(np.where(part.voxels == 200, np.float32((10, 20, 200)[stop]), part.voxels))

    traversals = [
        Traversal("tumour_volume", "anatomy", ("4 mL", "6 mL", "10 mL"), 2, hotter),
        Traversal("brightness", "nuisance", ("0.25", "0.5", "0.75", "1", "1.25"), 3, dimmed),
    ]
    return explanation_page(
        headline="Tumour volume is 9.6 mL.",
        scan=scan,
        factors=[{"name": "tumour_volume", "role": "anatomy", "unit": "mL", "estimate": 9.61}],
        maps=[] if plain else maps,
        comparisons=[] if plain else comparisons,
        traversals=[] if plain else traversals,
        quality={"geometry": True},
        warnings=[],
        methods="Read with medisent.",
        citations=["Kingma and Welling, 2014."],
        provenance={"medisent": "0.1.0"},
    )


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield chromium
        chromium.close()


class Opened:
    """A report in a page without a network, with all that the page asked for and complained of."""

    def __init__(self, browser, folder, codes="RAS", *, plain=False, before="", **context):
        file = folder / f"report-{codes}.html"
        file.write_text(report(codes, plain=plain), encoding="utf-8")
        self.context = browser.new_context(offline=True, viewport={"width": 1100, "height": 1300}, **context)
        self.page = self.context.new_page()
        self.page.add_init_script(before)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def ready(self):
        self.page.wait_for_selector(".viewers[data-viewer=ready]", timeout=150_000)
        return self

    def pixels(self, where):
        self.page.wait_for_timeout(100)
        return np.asarray(Image.open(io.BytesIO(self.page.locator(where).screenshot())).convert("RGB")).astype(float)

    def area(self, name):
        return self.page.locator(".viewers").get_attribute(f"data-{name}")


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    found = Opened(browser, tmp_path_factory.mktemp("report")).ready()
    yield found
    found.context.close()


def wipe(opened, value):
    opened.page.locator(".slider input").fill(str(value))


def test_the_report_opens_without_a_network_asks_nothing_and_complains_of_nothing(opened):
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in opened.asked if url.startswith("file:")]) == 1
    assert opened.said == []


def bright(picture):
    """What is white in the left half of a viewer, where the coronal plane lies above the axial one."""
    columns = picture.shape[1]
    return picture[8:-8, 8 : round(0.45 * columns)].min(axis=-1) > 240


def test_the_slider_leads_from_the_scan_to_the_edited_scan(opened):
    wipe(opened, 0)
    before = opened.pixels(".edited .screen3")
    wipe(opened, 100)
    after = opened.pixels(".edited .screen3")
    wipe(opened, 50)
    between = opened.pixels(".edited .screen3")
    assert bright(after).sum() > 1.7 * bright(before).sum()
    changed = np.abs(after - before).max(axis=-1) > 30
    assert changed.mean() > 0.005
    assert np.abs(between - (before + after) / 2)[changed].mean() < 10


def test_choosing_an_edit_changes_what_is_shown_and_the_map_follows(opened):
    wipe(opened, 100)
    one = opened.pixels(".edited .screen3")
    opened.page.locator("#comparison .tabs .t1").click()
    opened.page.wait_for_selector(".viewers[data-edit='1']")
    other = opened.pixels(".edited .screen3")
    assert opened.area("map") == "brightness"
    assert other.mean() > one.mean() + 10
    opened.page.locator(".mapped select").select_option("-1")
    opened.page.wait_for_selector(".viewers[data-map='']")
    opened.page.locator("#comparison .tabs .t0").click()
    opened.page.wait_for_selector(".viewers[data-edit='0']")
    assert opened.area("map") == "tumour_volume"


def test_the_map_lies_over_the_scan_where_it_changes_and_nowhere_else(opened):
    opened.page.locator(".mapped select").select_option("0")
    opened.page.wait_for_selector(".viewers[data-map='tumour_volume']")
    with_map = opened.pixels(".mapped .screen3")
    opened.page.locator(".mapped select").select_option("-1")
    opened.page.wait_for_selector(".viewers[data-map='']")
    without = opened.pixels(".mapped .screen3")
    opened.page.locator(".mapped select").select_option("0")
    coloured = np.abs(with_map - without).max(axis=-1) > 40
    assert 0.005 < coloured.mean() < 0.1
    assert with_map[coloured][:, 0].mean() > with_map[coloured][:, 2].mean() + 30


def test_one_cursor_moves_by_keyboard_in_both_viewers(opened):
    canvas = opened.page.locator(".edited .over")
    for key, axis, step in (("ArrowLeft", 0, 8), ("ArrowUp", 1, 8), ("PageUp", 2, 10), ("PageDown", 2, -10)):
        canvas.focus()
        before = [float(mm) for mm in opened.area("at").split()]
        canvas.press(key)
        after = [float(mm) for mm in opened.area("at").split()]
        moved = [b - a for a, b in zip(before, after, strict=True)]
        assert moved == [pytest.approx(step, abs=0.2) if i == axis else pytest.approx(0, abs=0.2) for i in range(3)]
    other = opened.pixels(".mapped .screen3")
    canvas.press("PageUp")
    canvas.press("PageUp")
    assert np.abs(opened.pixels(".mapped .screen3") - other).max() > 100


def test_every_control_is_reached_by_the_tab_key_and_shows_where_it_is(opened):
    opened.page.locator("body").click(position={"x": 2, "y": 2})
    seen = []
    for _ in range(30):
        opened.page.keyboard.press("Tab")
        name = "e => e.ariaLabel || e.name || e.textContent"
        seen.append(opened.page.evaluate(f"({name})(document.activeElement)"))
    for wanted in (
        "comparison",
        "Wipe from",
        "The scan and the edited scan",
        "Which map",
        "Strength",
        "passage",
        "Move",
        "Copy text",
    ):
        assert any(text.strip().startswith(wanted) for text in seen), wanted
    wipe(opened, 50)
    opened.page.locator(".slider input").focus()
    before = opened.page.locator(".slider input").input_value()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator(".slider input").input_value() == str(int(before) + 1)


def test_a_factor_moves_through_its_range_by_hand_and_keyboard_and_says_what_is_synthetic(opened):
    page = opened.page
    page.locator("#range .tabs .t1").click()
    way, said = page.locator(".passage.r1 input"), page.locator(".passage.r1 output")
    assert said.inner_text() == "1, as scanned"
    own = opened.pixels(".passage.r1 .film")
    way.focus()
    page.keyboard.press("Home")
    assert said.inner_text() == "0.25, synthetic"
    assert way.get_attribute("aria-valuetext") == "0.25, synthetic"
    assert page.locator(".passage.r1 .tag").is_visible()
    darkest = opened.pixels(".passage.r1 .film")
    page.keyboard.press("ArrowRight")
    between = opened.pixels(".passage.r1 .film")
    grey = (own > 200).all(axis=-1) & (own < 225).all(axis=-1)
    assert grey.mean() > 0.5
    assert darkest[grey].mean() / own[grey].mean() == pytest.approx(0.25, abs=0.06)
    assert between[grey].mean() / own[grey].mean() == pytest.approx(0.5, abs=0.06)
    page.locator(".passage.r1 .frame").nth(3).click()
    assert not page.locator(".passage.r1 .tag").is_visible()
    assert np.array_equal(opened.pixels(".passage.r1 .film"), own)
    page.locator("#range .tabs .t0").click()
    assert not way.is_visible()
    page.locator(".passage.r0 input").fill("0")
    frames = [opened.pixels(f".passage.r0 .frame:nth-child({i}) canvas")[3:-3, 3:-3] for i in (1, 2, 3)]
    assert [bool((frame > 240).mean() > 0.002) for frame in frames] == [False, False, True]
    assert opened.said == []


def test_it_prints_on_a4_with_pictures_in_place_of_viewers(opened):
    opened.page.emulate_media(media="print")
    assert not opened.page.locator(".viewers").is_visible()
    assert opened.page.locator(".still").first.is_visible()
    assert all(opened.page.locator(f".passage.r{i} .frames").is_visible() for i in (0, 1))
    assert not opened.page.locator(".passage input").first.is_visible()
    pdf = opened.page.pdf(prefer_css_page_size=True)
    opened.page.emulate_media(media="screen")
    assert pdf.startswith(b"%PDF")
    width, height = (float(mm) for mm in re.search(rb"/MediaBox \[0 0 ([0-9.]+) ([0-9.]+)\]", pdf).groups())
    assert (round(width), round(height)) == (595, 842)
    assert 1 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 4


def test_without_webgl_pictures_stand_in_and_nothing_is_missed(browser, tmp_path):
    none = "HTMLCanvasElement.prototype.getContext = () => null"
    opened = Opened(browser, tmp_path, before=none, color_scheme="dark")
    assert not opened.page.locator(".viewers").is_visible()
    assert opened.page.locator(".wipe").first.is_visible()
    wipe(opened, 0)
    before = opened.pixels(".k0 .wipe")
    wipe(opened, 100)
    assert np.abs(opened.pixels(".k0 .wipe") - before).max() > 100
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert opened.said == []
    opened.context.close()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_what_is_on_the_patients_left_is_on_the_viewers_right_under_true_letters(codes, browser, tmp_path):
    opened = Opened(browser, tmp_path, codes, plain=True).ready()
    picture = opened.pixels(".mapped .screen3")
    canvas = opened.page.locator(".mapped canvas")
    x, y, z = LEFT
    canvas.focus()
    # The cursor starts in the middle; moved by keys to where the cube is, it names the place in mm.
    for key, steps in (("ArrowRight", 10 - x), ("ArrowUp", y - 12), ("PageUp", z - 8)):
        for _ in range(steps):
            canvas.press(key)
    where = [float(mm) for mm in opened.area("at").split()]
    assert where == pytest.approx([-44, 4, 5], abs=0.2)
    assert opened.page.locator(".where").inner_text().startswith("L 44")
    white = bright(picture)
    rows, columns = white.shape
    for plane in (white[: rows // 2], white[rows // 2 :]):
        assert plane[:, columns // 2 :].sum() > max(500, 10 * plane[:, : columns // 2].sum())
    assert opened.said == []
    opened.context.close()
