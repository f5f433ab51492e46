"""Every page in a real browser: text that can be read, nothing beyond the edge, a focus that is seen."""

import numpy as np
import pytest
from browsers import CHROMIUM, MARKS, sync_api
from test_bench import standing
from test_browser import report
from test_harmonise import found

from medisent.harmonisation import page_of
from medisent.reports import Block, Ending, Film, bench_page, evaluation_page, training_page
from medisent.volumes import Geometry, Volume

pytestmark = MARKS
WITHOUT_GL = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]
FAINT = """() => {
  const parts = (text) => {
    const n = text.match(/[\\d.e-]+/g).map(Number);
    const whole = text.startsWith("color(") ? 255 : 1;
    return [n[0] * whole, n[1] * whole, n[2] * whole, n[3] ?? 1];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
  };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest("script,.film,.hidden,.nothing,option")) continue;
    if (!element.checkVisibility({ checkOpacity: true })) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const ink = over(parts(element.closest("svg") ? style.fill : style.color), below);
    const [more, less] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (more + 0.05) / (less + 0.05);
    if (ratio < (large ? 3 : 4.5)) faint.push(node.textContent.trim() + " " + ratio.toFixed(2));
  }
  return faint;
}"""
FOCUS = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const shown = at.classList.contains("pick") ? document.querySelector(`label[for=${at.id}]`) : at;
  return [at.outerHTML.slice(0, 60), parseFloat(getComputedStyle(shown).outlineWidth)];
}"""


def evaluation():
    score = {"value": 0.93, "low": 0.9, "high": 0.95, "floor": 0.1, "ceiling": 0.99}
    edit = {"rce": {"value": 0.4, "low": 0.3, "high": 0.6}, "effect_error": 0.1, "off_target": 1e-5, "asked": 15.0}
    names = ("tumour_volume", "ventricle_volume", "head_size", "brightness", "contrast")
    return evaluation_page(
        {
            "n": 40,
            "readout": {name: {"r2": 0.9, "mae": 1.2, "coverage90": 0.91, "n": 40, "unit": "mL"} for name in names},
            "counterfactual": {f"{name}*=1.5": {**edit, "unit": "mL", "n": 5, "failed": 1} for name in names},
            "leakage": {one: {name: 0.99 if name == one else 0.7 for name in names} for one in (*names, "rest")},
            "disentanglement": dict.fromkeys(("infom", "dci_completeness", "block_sap_svm"), score),
            "robustness": {name: {"brightness*=1.5": 1e-7} for name in names},
        },
        title="Evaluation on the test split",
        notes=["Two scans were left out."],
    )


def training():
    records = [
        {"step": step, "seconds": step / 9, "total": 900.0 / step, "rate": 3.0} for step in range(100, 2001, 100)
    ]
    records += [
        {
            "step": step,
            "seconds": 9.0,
            "validation": {
                "scans": 48,
                "nats": {"total": 1000.0 / step, "rate": 3.1},
                "readout": {"tumour_volume": {"r2": 0.9, "mae": 1.2}},
                "leakage": {"tumour_volume": {"tumour_volume": 0.9, "gain": 0.31}, "rest": {"tumour_volume": 0.6}},
                "active_units": {"tumour_volume": 1, "rest": 9 if step > 500 else 0},
            },
        }
        for step in (500, 1000, 2000)
    ]
    grey = np.full((4, 32, 32), 90, np.uint8)
    film = Film(grey[:3], ("tumour volume 36.0 mL",), 1, [(step, grey) for step in (200, 600, 1600, 2000)])
    blocks = [Block("tumour_volume", "anatomy", 1, "mL"), Block("rest", "nuisance", 16)]
    ending = Ending("stopped", 2000)
    about = {"title": "Rendered heads.", "share": 0.9, "written": "2026-01-01 00:00", "gate": 0.3}
    return training_page(records, **about, blocks=blocks, ending=ending, film=film)


def harmonisation():
    scans = found([0.4, 2.5, *[0.0] * 28])
    one = Volume(np.ones((8, 8, 8), np.float32), Geometry(np.diag([4.0, 4, 4, 1]), (8, 8, 8)))
    return page_of(scans, [lambda: one] * 30, [lambda: one] * 30, "the reference scanner")


PAGES = {
    "report": report,
    "evaluation": evaluation,
    "training": training,
    "bench": lambda: bench_page("Benchmark", ["Made by medisent bench."], standing().tables()),
    "harmonisation": harmonisation,
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=WITHOUT_GL)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_by_everybody(browser, tmp_path, name):
    file = tmp_path / f"{name}.html"
    file.write_text(PAGES[name](), encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(FAINT) == [], f"faint text, {scheme}"
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    for _ in range(12):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        assert focus is None or focus[1] >= 2, focus
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})  # what A4 leaves between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    context.close()
