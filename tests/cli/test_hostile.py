"""Commands over files that were made to do harm: nothing leaves the folder, nothing reaches the terminal."""

import json
import pickle
import re

import numpy as np
import pytest

from sctok.cli.app import main
from sctok.cli.shared.terminal import Progress, emit, say, table

from .conftest import write_noise
from .hostile import token_shard

QUICK = ("--steps", "1")
UNSEEN = "\x1b[2J\x07\r\n\x7f\x9b\u202e\u2066\u2028\udcff"
EVIL = {
    "../beside": "../beside",
    "%2E%2E/encoded": "../encoded",
    "x/../../twice": "x/../../twice",
    "//tmp/absolute": "//tmp/absolute",
    "link/through": "link/through",
    "good/below": "good/below",
    "%1B[2Jescape": "\x1b[2Jescape",
    "new%0Aline": "new\nline",
    "nul%00": "nul\0",
    "taken.wav/below": "taken.wav/below",
}


@pytest.fixture(scope="module")
def tokens(small_codec):
    """The tokens of half a second of noise."""
    return small_codec.encode(np.random.default_rng(0).standard_normal(8_000) * 0.1, 16_000)


def is_clean(text):
    return all(line.isprintable() for line in text.splitlines()) and not re.search("[\r\x85\u2028]", text)


def test_a_shard_is_decoded_only_into_its_folder(sctok, tokens, tmp_path):
    out = tmp_path / "a" / "out"
    out.mkdir(parents=True)
    (out / "link").symlink_to(tmp_path)
    (tmp_path / "a" / "beside.wav").write_text("mine")
    shard = token_shard(tmp_path / "evil.tar", tokens, {**EVIL, "taken": "taken"})
    code, printed, said = sctok("decode", shard, "--out", out, *QUICK, "--json")
    assert code == 1
    assert (tmp_path / "a" / "beside.wav").read_text() == "mine"
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav") if path.is_file()}
    either = {"a/out/taken.wav", "a/out/taken.wav/below.wav"}  # one is a file where the other needs a folder
    assert found - either == {"a/beside.wav", "a/out/good/below.wav"}
    assert len(found & either) == 1
    facts = json.loads(printed)
    assert (facts["files"], len(facts["failed"])) == (2, 9)
    assert is_clean(printed)
    assert is_clean(said)
    assert "\\x1b[2Jescape" in said


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_shard_is_described_without_its_control_characters(capsys, tokens, tmp_path, as_json):
    shard = token_shard(tmp_path / "s.tar", tokens, {"a": "a"}, **{f"k{UNSEEN}": f"v{UNSEEN}"}, nested={"x": [UNSEEN]})
    assert main(["inspect", str(shard), *as_json]) == 0
    printed = capsys.readouterr().out
    assert is_clean(printed)
    assert "u202e" in printed


def test_messages_tables_and_notes_escape_control_characters(capsys, monkeypatch):
    say(f"a{UNSEEN}")
    emit({f"a{UNSEEN}": UNSEEN}, True, "")
    emit({}, False, table(("name",), [(UNSEEN,)]))
    Progress("label").message(UNSEEN)
    printed = capsys.readouterr()
    assert is_clean(printed.out)
    assert is_clean(printed.err)
    assert printed.err.count("\n") == 2
    assert json.loads(printed.out.splitlines()[0]) == {f"a{UNSEEN}": UNSEEN}


def test_a_wrong_option_is_shown_without_control_characters(capsys):
    assert main(["decode", "x", "--format", f"a{UNSEEN}"]) == 2
    assert is_clean(capsys.readouterr().err)


def test_an_input_is_named_without_its_control_characters(sctok, tmp_path):
    write_noise(tmp_path / "in" / "a\x1b[2J\nb.wav", 8_000)
    write_noise(tmp_path / "in" / "good.wav", 8_000)
    code, printed, said = sctok("encode", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.sct"]
    assert is_clean(printed + said)


@pytest.mark.parametrize(
    ("command", "change"),
    [
        (["inspect"], {"codebooks": {"../b.safetensors": ""}}),
        (["decode", "x.sct", "--codec"], {"codebooks": {"../b.safetensors": ""}}),
        (["decode", "x.sct", "--codec"], {"encoder": "../x"}),
        (["decode", "x.sct", "--codec"], {"encoder": "own/er"}),
    ],
)
def test_the_description_of_a_codec_opens_no_file_outside_its_folder(capsys, codec_folder, tmp_path, change, command):
    content = json.loads((codec_folder / "codec.json").read_text())
    for path in codec_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "codec.json").write_text(json.dumps({**content, **change}))
    (tmp_path / "x.sct").touch()
    command = [str(tmp_path / word) if word == "x.sct" else word for word in command]
    assert main([*command, str(tmp_path)]) == 1
    assert "codec.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("deep.toml", "a = " + "[" * 20_000, "nested"),
        ("tables.toml", ".".join(["a"] * 5_000) + " = 1", "a line has more than 1000 dots"),
        ("inline.toml", "a = " + "{a=" * 20_000, "nested"),
    ],
)
def test_a_deep_configuration_is_refused_in_one_line(capsys, tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    assert main(["train", str(tmp_path), "--config", str(tmp_path / name), "--root", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("depth", [150, 990, 200_000])
@pytest.mark.parametrize("name", ["run.json", "codec.json"])
def test_deep_descriptions_are_refused_in_one_line(capsys, tmp_path, name, depth):
    (tmp_path / name).write_text('{"format": "sctok-codec", "a": ' + "[" * depth + "]" * depth + "}")
    assert main(["inspect", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


class _Runs:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [_Runs(), {"a": 1}, bytearray(b"x")])
def test_a_pickle_as_encoder_is_refused_in_one_line_and_not_run(capfd, tmp_path, monkeypatch, protocol, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(value, protocol))
    assert main(["extract", str(write_noise(tmp_path / "a.wav", 800)), "--domain", "x", "--encoder", "p.pkl"]) == 1
    assert not (tmp_path / "ran").exists()
    assert capfd.readouterr().err.count("\n") == 1
