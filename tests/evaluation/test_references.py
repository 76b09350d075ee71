"""Domains and transcripts of references."""

import numpy as np
import pytest
import soundfile

from sctok.audio.inputs.sources import BadItem
from sctok.evaluation.references import list_references, read_transcripts


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(1600), 16_000)
    return path


def test_domains_come_from_folders_manifests_or_the_option(tmp_path):
    write(tmp_path / "x" / "music" / "live" / "a.wav")
    write(tmp_path / "x" / "b.wav")
    (tmp_path / "list.csv").write_text("path,domain\nx/b.wav,birds\n")
    found = {each.key: each.domain for each in list_references([tmp_path / "x"])}
    assert found == {"b": "", "music/live/a": "music"}
    assert [each.domain for each in list_references([tmp_path / "list.csv"])] == ["birds"]
    assert {each.domain for each in list_references([tmp_path / "x"], domain="speech")} == {"speech"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'key,text\na/one,"Yes, two"\n'),
        ("t.csv", 'path,speaker,transcript\na/one.wav,x,"Yes, two"\n'),
        ("t.tsv", "a/one.flac\tYes, two\n"),
    ],
)
def test_transcripts_are_found_by_key_or_trailing_path(tmp_path, name, text):
    write(tmp_path / "set" / "a" / "one.wav")
    (tmp_path / name).write_text(text)
    said = read_transcripts(tmp_path / name)
    assert [each.transcript for each in list_references([tmp_path / "set"], transcripts=said)] == ["Yes, two"]
    assert [each.transcript for each in list_references([tmp_path / "set" / "a"], transcripts=said)] == ["Yes, two"]


def test_transcripts_in_manifests_and_next_to_files(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.wav")
    (tmp_path / "list.csv").write_text("path,text\na.wav,of the manifest\nb.wav,\nc.wav,\n")
    (tmp_path / "b.txt").write_text("beside\n")
    (tmp_path / "b.normalized.txt").write_text("beside, normalised\n")
    found = [each.transcript for each in list_references([tmp_path / "list.csv"])]
    assert found == ["of the manifest", "beside, normalised", None]


def test_equal_keys_are_made_distinct(tmp_path):
    write(tmp_path / "a.wav")
    write(tmp_path / "a.flac")
    found = list_references([tmp_path])
    assert [isinstance(each.item, BadItem) for each in found] == [False, True]
    assert len({each.key for each in found}) == 2


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.txt", "x", "must be a .csv or .tsv file"),
        ("t.csv", "", "is empty"),
        ("t.csv", "a,b,c\n", "has the columns a, b"),
    ],
)
def test_tables_without_transcripts_are_rejected(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_transcripts(tmp_path / name)


def test_a_folder_without_tables_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"no \.csv or"):
        read_transcripts(tmp_path)
