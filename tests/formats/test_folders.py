"""Folders that are complete or missing."""

import os
import subprocess
import sys

import pytest

from sctok.formats.folders import whole_folder


@pytest.fixture(scope="module")
def dead():
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def write(folder):
    with whole_folder(folder) as temporary:
        (temporary / "file").write_text("new")


def test_leftovers_of_killed_writers_are_removed(tmp_path, dead):
    mine = f"codec.tmp-{os.getppid()}"
    for name in (f"codec.tmp-{dead}", f"codec.old-{dead}", mine, f"other.tmp-{dead}", "codec.tmp-x", "codec"):
        (tmp_path / name).mkdir()
    write(tmp_path / "codec")
    assert {path.name for path in tmp_path.iterdir()} == {"codec", mine, f"other.tmp-{dead}", "codec.tmp-x"}
    assert (tmp_path / "codec" / "file").read_text() == "new"


def test_an_old_folder_that_a_killed_writer_moved_away_is_restored(tmp_path, dead):
    (tmp_path / f"codec.old-{dead}").mkdir()
    (tmp_path / f"codec.old-{dead}" / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "codec"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["codec"]
    assert (tmp_path / "codec" / "file").read_text() == "old"


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "codec").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "codec")
    assert not (tmp_path / "codec").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"codec", "elsewhere"}
