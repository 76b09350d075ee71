import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import run_command, tree, write_audio
from token_runs import KEYS, SIZES, STREAMS, tokens_of, write_run

from sctok.corpus.exports.formats import FORMATS
from sctok.corpus.exports.run import ExportConfig, ExportResult, export_tokens
from sctok.corpus.exports.sources import open_tokens
from sctok.corpus.runs.events import DocumentExported, ExportEvent, ExportPlanned, ShardExported
from sctok.corpus.runs.locks import try_lock
from sctok.corpus.runs.run_folder import RunError
from sctok.formats.files import DiskFullError, FormatError
from sctok.formats.layouts import StreamLayout
from sctok.formats.token_shards import TokenShardWriter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("tokens") / "run")


def export(run: Path, folder: Path, to: str = "jsonl", **options: Any) -> ExportResult:
    return export_tokens(open_tokens([run]), folder, ExportConfig(to, **options))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open()]


@pytest.mark.parametrize("to", FORMATS)
def test_a_second_call_returns_the_existing_export(run: Path, tmp_path: Path, to: str) -> None:
    first = export(run, tmp_path / "out", to)
    before = tree(tmp_path / "out")
    second = export(run, tmp_path / "out", to)
    assert (first.existed, second.existed) == (False, True)
    assert {**vars(first), "existed": True} == vars(second)
    assert tree(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_export_elsewhere_has_the_same_bytes(run: Path, tmp_path: Path, to: str) -> None:
    export(run, tmp_path / "one", to, dedup=True)
    export(run, tmp_path / "two", to, dedup=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("to", FORMATS)
def test_a_part_ends_with_the_file_that_reaches_its_size(run: Path, tmp_path: Path, to: str) -> None:
    result = export(run, tmp_path / "out", to, part_bytes=200)
    suffix = {"megatron": ".bin", "hf-dataset": ".arrow"}.get(to, f".{to}")
    parts = [path for path in (tmp_path / "out").glob(f"tokens-*{suffix}") if path.name.count(".") == 1]
    assert result.parts == len(parts) > 2


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_crashes_at_every_sync_and_rename_end_in_the_bytes_of_a_clean_export(
    run: Path, tmp_path: Path, to: str
) -> None:
    export(run, tmp_path / "clean", to, dedup=True, part_bytes=800)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    script = Path(__file__).parents[1] / "token_runs.py"
    command = [sys.executable, str(script), str(run), str(tmp_path / "crashed"), to, "800"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
    assert tree(tmp_path / "crashed") == tree(tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "crashed"]


def test_finished_parts_are_not_written_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, tmp_path / "clean", part_bytes=200)
    source = open_tokens([run])
    read = type(source).read_shard

    def fail_in_the_last(self: Any, shard: int) -> Any:
        if shard == 2:
            raise DiskFullError("full")
        return read(self, shard)

    monkeypatch.setattr(type(source), "read_shard", fail_in_the_last)
    with pytest.raises(DiskFullError):
        export(run, tmp_path / "out", part_bytes=200)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "out.partial" / "data").iterdir()}
    assert kept
    export(run, tmp_path / "out", part_bytes=200)
    assert kept.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}.items()
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


def test_parts_of_another_export_are_not_reused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, tmp_path / "clean", part_bytes=200)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _failing_for(tmp_path / "out"))
        with pytest.raises(DiskFullError):
            export(run, tmp_path / "out", part_bytes=300, layout="interleaved")
    export(run, tmp_path / "out", part_bytes=200)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


def _failing_for(target: Path) -> Any:
    replace = Path.replace

    def failing(self: Path, other: Path) -> Path:
        if other == target:
            raise DiskFullError("full")
        return replace(self, other)

    return failing


@pytest.mark.parametrize("layout", ["flat", "interleaved", "delayed", "parallel"])
def test_layouts_can_be_inverted(run: Path, tmp_path: Path, layout: str) -> None:
    export(run, tmp_path / "out", layout=layout, end=True)
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    back = StreamLayout.from_json(described["layout"])
    found = rows(tmp_path / "out")
    assert len(found) == len(KEYS)
    for row, key in zip(found, KEYS, strict=True):
        np.testing.assert_array_equal(back.invert(row["tokens"]), tokens_of(key))


def test_streams_are_chosen_by_name_and_in_order(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", layout="parallel", streams=("acoustic", "semantic"), offsets=(0, 8))
    (found,) = [row for row in rows(tmp_path / "out") if row["key"] == "last"]
    np.testing.assert_array_equal(found["tokens"], tokens_of("last")[:, ::-1] + [0, 8])


def test_dedup_compares_only_the_exported_streams(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", streams=("semantic",), dedup=True)
    for row, key in zip(rows(tmp_path / "out"), KEYS, strict=True):
        assert (np.diff(row["tokens"]) != 0).all()
        np.testing.assert_array_equal(np.repeat(row["tokens"], row["durations"]), tokens_of(key)[:, 0])


def test_export_json_has_provenance_and_counts(run: Path, tmp_path: Path) -> None:
    result = export(run, tmp_path / "out", layout="interleaved", end=True, offsets=(100,))
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    steps = sum(len(tokens_of(key)) for key in KEYS)
    assert described["origin"]["codebook_hash"] == "c0debook"
    assert described["origin"]["codec_hash"] == "c0dec"
    assert described["run"] == json.loads((run / "run.json").read_text())
    assert described["streams"] == list(STREAMS)
    assert described["layout"]["offsets"] == [100, 132]
    assert described["layout"]["end"] == 140
    assert described["vocabulary_size"] == result.vocabulary_size == 141
    assert (described["documents"], described["steps"]) == (len(KEYS), steps)
    assert described["ids"] == result.ids == 2 * steps + len(KEYS)
    assert described["samples"] == 320 * steps
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != "export.json"}
    assert {name: file["bytes"] for name, file in described["files"].items()} == sizes


def test_single_shards_next_to_their_run_json(run: Path, tmp_path: Path) -> None:
    source = open_tokens([run / "shard-00001.tar", run / "shard-00000.tar"])
    assert source.sizes == SIZES
    export_tokens(source, tmp_path / "out", ExportConfig("jsonl"))
    assert [row["key"] for row in rows(tmp_path / "out")][3:] == list(KEYS[:3])


def test_shards_of_several_runs_of_the_same_origin(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", ("more",), files_per_shard=9)
    source = open_tokens([run / "shard-00000.tar", other / "shard-00000.tar"])
    assert source.run is None
    assert export_tokens(source, tmp_path / "out", ExportConfig("jsonl")).documents == 4


def test_single_shards_on_their_own_need_sizes(run: Path, tmp_path: Path) -> None:
    shard = tmp_path / "alone.tar"
    shard.write_bytes((run / "shard-00000.tar").read_bytes())
    with pytest.raises(RunError, match="size of each stream"):
        open_tokens([shard])
    assert open_tokens([shard], [40, 9]).sizes == (40, 9)


def test_sizes_that_differ_from_the_run_are_refused(run: Path) -> None:
    with pytest.raises(RunError, match="sizes"):
        open_tokens([run], [32, 9])


def test_a_codebook_smaller_than_the_tokens_names_the_file(run: Path, tmp_path: Path) -> None:
    shard = tmp_path / "alone.tar"
    shard.write_bytes((run / "shard-00000.tar").read_bytes())
    with pytest.raises(FormatError, match=r"alone.tar.*clïp.*codebooks"):
        export_tokens(open_tokens([shard], [3, 3]), tmp_path / "out", ExportConfig("npy"))


@pytest.mark.parametrize("name", ["codebook_hash", "codec_hash", "token_rate"])
def test_tokens_of_another_origin_are_refused_by_hash(run: Path, tmp_path: Path, name: str) -> None:
    other = write_run(tmp_path / "other", info={name: "other"}) / "shard-00000.tar"
    source = open_tokens([run / "shard-00000.tar", other])
    with pytest.raises(FormatError, match="other"):
        export_tokens(source, tmp_path / "out", ExportConfig("megatron"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="shard-00001"):
        open_tokens([write_run(tmp_path / "run", unfinished=(1,))])


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    shard = run / "shard-00002.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(FormatError, match="shard-00002"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_empty_shards_are_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with TokenShardWriter(run / "shard-00000.tar", codebook_sizes=SIZES):
        pass
    assert export(run, tmp_path / "out").documents == len(KEYS) - 3


def test_an_export_without_tokens_is_an_error(tmp_path: Path) -> None:
    with TokenShardWriter(tmp_path / "empty.tar", codebook_sizes=SIZES):
        pass
    with pytest.raises(RunError, match="nothing to export"):
        open_tokens([tmp_path / "empty.tar"], SIZES)


def test_a_shard_given_twice_is_refused(run: Path) -> None:
    with pytest.raises(RunError, match="twice"):
        open_tokens([run / "shard-00000.tar", run / "." / "shard-00000.tar"])


@pytest.mark.parametrize("to", ["megatron", "km"])
def test_parallel_streams_are_refused_by_formats_that_cannot_store_them(to: str) -> None:
    with pytest.raises(RunError, match=r"parallel.*parquet"):
        ExportConfig(to, layout="parallel")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"streams": ("phonetic",)}, "phonetic"),
        ({"streams": ("semantic", "semantic")}, "semantic"),
        ({"offsets": (1, 2, 3)}, "offsets"),
        ({"end": 5}, "end id 5"),
    ],
)
def test_options_that_do_not_fit_the_tokens(run: Path, tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RunError, match=named):
        export(run, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_contents_is_not_changed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not an export"):
        export(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_export_with_other_settings_is_not_changed(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(RunError, match="other layout"):
        export(run, tmp_path / "out", layout="interleaved")
    assert tree(tmp_path / "out") == before


def test_two_processes_do_not_export_to_one_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    claim = try_lock(tmp_path / "out.partial" / "lock")
    assert claim is not None
    with claim, pytest.raises(RunError, match="another process"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out")


def test_a_run_of_sctok_tokenize(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", 20_000)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "run")
    result = export(tmp_path / "run", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert row["source"] == {"path": str(tmp_path / "in" / "a.wav")}
    assert row["samples"] == 20_000
    assert result.vocabulary_size == 32


def test_progress_counts_files_and_shards(run: Path, tmp_path: Path) -> None:
    events: list[ExportEvent] = []
    export_tokens(open_tokens([run]), tmp_path / "out", ExportConfig("km"), events.append)
    kinds = list(map(type, events))
    assert kinds[0] == ExportPlanned
    assert (kinds.count(DocumentExported), kinds.count(ShardExported)) == (len(KEYS), 3)
