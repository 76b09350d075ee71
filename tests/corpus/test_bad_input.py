"""Bad inputs and disks: a message, a line in failed.jsonl, and nothing is lost."""

import errno
import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes import FakeExtractor, fake_codebook, run_command, tokenize_with_books, tree, write_audio, write_collection

from sctok.corpus.runs.events import RunEvent, RunPlanned, ShardFinished
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.verification import verify_folder
from sctok.formats.token_shards import read_token_shard

MEMBER = 512 + 6144  # bytes of a file of 3000 samples in a tar


def pack(path: Path, names: list[str], samples: int = 3000) -> Path:
    """Write a WebDataset shard of WAV files with different noise."""
    with tarfile.open(path, "w") as tar:
        for index, name in enumerate(names):
            buffer = io.BytesIO()
            noise = np.random.default_rng(index).uniform(-0.5, 0.5, samples)
            soundfile.write(buffer, noise, 16_000, format="WAV", subtype="PCM_16")
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return path


def ledger(folder: Path) -> dict[str, str]:
    """Return the reasons in failed.jsonl by key."""
    rows = [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]
    return {row["key"] or Path(row["path"]).name: row["reason"] for row in rows}


def keys(folder: Path) -> list[str]:
    """Return the keys of all files in the order of the shards."""
    return [key for path in sorted(folder.glob("shard-*.tar")) for key, _, _ in read_token_shard(path)]


def test_a_truncated_tar_gives_its_complete_members_and_the_rest_after_repair(tmp_path: Path) -> None:
    names = [f"{index}.wav" for index in range(5)]
    whole = pack(tmp_path / "s.tar", names).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: 2 * MEMBER + 3000])
    run_command("tokenize", [tmp_path / "s.tar"], tmp_path / "run")
    assert keys(tmp_path / "run") == ["0", "1"]
    assert "is truncated inside 2.wav" in ledger(tmp_path / "run")["s.tar"]
    (tmp_path / "s.tar").write_bytes(whole)
    run_command("tokenize", [tmp_path / "s.tar"], tmp_path / "run")
    assert keys(tmp_path / "run") == ["0", "1", "2", "3", "4"]
    assert ledger(tmp_path / "run") == {}


def test_a_tar_truncated_twice_is_listed_only_with_its_latest_fault(tmp_path: Path) -> None:
    whole = pack(tmp_path / "s.tar", [f"{index}.wav" for index in range(5)]).read_bytes()
    for members in (1, 3):
        (tmp_path / "s.tar").write_bytes(whole[: members * MEMBER + 3000])
        run_command("tokenize", [tmp_path / "s.tar"], tmp_path / "run")
    assert list(ledger(tmp_path / "run").values()) == ["is truncated inside 3.wav; the members before it are intact"]


def test_the_second_of_two_equal_keys_in_a_shard_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "s.tar", ["a.wav", "b.wav", "a.wav"])
    run_command("tokenize", [tmp_path / "s.tar"], tmp_path / "run")
    assert sorted(keys(tmp_path / "run")) == ["a", "b"]
    assert "key 'a' is already taken" in ledger(tmp_path / "run")["a"]


def test_a_manifest_row_whose_file_has_vanished(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 3000)
    (tmp_path / "list.csv").write_text("path\na.wav\ngone.wav\n")
    run_command("tokenize", [tmp_path / "list.csv"], tmp_path / "run")
    assert keys(tmp_path / "run") == ["a"]
    assert "no such file" in ledger(tmp_path / "run")["gone"]
    assert "row 2 of" in ledger(tmp_path / "run")["gone"]


def test_a_file_that_vanishes_after_it_was_planned_can_come_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_audio(tmp_path / "in" / f"{name}.wav", 3000)
    content = (tmp_path / "in" / "b.wav").read_bytes()

    def vanish(event: RunEvent) -> None:
        if isinstance(event, RunPlanned):
            (tmp_path / "in" / "b.wav").unlink()

    run_command("tokenize", [tmp_path / "in"], tmp_path / "run", progress=vanish)
    assert "no such file" in ledger(tmp_path / "run")["b"]
    (tmp_path / "in" / "b.wav").write_bytes(content)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "run", retry_failed=True)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_that_is_still_being_written_is_read_once_it_is_complete(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "in" / f"a.{suffix}"
    path.parent.mkdir()
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16_000, subtype="PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    write_audio(tmp_path / "in" / "b.wav", 3000)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "run")
    assert keys(tmp_path / "run") == ["b"]
    assert list(ledger(tmp_path / "run")) == ["a"]
    path.write_bytes(whole)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "run", retry_failed=True)
    assert keys(tmp_path / "run") == ["a", "b"]


def test_a_file_that_grows_while_it_is_read_is_read_up_to_the_length_in_its_header(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "in" / "a.wav", 400_000)

    class Grower(FakeExtractor):
        def embed(self, waves: np.ndarray, last: np.ndarray) -> np.ndarray:
            with path.open("ab") as file:
                file.write(bytes(2 * 50_000))
            return super().embed(waves, last)

    run_command("tokenize", [tmp_path / "in"], tmp_path / "clean")
    run_command("tokenize", [tmp_path / "in"], tmp_path / "run", batch_size=1, make=lambda device: Grower())
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize("command", ["extract", "tokenize"])
def test_a_read_only_disk_is_named_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write_audio(tmp_path / "in" / "a.wav", 3000)
    encoder = FakeExtractor()

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        run_command(command, [tmp_path / "in"], tmp_path / "run", make=lambda device: encoder)
    assert str(tmp_path / "run") in str(caught.value.filename)
    assert encoder.batches == []


@pytest.mark.parametrize(("name", "value"), [("sctok_version", "0.0.1"), ("format_version", 99), ("tokens_version", 7)])
def test_a_run_of_another_version_is_refused_and_not_changed(tmp_path: Path, name: str, value: object) -> None:
    audio = write_collection(tmp_path / "audio", 3)
    run_command("tokenize", [audio], tmp_path / "run")
    config = tmp_path / "run" / "run.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    before = tree(tmp_path / "run")
    with pytest.raises(RunError, match=f"{name} is "):
        run_command("tokenize", [audio], tmp_path / "run")
    assert tree(tmp_path / "run") == before


def test_a_run_of_another_codebook_is_refused_and_not_changed(tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 3)
    run_command("tokenize", [audio], tmp_path / "run")
    before = tree(tmp_path / "run")
    with pytest.raises(RunError, match="codebook_hash"):
        tokenize_with_books([audio], {tmp_path / "run": fake_codebook(16)}, lambda device: FakeExtractor())
    assert tree(tmp_path / "run") == before


def test_results_do_not_depend_on_the_clock_or_file_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = write_collection(tmp_path / "audio", 5)
    run_command("tokenize", [audio], tmp_path / "clean")
    seconds = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))

    def stop(event: RunEvent) -> None:
        if isinstance(event, ShardFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command("tokenize", [audio], tmp_path / "run", progress=stop)
    for path in tmp_path.rglob("*"):
        os.utime(path, (2**33, 2**33))
    run_command("tokenize", [audio], tmp_path / "run")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")
    assert not verify_folder(tmp_path / "run").faults
