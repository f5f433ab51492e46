"""The pages people open: true to the patient's sides, closed to the network, the same bytes every time."""

import base64
import gzip
import hashlib
import html
import io
import itertools
import json
import re
import struct
import time
from html.parser import HTMLParser
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medisent.errors import GeometryError
from medisent.reports import Comparison, FactorMap, Traversal, Window, evaluation_page, explanation_page, planes
from medisent.reports.copies import STEP, copies
from medisent.reports.figures import bar, strip
from medisent.reports.films import LightTable
from medisent.reports.traversals import passages
from medisent.volumes import Geometry, Volume
from medisent.volumes.pictures import Upright, robust_limit, robust_window, shade
from medisent.words import decimals_for, fixed, number, ordinal

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> & {{ 7*191 }}"
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
FETCHED = {"src", "href", "srcset", "action", "data"}
VOID = {"meta", "input", "br", "img", "link", "hr", "rect", "path", "circle", "image", "use"}


class Reading(HTMLParser):
    """What a page holds: tags with their attributes, text, style and scripts; refuses unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.style, self.scripts = "", "", []
        self.held: dict[str | None, str] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            kind = self.tags[-1][1].get("type")
            if kind is None:
                self.scripts.append(data)
            else:
                self.held[self.tags[-1][1]["id"]] = data
        elif self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data + " "

    def addresses(self):
        return [v or "" for _, attrs in self.tags for k, v in attrs.items() if k in FETCHED]


def volume(shape=(20, 24, 16), affine=None, seed=0):
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    voxels = np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)
    return Volume(voxels, Geometry(affine, shape))


def stored(canonical, spacing, order, signs):
    """A volume in RAS order, stored with its axes permuted and flipped, in the same place."""
    voxels = canonical.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[world]
        affine[world, 3] = 0 if sign > 0 else (canonical.shape[world] - 1) * spacing[world]
    return Volume(np.ascontiguousarray(voxels), Geometry(affine, voxels.shape))


def explanation(scan=None, **changes):
    scan = scan or volume()
    after = scan.voxels.copy()
    after[3:6, 4:8, 10:12] += 80
    values = {
        "headline": "Tumour volume is 9.6 mL.",
        "scan": scan,
        "factors": [
            {"name": "tumour_volume", "role": "anatomy", "unit": "mL", "estimate": 9.61, "low": 7.92, "high": 11.5}
            | {"level": 0.9, "percentile": 96},
            {"name": "brightness", "role": "nuisance", "unit": "", "estimate": 1.5, "low": 1.4, "high": 1.6}
            | {"level": 0.9, "percentile": 100, "cohort_low": 0.6, "cohort_high": 1.4},
        ],
        "maps": [FactorMap("brightness", "nuisance", "", scan.voxels.astype(np.float32), "maps/brightness.nii.gz")],
        "comparisons": [
            Comparison("tumour_volume", "anatomy", "tumour 9.6 → 19.2 mL", after, "edits/tumour_19.2.nii.gz"),
            Comparison("brightness", "nuisance", "brightness x0.5", scan.voxels * 0.5, "edits/brightness.nii.gz"),
        ],
        "quality": {"geometry": True, "reconstruction": {"ok": False, "value": 21.0, "unit": "dB", "note": "low"}},
        "warnings": ["This scan is brighter than any training scan."],
        "methods": "Read with medisent.",
        "citations": ["Kingma and Welling, 2014."],
        "provenance": {"medisent": "0.1.0"},
    }
    return explanation_page(**(values | changes))


def evaluation(**changes):
    values = {
        "schema": 1,
        "n": 48,
        "readout": {"tumour_volume": {"r2": 0.942, "mae": 1.21, "coverage90": 0.896}},
        "leakage": {"tumour_volume": {"tumour_volume": 0.94, "gain": 0.04}, "gain": {"gain": 0.99}},
        "disentanglement": {"mig": {"value": 0.42, "low": 0.37, "high": 0.46, "floor": 0.02, "ceiling": 0.71}},
        "counterfactual": {
            "gain x1.5": {"rce": 0.02, "rce_noop": 1.0, "effect_error": 0.012, "off_target": 0.004},
            "tumour +15 mL": {"rce": 0.61},
        },
        "reconstruction": {"psnr": 31.2, "ssim": 0.94},
    }
    return evaluation_page(values | changes, title="Phantom study", notes=["Test split."])


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def panels(png, sizes_mm, height):
    """The three planes of a picture, as arrays of brightness."""
    scale = height / max(h for _, h in sizes_mm)
    gap, left, parts = max(2, height // 100), 0, []
    for width, tall in sizes_mm:
        columns = round(width * scale)
        top = (height - round(tall * scale)) // 2
        parts.append(pixels(png)[top : top + round(tall * scale), left : left + columns].mean(axis=-1))
        left += columns + gap
    return parts


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_what_is_right_anterior_superior_in_the_patient_is_top_left_in_every_plane(order, signs):
    canonical = np.zeros((12, 16, 10), np.float32)
    canonical[6:, 8:, 5:] = 1
    scan = stored(canonical, (2, 1, 3), order, signs)
    index = np.rint(np.linalg.solve(scan.affine, [9 * 2, 12, 7 * 3, 1]))[:3].astype(int)
    picture = planes(scan, at=tuple(int(i) for i in index), height=120)
    for part in panels(picture, [(24, 16), (24, 30), (16, 30)], 120):
        rows, columns = part.shape
        corner = part[: rows // 2, : columns // 2].mean()
        assert corner > 200
        assert part.sum() - part[: rows // 2, : columns // 2].sum() < 0.25 * part.sum()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (0.5, 2.0, 1.0)])
def test_a_cube_in_the_patient_is_a_square_in_every_plane(spacing):
    shape = tuple(round(80 / mm) for mm in spacing)
    axes = np.meshgrid(*[(np.arange(n) + 0.5) * mm - 40 for n, mm in zip(shape, spacing, strict=True)], indexing="ij")
    voxels = np.all([np.abs(axis) < 20 for axis in axes], axis=0).astype(np.float32)
    picture = planes(Volume(voxels, Geometry(np.diag([*spacing, 1.0]), shape)), window=Window(0, 1), height=400)
    for part in panels(picture, [(80, 80)] * 3, 400):
        inner = part[60:340, 60:340] > 127
        tall, wide = inner.any(axis=1).sum(), inner.any(axis=0).sum()
        assert abs(tall / wide - 1) < 0.04
        assert abs(wide - 200) < 8


def test_pictures_hold_pixels_and_nothing_else():
    scan = volume()
    for picture in (planes(scan), planes(scan, change=scan.voxels - 50)):
        chunks, at = [], 8
        while at < len(picture):
            (length,) = struct.unpack(">I", picture[at : at + 4])
            chunks.append(picture[at + 4 : at + 8])
            at += length + 12
        assert set(chunks) <= {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def test_a_plane_outside_the_scan_is_refused():
    with pytest.raises(GeometryError, match="were asked for"):
        planes(volume(), at=(0, 0, 99))


def test_pages_are_the_same_bytes_twice():
    assert explanation() == explanation()
    assert evaluation() == evaluation()
    assert planes(volume()) == planes(volume())


@pytest.mark.parametrize("page", [explanation, evaluation])
def test_a_page_asks_nothing_of_the_network(page):
    reading = Reading(page())
    for address in reading.addresses():
        parts = urlsplit(address)
        assert address.startswith("data:image/png;base64,") or not (parts.scheme or parts.netloc)
    assert not re.search(r"url\(|@import|//", reading.style)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in reading.tags}


@pytest.mark.parametrize("page", [explanation, evaluation])
def test_the_policy_admits_the_scripts_of_the_page_and_no_other(page):
    reading = Reading(page())
    (policy,) = [a["content"] for _, a in reading.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in reading.scripts]
    if "niivue" in reading.held:
        program = gzip.decompress(base64.b64decode(reading.held["niivue"]))
        digests.append(base64.b64encode(hashlib.sha256(program).digest()).decode())
    hashes = [f"'sha256-{digest}'" for digest in digests]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == (" ".join(hashes) or "'none'")
    assert not any(name.startswith("on") for _, attrs in reading.tags for name in attrs)


def test_every_picture_that_is_named_is_on_the_page():
    reading = Reading(explanation())
    held = {attrs["id"] for tag, attrs in reading.tags if tag == "image"}
    named = {str(attrs["href"])[1:] for tag, attrs in reading.tags if tag == "use"}
    assert named == held


def test_names_and_texts_from_outside_stay_text():
    scan = volume()
    page = Reading(
        explanation(
            scan,
            headline=HOSTILE,
            factors=[{"name": HOSTILE, "role": HOSTILE, "unit": HOSTILE, "estimate": HOSTILE}],
            maps=[FactorMap(HOSTILE, HOSTILE, HOSTILE, scan.voxels, "javascript:alert(1)")],
            comparisons=[Comparison(HOSTILE, HOSTILE, HOSTILE, scan.voxels + 1, HOSTILE)],
            quality={HOSTILE: {"ok": False, "value": HOSTILE, "note": HOSTILE}},
            warnings=[HOSTILE],
            methods=HOSTILE,
            citations=[HOSTILE],
            provenance={HOSTILE: HOSTILE},
        )
    )
    assert "img" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in Reading(explanation()).tags].count(
        "script"
    )
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not any(urlsplit(address).scheme not in ("", "data") for address in page.addresses())
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert "1337" not in page.text
    model = Reading(
        evaluation(
            readout={HOSTILE: {HOSTILE: 1.0}},
            leakage={HOSTILE: {HOSTILE: 0.5}},
            counterfactual={HOSTILE: {"rce": HOSTILE, HOSTILE: HOSTILE}},
            disentanglement={HOSTILE: {"value": HOSTILE}},
            further={HOSTILE: HOSTILE},
        )
    )
    assert {"img", "script"}.isdisjoint(tag for tag, _ in model.tags)


def test_what_was_not_measured_is_a_dash():
    nothing = float("nan")
    page = explanation(
        factors=[{"name": "age", "role": "anatomy", "unit": None, "estimate": nothing, "low": None, "high": np.inf}],
        quality={"reconstruction": nothing, "unknown": None, "reread": {"value": nothing, "ok": True}},
    )
    model = evaluation(
        n=None,
        readout={"tumour": {"r2": nothing, "mae": None, "coverage90": nothing}},
        leakage={"rest": {"tumour": None}},
        disentanglement={"mig": {"value": nothing, "low": None, "high": None, "floor": None, "ceiling": None}},
        counterfactual={"gain": {"rce": nothing, "rce_noop": nothing, "off_target": None}},
        reconstruction={"psnr": float("inf"), "ssim": None},
    )
    for text in (page, model):
        plain = re.sub(r"data:image/png;base64,[^\"]*", "", text)
        reading = Reading(plain)
        assert not re.search(r"\b(nan|inf|none|null|undefined)\b", reading.text, re.IGNORECASE)
        assert not re.search(r"[\"= ](nan|inf|None)\b", " ".join(v for _, a in reading.tags for v in a.values() if v))
        assert "–" in reading.text


def test_the_scan_and_its_edits_share_one_window():
    scan = volume()
    after = scan.voxels.copy()
    after[:, :, 8:] *= 3
    page = explanation(scan, maps=[], comparisons=[Comparison("gain", "nuisance", "gain x3", after, "g.nii.gz")])
    reading = Reading(page)
    held = {a["id"]: a["href"] for tag, a in reading.tags if tag == "image"}
    wipe = page[page.index('class="film wipe"') :]
    before, edited = (
        pixels(base64.b64decode(str(held[name]).split(",")[1]))
        for name in re.findall(r'href="#(p\d+)"', wipe[wipe.index("coronal") :])[:2]
    )
    assert np.array_equal(before[8:], edited[8:])
    assert edited[:8].mean() > before[:8].mean() + 50


def test_the_planes_go_through_the_largest_change():
    scan = volume()
    after = scan.voxels.copy()
    after[4, 20, 11] += 500
    page = explanation(scan, maps=[], comparisons=[Comparison("t", "anatomy", "more", after, "t.nii.gz")])
    for where in ("axial plane at S 33 mm", "coronal plane at A 40 mm", "sagittal plane at R 8 mm"):
        assert f"edited, {where}" in page


def test_an_edit_that_changes_nothing_says_so():
    scan = volume()
    page = explanation(scan, maps=[], comparisons=[Comparison("t", "anatomy", "same", scan.voxels.copy(), "t.nii.gz")])
    assert "Nothing changes in these planes." in page


def test_a_page_without_counterfactuals_shows_the_scan():
    page = explanation(factors=[], maps=[], comparisons=[], quality={}, warnings=[], citations=[], provenance={})
    assert "scan, axial plane at" in page
    assert 'type="range"' not in page
    assert "Research use only" in Reading(page).text


def test_an_interval_that_nothing_has_calibrated_bears_a_star_and_the_page_says_why():
    row = {"name": "contrast", "role": "nuisance", "unit": "", "estimate": 1.0, "low": 0.9, "high": 1.1}
    bare, starred = (Reading(explanation(factors=[{**row, "calibrated": known}])).text for known in (True, False))
    assert "0.90 to 1.10 *" in starred
    assert "nothing calibrated the interval" in starred
    assert "*" not in bare
    assert "nothing calibrated" not in bare


def test_a_counterfactual_on_another_grid_is_refused():
    other = np.zeros((3, 4, 5), np.float32)
    with pytest.raises(GeometryError, match="3 x 4 x 5"):
        explanation(comparisons=[Comparison("t", "anatomy", "more", other, "t.nii.gz")])
    with pytest.raises(GeometryError, match="3 x 4 x 5"):
        explanation(maps=[FactorMap("t", "anatomy", "mL", other, "t.nii.gz")])


def test_scans_of_any_number_type_and_without_contrast_are_shown():
    for voxels in (np.zeros((6, 7, 8), np.uint8), np.full((6, 7, 8), np.nan, np.float32), np.ones((6, 7, 8), np.int16)):
        scan = Volume(voxels, Geometry(np.eye(4), (6, 7, 8)))
        after = np.ones((6, 7, 8), np.float32)
        page = explanation(scan, maps=[], comparisons=[Comparison("t", "anatomy", "more", after, "t.nii.gz")])
        assert "scan, axial plane at" in page


def test_a_tilted_scan_says_that_its_planes_are_tilted():
    angle = np.deg2rad(17)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    assert "tilted by up to 17°" in explanation(volume(affine=affine))
    assert "tilted" not in explanation()


def test_no_edit_is_scored_without_doing_nothing_beside_it():
    page = evaluation()
    bodies = re.findall(r"<tbody>\s*<tr><th scope=\"row\"><strong>(.*?)</strong>.*?</tbody>", page, re.DOTALL)
    assert [html.unescape(name) for name in bodies] == ["gain x1.5", "tumour +15 mL"]
    rows = re.findall(r"doing nothing \(no-op\)</th><td class=\"n\">(.*?)</td>", page)
    assert rows == ["1.00", "1.00"]


def test_sections_that_are_not_known_are_shown_and_not_lost():
    text = Reading(evaluation(ruler={"tumour_volume": {"median_error": 0.11}}, minutes=4.8)).text
    for word in ("Ruler", "Median error", "0.11", "minutes", "4.8"):
        assert word in text


def test_anatomy_and_nuisance_differ_by_letter_and_shape():
    page = explanation()
    anatomy = re.search(r'<tbody class="anatomy">.*?</tbody>', page, re.DOTALL)
    nuisance = re.search(r'<tbody class="nuisance">.*?</tbody>', page, re.DOTALL)
    assert anatomy is not None
    assert nuisance is not None
    assert ">A</span>" in anatomy[0]
    assert "<circle" in anatomy[0]
    assert ">N</span>" in nuisance[0]
    assert "<circle" not in nuisance[0]


@given(st.floats(-1e3, 1e3), st.floats(0.1, 1e3), st.floats(-2, 3))
def test_a_strip_shows_an_estimate_inside_its_band_where_it_is_inside_the_cohort(start, width, place):
    found = strip({"estimate": start + place * width, "cohort_low": start, "cohort_high": start + width})
    assert found is not None
    low, high = found.band
    assert 0 <= found.estimate <= 180
    if 0.01 < place < 0.99:
        assert low <= found.estimate <= high
    if not -0.01 < place < 1.01:
        assert not low <= found.estimate <= high


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=5, max_size=5))
def test_a_bar_stays_on_the_page_whatever_the_score(values):
    found = bar(dict(zip(("value", "low", "high", "floor", "ceiling"), values, strict=True)))
    drawn = [found.value, found.floor, found.ceiling, found.zero, *(found.interval or ())]
    assert all(0 <= x <= 180 for x in drawn if x is not None)


@given(st.one_of(st.floats(-1e300, 1e300), st.sampled_from([np.nan, np.inf, -np.inf])))
def test_a_number_is_read_back_or_is_a_dash(value):
    text = number(value)
    if not np.isfinite(value):
        assert text == "–"
    else:
        plain = text.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--", ",")).replace(" × 10", "e")
        assert float(plain) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("low", "high", "decimals"), [(7.92, 11.5, 1), (1.49, 1.55, 2), (24, 33, 0), (1390, 1470, 0), (0.2, 0.2, None)]
)
def test_digits_follow_the_interval(low, high, decimals):
    assert decimals_for(low, high) == decimals


def test_numbers_and_ranks_read_as_people_write_them():
    assert [number(x) for x in (0.0, -1.5, 1432.4, 31.0, "left", True, 2.5e9)] == [
        "0", "−1.5", "1,432", "31", "left", "yes", "2.50 × 10⁹",
    ]  # fmt: skip
    assert fixed(-0.001, 2) == "0.00"
    assert [ordinal(x) for x in (1, 2, 3, 11, 22, 96, 0, 100, None)] == [
        "1st", "2nd", "3rd", "11th", "22nd", "96th", "below all", "above all", "–",
    ]  # fmt: skip


@given(st.floats(0.3, 1))
def test_colours_tell_more_from_less_and_are_clear_at_nothing(size):
    red, _, blue, opacity = shade(size)
    assert red > blue
    cold = shade(-size)
    assert cold[2] > cold[0]
    assert cold[3] == opacity > 0
    assert shade(0)[3] == 0


@settings(max_examples=20)
@given(st.floats(1e-6, 1e6))
def test_a_colour_scale_reaches_the_change_and_hardly_further(size):
    end = robust_limit([np.array([[0, size, -size]], np.float64)])
    assert size * 0.999 <= end <= size * 1.11


def test_a_few_extreme_voxels_do_not_darken_the_scan():
    voxels = np.random.default_rng(0).uniform(0, 100, (40, 40, 40))
    voxels[0, 0, :3] = 1e6
    assert robust_window(voxels).high < 130


def test_a_small_bright_lesion_stands_out_from_the_tissue():
    voxels = np.random.default_rng(0).normal(500, 10, (40, 40, 40))
    voxels[:20] = 0
    voxels[30:33, 30:33, 30:33] = 620
    window = robust_window(voxels)
    assert window.grey(voxels[31, 28:32, 28:32])[3, 3] > window.grey(voxels[31, 28:32, 28:32])[0, 0] + 25


def gunzipped(text):
    return gzip.decompress(base64.b64decode(text))


def unpacked(text):
    return nibabel.Nifti1Image.from_bytes(gunzipped(text))


@pytest.mark.parametrize("limit", [10**9, 25_000, 9000])
def test_the_copy_of_an_edit_is_that_edit_to_two_greys_and_lies_where_the_scan_lies(limit):
    canonical = np.zeros((48, 44, 40), np.float32)
    canonical[6:36, 8:32, 5:29] = np.random.default_rng(0).uniform(50, 100, (30, 24, 24)).round(-1)
    scan = stored(canonical, (2.0, 2.0, 2.5), (1, 0, 2), (-1, 1, -1))
    local, window = scan.voxels.copy(), Window(0, 200)
    local[16:20, 12:16, 16:20] += 60
    ramp = np.linspace(0.5, 2, scan.voxels.shape[0], dtype=np.float32)[:, None, None]
    edits = [local, scan.voxels * 1.7, scan.voxels**1.1, scan.voxels * ramp]
    found = copies(scan, window, edits, [(local - scan.voxels, 60.0)], limit)
    assert found.size <= limit
    image = unpacked(found.scan)
    grey = np.asarray(image.dataobj)
    for voxels, edit in zip(edits, found.edits, strict=True):
        table = np.frombuffer(base64.b64decode(edit.table), np.uint8)
        rest = np.frombuffer(gzip.decompress(base64.b64decode(edit.rest)), np.int8).reshape(grey.shape, order="F")
        shown = np.clip(table[grey].astype(int) + STEP * rest, 0, 255)
        wanted = window.grey(found.sampling.means(voxels[found.sampling.box]))
        assert np.abs(shown - wanted).max() <= STEP / 2
    for volume, values in ((image, scan.voxels), (unpacked(found.maps[0]), local - scan.voxels)):
        weights = np.abs(np.asarray(volume.dataobj).astype(float) - (0 if volume is image else 127))
        centres = []
        for part, affine in ((weights, volume.affine), (values, scan.affine)):
            index = [(part.sum(axis=tuple({0, 1, 2} - {i})) * np.arange(n)).sum() for i, n in enumerate(part.shape)]
            centres.append((affine @ [*(np.array(index) / part.sum()), 1])[:3])
        assert np.abs(centres[0] - centres[1]).max() < 0.5


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_slab_shows_in_its_plane_what_the_scan_shows_there(order, signs):
    canonical = np.random.default_rng(0).uniform(0, 1, (5, 6, 7)).astype(np.float32)
    upright, at = Upright(stored(canonical, (2, 1, 3), order, signs)), (1, 4, 2)
    for i, (slab, plane) in enumerate(zip(upright.slabs(at), upright.cut(upright.volume.voxels, at), strict=True)):
        assert np.array_equal(Upright(slab).cut(slab.voxels, (0, 0, 0))[i], plane)
        index = np.argwhere(slab.voxels == slab.voxels.max())[0]
        first = np.argwhere(upright.volume.voxels == slab.voxels.max())[0]
        assert np.allclose(slab.affine @ [*index, 1], upright.volume.affine @ [*first, 1])


def brightened(part, stop):
    return part.with_voxels(part.voxels * np.float32(1 + (stop - 1) / 2))


def grown(part, stop):
    """A box of the patient, not of the part, shines the more the further the stop."""
    voxels = part.voxels.copy()
    index = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), axis=-1)
    place = index @ part.affine[:3, :3].T + part.affine[:3, 3]
    voxels[(np.abs(place - [15, 20, 21]) < 8).all(axis=-1)] += 20 * (stop - 1)
    return part.with_voxels(voxels)


def test_what_a_slider_shows_is_the_scan_at_its_stop_to_two_greys_and_the_scan_itself_at_its_own():
    table = LightTable(volume())
    tumour = Traversal("tumour_volume", "anatomy", ("5 mL", "10 mL", "15 mL"), 1, grown)
    gain = Traversal("brightness", "nuisance", ("0.5", "1", "1.5", "2"), 1, brightened)
    at = (7, 10, 7)
    found = passages(table, [(tumour, at), (gain, at)])
    held = json.loads(found.frames)
    assert len(held["planes"]) == 3, "factors that are shown at one place share the scan's planes"
    greys = [np.frombuffer(gunzipped(plane["grey"]), np.uint8) for plane in held["planes"]]
    for traversal, factor in zip((tumour, gain), held["factors"], strict=True):
        tables = np.frombuffer(gunzipped(factor["tables"]), np.uint8).reshape(-1, 3, 256)
        rests = np.frombuffer(gunzipped(factor["rests"]), np.int8).reshape(len(tables), -1)
        for stop, (greyed, rest) in enumerate(zip(tables, rests, strict=True)):
            moved = traversal.show(table.upright.volume, stop).voxels
            start = 0
            for i, plane in enumerate(table.upright.cut(moved, at)):
                mine = greys[factor["planes"][i]]
                shown = np.clip(greyed[i][mine].astype(int) + STEP * rest[start : start + mine.size], 0, 255)
                start += mine.size
                assert np.abs(shown.reshape(plane.shape) - table.window.grey(plane)).max() <= STEP / 2
                if stop == traversal.own:
                    assert np.array_equal(shown, mine)
    assert [one.own for one in found.each] == [1, 1]


def test_a_page_without_traversals_has_no_slider_for_them():
    assert 'id="range"' not in explanation()
    page = Reading(explanation(traversals=[Traversal("brightness", "nuisance", ("0.5", "1 <b>"), 1, brightened)]))
    assert [a["max"] for tag, a in page.tags if tag == "input" and "through its range" in str(a.get("aria-label"))] == [
        "1"
    ]
    assert "1 <b>" in page.text


@pytest.mark.slow
def test_a_large_scan_with_ten_counterfactuals_makes_a_small_page_quickly():
    shape = (256, 256, 180)
    rng = np.random.default_rng(0)
    axes = np.ogrid[-1:1:256j, -1:1:256j, -1:1:180j]
    head = (sum(axis**2 for axis in axes) < 0.7) * 500.0
    scan = Volume((head + rng.normal(0, 12, shape)).astype(np.float32), Geometry(np.diag([0.9, 0.9, 1.0, 1.0]), shape))
    edits = [
        Comparison(f"factor_{i % 5}", "nuisance", f"edit {i}", scan.voxels * np.float32(1 + (i + 1) / 20), "x.nii.gz")
        for i in range(10)
    ]
    traversals = [Traversal(f"factor_{i}", "nuisance", tuple("123456"), 1, brightened) for i in range(5)]
    start = time.process_time()
    page = explanation(scan, comparisons=edits, traversals=traversals)
    assert time.process_time() - start <= 5
    assert len(page) <= 1e7
