"""Laws of DICOM folders: what a series went through, it is read right, or refused by the name of its fault."""

import re
from pathlib import Path

import numpy as np
import pytest
from dicom_series import (
    NORMAL,
    SECRETS,
    SHAPE,
    SPACING,
    Change,
    at,
    both,
    directions,
    drop,
    enhanced,
    every,
    image,
    lps,
    shift,
    tilt,
    voxels,
    write_series,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from medisent import formats
from medisent.errors import FormatError, MedisentError
from medisent.volumes import Volume


def wrongs(volume: Volume, folder: Path) -> list[str]:
    """What a volume says that the files do not: a plane that no file holds, or one that lies elsewhere."""
    found = []
    images = [ds for ds in map(dcmread, sorted(folder.rglob("*.dcm"))) if "PixelData" in ds and ds.SamplesPerPixel == 1]
    truth = {ds.pixel_array.tobytes(): ds for ds in images}
    step = np.linalg.norm(volume.affine[:3, 2])
    for z in range(volume.geometry.shape[2]):
        ds = truth.get(np.ascontiguousarray(volume.voxels[:, :, z].T).tobytes())
        if ds is None:
            found.append(f"plane {z} is no image's")
            continue
        row, column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
        for i, j in ((0, 0), (ds.Columns - 1, 0), (0, ds.Rows - 1)):
            place = np.array(ds.ImagePositionPatient, float)
            place = place + row * ds.PixelSpacing[1] * i + column * ds.PixelSpacing[0] * j
            apart = np.linalg.norm((volume.affine @ [i, j, z, 1])[:3] * [-1, -1, 1] - place)
            allowed = 0.05 * step if any("uneven" in remark for remark in volume.remarks) else 0.01 * step + 1e-3
            if apart > allowed:
                found.append(f"plane {z} lies {apart:.3f} mm off")
    return found


def rotate(z: int, degrees: float) -> Change:
    return at(z, "ImageOrientationPatient", [float(v) for v in directions(0.4 + np.radians(degrees))[:, :2].T.ravel()])


def numbered(order: list[int]) -> Change:
    return lambda z, ds: setattr(ds, "InstanceNumber", order[z])


def jitter(part: float) -> Change:
    off = np.random.default_rng(5).uniform(-part, part, SHAPE[2]) * SPACING[2]
    return shift(lambda z: off[z] * NORMAL)


RIGHT = {
    "as it is": lambda z, ds: None,
    "numbers reversed": numbered(list(range(8))[::-1]),
    "numbers shuffled": numbered([3, 1, 7, 0, 2, 6, 5, 4]),
    "no numbers": every("InstanceNumber", None),
    "all numbers equal": every("InstanceNumber", 1),
    "no first slice": drop(0),
    "no last slices": drop(6, 7),
    "only two slices": drop(0, 1, 2, 3, 6, 7),
    **{f"tilt of {angle} degrees": tilt(angle) for angle in (1, 2, 5, 10, 15, 20, -12)},
    "tilt below what is said": tilt(0.3),
    "positions rounded": shift(lambda z: np.full(3, 2e-4 * (-1) ** z)),
    "jitter of 0.5 %": jitter(0.005),
    "jitter of 1 %": jitter(0.01),
    "jitter of 3 %": jitter(0.03),
    "one slice turned by nothing to speak of": rotate(3, 0.002),
    "image types differ": lambda z, ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "M", ("ND", "NORM")[z % 2]]),
    "acquisitions differ": lambda z, ds: setattr(ds, "AcquisitionNumber", z + 1),
    "thickness is not distance": every("SliceThickness", 1.0),
    "localiser alone": every("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_does_no_harm_is_read_right(tmp_path, name):
    folder = write_series(tmp_path / "series", RIGHT[name])
    volume = formats.read(folder)
    assert volume.geometry.shape[2] == len(list(folder.iterdir()))
    assert wrongs(volume, folder) == []
    assert bool(volume.remarks) == ("degrees" in name or name in ("jitter of 3 %", "localiser alone"))


FAULTS = {
    "one slice missing": (drop(3), "geometry.gap", "1 of 8 are missing"),
    "two slices missing": (drop(2, 3), "geometry.gap", "2 of 8 are missing"),
    "every third missing": (drop(1, 4, 7), "geometry.gap", "missing"),
    "a gap": (shift(lambda z: 4.1 * NORMAL * (z > 4)), "geometry.gap", "there is a gap"),
    "tilted and one missing": (both(tilt(14), drop(5)), "geometry.gap", "1 of 8 are missing"),
    "uneven": (jitter(0.2), "geometry.uneven", "uneven"),
    "ever larger distances": (shift(lambda z: 0.1 * z * z * NORMAL), "geometry.uneven", "uneven"),
    "one slice off": (shift(lambda z: 0.2 * NORMAL * (z == 2)), "geometry.uneven", "uneven"),
    "beside the line": (shift(lambda z: directions()[:, 0] * (z == 1)), "geometry.crooked", "straight line"),
    "tilted beyond all gantries": (tilt(60), "geometry.tilt", "tilted by 60.0 degrees"),
    "duplicate place": (
        shift(lambda z: -3.0 * NORMAL * (z == 2)),
        "geometry.duplicate",
        "has 1 of 8 .*duplicate slices",
    ),
    "all at one place": (shift(lambda z: -3.0 * z * NORMAL), "geometry.single_slice", "8 images of one slice"),
    "one slice rotated": (rotate(3, 5), "geometry.orientation", "mixes images of different orientation"),
    "the last slice rotated": (rotate(7, 5), "geometry.orientation", "mixes images of different orientation"),
    "a slice of other spacing": (at(7, "PixelSpacing", [2.0, 2.0]), "geometry.spacing", "different pixel spacing"),
    "a slice of other size": (lambda z, ds: crop(ds) if z == 7 else None, "geometry.size", "different size"),
    "another frame of reference": (
        lambda z, ds: setattr(ds, "FrameOfReferenceUID", f"1.2.{z // 7}"),
        "geometry.frame_of_reference",
        "different frames of reference",
    ),
    "no position": (at(1, "ImagePositionPatient", None), "geometry.no_position", "image without position"),
    "short position": (at(1, "ImagePositionPatient", [1.0, 2.0]), "geometry.no_position", "image without position"),
    "no orientation": (every("ImageOrientationPatient", None), "geometry.no_orientation", "without orientation"),
    "no spacing": (every("PixelSpacing", None), "geometry.no_spacing", "without pixel spacing"),
    "skewed axes": (every("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "geometry.axes", "impossible"),
    "one slice": (drop(*range(1, 8)), "geometry.single_slice", "has one slice"),
    "colour": (every("SamplesPerPixel", 3), "format.rgb", "colour"),
    "palette": (every("PhotometricInterpretation", "PALETTE COLOR"), "format.rgb", "colour"),
    "mosaic": (every("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "geometry.mosaic", "mosaics"),
    "no pixels": (lambda z, ds: ds.__delattr__("PixelData") if z == 7 else None, "format.no_pixels", "without pixels"),
    "short pixels": (lambda z, ds: setattr(ds, "PixelData", ds.PixelData[:20]), "format.damaged", "cut short"),
    "one bit a value": (every("BitsAllocated", 1), "format.bits", "segmentation"),
    "table of values": (every("ModalityLUTSequence", [Dataset()]), "format.modality_lut", "through a table"),
    "frames without places": (every("NumberOfFrames", 2), "geometry.frames", "without the place of each"),
    "slope of 0": (every("RescaleSlope", 0), "format.damaged", "by 0"),
    "slope that is no number": (at(2, 0x00281053, "nan"), "format.damaged", "no number"),
    "place that is no number": (every(0x00200032, "1_0\\2\\3"), "geometry.no_position", "image without position"),
    "more pixels than declared": (lambda z, ds: setattr(ds, "PixelData", ds.PixelData * 2), "format.damaged", "more"),
    "fewer rows than stored": (every("Rows", 4), "format.damaged", "more pixels than its header declares"),
    "half the bits": (lambda z, ds: bits(ds, 8, 8, 7), "format.damaged", "more pixels than its header declares"),
    "values beyond the bits that count": (lambda z, ds: bits(ds, 16, 10, 9), "format.bits", "more than the 10 bits"),
    "values below the bits that count": (lambda z, ds: bits(ds, 16, 12, 15), "format.bits", "more than the 12 bits"),
    "a highest bit among the others": (lambda z, ds: bits(ds, 16, 12, 7), "format.bits", "number of bits"),
    "no word of a sign": (
        lambda z, ds: ds.__delattr__("PixelRepresentation"),
        "format.bits",
        "whether they have a sign",
    ),
    "a negative spacing": (every(0x00280030, "-1.1\\0.9"), "geometry.axes", "impossible"),
}


def bits(ds: Dataset, allocated: int, stored: int, high: int) -> None:
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, stored, high


def crop(ds: Dataset) -> None:
    ds.Rows, ds.PixelData = ds.Rows - 1, ds.PixelData[: -2 * ds.Columns]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_by_its_name_and_tells_nobody_who_was_scanned(tmp_path, name):
    change, code, words = FAULTS[name]
    with pytest.raises(MedisentError) as caught:
        formats.read(write_series(tmp_path / "series", change))
    assert caught.value.code == code
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())


def mixed(folder: Path, *changes: Change, same_series: bool = False) -> Path:
    """Several series below one folder, each its own picture."""
    for seed, change in enumerate(changes):
        number = 1 if same_series else seed + 1
        own = both(lambda z, ds, number=number: setattr(ds, "SeriesNumber", number), change)
        write_series(folder / f"{seed}", own, seed, uid=0 if same_series else None)
    return folder


def plain(z: int, ds: Dataset) -> None:
    pass


def capture(z: int, ds: Dataset) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage


LESSER = {
    "localiser": every("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "scout by name": every("SeriesDescription", "3-plane scout"),
    "maximum intensity projection": every("ImageType", ["DERIVED", "PRIMARY", "MIP"]),
    "secondary capture": capture,
    "phase": every("ImageType", ["ORIGINAL", "PRIMARY", "P", "ND"]),
    "single slice": drop(*range(1, 8)),
    "colour": every("SamplesPerPixel", 3),
    "far fewer slices": drop(*range(4, 8)),
    "no pixels": lambda z, ds: ds.__delattr__("PixelData"),
}


@pytest.mark.parametrize("name", LESSER)
def test_one_series_that_is_clearly_best_is_taken_and_said(tmp_path, name):
    folder = mixed(tmp_path / "study", LESSER[name], plain)
    volume = formats.read(folder)
    assert np.array_equal(volume.voxels, voxels(1))
    assert wrongs(volume, folder) == []
    assert volume.remarks[0].startswith("Of 2 series number 1 is taken (MR, 8 images, 6 x 5, 1.10 x 0.90 mm): ")
    assert volume.remarks[0].endswith("Choose another by --series N.")


def test_magnitude_is_taken_where_one_series_also_holds_phase(tmp_path):
    folder = mixed(
        tmp_path / "study",
        every("ImageType", ["ORIGINAL", "PRIMARY", "P"]),
        every("ImageType", ["ORIGINAL", "PRIMARY", "M"]),
        same_series=True,
    )
    volume = formats.read(folder)
    assert np.array_equal(volume.voxels, voxels(1))
    assert "the rest is phase images" in volume.remarks[0]
    assert np.array_equal(formats.read(folder, series=0).voxels, voxels(0))


AMBIGUOUS = {
    "two series": ((plain, plain), False, "format.several_series", "holds 2 series"),
    "one of them has a gap": ((plain, drop(3)), False, "format.several_series", "refused: gap"),
    "two echoes": ((every("EchoTime", 4.6), every("EchoTime", 9.2)), True, "geometry.4d", "echo 4.6 ms"),
    "two numbered echoes": ((every("EchoNumbers", 1), every("EchoNumbers", 2)), True, "geometry.4d", "2 kinds"),
    "two directions": (
        (plain, lambda z, ds: [rotate(n, 30)(z, ds) for n in range(8)]),
        True,
        "geometry.orientation",
        "2 kinds",
    ),
    "both have gaps": ((drop(2), drop(3)), False, "geometry.gap", "holds 2 series"),
    "one identifier for two series": (
        (every("SeriesNumber", 4), both(every("SeriesNumber", 5), shift(lambda z: 1.5 * NORMAL))),
        True,
        "format.several_series",
        "holds 2 series",
    ),
    "one series of two settings between each other": (
        (every("RepetitionTime", 500), both(every("RepetitionTime", 9000), shift(lambda z: 1.5 * NORMAL))),
        True,
        "geometry.4d",
        "2 kinds",
    ),
    "one series begun at two times, between each other": (
        (every("SeriesTime", "101500"), both(every("SeriesTime", "101530.25"), shift(lambda z: 1.5 * NORMAL))),
        True,
        "geometry.4d",
        "2 kinds",
    ),
    "one series counted twice, between each other": (
        (numbered(list(range(1, 9))), both(numbered(list(range(1, 9))), shift(lambda z: 1.5 * NORMAL))),
        True,
        "geometry.4d",
        "2 kinds",
    ),
    "one series counted twice, there and back": (
        (numbered(list(range(8))), both(numbered(list(range(9, 1, -1))), shift(lambda z: 1.5 * NORMAL))),
        True,
        "geometry.4d",
        "2 kinds",
    ),
    "one series of two settings above each other": (
        (every("InversionTime", 0), both(every("InversionTime", 2500), shift(lambda z: 24 * NORMAL))),
        True,
        "geometry.4d",
        "2 kinds",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_ambiguous_is_refused_with_a_table_and_each_can_be_chosen(tmp_path, name):
    changes, same, code, words = AMBIGUOUS[name]
    folder = mixed(tmp_path / "study", *changes, same_series=same)
    with pytest.raises(MedisentError, match=words) as caught:
        formats.read(folder)
    assert caught.value.code == code
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[-1] == "Choose one by its number: --series 0."
    if not any("refused" in line for line in lines):
        for number in range(2):
            assert np.array_equal(formats.read(folder, series=number).voxels, voxels(number))


COUNTED = {
    "every second slice first": ([0, 4, 1, 5, 2, 6, 3, 7], "Every second image was numbered first"),
    "every second slice later, downwards": ([7, 3, 6, 2, 5, 1, 4, 0], "Every second image was numbered first"),
    "two parts above each other": ([1, 2, 3, 4, 1, 2, 3, 4], "same number"),
    "two images of one number": ([1, 2, 3, 4, 4, 5, 6, 7], "same number"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_numbers_that_may_be_those_of_two_series_are_said(tmp_path, name):
    numbers, said = COUNTED[name]
    folder = write_series(tmp_path / "series", numbered(numbers))
    volume = formats.read(folder)
    assert wrongs(volume, folder) == []
    assert [said in remark for remark in volume.remarks] == [True]


@pytest.mark.parametrize(
    "secret", [("PatientID", "CANARY-8"), ("PatientName", "Canary^Carl"), ("PatientBirthDate", "19510101")]
)
@pytest.mark.parametrize("off", [0.0, 1.5, 24.0])
def test_two_people_are_never_one_scan(tmp_path, secret, off):
    other = both(every(*secret), shift(lambda z: off * NORMAL))
    folder = mixed(tmp_path / "study", every("PatientBirthDate", "19500101"), other, same_series=True)
    for series in (None, 0):
        with pytest.raises(FormatError, match="several patients") as caught:
            formats.read(folder, series=series)
        assert caught.value.code == "format.several_people"
        assert not any(name in str(caught.value) for name in (*SECRETS.values(), *secret[1:], "19500101"))


def test_a_person_written_otherwise_or_not_at_all_is_no_other(tmp_path):
    def written(z, ds):
        ds.PatientName = ["Canary^Carla", "CANARY^CARLA^^", "Canary  Carla", ""][z % 4]
        ds.PatientID = ["CANARY-7", ""][z % 2]

    folder = write_series(tmp_path / "series", written)
    assert wrongs(formats.read(folder), folder) == []


def test_a_table_of_many_series_has_six_lines_and_names_nobody(tmp_path):
    mixed(tmp_path / "study", *[plain] * 9)
    with pytest.raises(FormatError) as caught:
        formats.read(tmp_path / "study", series=9)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 6
    assert lines[0] == f"{tmp_path / 'study'} holds 9 series and none of number 9:"
    assert lines[1].startswith("0: MR, 8 images, 6 x 5, 1.10 x 0.90 mm; 1: MR")
    assert not any(secret in str(caught.value) for secret in SECRETS.values())


TIMES = {
    "temporal position": lambda t: every("TemporalPositionIdentifier", t),
    "acquisition": lambda t: every("AcquisitionNumber", t),
    "b-value": lambda t: every("DiffusionBValue", 500.0 * t),
    "trigger": lambda t: every("TriggerTime", 2000 * t),
    "number, volume by volume": lambda t: lambda z, ds: setattr(ds, "InstanceNumber", 8 * t + z),
    "number, place by place": lambda t: lambda z, ds: setattr(ds, "InstanceNumber", 3 * z + t),
}


@pytest.mark.parametrize("name", TIMES)
def test_one_of_several_time_points_is_chosen_by_its_number(tmp_path, name):
    folder = mixed(tmp_path / "study", *[TIMES[name](time) for time in (2, 0, 1)], same_series=True)
    with pytest.raises(MedisentError, match=r"3 images .* of each of 8 places.*--volume 0") as caught:
        formats.read(folder)
    assert caught.value.code == "geometry.4d"
    for volume, seed in enumerate((1, 2, 0)):
        assert np.array_equal(formats.read(folder, volume=volume).voxels, voxels(seed))
    with pytest.raises(FormatError, match=r"no volume 3\. It has 3"):
        formats.read(folder, volume=3)


def test_time_points_that_nothing_tells_apart_are_refused(tmp_path):
    folder = mixed(tmp_path / "study", *[every("InstanceNumber", 1)] * 2, same_series=True)
    with pytest.raises(MedisentError, match="nothing in them tells") as caught:
        formats.read(folder, volume=0)
    assert caught.value.code == "geometry.4d"


def test_volumes_of_mixed_b_values_are_refused(tmp_path):
    def turn(t: int) -> Change:
        def change(z: int, ds: Dataset) -> None:
            ds.InstanceNumber, ds.DiffusionBValue = 3 * z + (t + z) % 3, 1000.0 * (t > 0)

        return change

    folder = mixed(tmp_path / "study", *map(turn, range(3)), same_series=True)
    with pytest.raises(MedisentError, match="nothing in them tells"):
        formats.read(folder, volume=0)


SAID = {
    "every second slice missing": (
        both(every("SpacingBetweenSlices", 3.0), drop(1, 3, 5, 7)),
        "The header tells of 3.00 mm from slice to slice, their places of 6.00 mm",
    ),
    "the last slices missing": (
        both(every("ImagesInAcquisition", 8), drop(6, 7)),
        "The header counts 8 images, of which 6 are here",
    ),
}


def test_scales_that_some_of_the_images_lack_are_said(tmp_path):
    folder = write_series(tmp_path / "series", lambda z, ds: setattr(ds, "RescaleSlope", 2) if z < 3 else None)
    volume = formats.read(folder)
    assert volume.remarks == ("Some of the images are rescaled, and some are not.",)
    assert np.array_equal(volume.voxels, voxels().astype(int) * (1 + (np.arange(8) < 3)))


@pytest.mark.parametrize("name", SAID)
def test_slices_that_are_missing_without_a_gap_are_said_to_be(tmp_path, name):
    change, words = SAID[name]
    volume = formats.read(write_series(tmp_path / "series", change))
    assert wrongs(volume, tmp_path / "series") == []
    assert len(volume.remarks) == 1
    assert volume.remarks[0].startswith(words)


@pytest.mark.parametrize("left", [0, 100, -1])
@pytest.mark.parametrize("ending", [".dcm", ""])
def test_a_file_of_the_series_that_is_no_dicom_any_more_is_refused(tmp_path, left, ending):
    folder = write_series(tmp_path / "series")
    for file in sorted(folder.iterdir()):
        file.rename(file.with_suffix(ending))
    (folder / "._0-1.dcm").write_bytes(bytes(500))  # what macOS keeps beside a file
    assert np.array_equal(formats.read(folder).voxels, voxels())
    for file in sorted(folder.iterdir())[-1:]:
        file.write_bytes(file.read_bytes()[:left] if left >= 0 else bytes(1000))
    with pytest.raises(FormatError, match="named as DICOM files are, but is none any more") as caught:
        formats.read(folder)
    assert caught.value.code == "format.damaged"


def test_exact_copies_are_passed_over_and_said(tmp_path):
    folder = write_series(tmp_path / "study")
    for file in sorted(folder.iterdir())[:3]:
        (folder / "again").mkdir(exist_ok=True)
        (folder / "again" / file.name).write_bytes(file.read_bytes())
    volume = formats.read(folder)
    assert np.array_equal(volume.voxels, voxels())
    assert volume.remarks == ("3 images are exact copies of others and are passed over.",)
    for file in folder.glob("*.dcm"):
        (folder / "again" / file.name).write_bytes(file.read_bytes())
    assert np.array_equal(formats.read(folder).voxels, voxels())


def test_frames_of_an_enhanced_image_are_judged_as_images_are(tmp_path):
    file = tmp_path / "one.dcm"
    enhanced(times=2).save_as(file, enforce_file_format=True)
    with pytest.raises(MedisentError, match="2 images") as caught:
        formats.read(file)
    assert caught.value.code == "geometry.4d"
    slopes, z = 0.5 + np.arange(SHAPE[2]), np.arange(SHAPE[2])
    assert np.array_equal(formats.read(file, volume=1).voxels, voxels(1) * slopes - z)

    def lose(ds: Dataset) -> None:
        del ds.PerFrameFunctionalGroupsSequence[3]
        ds.NumberOfFrames, array = 7, np.delete(voxels(), 3, axis=2)
        ds.PixelData = array.T.tobytes()

    for change, code in {
        lose: "geometry.gap",
        lambda ds: setattr(ds, "NumberOfFrames", 3): "geometry.frames",
        lambda ds: ds.PerFrameFunctionalGroupsSequence[2].__delattr__("PlanePositionSequence"): "geometry.no_position",
        lambda ds: ds.SharedFunctionalGroupsSequence[0].__delattr__("PixelMeasuresSequence"): "geometry.no_spacing",
    }.items():
        enhanced(change).save_as(file, enforce_file_format=True)
        with pytest.raises(MedisentError) as refused:
            formats.read(file)
        assert refused.value.code == code


def test_a_folder_among_thousands_of_other_files_is_read(tmp_path):
    folder = write_series(tmp_path / "study" / "deep" / "deeper")
    rng = np.random.default_rng(0)
    for number in range(2000):
        (folder / f"{number}.bin").write_bytes(rng.bytes(200))
    (tmp_path / "study" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "study" / "empty").touch()
    report = image(voxels()[:, :, 0], generate_uid())
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    del report.Rows, report.Columns, report.PixelData
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    assert np.array_equal(formats.read(tmp_path / "study").voxels, voxels())


def test_a_damaged_file_beside_the_scan_is_refused_and_elsewhere_remarked(tmp_path):
    folder = write_series(tmp_path / "study" / "series")
    (tmp_path / "study" / "other").mkdir()
    whole = next(folder.iterdir()).read_bytes()
    (tmp_path / "study" / "other" / "cut").write_bytes(whole[:300])
    assert formats.read(tmp_path / "study").remarks == ("1 damaged DICOM file in another folder is passed over.",)
    (folder / "cut").write_bytes(whole[:300])
    with pytest.raises(FormatError, match="damaged or cut short") as caught:
        formats.read(tmp_path / "study")
    assert caught.value.code == "format.damaged"


@pytest.mark.parametrize("campaign", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))])
def test_whatever_happens_to_a_series_nothing_wrong_passes(tmp_path, campaign):
    rng = np.random.default_rng(campaign)
    codes = set()
    for case in range(20):
        changes: list[Change] = [numbered([int(n) for n in rng.permutation(8)])]
        for one in rng.permutation(6)[: rng.integers(1, 4)]:
            z, size = int(rng.integers(8)), float(rng.choice([0.002, 0.02, 0.2, 1.0]))
            changes.append(
                [
                    drop(z, int(rng.integers(8))),
                    tilt(20 * size),
                    jitter(size),
                    rotate(z, 10 * size),
                    shift(lambda here, z=z, size=size: 3.0 * size * NORMAL * (here == z)),
                    shift(lambda here, z=z, size=size: 3.0 * size * directions()[:, 1] * (here >= z)),
                ][one]
            )
        folder = write_series(tmp_path / f"{case}", both(*changes))
        try:
            volume = formats.read(folder)
        except MedisentError as refusal:
            codes.add(refusal.code)
            continue
        assert wrongs(volume, folder) == []
        assert volume.geometry.shape[2] == len(list(folder.iterdir()))
    assert codes


def test_the_affine_of_a_tilted_series_survives_being_written(tmp_path):
    scan = formats.read(write_series(tmp_path / "series", tilt(15)))
    formats.write(scan, tmp_path / "tilted.nii.gz", description="a scan")
    again = formats.read(tmp_path / "tilted.nii.gz")
    assert np.array_equal(again.voxels, scan.voxels)
    assert np.allclose(again.affine, scan.affine, atol=1e-4)
    expected = lps()
    expected[:3, 2] += SPACING[2] * np.tan(np.radians(15)) * directions()[:, 1]
    assert np.allclose(np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine, expected, atol=1e-4)
