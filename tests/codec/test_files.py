import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from sctok.audio.errors import AudioError
from sctok.codec.codec import Codec
from sctok.codec.decoding import TokenWindow, WindowDecoder
from sctok.codec.files import decode_files, write_audio
from sctok.codec.listing import DecodeTask
from sctok.codec.samplers import SamplerConfig
from sctok.formats.files import DiskFullError

QUICK = SamplerConfig(steps=1)


@pytest.mark.parametrize(("suffix", "kind"), [(".wav", "WAV"), (".FLAC", "FLAC")])
def test_blocks_are_written_with_16_bits(tmp_path: Path, suffix: str, kind: str) -> None:
    blocks = [np.array([0.5, -0.5], np.float32), np.array([3.0, -3.0, 0.25], np.float32)]
    path = tmp_path / f"a{suffix}"
    assert write_audio(path, blocks) == path.stat().st_size
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == (kind, "PCM_16", 16_000, 1)
    np.testing.assert_allclose(soundfile.read(path)[0], [0.5, -0.5, 1, -1, 0.25], atol=1e-4)


def test_other_suffixes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.mp3: audio can only be written as \.wav or \.flac"):
        write_audio(tmp_path / "a.mp3", [])


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Limit the size of files, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files_only")
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    noise = np.random.default_rng(0).standard_normal((4, 16_000)).astype(np.float32)
    with pytest.raises(DiskFullError, match=rf"a\{suffix}: the file size limit is reached; make room"):
        write_audio(path, noise)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {path.name: b"old"}


def jobs(codec: Codec, folder: Path, count: int) -> Iterator[DecodeTask]:
    """Yield tasks with the tokens of short sounds."""
    for number in range(count):
        wave = np.random.default_rng(number).standard_normal(3_000) * 0.1
        yield DecodeTask(f"sound {number}", codec.encode(wave, 16_000), folder / f"{number}.wav")


def test_tasks_before_an_error_are_finished(codec: Codec, tmp_path: Path) -> None:
    def failing() -> Iterator[DecodeTask]:
        yield from jobs(codec, tmp_path, 2)
        raise AudioError("sound 2", "the worker process that was decoding it died")

    outcomes = decode_files(codec, failing(), QUICK)
    assert [next(outcomes).source for _ in range(2)] == ["sound 0", "sound 1"]
    with pytest.raises(AudioError, match="sound 2"):
        next(outcomes)
    assert soundfile.info(tmp_path / "1.wav").frames == 3_000


def test_unwritable_path_fails_only_one_file(codec: Codec, tmp_path: Path) -> None:
    (tmp_path / "1.wav").mkdir()
    outcomes = list(decode_files(codec, jobs(codec, tmp_path, 3), QUICK))
    assert [outcome.reason is None for outcome in outcomes] == [True, False, True]
    assert "Is a directory" in str(outcomes[1].reason)


def test_nonfinite_output_fails_only_one_file(codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = WindowDecoder.decode

    def broken(self: WindowDecoder, windows: list[TokenWindow], *rest: Any) -> NDArray[np.float32]:
        waves = decode(self, windows, *rest)
        waves[0] = np.nan
        return waves

    monkeypatch.setattr(WindowDecoder, "decode", broken)
    outcomes = list(decode_files(codec, jobs(codec, tmp_path, 3), QUICK))
    assert "not finite" in str(outcomes[0].reason)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1.wav", "2.wav"]


@pytest.mark.usefixtures("small_files_only")
def test_disk_full_while_closing_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last block stays in a buffer until libsndfile seeks to the header in a callback.
    ignored: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)
    with pytest.raises(DiskFullError):
        write_audio(tmp_path / "a.wav", np.zeros((10, 1_024), np.float32))
    assert not ignored
