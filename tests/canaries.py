"""Scans that carry identifiers wherever a scan can, and the search for them in every byte that came out."""

from __future__ import annotations

import base64
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.nifti1 import Nifti1Extension
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

DATES = {"PatientBirthDate": "19540312", "StudyDate": "20231107", "SeriesDate": "20231108", "ContentDate": "20231109"}
TIMES = {"StudyTime": "131719.734", "AcquisitionTime": "132923.917"}
TEXTS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "PatientMotherBirthName", "PatientComments"),
    *("EthnicGroup", "Occupation", "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription"),
    *("ProtocolName", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "DeviceSerialNumber"),
    *(
        "RequestingPhysician",
        "AdmissionID",
        "MilitaryRank",
        "BranchOfService",
        "ImageComments",
        "DerivationDescription",
    ),
    *("MedicalRecordLocator", "IssuerOfPatientID", "CountryOfResidence", "RegionOfResidence"),
)


def canary(name: str) -> str:
    """A word that stands nowhere but where it is put; at most sixteen letters, as the shortest text values."""
    return f"KANARI{zlib.crc32(name.encode()):08X}"


def dicom_canaries() -> list[str]:
    places = ["private", "private sequence", "sequence", "nested", "file meta", "application", "file name", "folder"]
    places += TEXTS
    return [*map(canary, places), *DATES.values(), *TIMES.values(), *UIDS.values()]


UIDS = {
    name: generate_uid(entropy_srcs=[name])[:55]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
}


def mark_dicom(source: Path, target: Path) -> Path:
    """A copy of a series with an identifier in every place; the folder that a user would type."""
    folder = target / canary("folder")
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        image = pydicom.dcmread(file)
        for name in TEXTS:
            setattr(image, name, canary(name))
        for name, value in {**DATES, **TIMES}.items():
            setattr(image, name, value)
        for name, uid in UIDS.items():
            setattr(image, name, f"{uid}.{number}" if name == "SOPInstanceUID" else uid)
        inner, outer = Dataset(), Dataset()
        inner.PatientID = canary("nested")
        outer.PatientName, outer.OtherPatientIDsSequence = canary("sequence"), Sequence([inner])
        image.OtherPatientIDsSequence = Sequence([outer])
        block = image.private_block(0x0011, canary("private"), create=True)
        block.add_new(0x01, "LO", canary("private"))
        held = Dataset()
        held.PatientName = canary("private sequence")
        image.add(DataElement(block.get_tag(0x02), "SQ", Sequence([held])))
        image.file_meta.ImplementationVersionName = canary("application")
        image.file_meta.SourceApplicationEntityTitle = canary("file meta")
        image.save_as(folder / f"{canary('file name')}_{number:03d}.dcm", enforce_file_format=True)
    return folder


NIFTI_CANARIES = [canary(f"nifti {place}") for place in ("descrip", "aux", "intent", "extension", "file", "db")]


def mark_nifti(source: Path, target: Path) -> Path:
    """A copy of a scan with an identifier in every place of a NIfTI file."""
    image = nibabel.Nifti1Image(np.asanyarray(nibabel.load(source).dataobj), nibabel.load(source).affine)
    texts = (*NIFTI_CANARIES[:3], NIFTI_CANARIES[5])
    words = dict(zip(("descrip", "aux_file", "intent_name", "db_name"), texts, strict=True))
    for field, word in words.items():
        image.header[field] = word.encode()
    image.header.extensions.append(Nifti1Extension("comment", NIFTI_CANARIES[3].encode()))
    folder = target / canary("nifti file")
    folder.mkdir(parents=True)
    nibabel.save(image, folder / "plain.nii")
    raw = (folder / "plain.nii").read_bytes()
    (folder / "plain.nii").unlink()
    path = folder / f"{canary('nifti file')}.nii.gz"
    path.write_bytes(gzip.compress(raw))
    return path


def readable(raw: bytes) -> Iterator[bytes]:
    """The bytes, and what is packed in them: gzip, PNG's texts, base64 of pages."""
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield from readable(gzip.decompress(raw))
    if raw[:8] == b"\x89PNG\r\n\x1a\n":
        for packed in re.finditer(rb"(?:zTXt|iTXt|iCCP|eXIf).*?\0\0(?=x)(.{8,4096})", raw, re.DOTALL):
            yield zlib.decompressobj().decompress(packed[1])
    for part in re.finditer(rb"base64,([A-Za-z0-9+/=]{16,})", raw):
        yield from readable(base64.b64decode(part[1]))


def found_in(raw: bytes, words: list[str]) -> list[str]:
    """Which of the words stand in these bytes, as text of one or two bytes a letter, in any case."""
    found = set()
    for content in readable(raw):
        folded = content.lower()
        found |= {word for word in words for code in ("utf-8", "utf-16-le") if word.lower().encode(code) in folded}
    return sorted(found)


def leaks(folder: Path, words: list[str]) -> dict[str, list[str]]:
    """By file, the words that stand in it or in its name."""
    leaking = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        held = found_in(name.encode(), words) + (found_in(path.read_bytes(), words) if path.is_file() else [])
        if held:
            leaking[name] = held
    return leaking
