"""Laws of the walk over DICOM elements: it finds what pydicom finds, steps over the rest, and cannot be led astray."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from dicom_series import enhanced, image, voxels, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from medisent import formats
from medisent.errors import FormatError, MedisentError
from medisent.formats.dicom.elements import read_elements, tag, tags

KEYWORDS = ("ImageType", "Rows", "EchoTime", "StackID", "FrameContentSequence", "PlanePositionSequence")
TEXT = st.text("ABC 0189_", min_size=1, max_size=12).map(str.strip).filter(bool)


def datasets(depth: int) -> st.SearchStrategy[Dataset]:
    def made(stack: str, rows: int, echo: int, ignored: str, inner: list[Dataset]) -> Dataset:
        ds = Dataset()
        ds.StackID, ds.Rows, ds.EchoTime, ds.ImageType = stack, rows, str(echo), ["A", stack]
        ds.PatientComments = ignored * 9
        ds.FrameContentSequence, ds.ReferencedImageSequence = Sequence(inner), Sequence(inner)
        return ds

    below = st.lists(datasets(depth - 1), max_size=2) if depth else st.just([])
    return st.builds(made, TEXT, st.integers(0, 65535), st.integers(0, 999), TEXT, below)


def told(elements, depth: int = 0) -> tuple:
    inner = [told(item, depth + 1) for item in elements.items.get(tag("FrameContentSequence"), [])]
    return elements.text("StackID"), elements.shorts("Rows"), elements.decimals("EchoTime"), tuple(inner)


def meant(ds: Dataset) -> tuple:
    return ds.StackID, (ds.Rows,), (float(ds.EchoTime),), tuple(meant(item) for item in ds.FrameContentSequence)


@settings(max_examples=40, deadline=None)
@given(datasets(3), st.sampled_from([(False, True), (True, True), (False, False)]), st.booleans())
def test_the_walk_finds_what_was_written(tmp_path_factory, ds, form, undefined):
    implicit, little = form
    path = tmp_path_factory.mktemp("walk") / "one.dcm"
    whole = image(voxels()[:, :, 0], generate_uid())
    whole.update(ds)
    whole["FrameContentSequence"].is_undefined_length = undefined
    whole.file_meta.TransferSyntaxUID = {
        (False, True): "1.2.840.10008.1.2.1",
        (True, True): "1.2.840.10008.1.2",
        (False, False): "1.2.840.10008.1.2.2",
    }[form]
    whole["PixelData"].VR = "OW"
    whole.save_as(path, implicit_vr=implicit, little_endian=little)
    found = read_elements(path, tags(KEYWORDS))
    assert found is not None
    assert told(found.elements) == meant(whole)
    assert found.elements.texts("ImageType") == ("A", ds.StackID)
    _, offset, length = found.pixels
    assert path.read_bytes()[offset : offset + length] == whole.PixelData


def nested(depth: int, defined: bool) -> bytes:
    inner = b""
    for _ in range(depth):
        if defined:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
            inner = b"\x08\x00\x40\x11SQ\0\0" + struct.pack("<L", len(item)) + item
        else:
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0\0\0\0\0"
            inner = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return inner


@pytest.mark.parametrize("defined", [False, True])
def test_three_hundred_nested_sequences_are_refused_at_once(tmp_path, defined):
    folder = write_series(tmp_path / "series")
    file = next(folder.iterdir())
    whole = file.read_bytes()
    place = whole.index(b"\x08\x00\x60\x00CS")
    file.write_bytes(whole[:place] + nested(300, defined) + whole[place:])
    began = time.process_time()
    for path in (file, folder):
        with pytest.raises(FormatError, match="nests sequences more than 32 deep") as caught:
            formats.read(path)
        assert caught.value.code == "format.damaged"
    assert time.process_time() - began < 2


def mutants(whole: bytes, count: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        data = bytearray(whole)
        for place in rng.integers(132, len(data), rng.integers(1, 9)):
            data[place] = rng.integers(256)
        found.append(bytes(data[: rng.integers(140, len(data) + 1)] if rng.random() < 0.3 else data))
    return found


@pytest.mark.parametrize("count", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_headers_are_read_or_refused(tmp_path, count):
    plain = write_series(tmp_path / "series")
    first = sorted(plain.iterdir())[0]
    many = tmp_path / "many" / "one.dcm"
    many.parent.mkdir()
    enhanced().save_as(many, enforce_file_format=True)
    refused = 0
    for file, scan in ((first, plain), (many, many)):
        for data in mutants(file.read_bytes(), count, 0):
            Path(file).write_bytes(data)
            try:
                formats.read(scan, max_voxels=1 << 20)
            except MedisentError:
                refused += 1
    assert refused > count // 4
