"""Laws of writing: whole files under their final names, or nothing."""

from pathlib import Path

import pytest

from medisent.errors import MachineError
from medisent.files import whole_file, whole_folder, write_text


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_takes_its_name_when_the_block_ends(tmp_path):
    with whole_file(tmp_path / "deep" / "scan.nii.gz") as temporary:
        temporary.write_bytes(b"voxels")
        assert temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "deep" / "scan.nii.gz").exists()
    assert (tmp_path / "deep" / "scan.nii.gz").read_bytes() == b"voxels"
    assert leftovers(tmp_path / "deep") == ["scan.nii.gz"]


def test_a_failed_block_leaves_what_was_there_before(tmp_path):
    target = tmp_path / "table.tsv"
    target.write_text("old")

    def fail() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["table.tsv"]


def test_a_written_file_is_readable_as_the_umask_says(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "written", "words")
    assert (tmp_path / "written").stat().st_mode == plain.stat().st_mode


def test_a_whole_folder_appears_at_once_and_keeps_other_files(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier.txt").write_text("stays")
    (out / "report.html").write_text("old")
    with whole_folder(out) as temporary:
        (temporary / "maps").mkdir()
        (temporary / "maps" / "gain.nii.gz").write_bytes(b"map")
        (temporary / "report.html").write_text("new")
        assert (out / "report.html").read_text() == "old"
    assert leftovers(out) == ["earlier.txt", "maps", "report.html"]
    assert (out / "report.html").read_text() == "new"
    assert (out / "maps" / "gain.nii.gz").read_bytes() == b"map"


def test_a_failed_folder_leaves_no_file(tmp_path):
    out = tmp_path / "out"

    def fail() -> None:
        with whole_folder(out) as temporary:
            (temporary / "report.html").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert leftovers(out) == []


@pytest.mark.parametrize("writer", [whole_file, whole_folder])
def test_a_place_that_cannot_be_written_is_a_fault_of_the_machine(tmp_path, writer):
    (tmp_path / "file").touch()

    def write() -> None:
        with writer(tmp_path / "file" / "below"):
            pytest.fail("there is nowhere to write")

    with pytest.raises(MachineError, match=r"cannot be written: .+\. Choose another place") as caught:
        write()
    assert caught.value.exit_code == 4
