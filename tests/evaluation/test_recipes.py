"""Recipes of evaluation sets."""

import json
import re

import numpy as np
import pytest
import soundfile

from sctok.audio.inputs.held_out import VALIDATION_SHARE, key_share
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.cli.app import main
from sctok.evaluation import recipes
from sctok.evaluation.recipes import RecipePart, write_recipe

RATE = 1_000  # low, so that minutes of audio are small


def sound(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(int(seconds * RATE), np.float32), RATE)


@pytest.fixture
def collections(tmp_path, monkeypatch):
    """Return small copies of the three collections; the paper's recipe gets small numbers."""
    small = (
        RecipePart("speech", "LibriTTS", 3, inside="test-clean"),
        RecipePart("general", "AudioSet", 4),
        RecipePart("music", "MUSDB18", 5, 10.0, inside="test", stems=("mixture", ".stem")),
    )
    monkeypatch.setattr(recipes, "RECIPES", {**recipes.RECIPES, "paper": small})
    for number in range(6):
        sound(tmp_path / f"LibriTTS/test-clean/{number}/utterance.wav", 2)
        sound(tmp_path / f"LibriTTS/train/{number}.wav", 2)
        sound(tmp_path / f"AudioSet/{number}.wav", 10)
    for track, seconds in (("a", 35), ("b", 25), ("c", 4)):
        sound(tmp_path / f"MUSDB18/test/{track}/mixture.wav", seconds)
        sound(tmp_path / f"MUSDB18/test/{track}/drums.wav", seconds)
    return [tmp_path / name for name in ("LibriTTS", "AudioSet", "MUSDB18")]


def listed(path):
    return list(list_audio([path]))


def test_the_paper_recipe_takes_the_right_numbers_from_the_right_folders(collections, tmp_path):
    items = listed(write_recipe("paper", collections, tmp_path / "set.jsonl"))
    assert all(isinstance(item, AudioItem) for item in items)
    domains = [item.metadata["domain"] for item in items]
    assert domains == ["speech"] * 3 + ["general"] * 4 + ["music"] * 5
    assert all("test-clean" in item.path for item in items[:3])
    assert all(item.path.endswith("mixture.wav") for item in items[7:])


def test_excerpts_lie_inside_their_tracks_and_do_not_overlap(collections, tmp_path):
    items = listed(write_recipe("paper", collections, tmp_path / "set.jsonl"))[7:]
    excerpts = {(item.path, item.start) for item in items if item.start is not None}
    assert len(excerpts) == 5 - 1  # c is shorter than an excerpt and is taken whole
    for path, start in excerpts:
        assert start % 10 == 0
        assert start + 10 <= soundfile.info(path).duration


def test_the_choice_depends_on_the_seed(collections, tmp_path):
    first, again = (write_recipe("paper", collections, tmp_path / f"{n}.jsonl").read_bytes() for n in "ab")
    assert first == again
    assert write_recipe("paper", collections, tmp_path / "c.jsonl", seed=1).read_bytes() != first


def test_a_new_file_replaces_at_most_one_clip(collections, tmp_path):
    before = {item.path for item in listed(write_recipe("paper", collections, tmp_path / "a.jsonl"))[3:7]}
    sound(collections[1] / "new.wav", 10)
    after = {item.path for item in listed(write_recipe("paper", collections, tmp_path / "b.jsonl"))[3:7]}
    assert len(before - after) <= 1


def test_the_debian_recipe_takes_clips_held_out_from_the_bundled_models(tmp_path):
    for number, domain in enumerate(("speech", "music", "general")):
        names = [str(each) for each in range(400) if key_share(f"{number}/{each}") < VALIDATION_SHARE]
        for name in ["0", "1", *names[:3]]:
            sound(tmp_path / domain / f"{name}.wav", 2)
    items = listed(write_recipe("debian", [tmp_path], tmp_path / "set.jsonl"))
    assert len(items) >= 9
    for item in items:
        domain, name = item.key.split("/")
        number = ("speech", "music", "general").index(domain)
        assert key_share(f"{number}/{name}") < VALIDATION_SHARE
    assert json.loads((tmp_path / "set.jsonl").read_text().splitlines()[0])["domain"] == "speech"


@pytest.mark.parametrize(
    ("recipe", "folders", "message"),
    [
        ("papers", ["x"], "unknown recipe 'papers'; the recipes are paper, debian"),
        ("paper", ["x"], "takes folders in this order: LibriTTS AudioSet MUSDB18; got 1"),
        ("paper", "LibriTTS", "folders must be a list of folders, not 'LibriTTS'"),
        ("debian", ["/nowhere"], "/nowhere/speech is not a folder"),
    ],
)
def test_invalid_recipes_and_folders_are_rejected(recipe, folders, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_recipe(recipe, folders, tmp_path / "set.jsonl")
    assert not (tmp_path / "set.jsonl").exists()


def test_too_few_clips_are_named(collections, tmp_path):
    for path in list(collections[1].glob("*.wav"))[:3]:
        path.unlink()
    with pytest.raises(ValueError, match=r"AudioSet has 3 suitable clips of AudioSet; the recipe takes 4"):
        write_recipe("paper", collections, tmp_path / "set.jsonl")


@pytest.mark.slow
def test_the_command_evaluates_the_excerpts_of_a_recipe(tmp_path):
    for number, domain in enumerate(("speech", "music", "general")):
        name = next(str(each) for each in range(400) if key_share(f"{number}/{each}") < VALIDATION_SHARE)
        sound(tmp_path / "audio" / domain / f"{name}.wav", 25)
    # A program: its encoding time and its bytes are unknown.
    codec = ["--codec", "cmd:copy=cp {in} {out}", "--metrics", "mel_dac", "--workers", "1", "--no-audio"]
    root = tmp_path / "root"
    assert main(["evaluate", str(tmp_path / "audio"), "--recipe", "debian", *codec, "--root", str(root)]) == 0
    run = json.loads((root / "reports/debian-0/run.json").read_text())
    assert [file["seconds"] for file in run["files"]] == [10.0] * 6
    assert [row.key for row in listed(root / "reports/debian-0.jsonl")] == [file["key"] for file in run["files"]]


def test_the_command_rejects_unknown_recipes(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--recipe", "debia", "--codec", "original"]) == 2
    assert "'debia' is not one of paper, debian" in capsys.readouterr().err
