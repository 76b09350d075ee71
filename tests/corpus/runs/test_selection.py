"""Selecting the inputs of a run by name and duration."""

import json
from pathlib import Path

import pytest
from fakes import fake_codebook, make_fake, run_command, tokenize_with_books, tree, write_audio

from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.corpus.runs.manifest import KnownInputs
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.runs.selection import Selection
from sctok.corpus.runs.sharding import Execution


def names(selection: Selection, *keys: str) -> list[str]:
    return [key for key in keys if selection.wants(AudioItem(key, f"/{key}.wav", suffix=".wav"))]


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        ((), (), ["a/x", "a/y", "b/c/x"]),
        (("a/*",), (), ["a/x", "a/y"]),
        (("x.wav",), (), ["a/x", "b/c/x"]),
        (("b/*x.*", "y.*"), (), ["a/y", "b/c/x"]),
        ((), ("*/x.wav",), ["a/y"]),
        (("a/*",), ("x.wav",), ["a/y"]),
        (("*.flac",), (), []),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], kept: list[str]) -> None:
    assert names(Selection(include, exclude), "a/x", "a/y", "b/c/x") == kept


def test_an_excluded_file_takes_no_key(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 3000)
    (tmp_path / "a.mp3").write_bytes(b"x")
    listed = list(list_audio([tmp_path], wants=Selection(exclude=("*.mp3",)).wants))
    assert [item.path for item in listed] == [str(tmp_path / "a.wav")]


def tokenize(audio: Path, folder: Path, selection: Selection) -> list[str]:
    tokenize_with_books([audio], {folder: fake_codebook()}, make_fake, None, Execution(workers=0), selection=selection)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [row["item"]["key"] for row in rows]


def test_limits_on_the_duration_are_inclusive(tmp_path: Path) -> None:
    for tenths in (1, 2, 3, 4):
        write_audio(tmp_path / "in" / f"{tenths}.wav", tenths * 1600)
    (tmp_path / "in" / "broken.wav").write_text("no audio")
    selection = Selection(min_seconds=0.2, max_seconds=0.3)
    assert tokenize(tmp_path / "in", tmp_path / "run", selection) == ["2", "3", "broken"]
    assert "broken" in (tmp_path / "run" / "failed.jsonl").read_text()


def test_known_inputs_stay_under_another_selection(tmp_path: Path) -> None:
    for name in "ab":
        write_audio(tmp_path / "in" / f"{name}.wav", 3000)
    tokenize(tmp_path / "in", tmp_path / "run", Selection(include=("b.wav",)))
    assert tokenize(tmp_path / "in", tmp_path / "run", Selection(exclude=("b.wav",))) == ["b", "a"]


def test_a_selection_of_everything_changes_no_byte(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", 3000)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "clean", files_per_shard=256)
    tokenize(tmp_path / "in", tmp_path / "run", Selection(("*",), ("z*",), 0.0, 1e9))
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize("bounds", [(-1.0, None), (2.0, 1.0), (None, -1.0)])
def test_limits_that_nothing_can_satisfy_are_refused(bounds: tuple[float | None, float | None]) -> None:
    with pytest.raises(RunError, match="no audio can last"):
        Selection((), (), *bounds)


def test_a_pattern_without_a_match_is_an_error(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", 3000)
    with pytest.raises(RunError, match="patterns"):
        tokenize(tmp_path / "in", tmp_path / "run", Selection(include=("b*",)))


def test_known_inputs_are_identified_by_file_and_place() -> None:
    known = KnownInputs()
    first = AudioItem("k", "/tar", 512, 10)
    assert list(known.news([first, first])) == [first]
    (bad,) = known.news([AudioItem("k", "/tar", 1024, 10)])
    assert "is taken by /tar" in bad.reason
