"""Laws of scans held by other libraries: a marker keeps its place in the world, and a kind comes back as that kind."""

import io

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.nifti2 import Nifti2Image
from test_markers import PLACES

from medisent.errors import FormatError, GeometryError, MedisentError, UsageError
from medisent.formats import write
from medisent.images import image_like, scans_of, volume_of
from medisent.models import Model

SHAPE, MARKER = (7, 5, 6), (5, 1, 4)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def voxels():
    found = np.linspace(1, 2, 210, dtype=np.float32).reshape(SHAPE)
    found[MARKER] = 90
    return found


def in_simpleitk(array, affine):
    """Written from SimpleITK's own definition, without going through medisent."""
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def in_nifti(array, affine, kind=nib.Nifti1Image):
    return kind(array, affine)


KINDS = {
    "nibabel": in_nifti,
    "nibabel, NIfTI-2": lambda array, affine: in_nifti(array, affine, Nifti2Image),
    "nibabel, four dimensions": lambda array, affine: in_nifti(array[..., None], affine),
    "nibabel, big-endian": lambda array, affine: in_nifti(array.astype(">f4"), affine),
    "FreeSurfer": lambda array, affine: in_nifti(array, affine, nib.MGHImage),
    "SimpleITK": in_simpleitk,
    "MONAI": lambda array, affine: MetaTensor(torch.from_numpy(array.copy())[None], affine),
    "MONAI, no channel": lambda array, affine: MetaTensor(torch.from_numpy(array.copy()), affine),
    "MONAI, LPS": lambda array, affine: MetaTensor(
        torch.from_numpy(array.copy())[None], LPS @ affine, {"space": "LPS"}
    ),
    "array": lambda array, affine: (array, affine),
}


def place_of_brightest(image):
    """In mm, RAS+, by the image's own library."""
    if isinstance(image, sitk.Image):
        z, y, x = np.unravel_index(sitk.GetArrayViewFromImage(image).argmax(), image.GetSize()[::-1])
        return LPS[:3, :3] @ image.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
    if isinstance(image, MetaTensor):
        array, affine = image.as_tensor().numpy(), image.affine.numpy()
        affine = LPS @ affine if image.meta["space"] == "LPS" else affine
    else:
        array, affine = (
            (image.get_fdata(), image.affine) if isinstance(image, nib.spatialimages.SpatialImage) else image
        )
    array = array.reshape(SHAPE)
    return (affine @ [*np.unravel_index(array.argmax(), SHAPE), 1])[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_marker_keeps_its_place_in_the_world_there_and_back_however_a_scan_lies(kind):
    for matrix in (*PLACES[:48:5], *PLACES[48::3]):  # straight and oblique, some of them mirrored
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = matrix, (12.5, -80.25, 33.0)
        true = (affine @ [*MARKER, 1])[:3]
        image = KINDS[kind](voxels(), affine)
        assert np.linalg.norm(place_of_brightest(image) - true) < 1e-3, "the test's own image is right"
        volume = volume_of(image)
        assert volume.voxels[MARKER] == 90
        assert np.linalg.norm((volume.affine @ [*MARKER, 1])[:3] - true) < 1e-3
        back = image_like(volume.with_voxels(volume.voxels * np.float32(2)), image, "twice")
        assert type(back) is type(image)
        assert np.linalg.norm(place_of_brightest(back) - true) < 1e-3
        assert np.array_equal(volume_of(back).voxels, 2 * voxels())
        assert np.allclose(volume_of(back).affine, volume.affine, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_is_the_same_whatever_library_holds_the_scan_and_comes_back_in_its_kind(kind, trained, fine_scan):
    model = Model(trained)
    array, affine = fine_scan.voxels, fine_scan.affine
    image = KINDS[kind](array, affine)
    edited = model.counterfactual(image, brightness=1.5)
    assert type(edited) is type(image)
    expected = model.counterfactual(fine_scan, brightness=1.5).voxels
    assert not np.array_equal(expected, array)
    # Places that pass through single precision move the bias field by as little.
    assert np.allclose(volume_of(edited).voxels, expected, rtol=1e-4)
    assert model.counterfactual(image) is image, "nothing asked, nothing changed"
    described = {sitk.Image: lambda i: i.GetMetaData("ITK_FileNotes"), MetaTensor: lambda i: i.meta["descrip"]}
    if type(edited) in described:
        assert described[type(edited)](edited).startswith("synthetic: medisent")


def test_a_nifti_image_keeps_codes_and_units_says_that_it_is_synthetic_and_loses_names(trained, fine_scan, tmp_path):
    image = nib.Nifti1Image(fine_scan.voxels, fine_scan.affine)
    image.set_sform(fine_scan.affine, 4)
    image.set_qform(fine_scan.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["db_name"] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    edited = Model(trained).counterfactual(image, brightness=1.5)
    nib.save(edited, tmp_path / "edited.nii")
    header = nib.load(tmp_path / "edited.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 1)
    assert header["xyzt_units"] == image.header["xyzt_units"]
    assert np.array_equal(header.get_sform(), image.header.get_sform())
    assert np.array_equal(header.get_qform(), image.header.get_qform())
    assert bytes(header["descrip"]).startswith(b"synthetic: medisent, research use only; brightness=1.5")
    assert b"Jane" not in (tmp_path / "edited.nii").read_bytes()


def test_metadata_other_than_place_stay_behind(trained, fine_scan):
    image = in_simpleitk(fine_scan.voxels, fine_scan.affine)
    image.SetMetaData("0010|0010", "Doe^Jane")
    assert "0010|0010" not in Model(trained).counterfactual(image, brightness=1.5).GetMetaDataKeys()
    tensor = MetaTensor(torch.from_numpy(fine_scan.voxels)[None], fine_scan.affine, {"0010|0010": "Doe^Jane"})
    edited = Model(trained).counterfactual(tensor, brightness=1.5)
    assert "0010|0010" not in edited.meta


def test_monai_can_still_undo_what_it_did_before_an_edit(trained, fine_scan):
    turn = Orientation("PIR", labels=None)
    tensor = MetaTensor(torch.from_numpy(fine_scan.voxels)[None], fine_scan.affine)
    edited = Model(trained).counterfactual(turn(tensor), brightness=1.5)
    assert edited.shape != tensor.shape
    back = turn.inverse(edited)
    assert np.allclose(back.affine, tensor.affine)
    assert np.allclose(back[0], Model(trained).counterfactual(fine_scan, brightness=1.5).voxels, rtol=1e-4)


def test_scaled_integers_mean_what_their_file_means(stored_scan, tmp_path):
    stored = np.rint(stored_scan.voxels / 0.0625).astype(np.int16)
    image = nib.Nifti1Image(stored, stored_scan.affine)
    image.header.set_slope_inter(0.0625, 0)
    nib.save(image, tmp_path / "scan.nii")
    assert np.array_equal(volume_of(nib.load(tmp_path / "scan.nii")).voxels, stored_scan.voxels)
    assert np.array_equal(volume_of(tmp_path / "scan.nii").voxels, stored_scan.voxels)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (voxels(), GeometryError, r"Give \(array, affine\)"),
        (torch.zeros(2, 2, 2), GeometryError, r"Give \(array, affine\)"),
        ({"scan": "a.nii"}, UsageError, "A scan cannot be a dict"),
        (None, UsageError, "A scan cannot be a NoneType"),
        ((voxels(), np.eye(3)), GeometryError, "four rows and columns"),
        ((voxels(), np.zeros((4, 4))), GeometryError, "last row"),
        ((voxels(), np.diag([1.0, 1.0, 0.0, 1.0])), GeometryError, "singular"),
        ((voxels()[0], np.eye(4)), FormatError, "has 2 dimensions"),
        ((voxels()[:1], np.eye(4)), FormatError, "one slice"),
        ((voxels() * np.nan, np.eye(4)), FormatError, "NaN"),
        ((np.ones(SHAPE), np.eye(4)), FormatError, "every voxel"),
        ((voxels() + 1j, np.eye(4)), FormatError, "complex"),
        ((voxels().astype(str), np.eye(4)), FormatError, "a type that is not read"),
        (nib.AnalyzeImage(voxels(), np.eye(4)), FormatError, "left from right"),
        (nib.Nifti1Image(np.stack([voxels()] * 3, -1), np.eye(4)), FormatError, "has 4 dimensions"),
        (sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3), FormatError, "several values"),
        (sitk.Image([4, 4], sitk.sitkFloat32), FormatError, "2 dimensions"),
        (sitk.Image([4, 4, 4], sitk.sitkComplexFloat32), FormatError, "complex"),
        (MetaTensor(torch.zeros(2, 4, 4, 4)), FormatError, "2 x 4 x 4 x 4"),
    ],
)
def test_what_is_no_scan_is_refused_in_a_sentence(image, error, words):
    with pytest.raises(error, match=words) as refusal:
        volume_of(image)
    assert isinstance(refusal.value, MedisentError)
    assert len(str(refusal.value).splitlines()) <= 6


def test_encode_takes_scans_of_any_kind_in_a_list_or_one_alone(trained, fine_scan, tmp_path):
    model, path = Model(trained), tmp_path / "scan.nii.gz"
    write(fine_scan, path, description="scan")
    kinds = [make(fine_scan.voxels, fine_scan.affine) for make in KINDS.values()]
    codes = model.encode([fine_scan, path, str(path), *kinds])
    assert np.allclose(codes, codes.iloc[0], atol=1e-3)
    assert scans_of((path, str(path))) == [path, str(path)]
    assert all(scans_of(alone) == [alone] for alone in (fine_scan, path, str(path), *kinds))


def test_harmonising_gives_back_the_kind_too(trained, fine_scan):
    image = in_simpleitk(fine_scan.voxels, fine_scan.affine)
    found = Model(trained).harmonize(image, to=(fine_scan.voxels * 2, fine_scan.affine))
    assert isinstance(found, sitk.Image)
    assert np.allclose(sitk.GetArrayFromImage(found).T, fine_scan.voxels * 2, rtol=1e-3, atol=1e-3)


def test_an_image_in_memory_is_read_as_its_bytes_on_disk_would_be(fine_scan):
    image = nib.Nifti1Image(fine_scan.voxels, fine_scan.affine)
    again = nib.Nifti1Image.from_stream(io.BytesIO(image.to_bytes()))
    assert np.array_equal(volume_of(again).affine, volume_of(image).affine) or np.allclose(again.affine, image.affine)
    assert volume_of(again).header.sform_code == volume_of(image).header.sform_code
