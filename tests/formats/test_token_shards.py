import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.formats.files import FormatError
from sctok.formats.token_shards import TokenShardWriter, decode_key, encode_key, read_token_shard

KEYS = [
    "plain",
    "with.dots.in.it",
    ".hidden",
    "folder.v2/sub folder/name.flac",
    "été/два слова",
    "percent%2Ewritten",
    "__meta__/inside",
    "line\nbreak.x/y\tz",
    "name\udcff",
    "long/" + "x" * 200,
]
path_part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
any_key = st.lists(path_part.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)


def write(path: Path, keys: list[str], sizes: tuple[int, ...] = (4096, 8192)) -> dict[str, Any]:
    expected = {}
    with TokenShardWriter(path, codebook_sizes=sizes) as writer:
        for index, key in enumerate(keys):
            tokens = np.random.default_rng(index).integers(0, min(sizes), (index * 7, len(sizes)))
            info = {"samples": index, "metadata": {"title": key}}
            writer.add(key, tokens, info)
            expected[key] = (tokens, info)
    return expected


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(any_key, max_size=6, unique=True), sizes=st.sampled_from([(2,), (65536,), (65537, 8), (1 << 32,)]))
def test_round_trip(keys: list[str], sizes: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = write(Path(folder) / "t.tar", keys, sizes)
        read = list(read_token_shard(Path(folder) / "t.tar"))
    assert [key for key, _, _ in read] == keys
    for key, tokens, info in read:
        assert tokens.dtype == (np.uint16 if max(sizes) <= 65536 else np.uint32)
        np.testing.assert_array_equal(tokens, expected[key][0])
        assert info == expected[key][1]


def test_largest_tokens_survive(tmp_path: Path) -> None:
    for size in (1 << 16, 1 << 32):
        with TokenShardWriter(tmp_path / "t.tar", codebook_sizes=(size,)) as writer:
            writer.add("a", np.array([[0], [size - 1]], np.uint64), {})
        ((_, tokens, _),) = read_token_shard(tmp_path / "t.tar")
        assert tokens.tolist() == [[0], [size - 1]]


def test_webdataset_reads_the_shard(tmp_path: Path) -> None:
    expected = write(tmp_path / "t.tar", KEYS)
    samples = list(webdataset.WebDataset(str(tmp_path / "t.tar"), shardshuffle=False).decode())
    assert [decode_key(sample["__key__"]) for sample in samples] == KEYS
    for sample in samples:
        tokens, info = expected[sample["json"]["key"]]
        np.testing.assert_array_equal(sample["tokens.npy"], tokens)
        assert sample["json"]["metadata"] == info["metadata"]


@given(key=any_key)
def test_encoded_keys_split_where_webdataset_splits(key: str) -> None:
    name = encode_key(key)
    assert webdataset.tariterators.base_plus_ext(name + ".tokens.npy") == (name, "tokens.npy")
    assert decode_key(name) == key


def test_encoding_changes_only_necessary_characters() -> None:
    assert encode_key("a b/ü.d/name") == "a b/ü.d/name"
    assert encode_key("a.b/c.d%") == "a.b/c%2Ed%25"


@pytest.mark.parametrize("key", ["", "/absolute", "a//b", "../up", "a/./b", "folder/", "half \ud800"])
def test_invalid_keys_are_refused(key: str) -> None:
    with pytest.raises(FormatError, match="cannot be the key"):
        encode_key(key)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", KEYS)
    write(tmp_path / "b.tar", KEYS)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[0, 8192]]), "outside the codebooks of .4096, 8192."),
        (np.array([[-1, 0]]), "outside the codebooks"),
        (np.zeros((3, 1), np.int64), r"not integers \(n, 2\)"),
        (np.zeros((3, 2)), "not integers"),
        (np.zeros(4, np.int64), "not integers"),
    ],
)
def test_invalid_tokens_are_refused_and_the_shard_stays_usable(tmp_path: Path, tokens: Any, message: str) -> None:
    with TokenShardWriter(tmp_path / "t.tar", codebook_sizes=(4096, 8192)) as writer:
        with pytest.raises(FormatError, match=rf"t\.tar: tokens of 'odd' .*{message}"):
            writer.add("odd", tokens, {})
        writer.add("odd", np.zeros((1, 2), np.int64), {})
        with pytest.raises(FormatError, match="'odd' occurs twice"):
            writer.add("odd", np.zeros((1, 2), np.int64), {})
        with pytest.raises(FormatError, match="may not set 'key'"):
            writer.add("x", np.zeros((1, 2), np.int64), {"key": "y"})
        with pytest.raises(FormatError, match="info of 'x': this cannot be written as JSON"):
            writer.add("x", np.zeros((1, 2), np.int64), {"y": float("inf")})
    assert [key for key, _, _ in read_token_shard(tmp_path / "t.tar")] == ["odd"]


@pytest.mark.parametrize("sizes", [(), (0,), (1 << 33,)])
def test_codebook_sizes_are_checked(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="codebook sizes"):
        TokenShardWriter(tmp_path / "t.tar", codebook_sizes=sizes)


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def interrupt_half_way() -> None:
        with TokenShardWriter(tmp_path / "t.tar", codebook_sizes=(9,)) as writer:
            writer.add("a", np.zeros((1, 1), np.int64), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_half_way()
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_noticed_before_the_first_file(tmp_path: Path) -> None:
    with TokenShardWriter(tmp_path / "t.tar", codebook_sizes=(9,)) as writer:
        for key in "ab":
            writer.add(key, np.zeros((9000, 1), np.int64), {})  # silence: the data looks like the archive's end
    content = (tmp_path / "t.tar").read_bytes()
    for length in range(0, len(content), 512):
        (tmp_path / "t.tar").write_bytes(content[:length])
        with pytest.raises(FormatError, match=r"t\.tar is (damaged|not a file that sctok writes)"):
            read_token_shard(tmp_path / "t.tar")


def test_damaged_headers_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "t.tar", ["a", "b"])
    content = bytearray((tmp_path / "t.tar").read_bytes())
    with tarfile.open(tmp_path / "t.tar") as tar:
        offsets = [member.offset for member in tar]
    for offset in offsets:
        flipped = content.copy()
        flipped[offset] ^= 1
        (tmp_path / "t.tar").write_bytes(flipped)
        with pytest.raises(FormatError, match=r"t\.tar is (damaged|not a file that sctok writes)"):
            list(read_token_shard(tmp_path / "t.tar"))


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def info(**changes: Any) -> bytes:
    return json.dumps({"format": "sctok-tokens", "format_version": 1, "key": "a", **changes}).encode()


GOOD = npy(np.zeros((2, 1), np.uint16))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.wav": b"", "a.json": b"{}"}, "not a file that sctok writes"),
        ({"a.tokens.npy": GOOD}, "damaged .*a.json.* is missing"),
        ({"a.tokens.npy": GOOD, "b.json": info()}, "not a file that sctok writes"),
        ({"a.tokens.npy": GOOD, "a.json": info(format_version=2)}, "reads version 1; update sctok"),
        ({"a.tokens.npy": GOOD, "a.json": info(format="x")}, "not a file that sctok writes"),
        ({"a.tokens.npy": GOOD, "a.json": info(key="b")}, "damaged .*tokens of 'a' have the info of 'b'"),
        ({"a.tokens.npy": GOOD, "a.json": b"{"}, "damaged"),
        ({"a.tokens.npy": GOOD, "a.json": b"[]"}, "not a file that sctok writes"),
        ({"a.tokens.npy": GOOD[:-1], "a.json": info()}, "damaged"),
        ({"a.tokens.npy": b"", "a.json": info()}, "damaged"),
        ({"a.tokens.npy": npy(np.zeros((2, 1))), "a.json": info()}, "damaged"),
        ({"a.tokens.npy": npy(np.array([[{}]]), allow_pickle=True), "a.json": info()}, "damaged"),
    ],
)
def test_foreign_and_changed_shards_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    tar_of(tmp_path / "t.tar", members)
    with pytest.raises(FormatError, match=rf"t\.tar .*{message}") as caught:
        list(read_token_shard(tmp_path / "t.tar"))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_tars_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_text("hello" * 300)
    with pytest.raises(FormatError, match=r"t\.tar is not a file that sctok writes"):
        read_token_shard(tmp_path / "t.tar")
    with pytest.raises(FileNotFoundError):
        read_token_shard(tmp_path / "missing.tar")
