"""Laws of damaged files: whatever is broken in them, they are read or refused; nothing crashes or hangs."""

import gzip
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from medisent.errors import MedisentError
from medisent.formats import read
from medisent.phantoms.dicom import write_series
from medisent.volumes import Geometry, Volume

sys.path.insert(0, str(Path(__file__).parent))
from mutants import Verdict, Worker, mutant

SHAPE = (7, 6, 5)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)


def nifti_seeds(folder: Path) -> list[Path]:
    """Small scans in every dress that NIfTI has."""
    affine = np.array([[-0.9, 0.1, 0, 12], [0.1, 1.1, 0, -40], [0, 0, 3, 7], [0, 0, 0, 1]])
    big, scaled = nib.Nifti1Header(endianness=">"), nib.Nifti1Header()
    big.set_data_dtype(">i2")
    images = {
        "plain.nii": nib.Nifti1Image(voxels(), affine),
        "packed.nii.gz": nib.Nifti1Image(voxels().astype(np.float32), affine),
        "second.nii.gz": nib.Nifti2Image(voxels(), affine),
        "big.nii": nib.Nifti1Image(voxels(), affine, big),
        "scaled.nii.gz": nib.Nifti1Image(voxels(), affine, scaled),
    }
    images["scaled.nii.gz"].header.set_slope_inter(0.1, -3)
    for name, image in images.items():
        nib.save(image, folder / name)
    return [folder / name for name in images]


def dicom_seeds(folder: Path) -> list[Path]:
    """A series of five slices; the same packed by run lengths."""
    scan = Volume(voxels().astype(np.float32), Geometry(np.diag([1.0, 1.2, 3.0, 1.0]), SHAPE))
    write_series(scan, folder / "series", name="M", description="mutant", entropy="mutant")
    for path in sorted((folder / "series").iterdir()):
        image = pydicom.dcmread(path)
        image.compress(RLELossless, generate_instance_uid=False)
        (folder / "packed").mkdir(exist_ok=True)
        image.save_as(folder / "packed" / path.name)
    return [folder / "series", folder / "packed"]


def mutants(seeds: list[Path], folder: Path, count: int) -> Iterator[tuple[str, Path]]:
    """Damaged copies, one at a time: of a file, or of a folder in which one file is damaged."""
    rng = np.random.default_rng(2026)
    for number in range(count):
        seed = seeds[number % len(seeds)]
        if seed.is_dir():
            place = folder / f"{seed.name}-mutant"
            place.mkdir(exist_ok=True)
            files = sorted(seed.iterdir())
            for file in files:
                (place / file.name).write_bytes(file.read_bytes())
            hit = files[int(rng.integers(len(files)))].name
            (place / hit).write_bytes(mutant((seed / hit).read_bytes(), rng))
        else:
            place = folder / f"mutant-{seed.name}"
            place.write_bytes(mutant(seed.read_bytes(), rng))
        yield f"{number} of {seed.name}", place


def survivors(seeds: list[Path], folder: Path, count: int) -> dict[str, Verdict]:
    with Worker(folder) as worker:
        return {name: worker.read(path) for name, path in mutants(seeds, folder, count)}


@pytest.mark.parametrize("seeds", [nifti_seeds, lambda folder: dicom_seeds(folder)[:1]], ids=["nifti", "dicom"])
def test_a_hundred_mutants_are_read_or_refused(seeds, tmp_path):
    verdicts = survivors(seeds(tmp_path), tmp_path, 100)
    assert not {name: verdict for name, verdict in verdicts.items() if not verdict.fine}
    assert Counter(verdict.kind for verdict in verdicts.values())["refused"] > 20


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "count"), [(nifti_seeds, 1200), (dicom_seeds, 800)], ids=["nifti", "dicom"])
def test_two_thousand_mutants_are_read_or_refused(seeds, count, tmp_path):
    verdicts = survivors(seeds(tmp_path), tmp_path, count)
    kinds = Counter(verdict.kind for verdict in verdicts.values())
    print(dict(kinds), f"slowest {max(verdict.seconds for verdict in verdicts.values()):.1f} s")
    assert not {name: verdict for name, verdict in verdicts.items() if not verdict.fine}
    assert kinds["refused"] > count // 5


# ------------------------------------------------------------------------------------------ damage in transit


def packed_scan(path: Path) -> bytes:
    rng = np.random.default_rng(1)
    smooth = rng.normal(400, 60, (12, 12, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(smooth, np.eye(4)), path)
    return path.read_bytes()


def accepted_wrong(path: Path, damaged: bytes, right: np.ndarray) -> bool:
    path.write_bytes(damaged)
    try:
        return not np.array_equal(read(path).voxels, right)
    except MedisentError:
        return False


def test_no_flipped_bit_and_no_truncation_of_a_packed_file_gives_other_voxels(tmp_path):
    path = tmp_path / "scan.nii.gz"
    whole = packed_scan(path)
    right = read(path).voxels
    rng = np.random.default_rng(7)
    for place in rng.choice(len(whole) * 8, 200, replace=False):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << int(place % 8)
        assert not accepted_wrong(path, bytes(damaged), right), f"bit {place}"
    for kept in [*rng.integers(0, len(whole), 20), *range(len(whole) - 10, len(whole))]:
        path.write_bytes(whole[:kept])
        with pytest.raises(MedisentError):
            read(path)


def test_members_in_a_row_are_one_stream_and_every_one_counts(tmp_path):
    path = tmp_path / "scan.nii.gz"
    plain = gzip.decompress(packed_scan(path))
    right = read(path).voxels
    members = [gzip.compress(plain[start : start + 1000]) for start in range(0, len(plain), 1000)]
    for rest in (b"", bytes(700), gzip.compress(b"")):
        path.write_bytes(b"".join(members) + rest)
        assert np.array_equal(read(path).voxels, right)
    damaged = bytearray(members[-1])
    damaged[-1] ^= 1
    for data in (
        b"".join(members[:-1]),
        b"".join(members) + b"rest",
        b"".join(members[:-1]) + damaged,
        b"".join([*members, members[-1]]),
    ):
        path.write_bytes(data)
        with pytest.raises(MedisentError):
            read(path)
