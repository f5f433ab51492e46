"""Laws of derived DICOM: it lies over its source, holds the values it was given, and names nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from medisent.formats import read
from medisent.phantoms.dicom import write_series
from medisent.volumes import Volume


@pytest.fixture(scope="session")
def series(fine_scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered head, oblique and anisotropic, as a DICOM series."""
    folder = tmp_path_factory.mktemp("study") / "series"
    write_series(fine_scan, folder, name="HEAD", description="rendered", entropy="derived")
    return folder


def test_a_dicom_scan_says_which_image_each_slice_is(series):
    source = read(series).source
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
