"""Read every format of `sctok export` with its own reader, and compare it with the tokens."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from token_runs import KEYS, SIZES, tokens_of, write_run

from sctok.corpus.exports.formats import FORMATS
from sctok.corpus.exports.run import ExportConfig, export_tokens
from sctok.corpus.exports.sources import open_tokens
from sctok.formats.layouts import StreamLayout

TEXT_KEYS = [key.replace("\udcff", "\\udcff") for key in KEYS]
LAYOUTS = ["flat", "interleaved", "delayed", "parallel"]
DTYPES = {"u2": np.uint16, "i4": np.int32}


def read_megatron(folder: Path, name: str = "tokens") -> list[np.ndarray]:
    """Memory-map the ids of each document as Megatron-LM's documentation describes the index."""
    raw = (folder / f"{name}.idx").read_bytes()
    assert raw[:17] == b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little")
    dtype = {8: np.uint16, 4: np.int32}[raw[17]]
    count, boundaries = np.frombuffer(raw, "<u8", 2, 18).tolist()
    sizes = np.frombuffer(raw, "<i4", count, 34)
    pointers = np.frombuffer(raw, "<i8", count, 34 + 4 * count)
    documents = np.frombuffer(raw, "<i8", boundaries, 34 + 12 * count)
    assert documents.tolist() == list(range(count + 1))
    assert len(raw) == 34 + 12 * count + 8 * boundaries
    return [np.fromfile(folder / f"{name}.bin", dtype, n, offset=at) for n, at in zip(sizes, pointers, strict=True)]


def read_lines(path: Path) -> list[list[int]]:
    lines = path.read_text().split("\n")
    assert lines.pop() == ""
    return [[int(word) for word in line.split()] for line in lines]


def read_ragged(folder: Path, name: str = "tokens") -> list[np.ndarray]:
    array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    offsets = np.load(folder / f"{name}.offsets.npy", allow_pickle=False)
    assert offsets[-1] == len(array)
    return [array[start:stop] for start, stop in itertools.pairwise(offsets)]


def keys_beside(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / "tokens.documents.jsonl").open()]


def read_columns(table: Any) -> dict[str, Any]:
    return {name: list(table[name]) for name in ("key", "tokens", "durations", "samples", "source")}


def read_export(folder: Path, to: str, cache: Path) -> dict[str, Any]:
    """Return the keys, ids and durations that a reader of the format returns."""
    import datasets

    if to == "megatron":
        found = {"tokens": read_megatron(folder), "durations": read_megatron(folder, "tokens.durations")}
        return {"key": keys_beside(folder), **found}
    if to == "npy":
        found = {"tokens": read_ragged(folder), "durations": read_ragged(folder, "tokens.durations")}
        return {"key": keys_beside(folder), **found}
    if to == "km":
        return {"tokens": read_lines(folder / "tokens.km"), "durations": read_lines(folder / "tokens.dur")}
    if to == "hf-dataset":
        return read_columns(datasets.load_from_disk(str(folder)))
    return read_columns(datasets.load_dataset(str(folder), split="train", cache_dir=str(cache)))


def cases() -> list[tuple[str, str]]:
    return [(to, layout) for to in FORMATS for layout in LAYOUTS if FORMATS[to].two_dimensional or layout != "parallel"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("tokens") / "run")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("to", "layout"), cases())
def test_round_trip(run: Path, tmp_path: Path, to: str, layout: str) -> None:
    config = ExportConfig(to, layout=layout, dedup=True, end=True)
    export_tokens(open_tokens([run]), tmp_path / "out", config)
    back = StreamLayout.from_json(json.loads((tmp_path / "out" / "export.json").read_text())["layout"])
    found = read_export(tmp_path / "out", to, tmp_path / "cache")
    assert found.get("key", TEXT_KEYS) == TEXT_KEYS
    for ids, durations, key in zip(found["tokens"], found["durations"], KEYS, strict=True):
        steps = back.invert(np.array(ids, np.int64).reshape(-1, *[len(SIZES)] * (back.dimensions - 1)))
        np.testing.assert_array_equal(np.repeat(steps, durations, axis=0), tokens_of(key))


@pytest.mark.parametrize("to", ["parquet", "jsonl", "hf-dataset"])
def test_datasets_reads_all_parts_in_order(run: Path, tmp_path: Path, to: str) -> None:
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig(to, dedup=True, part_bytes=300))
    assert read_export(tmp_path / "out", to, tmp_path / "cache")["key"] == TEXT_KEYS


@pytest.mark.parametrize(("size", "dtype"), [(32, "u2"), (70_000, "i4")])
def test_megatron_ids_are_uint16_if_all_fit(tmp_path: Path, size: int, dtype: str) -> None:
    run = write_run(tmp_path / "run", sizes=(size,))
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig("megatron"))
    found = read_megatron(tmp_path / "out")
    assert {ids.dtype for ids in found} == {np.dtype(DTYPES[dtype])}
    for ids, key in zip(found, KEYS, strict=True):
        np.testing.assert_array_equal(ids, tokens_of(key, (size,))[:, 0])


def test_an_offset_may_move_ids_beyond_uint16(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sizes=(32,))
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig("megatron", offsets=(65_530,), end=65_529))
    last = read_megatron(tmp_path / "out")[-1]
    np.testing.assert_array_equal(last, [*(tokens_of("last", (32,))[:, 0] + 65_530), 65_529])


def test_parquet_has_the_smallest_type_and_provenance(run: Path, tmp_path: Path) -> None:
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig("parquet", layout="parallel"))
    table = pq.read_table(tmp_path / "out" / "tokens-00000.parquet")
    assert str(table.schema.field("tokens").type.value_type.value_type) == "uint16"
    assert json.loads(table.schema.metadata[b"sctok"])["origin"]["codebook_hash"] == "c0debook"
    assert json.loads(table["source"][0].as_py()) == {"path": f"/audio/{KEYS[0]}.wav", "speaker": len(KEYS[0])}
    assert table["samples"].to_pylist() == [320 * len(tokens_of(key)) for key in KEYS]


def test_row_groups_have_a_limited_size(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sctok.corpus.exports.formats.ROW_GROUP_FILES", 2)
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig("parquet"))
    file = pq.ParquetFile(tmp_path / "out" / "tokens-00000.parquet")
    assert file.num_row_groups == 4
    assert file.read()["key"].to_pylist() == TEXT_KEYS


def test_km_comes_with_a_manifest_and_a_dictionary(run: Path, tmp_path: Path) -> None:
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig("km"))
    root, *lines = (tmp_path / "out" / "tokens.tsv").read_bytes().decode("utf-8", "surrogateescape").splitlines()
    assert root == "/"
    assert len(lines) == len(read_lines(tmp_path / "out" / "tokens.km")) == len(KEYS)
    for line, key in zip(lines, KEYS, strict=True):
        path = f"audio/{key}.wav".replace("\t", "%09").replace("\n", "%0A")
        assert line == f"{path}\t{320 * len(tokens_of(key))}"
    assert (tmp_path / "out" / "dict.km.txt").read_text().splitlines() == [f"{i} 1" for i in range(sum(SIZES))]
