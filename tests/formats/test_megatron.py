import io
import struct

import numpy as np
import pytest

from sctok.formats.megatron import MegatronWriter, megatron_dtype

PUBLISHED_CODES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2"}


def read_indexed_dataset(index: bytes, data: bytes) -> tuple[list[np.ndarray], list[int]]:
    """Read sequences and document boundaries after the published description of the format, field by field."""
    stream = io.BytesIO(index)
    assert stream.read(9) == b"MMIDIDX\x00\x00"
    (version,) = struct.unpack("<Q", stream.read(8))
    assert version == 1
    dtype = np.dtype("<" + PUBLISHED_CODES[struct.unpack("<B", stream.read(1))[0]])
    sequences, boundaries = struct.unpack("<QQ", stream.read(16))
    lengths = struct.unpack(f"<{sequences}i", stream.read(4 * sequences))
    pointers = struct.unpack(f"<{sequences}q", stream.read(8 * sequences))
    documents = struct.unpack(f"<{boundaries}q", stream.read(8 * boundaries))
    assert stream.read() == b""
    found = [np.frombuffer(data, dtype, n, at) for n, at in zip(lengths, pointers, strict=True)]
    assert sum(part.nbytes for part in found) == len(data)
    return found, list(documents)


def write(documents: list[list[int]], vocabulary_size: int) -> tuple[bytes, bytes]:
    data, index = io.BytesIO(), io.BytesIO()
    writer = MegatronWriter(data, index, megatron_dtype(vocabulary_size))
    for ids in documents:
        writer.add(np.array(ids, np.int64))
    writer.finish()
    return index.getvalue(), data.getvalue()


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(9, "u2"), (1 << 16, "u2"), (65_537, "i4"), (1 << 31, "i4"), ((1 << 31) + 1, "i8")]
)
def test_an_independent_reader_finds_every_document(vocabulary_size: int, dtype: str) -> None:
    documents = [[0, 1, 2], [], [vocabulary_size - 1], [3] * 500]
    found, boundaries = read_indexed_dataset(*write(documents, vocabulary_size))
    assert [ids.tolist() for ids in found] == documents
    assert boundaries == [0, 1, 2, 3, 4]
    assert {ids.dtype for ids in found} == {np.dtype(dtype)}


def test_no_documents() -> None:
    assert read_indexed_dataset(*write([], 10)) == ([], [0])


def test_an_index_longer_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sctok.formats.megatron._CHUNK", 3)
    documents = [[number] * (number % 4) for number in range(10)]
    found, boundaries = read_indexed_dataset(*write(documents, 10))
    assert [ids.tolist() for ids in found] == documents
    assert boundaries == list(range(11))
