"""Parquet files of Hugging Face datasets that contain audio."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs import tables
from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds, list_audio

ROWS = 50


def wave(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(-9000, 9000, 400 + index).astype(np.float32) / 32_768


def audio_bytes(index: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave(index), 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_table(target: Path, paths: list[str | None] | None = None, **columns: list[Any]) -> Path:
    """Write what `datasets` does: a struct of bytes and path, here in row groups of 20."""
    names = [f"a/{index}.wav" for index in range(ROWS)] if paths is None else paths
    column = [{"bytes": audio_bytes(index), "path": name} for index, name in enumerate(names)]
    pyarrow.parquet.write_table(pyarrow.table({"audio": column, **columns}), target, row_group_size=20)
    return target


def test_every_row_is_read_with_its_other_columns(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", text=[f"words {index}" for index in range(ROWS)])
    items = list(list_audio(table))
    assert [item.key for item in items] == [f"a/{index}" for index in range(ROWS)]
    for index, item in enumerate(items):
        assert isinstance(item, AudioItem)
        assert (item.suffix, item.metadata) == (".wav", {"text": f"words {index}"})
        np.testing.assert_array_equal(read_audio(item.open(), name=item.name), wave(index))
    assert audio_seconds(items[7]) == pytest.approx(407 / 16_000)
    assert AudioItem.from_json(items[7].to_json()) == items[7]


@pytest.mark.parametrize("order", [range(49, -1, -1), range(1, 50, 7), [30, 30, 31, 2, 49]])
def test_rows_in_any_order(tmp_path: Path, order: Any) -> None:
    table = str(write_table(tmp_path / "t.parquet"))
    for row in order:
        assert tables.read_row(table, row) == audio_bytes(row)


def test_tables_that_datasets_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"audio": [{"bytes": audio_bytes(3), "path": "x.wav"}], "speaker": [7]}
    written = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    written.to_parquet(str(tmp_path / "d.parquet"))
    (item,) = list_audio(tmp_path / "d.parquet")
    assert isinstance(item, AudioItem)
    assert (item.key, item.metadata) == ("x", {"speaker": 7})
    np.testing.assert_array_equal(read_audio(item.open(), name=item.name), wave(3))


def test_keys_of_rows_without_a_name_and_from_a_column(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [None] * 3)
    assert [item.key for item in list_audio(tmp_path / "t.parquet")] == ["t/00000000", "t/00000001", "t/00000002"]
    write_table(tmp_path / "k.parquet", [None] * 3, key=["x", "y", "z"])
    assert [item.key for item in list_audio(tmp_path / "k.parquet")] == ["x", "y", "z"]


def test_duplicate_names_are_reported(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", ["a.wav", "a.wav"])
    first, second = list_audio(tmp_path / "t.parquet")
    assert isinstance(first, AudioItem)
    assert isinstance(second, BadItem)
    assert "already taken by a file in" in second.reason


def test_a_table_with_paths_is_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(audio_bytes(0))
    write_table(tmp_path / "t.parquet", ["a.wav"], path=["b.wav"])
    (item,) = list_audio(tmp_path / "t.parquet")
    assert isinstance(item, AudioItem)
    assert item.path == str(tmp_path / "b.wav")


def test_unreadable_rows_are_named(tmp_path: Path) -> None:
    column = pyarrow.array([{"bytes": None, "path": "elsewhere.wav"}, None, {"bytes": b"no audio", "path": "c.wav"}])
    table = str(tmp_path / "t.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"audio": column}), table)
    for row in (0, 1):
        with pytest.raises(AudioError, match=rf"t\.parquet: row {row}: holds no audio"):
            tables.read_row(table, row)
    with pytest.raises(AudioError, match=r"row 3: is missing"):
        tables.read_row(table, 3)
    items = [item for item in list_audio(table) if isinstance(item, AudioItem)]
    with pytest.raises(AudioError, match=r"t\.parquet:c\.wav: .*Format not recognised"):
        read_audio(items[2].open(), name=items[2].name)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet")
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(AudioError, match=r"t\.parquet: is not a readable Parquet file"):
        list(list_audio(table))
