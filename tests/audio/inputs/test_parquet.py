"""Rows of tables and manifests are checked before they are unpacked, and too large ones lose only themselves."""

import io
import json
from contextlib import suppress

import numpy as np
import pytest
import soundfile

from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, BadItem, list_audio
from sctok.audio.inputs.tables import list_rows, read_row
from sctok.formats.untrusted.bounds import LIMIT_VARIABLE

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "4M")


def wav():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600), 16_000, format="WAV")
    return file.getvalue()


def write(path, groups, **options):
    """Write row groups of (bytes of audio, other columns)."""
    tables = [
        pa.table({"audio": pa.array([{"bytes": data, "path": None} for data, _ in rows], AUDIO)} | more(rows))
        for rows in groups
    ]
    with pq.ParquetWriter(path, tables[0].schema, compression="zstd", **options) as writer:
        for table in tables:
            writer.write_table(table)
    return path


def more(rows):
    return {name: [other[name] for _, other in rows] for name in rows[0][1]}


@pytest.fixture
def pool():
    """A memory pool of Arrow for reading, whose peak does not include earlier writing."""
    before = pa.default_memory_pool()
    yield pa.system_memory_pool()
    pa.set_memory_pool(before)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_cell_that_is_too_large_loses_only_its_rows(tmp_path, pool, version):
    bomb = bytes(40 << 20)
    path = write(tmp_path / "t.parquet", [[(wav(), {})], [(bomb, {})], [(wav(), {})] * 2], data_page_version=version)
    assert path.stat().st_size < 40_000
    pa.set_memory_pool(pool)
    items = list(list_audio([path]))
    assert [type(item) for item in items] == [AudioItem] * 4
    with pytest.raises(AudioError, match=r"row 1: may unpack to 41,943,044 bytes .* SCTOK_MAX_INPUT_BYTES"):
        items[1].open()
    assert [items[number].open().read() for number in (2, 0, 3)] == [wav()] * 3
    assert pool.max_memory() < 8 << 20


def test_a_long_text_in_a_dictionary_is_not_repeated_for_all_rows_at_once(tmp_path):
    write(tmp_path / "t.parquet", [[(b"x", {"text": "z" * (1 << 20)})] * 300])
    before = pa.total_allocated_bytes()
    rows = 0
    for _, _, fault in list_rows(tmp_path / "t.parquet", "audio"):
        rows += 1
        assert "has 1,048,580 bytes besides audio" in fault
        assert pa.total_allocated_bytes() - before < 16 << 20
    assert rows == 300


def test_a_list_of_many_values_is_refused_before_it_is_read(tmp_path):
    write(tmp_path / "t.parquet", [[(b"x", {"values": [1] * 1_000_000})]])
    with pytest.raises(AudioError, match="column 'values', more than"):
        list(list_rows(tmp_path / "t.parquet", "audio"))


@pytest.mark.parametrize("place", range(4, 60, 7))
def test_damaged_pages_are_reported(tmp_path, place):
    path = write(tmp_path / "t.parquet", [[(wav(), {})]])
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    with suppress(AudioError):  # and nothing else
        read_row(str(path), 0)


def test_rows_with_too_much_metadata_lose_only_themselves(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav())
    rows = [json.dumps({"path": "a.wav", "key": key}) for key in "abc"]
    rows[1] = json.dumps({"path": "a.wav", "key": "b", "text": "x" * 9_000})
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    found = list(list_audio([tmp_path / "m.jsonl"]))
    assert [item.key for item in found if isinstance(item, AudioItem)] == ["a", "c"]
    assert ["row 2 is longer than 8,192" in item.reason for item in found if isinstance(item, BadItem)] == [True]


def test_an_endless_csv_line_is_refused_early(tmp_path):
    (tmp_path / "m.csv").write_text("path\n" + "a," * 10_000)
    with pytest.raises(AudioError, match="a line is longer than"):
        list(list_audio([tmp_path / "m.csv"]))
