import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sctok.formats import files
from sctok.formats.files import (
    DiskFullError,
    FormatError,
    atomic_path,
    check_format,
    hash_arrays,
    hash_bytes,
    hash_json,
    is_repository,
    read_json,
    remove_stale_temporaries,
    write_json,
)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_atomic_path_leaves_only_the_final_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "a.bin") as temporary:
        temporary.write_bytes(b"content")
        assert temporary.parent == tmp_path / "new"
        assert temporary.name == f"a.bin.tmp-{os.getpid()}"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"content"


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt()])
def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"new")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"old"}


def test_atomic_path_syncs_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        files.os, "fsync", lambda handle: (synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())), real(handle))
    )
    with atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"x")
    assert synced == [str(temporary), str(tmp_path)]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("80000 requested and 23 written"),
        RuntimeError("Can't close file (file write failed: errno = 28, error message = 'No space left on device')"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
    ],
)
def test_a_full_disk_is_named(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(DiskFullError, match=r"a\.bin: the disk is full; make room") as caught,
        atomic_path(tmp_path / "a.bin"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="elsewhere"), atomic_path(tmp_path / "a.bin"):
        raise PermissionError(errno.EACCES, "no", "elsewhere")


def test_remove_stale_temporaries_keeps_those_of_running_processes(tmp_path: Path) -> None:
    stale = tmp_path / f"a.h5.tmp-{dead_pid()}"
    kept = [tmp_path / f"b.h5.tmp-{os.getpid()}", tmp_path / "c.h5", tmp_path / "d.tmp-12x"]
    for path in [stale, *kept]:
        path.write_bytes(b"")
    (tmp_path / f"folder.tmp-{dead_pid()}").mkdir()
    assert remove_stale_temporaries(tmp_path) == [stale]
    assert not stale.exists()
    assert all(path.exists() for path in kept)
    assert remove_stale_temporaries(tmp_path / "missing") == []


def test_remove_stale_temporaries_of_one_file(tmp_path: Path) -> None:
    stale, other = (tmp_path / f"{name}.tmp-{2**31 - 1}" for name in ("a.tar", "b.tar"))
    stale.touch()
    other.touch()
    assert remove_stale_temporaries(tmp_path, "a.tar") == [stale]
    assert other.exists()


@pytest.mark.parametrize("source", ["haoheliu/SemantiCodec", "cvssp/audioldm2", "gaunernst/vit_base.audiomae_as2m"])
def test_a_repository_of_the_hub(source: str) -> None:
    assert is_repository(source)


@pytest.mark.parametrize(
    "source",
    ["./here", "../up", "~/home", "/root", "a/b/c", "name", "models/encoder.ckpt", "there/missing", "a//b", ""],
)
def test_a_text_that_looks_like_a_path_is_not_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert not is_repository(source)


def test_json_files_are_sorted_and_end_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": np.float32(0.5), "a": ["ü", None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    "\\u00fc",\n    null\n  ],\n  "b": 0.5\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": ["ü", None], "b": 0.5}


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_values_without_a_json_type_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(FormatError, match=r"a\.json: this cannot be written as JSON"):
        write_json(tmp_path / "a.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"[" * 200_000])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.json is not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_hashes_are_sixteen_characters_of_sha256() -> None:
    assert hash_bytes(b"abc") == "ba7816bf8f01cfea"


def test_json_hash_ignores_order() -> None:
    assert hash_json({"a": 1, "b": [1.5]}) == hash_json(json.loads('{"b": [1.5], "a": 1}')) != hash_json({"a": 1})


def test_array_hash_depends_only_on_the_content() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = hash_arrays({"x": array, "y": np.zeros(0)})
    assert hash_arrays({"y": np.zeros(0), "x": np.asfortranarray(array)}) == base
    assert hash_arrays({"x": array.astype(">f4"), "y": np.zeros(0)}) == base
    others = [array.reshape(3, 2), array.astype(np.float64), array + 1]
    assert len({base, *(hash_arrays({"x": other, "y": np.zeros(0)}) for other in others)}) == 4


def test_version_errors_say_what_to_do() -> None:
    check_format("f", {"format": "sctok-x", "format_version": 1}, "sctok-x", 1)
    with pytest.raises(FormatError, match=r"version 2 .* reads version 1; update sctok"):
        check_format("f", {"format": "sctok-x", "format_version": 2}, "sctok-x", 1)
    with pytest.raises(FormatError, match="make the file again"):
        check_format("f", {"format": "sctok-x"}, "sctok-x", 1)
    with pytest.raises(FormatError, match="f is not a file that sctok writes"):
        check_format("f", {"format": "other"}, "sctok-x", 1)


def test_errors_about_the_temporary_file_name_the_final_one(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()

    def replace_a_folder() -> None:
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"new")

    with pytest.raises(IsADirectoryError) as caught:
        replace_a_folder()
    assert caught.value.filename == str(tmp_path / "a.bin")


@pytest.mark.parametrize("content", ["[1]", "3", '"text"', "null"])
def test_json_that_is_not_an_object_is_foreign(content: str) -> None:
    with pytest.raises(FormatError, match=r"a\.json is not a file that sctok writes"):
        check_format("a.json", json.loads(content), "f", 1)
