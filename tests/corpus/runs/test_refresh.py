"""Inputs that changed or vanished after they were read are named; a refresh brings their shards up to date."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from fakes import FakeExtractor, fake_codebook, make_quick, run_command, tokenize_with_books, tree, write_audio

from sctok.corpus.exports.run import ExportConfig, export_tokens
from sctok.corpus.exports.sources import open_tokens
from sctok.corpus.runs.events import FileFinished, RunEvent
from sctok.corpus.runs.locks import try_lock
from sctok.corpus.runs.refresh import InputsChangedError
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.runs.sharding import Execution
from sctok.corpus.tokenization import TokenizationConfig
from sctok.corpus.verification import verify_folder

COMMANDS = ["extract", "tokenize"]
KEYS = "abcdefg"  # in shards of three; e is not audio


def run(command: str, inputs: Path, folder: Path, **settings: Any) -> Any:
    return run_command(command, [inputs], folder, make=make_quick, **settings)


def pack_folder(audio: Path) -> Path:
    return audio


def pack_csv(audio: Path) -> Path:
    rows = [f"audio/{path.name},{path.stem},said" for path in sorted(audio.iterdir())]
    (audio.parent / "list.csv").write_text("\n".join(["path,key,text", *rows]))
    return audio.parent / "list.csv"


def pack_tar(audio: Path) -> Path:
    with tarfile.open(audio.parent / "all.tar", "w") as tar:
        for path in sorted(audio.iterdir()):
            tar.add(path, path.name)
    return audio.parent / "all.tar"


def pack_parquet(audio: Path) -> Path:
    rows = [{"audio": {"bytes": path.read_bytes(), "path": path.name}, "n": 1} for path in sorted(audio.iterdir())]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), audio.parent / "all.parquet")
    return audio.parent / "all.parquet"


PACKERS: dict[str, Callable[[Path], Path]] = {
    "folder": pack_folder,
    "csv": pack_csv,
    "tar": pack_tar,
    "parquet": pack_parquet,
}


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    for index, key in enumerate(KEYS):
        write_audio(tmp_path / "audio" / f"{key}.wav", 3000 + 700 * index)
    (tmp_path / "audio" / "e.wav").write_text("this is no audio")
    return tmp_path / "audio"


def change(audio: Path, key: str = "d", samples: int = 9000) -> None:
    write_audio(audio / f"{key}.wav", samples, seed=99)


@pytest.mark.parametrize("listing", PACKERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_changed_file_ends_the_run_and_a_refresh_gives_the_bytes_of_a_clean_run(
    audio: Path, tmp_path: Path, command: str, listing: str
) -> None:
    run(command, PACKERS[listing](audio), tmp_path / "run")
    change(audio)
    inputs = PACKERS[listing](audio)
    before = tree(tmp_path / "run")
    count = 4 if listing == "tar" else 1  # later files move in a tar
    with pytest.raises(InputsChangedError, match=rf"{count} changed since .*\.(wav|tar|parquet).* --refresh") as caught:
        run(command, inputs, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path / "run") == before
    run(command, inputs, tmp_path / "run", refresh=True)
    run(command, inputs, tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refresh_reads_only_changed_files_and_writes_only_their_shards(
    audio: Path, tmp_path: Path, command: str
) -> None:
    run(command, audio, tmp_path / "run")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "run").glob("shard-*")}
    change(audio, "g")
    events: list[RunEvent] = []
    run(command, audio, tmp_path / "run", refresh=True, progress=events.append)
    assert [event.key for event in events if isinstance(event, FileFinished)] == ["g"]
    after = {path.name: path.stat().st_ino for path in (tmp_path / "run").glob("shard-*")}
    assert {name.partition(".")[0] for name in after if after[name] != before.get(name)} == {"shard-00002"}


@pytest.mark.parametrize("gone", ["d", "abc", "g", "ce"])
@pytest.mark.parametrize("command", COMMANDS)
def test_vanished_files_are_named_and_a_refresh_removes_them(
    audio: Path, tmp_path: Path, command: str, gone: str
) -> None:
    run(command, audio, tmp_path / "run")
    before = tree(tmp_path / "run")
    for key in gone:
        (audio / f"{key}.wav").unlink()
    named = gone.replace("e", "")  # it had no results
    with pytest.raises(InputsChangedError, match=rf"{len(named)} vanished .*{named[0]}\.wav \(is gone\)"):
        run(command, audio, tmp_path / "run")
    assert tree(tmp_path / "run") == before
    result = run(command, audio, tmp_path / "run", refresh=True)
    assert (result.summary.files, result.summary.failed) == (6 - len(named), "e" not in gone)
    rows = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    assert [(row["item"]["key"], row["shard"]) for row in rows] == [
        (key, index // 3) for index, key in enumerate(KEYS) if key not in gone
    ]
    assert verify_folder(tmp_path / "run").faults == []
    again = tree(tmp_path / "run")
    run(command, audio, tmp_path / "run", refresh=True)
    assert tree(tmp_path / "run") == again


def test_members_removed_from_a_tar_leave_the_run(audio: Path, tmp_path: Path) -> None:
    run("tokenize", pack_tar(audio), tmp_path / "run")
    (audio / "b.wav").unlink()
    inputs = pack_tar(audio)
    result = run("tokenize", inputs, tmp_path / "run", refresh=True)
    assert (result.summary.files, result.summary.failed) == (5, 1)
    assert verify_folder(tmp_path / "run").faults == []


@pytest.mark.parametrize(
    ("command", "again", "stride"),
    [
        ("tokenize", "plain", 7),
        *(
            pytest.param(command, again, 1, marks=pytest.mark.slow)
            for command in COMMANDS
            for again in ("refresh", "plain")
        ),
    ],
)
def test_a_refresh_killed_at_any_write_ends_in_the_bytes_of_a_clean_run(
    audio: Path, tmp_path: Path, start_fake: Callable[..., Popen[str]], command: str, again: str, stride: int
) -> None:
    run(command, audio, tmp_path / "old")
    change(audio, "b")
    change(audio, "g")
    run(command, audio, tmp_path / "clean")
    process = start_fake("refresh", command, audio, tmp_path / "old", tmp_path / "clean", again, stride)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert int(out) > 25


def test_unread_inputs_are_read_as_they_are_now(audio: Path, tmp_path: Path) -> None:
    class Failing(FakeExtractor):
        def embed(self, waves: Any, last: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command("tokenize", [audio], tmp_path / "run", make=lambda device: Failing())
    change(audio)
    run("tokenize", audio, tmp_path / "run")
    run("tokenize", audio, tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_a_failed_file_is_read_again_only_by_a_retry(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    change(audio, "e")
    before = tree(tmp_path / "run")
    run("tokenize", audio, tmp_path / "run")
    assert tree(tmp_path / "run") == before
    run("tokenize", audio, tmp_path / "run", retry_failed=True)
    run("tokenize", audio, tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_new_files_go_to_new_shards_during_a_refresh(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    before = tree(tmp_path / "run")
    change(audio, "g")
    write_audio(audio / "0.wav", 4000)
    run("tokenize", audio, tmp_path / "run", refresh=True)
    after = tree(tmp_path / "run")
    assert after["shard-00000.tar"] == before["shard-00000.tar"]
    assert "shard-00003.tar" in after
    assert verify_folder(tmp_path / "run").faults == []


def test_several_codebooks_are_refreshed_together(audio: Path, tmp_path: Path) -> None:
    def tokenize(name: str, refresh: bool = False) -> None:
        books = {tmp_path / name / str(k): fake_codebook(k) for k in (16, 32)}
        execution = Execution(workers=0, refresh=refresh)
        tokenize_with_books([audio], books, lambda device: FakeExtractor(), TokenizationConfig(None, 3), execution)

    tokenize("run")
    change(audio)
    with pytest.raises(InputsChangedError):
        tokenize("run")
    tokenize("run", refresh=True)
    tokenize("clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_ranks_share_a_refresh(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    change(audio, "a")
    change(audio, "d")
    for rank in (0, 1):
        run("tokenize", audio, tmp_path / "run", refresh=True, rank=rank, world_size=2)
    run("tokenize", audio, tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_a_shard_that_another_process_works_on_is_not_refreshed(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    change(audio)
    claim = try_lock(tmp_path / "run" / ".claims" / "shard-00001.lock")
    assert claim is not None
    with claim, pytest.raises(RunError, match=r"shard-00001\.\* changed while another process works on it"):
        run("tokenize", audio, tmp_path / "run", refresh=True)
    run("tokenize", audio, tmp_path / "run")
    run("tokenize", audio, tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_a_run_without_any_input_left_is_not_emptied(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    before = tree(tmp_path / "run")
    for path in audio.iterdir():
        path.unlink()
    write_audio(audio / "new.wav", 3000)
    with pytest.raises(RunError, match="none of its inputs exists any more"):
        run("tokenize", audio, tmp_path / "run", refresh=True)
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("listing", PACKERS)
def test_the_same_bytes_with_another_time_count_as_unchanged(audio: Path, tmp_path: Path, listing: str) -> None:
    inputs = PACKERS[listing](audio)
    run("tokenize", inputs, tmp_path / "run")
    before = tree(tmp_path / "run")
    for path in (audio / "a.wav", inputs):
        os.utime(path, ns=(0, 1))
    run("tokenize", inputs, tmp_path / "run")
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("command", COMMANDS)
def test_other_bytes_of_the_same_size_count_as_a_change(audio: Path, tmp_path: Path, command: str) -> None:
    run(command, audio, tmp_path / "run")
    size = (audio / "d.wav").stat().st_size
    change(audio, "d", 3000 + 700 * 3)
    assert (audio / "d.wav").stat().st_size == size
    with pytest.raises(InputsChangedError, match=r"d\.wav \(changed\)"):
        run(command, audio, tmp_path / "run")


def test_a_refresh_records_new_times(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    before = tree(tmp_path / "run")
    os.utime(audio / "a.wav", ns=(0, 1))
    run("tokenize", audio, tmp_path / "run", refresh=True)
    after = tree(tmp_path / "run")
    assert [after[name] == before[name] for name in ("shard-00000.tar", "manifest.jsonl")] == [True, False]


def test_runs_planned_without_stamps_resume(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    strip_stamps(tmp_path / "run")
    change(audio)
    run("tokenize", audio, tmp_path / "run")
    assert "file" not in json.loads((tmp_path / "run" / "manifest.jsonl").read_text().splitlines()[0])


def strip_stamps(folder: Path) -> None:
    """Change a run into one of a version without stamps and checksums of the plan."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines = [json.dumps({k: row[k] for k in row if k != "file"}, sort_keys=True, separators=(",", ":")) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    for path, name in [
        *((path, name) for path in folder.glob("*.sha256.json") for name in ("inputs", "contents")),
        (folder / "summary.json", "sha256"),
    ]:
        content = {key: value for key, value in json.loads(path.read_text()).items() if key != name}
        path.write_text(json.dumps(content, sort_keys=True, indent=2) + "\n")


def test_runs_planned_without_stamps_are_verified_with_a_note(audio: Path, tmp_path: Path) -> None:
    run("tokenize", audio, tmp_path / "run")
    strip_stamps(tmp_path / "run")
    found = verify_folder(tmp_path / "run")
    assert found.faults == []
    assert ["without checksums" in note for note in found.notes] == [True]


def test_an_export_of_an_earlier_state_of_the_run_is_refused(audio: Path, tmp_path: Path) -> None:
    write_audio(audio / "d.wav", 200_000)
    run("tokenize", audio, tmp_path / "run")
    export_tokens(open_tokens([tmp_path / "run"]), tmp_path / "out", ExportConfig("jsonl"))
    assert export_tokens(open_tokens([tmp_path / "run"]), tmp_path / "out", ExportConfig("jsonl")).existed
    change(audio, "d", 200_000)  # the same number of tokens, in files of the same size
    run("tokenize", audio, tmp_path / "run", refresh=True)
    with pytest.raises(RunError, match="export with other inputs"):
        export_tokens(open_tokens([tmp_path / "run"]), tmp_path / "out", ExportConfig("jsonl"))
