"""Laws of bombs: what claims or unfolds to very much is refused at once and in little memory."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SECONDS, MEGABYTES = 2.0, 300.0


def nifti(sizes: tuple[int, ...], datatype: int = 4, bits: int = 16, offset: float = 352) -> bytes:
    header = nib.Nifti1Header() if max(sizes) < 1 << 15 else nib.Nifti2Header()
    header.set_sform(np.eye(4), 1)
    header["dim"][: len(sizes) + 1] = [len(sizes), *sizes]
    header["datatype"], header["bitpix"] = datatype, bits
    header["vox_offset"] = offset if max(sizes) < 1 << 15 else 544
    return bytes(header.binaryblock) + bytes(4)


def packed(path: Path, head: bytes, zeros: int) -> None:
    """The head and then zeros, a megabyte of gzip for each gigabyte: members can be repeated."""
    block = gzip.compress(bytes(1 << 24), 9, mtime=0)
    with path.open("wb") as file:
        file.write(gzip.compress(head))
        for _ in range(zeros >> 24):
            file.write(block)


def dicom(path: Path) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(entropy_srcs=["bomb"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    image.Modality, image.Rows, image.Columns, image.SamplesPerPixel = "MR", 64, 64, 1
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation, image.PhotometricInterpretation = 15, 0, "MONOCHROME2"
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing = [1, 1]
    image.PixelData = bytes(64 * 64 * 2)
    return image


def claims_a_million_frames(path: Path) -> None:
    image = dicom(path)
    image.NumberOfFrames = 1_000_000
    image.save_as(path, enforce_file_format=True)


def nests_sequences(path: Path) -> None:
    image, inner = dicom(path), Dataset()
    inner.PatientComments = "innermost"
    image.save_as(path, enforce_file_format=True)
    item = b""
    for _ in range(300):
        content = item
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        item = (
            struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        )
    data = path.read_bytes()
    at = data.index(
        struct.pack("<HH2s", 0x0008, 0x0060, b"CS")
    )  # the modality is not far from where the sequence belongs
    after = at + 8 + struct.unpack("<H", data[at + 6 : at + 8])[0]
    path.write_bytes(data[:after] + item + data[after:])


def says_it_describes_a_million_frames(path: Path) -> None:
    image = dicom(path)
    image.NumberOfFrames = 1_000_000
    image.PerFrameFunctionalGroupsSequence = Sequence([Dataset() for _ in range(3)])
    image.save_as(path, enforce_file_format=True)


BOMBS = {
    "voxels.nii": lambda path: path.write_bytes(nifti((10_000, 10_000, 10_000))),
    "voxels.nii.gz": lambda path: path.write_bytes(gzip.compress(nifti((10_000, 10_000, 10_000)))),
    "second.nii": lambda path: path.write_bytes(nifti((1_000_000, 1_000_000, 1))),
    "honest.nii.gz": lambda path: packed(path, nifti((1024, 1024, 512), 16, 32), 1 << 31),
    "hidden.nii.gz": lambda path: packed(path, nifti((64, 64, 64)), 1 << 31),
    "times.nii.gz": lambda path: packed(path, nifti((64, 64, 64, 4096)), 1 << 31),
    "late.nii.gz": lambda path: packed(path, nifti((64, 64, 64), offset=2.0**31), 1 << 31),
    "frames.dcm": claims_a_million_frames,
    "described.dcm": says_it_describes_a_million_frames,
    "nested.dcm": nests_sequences,
    "voxels.nrrd": lambda path: path.write_text(
        "NRRD0004\ntype: double\ndimension: 3\nspace: LPS\nsizes: 10000 10000 10000\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: gzip\n\n"
    ),
    "voxels.mha": lambda path: path.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 800 800 800\nElementType = MET_DOUBLE\nElementDataFile = LOCAL\n"
    ),
    "voxels.vtk": lambda path: path.write_text(
        "# vtk DataFile Version 3.0\nbomb\nBINARY\nDATASET STRUCTURED_POINTS\nDIMENSIONS 800 800 800\nSPACING 1 1 1\n"
        "ORIGIN 0 0 0\nPOINT_DATA 512000000\nSCALARS scalars double\nLOOKUP_TABLE default\n"
    ),
}


def burst(path: Path) -> dict[str, object]:
    """What the reader says of a bomb, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("bombs.py")), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["honest.nii.gz", "nested.dcm"])
def test_a_bomb_is_refused_at_once(name, tmp_path):
    assert_refused(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_every_bomb_is_refused_at_once(name, tmp_path):
    assert_refused(name, tmp_path)


def assert_refused(name: str, folder: Path) -> None:
    BOMBS[name](folder / name)
    assert (folder / name).stat().st_size < 4_000_000
    found = burst(folder / name)
    print(name, found)
    assert not found["said"].startswith("read")
    assert found["seconds"] < SECONDS
    assert found["megabytes"] < MEGABYTES
