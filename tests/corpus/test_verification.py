"""`sctok verify` accepts complete folders and names the faults of others."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_codebook, make_quick, run_command, tree, write_audio

from sctok.cli.app import main
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.verification import verify_folder
from sctok.formats.codebooks import codebook_path, save_codebook
from sctok.formats.token_shards import TokenShardWriter, read_token_shard

COMMANDS = ["extract", "tokenize"]


@pytest.fixture(scope="module")
def runs(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of each command, and codebooks."""
    folder = tmp_path_factory.mktemp("verified")
    for command in COMMANDS:
        run_command(command, [collection], folder / command)
    save_codebook(codebook_path(folder / "codebooks", "merged", 8, 100), fake_codebook(8, 1))
    return folder


@pytest.fixture
def copies(runs: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(runs, tmp_path / "copies"))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_complete_runs_and_codebooks_have_no_faults(runs: Path) -> None:
    before = tree(runs)
    found = verify_folder(runs)
    assert found.faults == []
    assert (found.runs, found.codebooks, found.shards, found.files, found.failed) == (2, 1, 10, 20, 6)
    assert tree(runs) == before


@pytest.mark.parametrize("name", [*COMMANDS, "codebooks"])
def test_each_folder_can_be_verified_on_its_own(runs: Path, name: str) -> None:
    assert verify_folder(runs / name).faults == []


def test_a_read_only_folder_is_verified(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "tokenize", tmp_path / "copy")
    (tmp_path / "copy").chmod(0o555)
    try:
        assert verify_folder(tmp_path / "copy").faults == []
    finally:
        (tmp_path / "copy").chmod(0o755)


@pytest.mark.parametrize("command", COMMANDS)
def test_any_changed_byte_of_a_shard_is_found(copies: Path, command: str) -> None:
    (shard,) = (path for path in (copies / command).glob("shard-00001.*") if path.suffix in (".h5", ".tar"))
    size = shard.stat().st_size
    for position in (0, 700, size // 2, size - 1):
        flip(shard, position)
        faults = verify_folder(copies / command).faults
        assert any(str(shard) in fault for fault in faults), position
        flip(shard, position)
    assert verify_folder(copies / command).faults == []


PLAN = ["run.json", "manifest.jsonl", "failed.jsonl", "summary.json", "shard-00000.sha256.json"]
PLAN += ["shard-00002.failed.jsonl"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four files, of which one is unreadable and one is missing."""
    folder = tmp_path_factory.mktemp("small")
    for key in "ab":
        write_audio(folder / f"{key}.wav", 2000)
    (folder / "c.wav").touch()
    (folder / "list.csv").write_text("path,key,text\na.wav,x/a,one\nb.wav,b,two\nc.wav,c,three\nd.wav,d,four\n")
    for command in COMMANDS:
        run_command(command, [folder / "list.csv"], folder / command, files_per_shard=1, make=make_quick)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", PLAN)
def test_any_changed_byte_next_to_the_shards_is_found(small: Path, command: str, name: str) -> None:
    path = small / command / name
    content = path.read_bytes()
    missed = []
    for position in range(0, len(content), 23):
        flip(path, position)
        if not verify_folder(small / command).faults:
            missed.append((position, content[max(0, position - 20) : position + 1]))
        path.write_bytes(content)
    assert missed == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["manifest.jsonl", "failed.jsonl"])
@pytest.mark.parametrize("change", ["drop", "repeat", "swap"])
def test_lost_repeated_or_reordered_lines_are_found(small: Path, command: str, name: str, change: str) -> None:
    path = small / command / name
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for index in range(len(lines)):
        changed = {
            "drop": lines[:index] + lines[index + 1 :],
            "repeat": lines[: index + 1] + lines[index:],
            "swap": [*lines[:index], *lines[index : index + 2][::-1], *lines[index + 2 :]],
        }[change]
        path.write_bytes(b"".join(changed))
        assert changed == lines or verify_folder(small / command).faults, index
    path.write_bytes(content)
    assert verify_folder(small / command).faults == []


def test_a_configuration_that_lacks_a_field_is_named(copies: Path) -> None:
    path = copies / "tokenize" / "run.json"
    (copies / "tokenize" / "summary.json").unlink()
    for name in ("streams", "token_rate", "codebook_size"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in content.items() if key != name}))
        assert any(f"{path}: " in fault and name in fault for fault in verify_folder(copies / "tokenize").faults)
        path.write_text(json.dumps(content))


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a shard that is gone": (lambda run: next(run.glob("shard-00002.[ht]*")).unlink(), "shard-00002.*is not finished"),
    "a shard cut short": (lambda run: os.truncate(next(run.glob("shard-00000.[ht]*")), 600), "shard-00000"),
    "no checksum": (lambda run: (run / "shard-00000.sha256.json").unlink(), r"shard-00000\.sha256\.json"),
    "another checksum": (lambda run: (run / "shard-00000.sha256.json").write_text("{}"), "not a record of a shard"),
    "a retry that is not done": (
        lambda run: next(run.glob("*.failed.jsonl")).rename(run / "shard-00000.retry.jsonl"),
        "to be tried again",
    ),
    "a lost list of failures": (lambda run: (run / "failed.jsonl").unlink(), r"failed\.jsonl: does not list"),
    "a shard's lost list of failures": (
        lambda run: [path.unlink() for path in run.glob("shard-*.failed.jsonl")],
        "lacks 1 of the planned files",
    ),
    "a manifest cut short": (
        lambda run: (run / "manifest.jsonl").write_text((run / "manifest.jsonl").read_text().partition("\n")[0] + "\n"),
        "is not in the manifest",
    ),
    "a damaged manifest": (lambda run: os.truncate(run / "manifest.jsonl", 700), r"manifest\.jsonl is damaged"),
    "another summary": (lambda run: (run / "summary.json").write_text("{}"), r"summary\.json: does not agree"),
    "no configuration": (lambda run: (run / "run.json").unlink(), r"has shards but no run\.json"),
    "another configuration": (
        lambda run: (run / "run.json").write_text(json.dumps({**json.loads((run / "run.json").read_text()), "x": 1})),
        "config_hash is",
    ),
    "a run of another version": (
        lambda run: (run / "run.json").write_text('{"format": "sctok-run", "format_version": 9, "kind": "tokens"}'),
        r"run\.json",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_fault_is_named_in_one_line(copies: Path, command: str, damage: str) -> None:
    spoil, named = DAMAGES[damage]
    spoil(copies / command)
    faults = verify_folder(copies).faults
    assert faults
    assert not [fault for fault in faults if "\n" in fault]
    assert any(re.search(named, fault) for fault in faults), faults


@pytest.mark.parametrize("change", ["token", "length", "info"])
def test_a_wrong_member_is_found_even_if_the_checksum_matches(copies: Path, change: str) -> None:
    run = copies / "tokenize"
    entries = list(read_token_shard(run / "shard-00000.tar"))
    with TokenShardWriter(run / "shard-00000.tar", codebook_sizes=[1000]) as writer:
        for key, tokens, info in entries:
            changed = {
                "token": (np.full_like(tokens, 999), info),
                "length": (tokens[:-1], info),
                "info": (tokens, {**info, "codebook_hash": "0" * 16}),
            }[change]
            writer.add(key, *changed)
    (run / "shard-00000.sha256.json").unlink()
    run_checks = verify_folder(run).faults
    expected = {"token": "outside its codebook", "length": "do not fit", "info": "codebook_hash"}[change]
    assert any(expected in fault for fault in run_checks)


def test_a_damaged_codebook_is_found(copies: Path) -> None:
    (book,) = (copies / "codebooks").iterdir()
    flip(book, book.stat().st_size - 100)
    assert [str(book) in fault for fault in verify_folder(copies).faults] == [True]


def test_nothing_to_verify_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has neither a run nor codebooks"):
        verify_folder(tmp_path)


def test_the_command_exits_with_1_if_there_is_a_fault(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copies)]) == 0
    assert "whole" in capsys.readouterr().out
    next(copies.rglob("shard-00002.tar")).unlink()
    assert main(["verify", str(copies), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["whole"] is False
    assert "fault: " in captured.err


def test_a_run_with_added_files_has_no_faults(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio" / "b.wav", 5000)
    run_command("tokenize", [tmp_path / "audio"], tmp_path / "run")
    write_audio(tmp_path / "audio" / "a.wav", 5000)
    run_command("tokenize", [tmp_path / "audio"], tmp_path / "run")
    assert verify_folder(tmp_path / "run").faults == []
