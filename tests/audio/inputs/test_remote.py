"""Audio at URLs, in fsspec's in-memory file system and at file URLs."""

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.remote import is_url
from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds, list_audio
from sctok.audio.loader import load_windows

fsspec = pytest.importorskip("fsspec")


def wav(samples: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(samples).uniform(-0.5, 0.5, samples)
    soundfile.write(buffer, noise, 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def shard(*lengths: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, length in enumerate(lengths):
            for suffix, data in ((".wav", wav(length)), (".json", b'{"text": "hi"}')):
                member = tarfile.TarInfo(f"clip{number}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of the in-memory file system."""
    files = fsspec.filesystem("memory")
    for name, data in (("s-0.tar", shard(3000, 5000)), ("cut.tar", shard(3000, 5000)[:9000]), ("one.wav", wav(4000))):
        files.pipe(f"/bucket/{name}", data)
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "path", ["s3://b/a.tar", "https://x/y.wav", "simplecache::s3://b/a.tar", "hf://a/b", "file:///x"]
)
def test_urls_are_recognised(path: str) -> None:
    assert is_url(path)


@pytest.mark.parametrize("path", ["a.wav", "/a/b:c.wav", "C:/a.wav", Path("s3://b"), "x/s3://a"])
def test_paths_are_not_urls(path: object) -> None:
    assert not is_url(path)


def test_members_of_a_remote_shard_are_listed_and_read_in_place(bucket: str) -> None:
    items = list(list_audio([f"{bucket}/s-0.tar"]))
    assert [(item.key, item.metadata) for item in items] == [("clip0", {"text": "hi"}), ("clip1", {"text": "hi"})]
    for item, length in zip(items, (3000, 5000), strict=True):
        assert audio_seconds(item) == length / 16_000
        np.testing.assert_array_equal(read_audio(item.open(), name=item.name), read_audio(wav(length)))


def test_single_files_and_rows_of_manifests(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,key\n{bucket}/one.wav,mine\n{bucket}/one.wav,\n")
    items = list(list_audio([f"{bucket}/one.wav", tmp_path / "list.csv"]))
    assert [item.key for item in items[:2]] == ["one", "mine"]
    chunks = list(load_windows(items[:2], workers=0))
    assert [chunk.samples for chunk in chunks] == [4000, 4000]


def test_braces_expand_in_urls(bucket: str) -> None:
    assert len(list(list_audio([f"{bucket}/s-{{0..0}}.tar"]))) == 2


def test_a_file_url_gives_what_its_path_gives(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(shard(3000))
    (local,), (remote,) = list_audio([tmp_path / "s.tar"]), list_audio([f"file://{tmp_path}/s.tar"])
    assert (local.key, local.offset, local.size) == (remote.key, remote.offset, remote.size)
    np.testing.assert_array_equal(read_audio(local.open(), name="a"), read_audio(remote.open(), name="a"))


def test_a_truncated_remote_shard_gives_its_intact_members(bucket: str) -> None:
    *whole, problem = list_audio([f"{bucket}/cut.tar"])
    assert [item.key for item in whole] == ["clip0"]
    assert isinstance(problem, BadItem)
    assert "truncated" in problem.reason


@pytest.mark.parametrize(
    ("url", "reason"), [("memory://no/x.tar", "no such file"), ("what://x/y.tar", "cannot be opened")]
)
def test_a_url_that_cannot_be_opened_gives_an_error_in_one_line(url: str, reason: str) -> None:
    (problem,) = list_audio([url])
    assert isinstance(problem, BadItem)
    assert reason in problem.reason
    assert "\n" not in problem.reason


def test_a_file_that_vanished_is_an_error_of_that_file(bucket: str) -> None:
    item = AudioItem("gone", f"{bucket}/gone.wav", suffix=".wav")
    (chunk,) = load_windows([item], workers=0)
    assert "no such file" in (chunk.error or "")


def test_without_fsspec_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(AudioError, match=r"sctok\[remote\]"):
        AudioItem("a", "s3://b/a.wav").open()
