"""No key leaves its folder."""

import pytest

from sctok.formats.files import FormatError
from sctok.formats.untrusted.paths import is_file_name, path_inside

BAD = [
    "",
    "..",
    "../x",
    "a/../../x",
    "a/./x",
    "/etc/x",
    "//host/x",
    "a//x",
    "a/",
    "C:\\x",
    "c:/x",
    "..\\x",
    "a\\..\\x",
    "\\\\host\\x",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "a\x07",
    "a\x7f",
    "a\x9bb",
    "a\u2028b",
    "\udcc2\udc9b",  # the two bytes of a control character
    "\ud83d",
    "x" * 245,
    "/".join(["d" * 200] * 25),
]


@pytest.mark.parametrize("key", BAD, ids=ascii)
def test_a_key_that_leaves_its_folder_is_refused_in_one_printable_line(key, tmp_path):
    with pytest.raises(FormatError) as raised:
        path_inside(tmp_path, key, ".wav")
    assert str(raised.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key", ["a", "a/b.c", "é/日本", ".hidden", "AC\\DC", "a: b", "...", "byte\udcff", "x" * 200], ids=ascii
)
def test_other_keys_are_paths_with_the_suffix_appended(key, tmp_path):
    assert path_inside(tmp_path, key, ".wav") == tmp_path / f"{key}.wav"


def test_a_folder_may_be_a_link_and_links_inside_it_may_stay_inside(tmp_path):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "out").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("sub")
    assert path_inside(tmp_path / "out", "link/a", ".wav") == tmp_path / "out" / "link" / "a.wav"


@pytest.mark.parametrize("target", ["../outside", "/tmp", "missing/../../outside", "loop"])
def test_a_link_inside_the_folder_that_leads_out_of_it_is_refused(target, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "loop").symlink_to("loop")
    (tmp_path / "out" / "link").symlink_to(target)
    with pytest.raises(FormatError, match=r"out of this folder|needs a folder"):
        path_inside(tmp_path / "out", "link/a", ".wav")


def test_a_key_below_the_file_of_another_key_is_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(FormatError, match=r"needs a folder in place of the file a\.wav"):
        path_inside(tmp_path, "a.wav/x/y", ".wav")


def test_a_key_whose_file_is_a_folder_of_another_key_is_refused(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(FormatError, match="is the name of a folder"):
        path_inside(tmp_path, "a", ".wav")


@pytest.mark.parametrize(("name", "plain"), [("codebook-8.safetensors", True), ("../x", False), ("a/b", False)])
def test_names_of_sibling_files_have_no_folders(name, plain):
    assert is_file_name(name) == plain
