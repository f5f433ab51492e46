"""Laws of derived DICOM: it lies over its source, holds the values it was given, and names nobody."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

import medisent
from medisent.derived import DerivedFolder, Origin
from medisent.derived.scales import fitting_scales
from medisent.derived.units import ucum
from medisent.errors import FormatError
from medisent.formats import read
from medisent.phantoms.dicom import write_series as write_phantom
from medisent.readings import Readout
from medisent.volumes import Instance, Volume

DATA = Path(os.environ.get("MEDISENT_TEST_DATA", "/nonexistent"))
MODEL = "ab12" * 16
NAN = math.nan
READOUTS = (
    Readout("tumour_volume", "anatomy", "mL", 20.123456789012345, 18.1, 23.25, 0.9, 44.0),
    Readout("site", "nuisance", "", 1.0, NAN, NAN, 0.9, 3.0),
    Readout("a_name_that_is_longer_than_sixteen", "nuisance", "furlongs", -1.5, -2.0, -1.0, 0.9, NAN),
)
SECRETS = {  # what a source says and no derived object may: names, numbers, dates, places, machines, free text
    "PatientName": "Canary^Carla",
    "PatientID": "CANARY01",
    "OtherPatientNames": "Canary^Carol",
    "PatientBirthDate": "19111111",
    "PatientSex": "F",
    "PatientAge": "077Y",
    "PatientWeight": "77.7",
    "PatientAddress": "CANARY STREET 02",
    "PatientTelephoneNumbers": "CANARY03",
    "PatientComments": "CANARY04",
    "AdditionalPatientHistory": "CANARY05",
    "AccessionNumber": "CANARY06",
    "StudyID": "CANARY07",
    "StudyDate": "19121212",
    "SeriesDate": "19121213",
    "AcquisitionDate": "19121214",
    "ContentDate": "19121215",
    "InstanceCreationDate": "19121216",
    "StudyTime": "121212",
    "AcquisitionDateTime": "19121217121212",
    "StudyDescription": "CANARY08",
    "SeriesDescription": "CANARY09",
    "ProtocolName": "CANARY10",
    "ImageComments": "CANARY11",
    "InstitutionName": "CANARY12",
    "InstitutionAddress": "CANARY13",
    "InstitutionalDepartmentName": "CANARY14",
    "StationName": "CANARY15",
    "ReferringPhysicianName": "Canary^Chris",
    "PerformingPhysicianName": "Canary^Cleo",
    "NameOfPhysiciansReadingStudy": "Canary^Cora",
    "OperatorsName": "Canary^Cyril",
    "PhysiciansOfRecord": "Canary^Cyd",
    "DeviceSerialNumber": "CANARY16",
    "SoftwareVersions": "CANARY17",
    "Manufacturer": "CANARY18",
    "ManufacturerModelName": "CANARY19",
    "DetectorID": "CANARY20",
    "PerformedProcedureStepID": "CANARY21",
    "PerformedProcedureStepDescription": "CANARY22",
    "RequestedProcedureDescription": "CANARY23",
    "DerivationDescription": "CANARY24",
    "EthnicGroup": "CANARY25",
    "Occupation": "CANARY26",
}
CLUES = (b"anary", b"CANARY", b"191111", b"191212", b"077Y", b"77.7")


@pytest.fixture(scope="module")
def series(fine_scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered head, oblique and anisotropic, as a DICOM series full of identifiers."""
    folder = tmp_path_factory.mktemp("study") / "series"
    write_phantom(fine_scan, folder, name="HEAD", description="rendered", entropy="derived")
    for path in folder.iterdir():
        image = dcmread(path)
        for keyword, secret in SECRETS.items():
            setattr(image, keyword, secret)
        image.private_block(0x0011, "CANARY27", create=True).add_new(1, "LO", "CANARY28")
        request = Dataset()
        request.RequestedProcedureID, request.ScheduledProcedureStepID = "CANARY29", "CANARY30"
        image.RequestAttributesSequence = [request]
        image.save_as(path)
    return folder


@pytest.fixture(scope="module")
def scan(series: Path) -> Volume:
    return read(series)


@pytest.fixture(scope="module")
def edited(scan: Volume) -> Volume:
    """The scan with a box of it changed by what no integer holds."""
    voxels = scan.voxels.copy()
    voxels[8:16, 10:20, 5:12] *= np.random.default_rng(0).uniform(0.2, 0.9, (8, 10, 7))
    return scan.with_voxels(voxels)


@pytest.fixture(scope="module")
def change(scan: Volume) -> Volume:
    """A map of both signs."""
    return scan.with_voxels(np.random.default_rng(1).normal(0, 3, scan.geometry.shape).astype(np.float32))


@pytest.fixture(scope="module")
def mask(scan: Volume) -> np.ndarray:
    inside = np.zeros(scan.geometry.shape, bool)
    inside[8:16, 10:20, 5:12] = np.random.default_rng(2).random((8, 10, 7)) < 0.7
    return inside


def derive(place: Path, scan: Volume, edited: Volume, change: Volume, mask: np.ndarray) -> Path:
    """One object of each kind."""
    folder = DerivedFolder(place, Origin.of(scan, MODEL))
    folder.add_series(edited, "edited", "tumour_volume=20")
    folder.add_map(change, "tumour_volume", "mL")
    folder.add_mask(mask, "tumour_volume")
    folder.add_readouts(READOUTS, {"site": "site-2"})
    return place


@pytest.fixture(scope="module")
def derived(
    scan: Volume, edited: Volume, change: Volume, mask: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return derive(tmp_path_factory.mktemp("derived"), scan, edited, change, mask)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def elements(dataset: Dataset) -> Iterator[tuple[Dataset, object]]:
    for element in dataset:
        yield element.keyword, element.value
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def laid_over(scan: Volume, image: Dataset, frames: np.ndarray) -> np.ndarray:
    """The frames of an object as voxels of the scan, by their positions alone; zero where there is none."""
    shared = image.SharedFunctionalGroupsSequence[0]
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    steps = cosines.T * np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)[::-1]
    np.testing.assert_allclose(steps, lps[:3, :2], rtol=0, atol=1e-9)
    voxels = np.zeros(scan.geometry.shape, np.float32)
    for frame, pixels in zip(image.PerFrameFunctionalGroupsSequence, frames, strict=True):
        place = [*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1.0]
        i, j, k, _ = np.linalg.solve(lps, place)
        assert max(abs(i), abs(j), abs(k - round(k))) < 1e-6
        voxels[:, :, round(k)] = pixels.T
    return voxels


# The source


def test_a_dicom_scan_says_which_image_each_slice_is(series, scan):
    source = scan.source
    assert source is not None
    images = {image.SOPInstanceUID: image for image in map(dcmread, series.iterdir())}
    assert set(images) == {instance.uid for instance in source.instances}
    for instance in source.instances:
        image = images[instance.uid]
        assert instance.position == tuple(image.ImagePositionPatient)
        assert (instance.slope, instance.intercept) == (image.RescaleSlope, image.RescaleIntercept)
        assert (instance.sop_class, instance.frame) == (image.SOPClassUID, None)
        told = (image.Modality, image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID)
        assert (source.modality, source.study, source.series, source.frame_of_reference) == told


def test_a_scan_that_is_not_dicom_has_nothing_to_derive_from(fine_scan):
    with pytest.raises(
        FormatError, match=r"DICOM objects were asked for, but the scan is not DICOM.*leave out --dicom"
    ):
        Origin.of(fine_scan, MODEL)


def test_images_without_a_study_have_nothing_to_refer_to(scan):
    with pytest.raises(FormatError, match="lack UIDs of study, series or image"):
        Origin.of(replace(scan, source=replace(scan.source, study="")), MODEL)


# The counterfactual


def test_a_derived_series_holds_the_counterfactual_where_its_source_lies(derived, series, scan, edited):
    found = read(derived / "edited")
    np.testing.assert_allclose(found.affine, scan.affine, rtol=0, atol=1e-9)
    same = edited.voxels == scan.voxels
    assert 0 < (~same).sum() < same.sum()
    assert np.array_equal(found.voxels[same], scan.voxels[same])
    images = [dcmread(path) for path in files(derived / "edited")]
    np.testing.assert_allclose(found.voxels, edited.voxels, rtol=0, atol=0.51 * float(images[0].RescaleSlope))
    places = {image.SOPInstanceUID: image.ImagePositionPatient for image in map(dcmread, files(series))}
    for image in images:
        assert image.ImagePositionPatient == places[image.SourceImageSequence[0].ReferencedSOPInstanceUID]


def test_a_derived_series_says_that_it_is_derived_and_synthetic(derived, series):
    sources = {dcmread(path).SOPInstanceUID for path in files(series)}
    images = [dcmread(path) for path in files(derived / "edited")]
    assert len({image.SeriesInstanceUID for image in images}) == 1
    assert {image.SourceImageSequence[0].ReferencedSOPInstanceUID for image in images} == sources
    for path, image in zip(files(derived / "edited"), images, strict=True):
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert image.SeriesDescription == "SYNTHETIC medisent tumour_volume=20"
        assert path.name.startswith("synthetic_")
        assert image.SOPInstanceUID not in sources


def instance(slope: float, intercept: float) -> Instance:
    return Instance("", "", None, (0.0, 0.0, 0.0), slope, intercept)


@given(
    slope=st.sampled_from([1.0, 0.5, 0.1, 2.4420024, 0.00012207031, 1e-9, 3.0]),
    intercept=st.sampled_from([0.0, -1024.0, 0.3, -17.25]),
    reach=st.sampled_from([255, 4095, 65535]),
    seed=st.integers(0, 999),
)
def test_values_that_are_the_sources_come_back_equal_and_others_within_half_a_step(slope, intercept, reach, seed):
    draw = np.random.default_rng(seed)
    before = [draw.integers(0, reach + 1, (5, 4)).astype(np.float64) * slope + intercept for _ in range(3)]
    moved = [draw.random((5, 4)) < 0.4 for _ in before]
    after = [np.where(m, p * draw.random(p.shape), p) for m, p in zip(moved, before, strict=True)]
    scales, signed = fitting_scales(after, [instance(slope, intercept)] * 3)
    for plane, where, scale in zip(after, moved, scales, strict=True):
        kept = scale.stored(plane)
        if scale.intercept == scales[0].intercept and float(scale.intercept) == intercept:
            assert np.array_equal(scale.values(kept)[~where], plane[~where])
            assert float(scale.slope) <= slope
        slack = 1e-9 * max(1.0, abs(intercept))
        np.testing.assert_allclose(scale.values(kept), plane, rtol=1e-12, atol=0.51 * float(scale.slope) + slack)
        low, high = (-32768, 32767) if signed else (0, 65535)
        assert low <= kept.min() <= kept.max() <= high


def test_a_twelve_bit_image_is_stored_sixteen_times_as_finely():
    plane = np.array([[0.0, 4095.0], [17.03, 200.49]])
    (scale,), signed = fitting_scales([plane], [instance(1.0, 0.0)])
    assert (float(scale.slope), signed) == (1 / 8, False) or (float(scale.slope), signed) == (1 / 16, False)
    assert np.abs(scale.values(scale.stored(plane)) - plane).max() <= float(scale.slope) / 2


def test_nothing_changed_is_stored_as_it_was():
    plane = np.arange(12.0).reshape(3, 4) * 0.1 - 3
    (scale,), _ = fitting_scales([plane], [instance(0.1, -3.0)])
    assert np.array_equal(scale.stored(plane).ravel(), np.arange(12))


def test_values_out_of_reach_span_their_own_slice(scan):
    planes = [np.linspace(0, 1e6, 20).reshape(5, 4), np.arange(20.0).reshape(5, 4), np.full((5, 4), -7.0)]
    scales, _ = fitting_scales(planes, [instance(1.0, 0.0), instance(1.0, 0.0), None])
    for plane, scale in zip(planes, scales, strict=True):
        step = float(scale.slope)
        assert np.abs(scale.values(scale.stored(plane)) - plane).max() <= 0.51 * step
    assert np.array_equal(scales[1].values(scales[1].stored(planes[1])), planes[1])


# The map, the mask, the readouts


def test_a_map_is_held_in_single_precision_in_its_unit(derived, scan, change):
    found = highdicom.pm.ParametricMap.from_dataset(dcmread(derived / "maps/tumour_volume.dcm"))
    frames = found.get_frames(apply_real_world_transform=True)
    assert np.array_equal(laid_over(scan, found, frames), change.voxels)
    mapping = found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[arb'U]/mL"
    assert mapping.LUTExplanation == "intensity gained for each mL of tumour_volume"


def test_a_mask_is_where_it_was(derived, scan, mask):
    found = highdicom.seg.segread(derived / "masks/tumour_volume.dcm")
    assert np.array_equal(laid_over(scan, found, found.pixel_array) > 0, mask)


def test_readouts_come_back_equal_with_units_and_intervals(derived, scan, mask):
    report = highdicom.sr.srread(derived / "readouts.dcm").content
    groups = [
        *report.get_volumetric_roi_measurement_groups(),
        *report.get_image_measurement_groups(),
    ]
    found = {group.tracking_identifier: group for group in groups}
    assert set(found) == {readout.name for readout in READOUTS}
    tumour, other = READOUTS[0], READOUTS[2]
    told = {m.name.value: (m.value, m.unit.value) for m in found["tumour_volume"].get_measurements()}
    assert told["tumour_volume"] == (tumour.estimate, "mL")
    assert (told["interval_low"], told["interval_high"]) == ((tumour.low, "mL"), (tumour.high, "mL"))
    assert (told["interval_level"], told["percentile"]) == ((90, "%"), (44, "%"))
    assert told[codes.SCT.Volume.value] == (pytest.approx(mask.sum() * scan.geometry.voxel_ml), "mL")
    told = {m.name.value: (m.value, m.unit.value) for m in found[other.name].get_measurements()}
    assert told[other.name] == (-1.5, "{furlongs}")
    (level,) = found["site"].get_qualitative_evaluations()
    assert (level.name.value, level.value.value) == ("site", "site-2")


def test_the_readout_of_a_structure_refers_to_its_segment(derived):
    report = highdicom.sr.srread(derived / "readouts.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    segment = dcmread(derived / "masks/tumour_volume.dcm")
    assert group.referenced_segment.referenced_sop_instance_uid == segment.SOPInstanceUID


@pytest.mark.parametrize("unit", ["mL", "%", "years", "points per week", "a{b}c", "", "µg"])
def test_every_unit_has_a_code_in_ucum(unit):
    code = ucum(unit)
    assert code.isascii()
    assert code.count("{") == code.count("}") <= 1
    assert code


# All of them


def test_every_object_shares_study_and_frame_of_reference_and_refers_to_the_source(derived, scan):
    sources = {instance.uid for instance in scan.source.instances}
    for path in files(derived):
        image = dcmread(path)
        assert image.StudyInstanceUID == scan.source.study
        assert image.SeriesInstanceUID != scan.source.series
        if "Rows" in image:
            assert image.FrameOfReferenceUID == scan.source.frame_of_reference
        referred = {value for keyword, value in elements(image) if keyword == "ReferencedSOPInstanceUID"}
        assert referred & sources
    numbers = [dcmread(path).SeriesNumber for path in files(derived)]
    assert len(set(numbers)) == 4


def test_nothing_but_uids_comes_from_the_source(derived, series, scan):
    secret = [clue for path in files(series) for clue in CLUES if clue in path.read_bytes()]
    assert set(secret) == set(CLUES)
    for path in files(derived):
        content = path.read_bytes()
        assert not [clue for clue in CLUES if clue in content]
        image = dcmread(path)
        assert image.PatientID == str(image.PatientName).rstrip("^") == Origin.of(scan, MODEL).pseudonym
        dates = {v for k, v in elements(image) if k.endswith(("Date", "DateTime")) and v}
        assert dates <= {"19000101"}


def test_the_same_input_gives_the_same_bytes_and_another_other_uids(derived, scan, edited, change, mask, tmp_path):
    again = derive(tmp_path / "again", scan, edited, change, mask)
    assert [path.read_bytes() for path in files(derived)] == [path.read_bytes() for path in files(again)]
    other = derive(
        tmp_path / "other", scan, scan.with_voxels(edited.voxels / 2), scan.with_voxels(-change.voxels), ~mask
    )
    both = [{dcmread(path).SOPInstanceUID for path in files(folder)} for folder in (derived, other)]
    assert not both[0] & both[1]


def test_frames_of_one_object_are_referred_to_by_their_numbers(scan, edited, change, mask, tmp_path):
    enhanced = "1.2.840.10008.5.1.4.1.1.4.1"
    frames = tuple(
        replace(instance, sop_class=enhanced, uid="2.25.77", frame=number + 1)
        for number, instance in enumerate(scan.source.instances)
    )
    framed = replace(scan, source=replace(scan.source, instances=frames))
    derive(tmp_path, framed, edited, change, mask)
    for path in files(tmp_path):
        image = dcmread(path)
        referred = [value for keyword, value in elements(image) if keyword == "ReferencedSOPInstanceUID"]
        assert "2.25.77" in referred
    for index, path in enumerate(files(tmp_path / "edited")):
        (item,) = dcmread(path).SourceImageSequence
        assert (item.ReferencedSOPClassUID, item.ReferencedFrameNumber) == (enhanced, index + 1)
    for path in (tmp_path / "maps/tumour_volume.dcm", tmp_path / "masks/tumour_volume.dcm"):
        image = dcmread(path)
        (listed,) = image.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert "ReferencedFrameNumber" not in listed
        assert sorted(i.ReferencedFrameNumber for i in image.SourceImageSequence) == list(range(1, len(frames) + 1))


def test_a_resampled_scan_refers_to_its_images_but_lies_where_it_lies(scan, edited, tmp_path):
    fewer = replace(scan.source, instances=scan.source.instances[::2])
    folder = DerivedFolder(tmp_path, Origin.of(replace(scan, source=fewer), MODEL))
    folder.add_series(edited, "edited", "tumour_volume=20")
    found = read(tmp_path / "edited")
    np.testing.assert_allclose(found.affine, scan.affine, rtol=0, atol=1e-6)
    spans = np.ptp(edited.voxels, axis=(0, 1)) / 65533
    assert (np.abs(found.voxels - edited.voxels).max(axis=(0, 1)) <= 0.51 * spans).all()


def test_highdicom_is_imported_only_where_such_objects_are_asked_for():
    package = Path(medisent.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent.name == "derived":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("highdicom", "medisent.derived"))], path.name


# What others make of them


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not there (Debian's dicom3tools)")
@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
def test_the_validator_finds_no_error(modality, scan, edited, change, mask, tmp_path):
    derive(tmp_path, replace(scan, source=replace(scan.source, modality=modality)), edited, change, mask)
    checked = [files(tmp_path / "edited")[0], *(path for path in files(tmp_path) if path.parent.name != "edited")]
    assert len(checked) == 4
    for path in checked:
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert done.returncode == 0, said
        assert not [line for line in said if line.startswith("Error")]


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDISENT_TEST_DATA names no folder")
@pytest.mark.parametrize(
    "name", ["dicom2nifti_cases/ge/anatomical/001", "acr_phantom_multivendor/PhilipsAchieva", "enhanced_xa10/6_1.dcm"]
)
def test_a_real_series_keeps_the_values_that_are_its_own_in_their_place(name, tmp_path):
    scan = read(DATA / name)
    voxels = scan.voxels.astype(np.float64)
    voxels[10:30, 10:30] *= 0.777
    folder = DerivedFolder(tmp_path, Origin.of(scan, MODEL))
    folder.add_series(scan.with_voxels(voxels), "edited", "nothing a scanner measured")
    found, same = read(tmp_path / "edited"), voxels == scan.voxels
    np.testing.assert_allclose(found.affine, scan.affine, rtol=0, atol=1e-9)
    assert np.array_equal(found.voxels[same], scan.voxels[same])
    assert np.abs(found.voxels - voxels).max() < 1e-3 * np.ptp(scan.voxels)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports, for DICOM and for the web, of an Orthanc of our own that knows nothing yet."""
    if not all(map(shutil.which, ("Orthanc", "storescu", "getscu"))):
        pytest.skip("there is no Orthanc, or no storescu and getscu (Debian's orthanc and dcmtk)")
    folder = tmp_path_factory.mktemp("orthanc")
    ports = [free_port(), free_port()]
    settings = {
        **{"DicomPort": ports[0], "HttpPort": ports[1], "DicomAet": "ORTHANC", "DicomAlwaysAllowGet": True},
        **{"StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [], "RemoteAccessAllowed": False},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["Orthanc", folder / "settings.json"], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                asked(ports[1], "/system")
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield ports[0], ports[1]
    finally:
        server.terminate()
        server.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def asked(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        content: bytes = answer.read()
    return content


def test_a_real_server_stores_every_kind_and_gives_it_back_equal(orthanc, derived, scan, edited, tmp_path):
    dicom_port, web_port = orthanc
    send = ["storescu", "-R", "+sd", "+r", "-aec", "ORTHANC", "127.0.0.1", str(dicom_port), derived]
    subprocess.run(send, check=True, capture_output=True)
    sent = {image.SOPInstanceUID: image for image in map(dcmread, files(derived))}
    names = json.loads(asked(web_port, "/instances"))
    stored = [dcmread(io.BytesIO(asked(web_port, f"/instances/{name}/file"))) for name in names]
    assert {image.SOPInstanceUID: image for image in stored} == sent
    assert json.loads(asked(web_port, "/statistics"))["CountStudies"] == 1
    series = dcmread(files(derived / "edited")[0]).SeriesInstanceUID
    keys = ["-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={scan.source.study}"]
    back = tmp_path / "back"
    back.mkdir()
    get = ["getscu", "-S", "-aec", "ORTHANC", "127.0.0.1", str(dicom_port), *keys, "-k", f"SeriesInstanceUID={series}"]
    subprocess.run([*get, "-od", back], check=True, capture_output=True)
    assert np.array_equal(read(back).voxels, read(derived / "edited").voxels)
