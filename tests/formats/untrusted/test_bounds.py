"""The claims of a file are compared with its content, and with a limit, before it is unpacked."""

import io
import json
import tarfile
import tracemalloc
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from sctok.formats.feature_shards import FeatureShard, FeatureShardWriter
from sctok.formats.files import FormatError
from sctok.formats.npy import read_npy
from sctok.formats.sct import SCT_MAGIC, CodecTokens, read_sct, write_sct
from sctok.formats.tensors import read_header
from sctok.formats.token_shards import read_token_shard
from sctok.formats.untrusted.bounds import LIMIT_VARIABLE, MAX_NESTING, max_input_bytes, parse_json, read_lines
from sctok.formats.untrusted.tars import next_member, open_tar


@contextmanager
def little_memory(limit=16 << 20):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "size"), [("", 1 << 29), ("1000", 1000), ("2G", 2 << 30), ("3 ", 3), ("64MiB", 64 << 20)]
)
def test_the_limit_is_a_setting(monkeypatch, text, size):
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    assert max_input_bytes() == size


@pytest.mark.parametrize("text", ["0", "-1", "much", "1.5G", "9" * 30])
def test_an_invalid_limit_is_named(monkeypatch, text):
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(ValueError, match=f"{LIMIT_VARIABLE}="):
        max_input_bytes()


def test_json_has_limits_of_depth_and_length():
    deepest = "[" * MAX_NESTING + "]" * MAX_NESTING
    assert json.dumps(parse_json(deepest)) == deepest
    for text in (f"[{deepest}]", "[" * 200_000, '{"a":' * 101 + "1" + "}" * 101, b"[" * 500 + b"]" * 500):
        with pytest.raises(ValueError, match="nested"):
            parse_json(text)
    with pytest.raises(ValueError, match="11 bytes of JSON"):
        parse_json(b'"123456789"', 10)


@pytest.mark.parametrize("kind", [io.BytesIO, lambda data: io.StringIO(data.decode())])
def test_lines_that_are_too_long_are_skipped(kind):
    lines = list(read_lines(kind(b"abc\n" + b"x" * 100 + b"\nabcd\n" + b"y" * 5), 4))
    assert [line if line is None else line.strip() for line in lines] == [
        kind(b"abc").read(),
        None,
        kind(b"abcd").read(),
        None,
    ]


def npy(shape, dtype="<u2", data=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    "data",
    [
        npy((1 << 40, 2)),
        npy((-1, 2)),
        npy((1 << 62, 1 << 62)),
        npy((1,), "|V2147483647"),
        npy((1,), "|O", b"x" * 8),
        npy((4,), data=b"xx"),
    ],
)
def test_arrays_that_promise_too_much_take_no_memory(data):
    with little_memory(), pytest.raises(ValueError, match=r"promises|objects"):
        read_npy(io.BytesIO(data), len(data))


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_equal_those_that_numpy_reads(order):
    array, file = np.asarray(np.arange(6).reshape(2, 3), order=order), io.BytesIO()
    np.save(file, array)
    file.seek(0)
    np.testing.assert_array_equal(read_npy(file, len(file.getvalue())), array)


def header(name=b"a.json", size=b"%011o", type_=b"0", count=0):
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:108], block[124:136] = b"0000644\0", (size % count if b"%" in size else size)[:12].ljust(12, b"\0")
    block[156:157], block[257:265] = type_, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**fields):
    records = b""
    for key, value in fields.items():
        length = len(key) + len(value) + 3
        length += len(str(length + len(str(length))))
        records += f"{length} {key}={value}\n".encode()
    return header(type_=b"x", count=len(records)) + records.ljust(-(-len(records) // 512) * 512, b"\0")


TARS = {
    "huge member": header(b"a.tokens.npy", count=8 << 30) + header(count=0),
    "pax size": pax(size=str(1 << 50)) + header(b"a.tokens.npy"),
    "negative size": header(b"a.tokens.npy", b"\xff" * 12) * 3,
    "long name": header(b"././@LongLink", type_=b"L", count=4 << 30) + header(),
    "many headers": (header(b"././@LongLink", type_=b"L", count=4) + b"name".ljust(512, b"\0")) * 3000,
    "sparse": pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)})
    + header(count=512)
    + b"x" * 512,
    "hard link": header(b"a.tokens.npy", type_=b"1"),
    "symbolic link": header(b"a.tokens.npy", type_=b"2"),
}


@pytest.mark.parametrize("content", TARS.values(), ids=TARS)
def test_impossible_tar_headers_are_refused_in_little_memory(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content + bytes(-(len(content) + 1024) % 10240 + 1024))
    with little_memory(), pytest.raises(FormatError, match=r"s\.tar"):
        list(read_token_shard(tmp_path / "s.tar"))


def test_headers_are_read_forwards():
    with open_tar(io.BytesIO(header(size=b"\xff" * 12) * 4)) as tar, pytest.raises(tarfile.TarError, match="bytes"):
        list(iter(partial(next_member, tar), None))


def shard(path: Path, **change) -> Path:
    with FeatureShardWriter(path, width=4, provenance={"encoder": "e", "encoder_hash": "h"}) as writer:
        writer.add_clip("a", np.ones((8, 4)), 2560)
    with h5py.File(path, "r+") as file:
        change["edit"](file, path.parent)
    return path


def replace_features(file, **how):
    del file["features"]
    file.create_dataset("features", **how)


def many_texts(file, _):
    del file["clips"]
    kind = np.dtype(
        [
            ("key", h5py.string_dtype()),
            ("first_row", "<i8"),
            ("rows", "<i8"),
            ("samples", "<i8"),
            ("metadata", h5py.string_dtype()),
        ]
    )
    file.create_dataset("clips", data=np.array([("k" * (2 << 20), 0, 8, 2560, "{}")], kind))


def outside(file, folder):
    (folder / "secret").write_bytes(bytes(64))
    replace_features(file, shape=(8, 4), dtype="<f2", external=[(str(folder / "secret"), 0, 64)])


def linked(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["features"] = np.zeros((8, 4), "<f2")
    del file["features"]
    file["features"] = h5py.ExternalLink(str(folder / "other.h5"), "features")


def virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["features"] = np.zeros((8, 4), "<f2")
    layout = h5py.VirtualLayout((8, 4), "<f2")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "features", (8, 4))
    del file["features"]
    file.create_virtual_dataset("features", layout)


EDITS = {
    "unwritten rows": lambda file, _: replace_features(file, shape=(1 << 40, 4), dtype="<f2", chunks=(8, 4)),
    "no width": lambda file, _: replace_features(
        file, shape=(1 << 40, 0), dtype="<f2", maxshape=(None, 4), chunks=(8, 4)
    ),
    "compressed": lambda file, _: replace_features(
        file, data=np.zeros((8, 4), "<f2"), chunks=(8, 4), compression="gzip"
    ),
    "huge chunk": lambda file, _: replace_features(
        file, shape=(8, 4), dtype="<f2", maxshape=(1 << 29, 4), chunks=(1 << 28, 4)
    ),
    "long texts": many_texts,
    "external storage": outside,
    "external link": linked,
    "virtual": virtual,
    "attribute array": lambda file, _: file.attrs.__setitem__("provenance", ["{}"] * 1000),
    "deep provenance": lambda file, _: file.attrs.__setitem__("provenance", "[" * 9000),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_feature_shards_that_promise_more_than_they_hold_are_refused(tmp_path, edit):
    with little_memory(), pytest.raises(FormatError, match=r"s\.h5"):
        FeatureShard(shard(tmp_path / "s.h5", edit=edit))


def test_a_token_file_is_not_read_past_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "1M")
    (tmp_path / "a.sct").write_bytes(SCT_MAGIC + bytes(1 << 20))
    with little_memory(1 << 20), pytest.raises(FormatError, match="are more than"):
        read_sct(tmp_path / "a.sct")


def test_a_token_file_is_not_unpacked_past_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "1M")
    tokens = CodecTokens(np.zeros((100_000, 2), np.int64), 1 << 30, 100, (2, 2), "a" * 16, "b" * 16)
    write_sct(tmp_path / "a.sct", tokens)
    with pytest.raises(FormatError, match="100,000 pairs of tokens unpack to more"):
        read_sct(tmp_path / "a.sct")


@pytest.mark.parametrize("metadata", ['"[' + "[" * 5000 + '"', None])
def test_headers_of_tensors_are_bounded(tmp_path, metadata):
    content = f'{{"__metadata__":{{"sctok":{metadata}}}}}'.encode() if metadata else b"{" + b" " * (20 << 20)
    (tmp_path / "a.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(FormatError, match=r"a\.safetensors"):
        read_header(tmp_path / "a.safetensors")
