"""Laws of NRRD, MetaImage and the process that decodes them: claims are held against data, and nothing gets out."""

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medisent import formats
from medisent.errors import FormatError, GeometryError, MedisentError
from medisent.formats.claims import check_claims
from medisent.formats.others import decode

SHAPE = (12, 9, 7)
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 12 9 7\n"
    "space directions: (1,0,0) (0,1.5,0) (0,0,2)\nendian: little\nencoding: raw\nspace origin: (1,2,3)\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    "Offset = 1 2 3\nElementSpacing = 1 1.5 2\nDimSize = 12 9 7\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)
LIMIT = 1 << 29


def stored() -> bytes:
    return np.random.default_rng(0).normal(300, 40, SHAPE).astype("<i2").tobytes(order="F")


def nrrd(path: Path, old: str = "", new: str = "", data: bytes | None = None) -> Path:
    path.write_bytes(NRRD.replace(old, new).encode() + b"\n" + (stored() if data is None else data))
    return path


def meta(path: Path, old: str = "", new: str = "", data: bytes | None = None) -> Path:
    path.write_bytes(META.replace(old, new).encode() + (stored() if data is None else data))
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_no_damage_to_packed_data_is_passed_on(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.frombuffer(stored(), "<i2").reshape(SHAPE[::-1])), path, True)
    check_claims(path, LIMIT)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    whole = data.read_bytes()
    rng = np.random.default_rng(0)
    starts = [at for mark in (b"\x1f\x8b", b"x\x9c", b"x\x01", b"x\x5e") if (at := whole.find(mark)) >= 0]
    for _ in range(60):
        damaged = bytearray(whole)
        # what gzip's own header says of time and system means nothing
        damaged[int(rng.integers(max(starts) + 10, len(whole)))] ^= 1 << int(rng.integers(8))
        data.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"damaged|truncated|more data"):
            check_claims(path, LIMIT)
    for kept in (*range(len(whole) - 9, len(whole)), len(whole) // 2):
        data.write_bytes(whole[:kept])
        with pytest.raises(FormatError, match=r"damaged|truncated"):
            check_claims(path, LIMIT)


def test_data_are_as_many_as_the_header_declares(tmp_path):
    for make, sizes in ((nrrd, "sizes: 12 9 7"), (meta, "DimSize = 12 9 7")):
        path = make(tmp_path / ("scan.nrrd" if make is nrrd else "scan.mha"))
        assert check_claims(path, LIMIT) == ()
        make(path, data=stored() + bytes(100))
        assert check_claims(path, LIMIT) == ()
        for fewer in ("12 9 6", "6 9 7"):
            with pytest.raises(FormatError, match="holds more data than its header declares"):
                check_claims(make(path, sizes, sizes.replace("12 9 7", fewer)), LIMIT)
        with pytest.raises(FormatError, match="is truncated: its header declares 1,728 bytes"):
            check_claims(make(path, sizes, sizes.replace("12 9 7", "12 9 8")), LIMIT)
        with pytest.raises(FormatError, match="claims 10000 x 10000 x 10000 voxels"):
            check_claims(make(path, sizes, sizes.replace("12 9 7", "10000 10000 10000")), LIMIT)
        for odd in ("12 9 x", "", "12 9"):
            with pytest.raises(MedisentError):
                formats.read(make(path, sizes, sizes.replace("12 9 7", odd)))


def test_much_from_little_is_refused_before_it_is_unpacked(tmp_path):
    bomb = zlib.compress(bytes(1 << 20), 9)
    path = meta(tmp_path / "scan.mha", "DimSize = 12 9 7", "DimSize = 1000 1000 540\nCompressedData = True", bomb)
    with pytest.raises(FormatError, match=r"unpacks to [\d,]+ times its size, 1\.1 GB"):
        check_claims(path, 1 << 30)


@pytest.mark.parametrize(
    ("make", "old", "new", "words"),
    [
        (nrrd, "(1,0,0) (0", "none (0", "has an axis without a direction"),
        (nrrd, "space origin", 'space units: "m" "m" "m"\nspace origin', "in another unit than millimetres"),
        (meta, "1 2 3", "nan 2 3", "no number"),
        (meta, "1 1.5 2", "1 inf 2", "no number"),
    ],
)
def test_places_that_simpleitk_mistakes_are_refused(tmp_path, make, old, new, words):
    with pytest.raises(GeometryError, match=words):
        check_claims(make(tmp_path / ("scan.nrrd" if make is nrrd else "scan.mha"), old, new), LIMIT)


def test_a_header_without_orientation_is_remarked(tmp_path):
    for old, new in (
        ("left-posterior-superior", "scanner-xyz"),
        ("space: left-posterior-superior", "space dimension: 3"),
    ):
        assert "does not say how the patient lies" in check_claims(nrrd(tmp_path / "scan.nrrd", old, new), LIMIT)[0]
    path = meta(tmp_path / "scan.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")
    assert "does not say how the patient lies" in check_claims(path, LIMIT)[0]


def test_voxels_in_a_file_that_is_missing_or_none_are_refused(tmp_path):
    for elsewhere in ("scan.raw", "/dev/zero"):
        with pytest.raises(FormatError, match="has its voxels in another file, which is missing"):
            check_claims(meta(tmp_path / "scan.mhd", "LOCAL", elsewhere), LIMIT)
        with pytest.raises(FormatError, match="has its voxels in another file, which is missing"):
            check_claims(nrrd(tmp_path / "scan.nhdr", "space origin", f"data file: {elsewhere}\nspace origin"), LIMIT)


def test_sheared_axes_are_kept_and_remarked(tmp_path):
    volume = formats.read(nrrd(tmp_path / "scan.nrrd", "(0,1.5,0)", "(0.5,1.5,0)"))
    assert np.array_equal(volume.affine[:3, :3], [[-1, -0.5, 0], [0, -1.5, 0], [0, 0, 2]])
    assert volume.remarks == ("The voxels' axes are 18.4 degrees from a right angle; they are kept so.",)
    assert np.array_equal(volume.voxels, np.frombuffer(stored(), "<i2").reshape(SHAPE, order="F"))


# ------------------------------------------------------------------------------------------ the other process

CHILD = f"import sys\nsys.path.insert(0, {str(Path(formats.__file__).parent)!r})\nimport child\nchild._SECONDS = 0\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("child.allow(0)\nwhile True: pass", "keeps its decoder busy"),
        ("child.allow(0)\nbytearray(3 << 29)", "makes its decoder crash"),
        ("print('{}')", "makes its decoder crash"),
        ('print(\'{"sizes": [1000, 1000, 1000], "dtype": "<f8"}\')', "makes its decoder crash"),
        ("print('x' * 10**6)", "makes its decoder crash"),
        ("import os\nos.abort()", "makes its decoder crash"),
    ],
)
def test_whatever_a_decoder_does_becomes_a_refusal(tmp_path, monkeypatch, code, words):
    script = tmp_path / "child.py"
    needed = CHILD if "allow" in code else ""
    script.write_text(needed + code)
    monkeypatch.setattr("medisent.formats.others._CHILD", script)
    with pytest.raises(FormatError, match=words):
        decode([tmp_path / "scan.mha"], max_voxels=1000)


def test_a_decoder_that_waits_for_ever_is_ended(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr("medisent.formats.others._CHILD", script)
    monkeypatch.setattr("medisent.formats.others._SECONDS", 0.2)
    monkeypatch.setattr("medisent.formats.others._SECONDS_A_FILE", 0.1)
    with pytest.raises(FormatError, match="keeps its decoder busy"):
        decode([tmp_path / "scan.mha"], max_voxels=1000)


def test_files_before_a_bad_one_are_not_blamed_for_it(tmp_path):
    good, bad = nrrd(tmp_path / "good.nrrd"), tmp_path / "bad.nrrd"
    bad.write_bytes(b"NRRD0004\nnonsense")
    found = decode([good, bad, good], max_voxels=1000)
    assert [one is None for one in found] == [False, True, False]
    assert np.array_equal(found[0].voxels, found[2].voxels)


def test_the_child_imports_nothing_of_medisent():
    code = f"{CHILD}print([m for m in sys.modules if m.startswith('medisent')])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


BEHIND = [("endian", "byte skip: 4\nendian", nrrd), ("LOCAL", "data.raw", meta)]


@pytest.mark.parametrize(("old", "new", "made"), BEHIND, ids=["nrrd", "meta"])
def test_what_stands_before_the_voxels_is_passed_over_and_their_length_still_counts(tmp_path, old, new, made):
    path = tmp_path / f"scan.{'nrrd' if made is nrrd else 'mhd'}"
    right = np.frombuffer(stored(), "<i2").reshape(SHAPE, order="F")
    for cut, more in ((0, b""), (2, b""), (0, b"more")):
        data = b"abcd" + stored()[: len(stored()) - cut] + more
        if made is meta:
            (tmp_path / "data.raw").write_bytes(data)
            new = "data.raw\n"
            path.write_text(META.replace("NDims", "HeaderSize = 4\nNDims").replace("LOCAL\n", new))
        else:
            made(path, old, new, data)
        if cut or more:
            with pytest.raises(FormatError, match=r"truncated|more data"):
                formats.read(path)
        else:
            assert np.array_equal(formats.read(path).voxels, right)


TEXT = " ".join(map(str, np.frombuffer(stored(), "<i2"))).encode()
UNTOLD = {
    "text.nrrd": (nrrd, "encoding: raw", "encoding: text", TEXT),
    "hex.nrrd": (nrrd, "encoding: raw", "encoding: hex", stored().hex().encode()),
    "last bytes.nrrd": (nrrd, "endian", "byte skip: -1\nendian", b"ab" + stored()),
    "after a line.nrrd": (nrrd, "endian", "line skip: 1\nendian", b"ab\n" + stored()),
    "list.nrrd": (nrrd, "endian: little\n", "endian: little\ndata file: LIST\na\nb\n", b""),
    "text.mha": (meta, "BinaryData = True", "BinaryData = False", TEXT),
    "last bytes.mha": (meta, "NDims", "HeaderSize = -1\nNDims", stored()),
    "header size.mha": (meta, "NDims", "HeaderSize = 4\nNDims", b"abcd" + stored()),
    "list.mha": (meta, "LOCAL", "LIST\na\nb", b""),
    "pattern.mha": (meta, "LOCAL", "s%d.raw 0 6 1", b""),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_voxels_of_which_nothing_tells_whether_they_are_whole_are_refused(tmp_path, name):
    made, old, new, data = UNTOLD[name]
    with pytest.raises(FormatError, match="nothing tells whether they are whole"):
        formats.read(made(tmp_path / name, old, new, data))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("NDims", "ElementToIntensityFunctionSlope = 2\nNDims", "to be rescaled"),
        ("NDims", "ElementSpacing = 9 9 9\nNDims", "cannot be understood"),
        ("NDims", "Position = 9 9 9\nNDims", "cannot be understood"),
    ],
)
def test_what_a_header_tells_that_readers_ignore_is_refused(tmp_path, old, new, words):
    with pytest.raises(FormatError, match=words):
        formats.read(meta(tmp_path / "scan.mha", old, new))
