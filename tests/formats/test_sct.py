import errno
import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.formats import files, sct
from sctok.formats.files import DiskFullError, FormatError
from sctok.formats.sct import CodecTokens, read_sct, sct_bytes, write_sct

PAPER_SIZES = [(size, 8192) for size in (4096, 8192, 16384, 32768)]


def make(pairs: int = 57, sizes: tuple[int, int] = (4096, 8192), **changes: Any) -> CodecTokens:
    rng = np.random.default_rng(pairs)
    tokens = np.stack([rng.integers(0, size, pairs) for size in sizes], axis=1)
    fields = {
        "tokens": tokens,
        "samples": 16_000,
        "token_rate": 100,
        "codebook_sizes": sizes,
        "codebook_hash": "0123456789abcdef",
        "codec_hash": "fedcba9876543210",
    }
    return CodecTokens(**{**fields, **changes})


def facts(content: CodecTokens) -> list[Any]:
    return [*(value for name, value in vars(content).items() if name != "tokens"), content.tokens.tolist()]


def resealed(data: bytes) -> bytes:
    """Return a changed file with a correct checksum."""
    return data[:-8] + hashlib.sha256(data[:-8]).digest()[:8]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*[st.one_of(st.integers(1, 70_000), st.just((1 << 32) - 1))] * 2),
    pairs=st.integers(0, 70),
    samples=st.integers(0, (1 << 64) - 1),
    rate=st.sampled_from([25, 50, 100]),
)
def test_round_trip(sizes: tuple[int, int], pairs: int, samples: int, rate: int) -> None:
    content = make(pairs, sizes, samples=samples, token_rate=rate)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sct"
        written = write_sct(path, content)
        assert written == path.stat().st_size == sct_bytes(pairs, sizes)
        read = read_sct(path)
    assert facts(read) == facts(content)
    assert read.tokens.dtype == np.int64


@pytest.mark.parametrize("pairs", [sct._BLOCK_PAIRS - 1, sct._BLOCK_PAIRS, 2 * sct._BLOCK_PAIRS + 3])
def test_blocks_join_without_gaps(tmp_path: Path, pairs: int) -> None:
    content = make(pairs)
    write_sct(tmp_path / "a.sct", content)
    np.testing.assert_array_equal(read_sct(tmp_path / "a.sct").tokens, content.tokens)


def test_bits_by_hand(tmp_path: Path) -> None:
    tokens = np.array([[5, 1], [2, 3], [7, 0]])
    write_sct(tmp_path / "a.sct", make(sizes=(8, 4), tokens=tokens))
    assert (tmp_path / "a.sct").read_bytes()[48:-8] == bytes([0b10101010, 0b11111000])


@pytest.mark.parametrize("sizes", PAPER_SIZES)
@pytest.mark.parametrize("rate", [25, 50, 100])
def test_an_hour_has_the_advertised_bitrate(sizes: tuple[int, int], rate: int) -> None:
    pairs = 3600 * rate // 2
    advertised = rate / 2 * (np.log2(sizes[0]) + 13)
    assert make(1, sizes, token_rate=rate).bitrate == advertised
    assert sct_bytes(pairs, sizes) == 56 + 3600 * advertised / 8


def test_equal_content_gives_equal_bytes_and_replaces(tmp_path: Path) -> None:
    write_sct(tmp_path / "a.sct", make(9))
    write_sct(tmp_path / "a.sct", make(8))
    write_sct(tmp_path / "b.sct", make(8))
    assert (tmp_path / "a.sct").read_bytes() == (tmp_path / "b.sct").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sct", "b.sct"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sct(tmp_path / "a.sct", make(8))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(DiskFullError, match=r"a\.sct: the disk is full"):
        write_sct(tmp_path / "a.sct", make(9))
    assert len(read_sct(tmp_path / "a.sct").tokens) == 8


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "a.sct"
    write_sct(path, make(3))
    return path.read_bytes()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_sct(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_every_changed_bit_is_refused(tmp_path: Path, small: bytes) -> None:
    for bit in range(8 * len(small)):
        changed = bytearray(small)
        changed[bit // 8] ^= 1 << bit % 8
        message = refused(tmp_path / "a.sct", bytes(changed))
        assert ("is not a file that sctok writes" if bit < 64 else "is damaged") in message


def test_every_truncation_is_refused(tmp_path: Path, small: bytes) -> None:
    for size in range(len(small)):
        message = refused(tmp_path / "a.sct", small[:size])
        assert ("is not a file that sctok writes" if size < 8 else "is damaged") in message


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 100, b"x"])
def test_an_extension_is_refused(tmp_path: Path, small: bytes, extra: bytes) -> None:
    assert "is damaged" in refused(tmp_path / "a.sct", small + extra)


@pytest.mark.parametrize("data", [b"", b"RIFF" + b"\0" * 100, b"\x89PNG\r\n\x1a\n" + b"\0" * 100])
def test_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    assert "is not a file that sctok writes (expected: sctok-sct)" in refused(tmp_path / "a.sct", data)


def test_a_newer_version_asks_for_a_newer_sctok(tmp_path: Path, small: bytes) -> None:
    newer = resealed(small[:8] + (2).to_bytes(2, "little") + b"laid out otherwise" + b"\0" * 60)
    assert "has version 2 of sctok-sct, this sctok reads version 1; update sctok" in refused(tmp_path / "a.sct", newer)


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (slice(10, 12), 99, "token rate 99"),
        (slice(12, 16), 0, "do not hold"),
        (slice(12, 16), 2049, "outside its codebook of 2049 rows"),
        (slice(12, 16), 2048, "do not hold"),
        (slice(28, 32), 4, "10 bytes do not hold 4 pairs of 25 bits"),
        (slice(28, 32), (1 << 32) - 1, "do not hold"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, small: bytes, where: slice, value: int, reason: str
) -> None:
    changed = bytearray(small)
    changed[where] = value.to_bytes(where.stop - where.start, "little")
    path = tmp_path / "a.sct"
    path.write_bytes(resealed(bytes(changed)))
    with pytest.raises(FormatError, match=rf"a\.sct is damaged \(.*({reason})"):
        read_sct(path)


def test_a_missing_file_raises_the_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_sct(tmp_path / "a.sct")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.array([[0, 1], [4096, 0]])}, "semantic token 1 is 4096, outside its codebook of 4096 rows"),
        ({"tokens": np.array([[0, -1]])}, "acoustic token 0 is -1, outside"),
        ({"tokens": np.array([[0, (1 << 64) - 1]], np.uint64)}, "acoustic token 0 is 18446744073709551615, outside"),
        ({"tokens": np.zeros((4, 3), int)}, r"integers \(n, 2\), semantic and acoustic, not int64 \(4, 3\)"),
        ({"tokens": np.zeros((4, 2))}, "not float64"),
        ({"tokens": np.zeros(4, int)}, r"not int64 \(4,\)"),
        ({"samples": -1}, "samples must be between 0 and .*, not -1"),
        ({"token_rate": 75}, "token rate 75 is not one of 100, 50, 25"),
        ({"codebook_sizes": (0, 8192)}, "codebook sizes must be"),
        ({"codebook_hash": "xyz"}, "codebook hash must be 16 hexadecimal digits, not 'xyz'"),
        ({"codec_hash": "0123456789ABCDEF"}, "codec hash must be"),
    ],
)
def test_values_that_do_not_match_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make(), **changes)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.sct")
    with pytest.raises(FormatError, match="is not a file that sctok writes"):
        read_sct(tmp_path / "a.sct")
