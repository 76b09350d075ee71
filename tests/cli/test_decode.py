"""`sctok decode` as a user meets it."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main
from sctok.codec.samplers import SamplerConfig
from sctok.formats.sct import read_sct, write_sct
from sctok.formats.token_shards import TokenShardWriter

from .conftest import write_noise

QUICK = ("--steps", "1")


@pytest.fixture(scope="module")
def tokens(small_codec):
    """The tokens of 2.5 s of noise."""
    return small_codec.encode(np.random.default_rng(0).standard_normal(40_001) * 0.1, 16_000)


@pytest.fixture
def file(tokens, tmp_path):
    write_sct(tmp_path / "a.sct", tokens)
    return tmp_path / "a.sct"


def test_audio_is_written_next_to_the_token_file(sctok, small_codec, tokens, file):
    code, printed, _ = sctok("decode", file, "--sampler", "dpm++", "--steps", 2, "--seed", 3, "--json")
    assert code == 0
    info = soundfile.info(file.with_suffix(".decoded.wav"))
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (16_000, 1, 40_001, "PCM_16")
    expected = small_codec.decode(tokens, SamplerConfig("dpm++", 2, seed=3))
    found, _ = soundfile.read(file.with_suffix(".decoded.wav"), dtype="float32")
    np.testing.assert_allclose(found, expected, atol=2 / 32768)
    facts = json.loads(printed)
    assert (facts["files"], facts["audio_seconds"], facts["token_rate"]) == (1, 40_001 / 16_000, 25)


def test_original_audio_next_to_its_tokens_is_kept(sctok, tmp_path):
    audio = write_noise(tmp_path / "clips" / "a.wav", 8_000)
    before = audio.read_bytes()
    assert sctok("encode", tmp_path / "clips")[0] == 0
    assert sctok("decode", tmp_path / "clips", *QUICK)[0] == 0
    assert audio.read_bytes() == before
    assert soundfile.info(tmp_path / "clips" / "a.decoded.wav").frames == 8_000


def test_seed_and_steps_change_the_result(sctok, file, tmp_path):
    def audio(*options):
        assert sctok("decode", file, "--out", tmp_path / "x.wav", *options)[0] == 0
        return (tmp_path / "x.wav").read_bytes()

    first = audio(*QUICK)
    assert audio(*QUICK) == first
    assert len({first, audio(*QUICK, "--seed", 1), audio("--steps", 2), audio(*QUICK, "--guidance", 1)}) == 4


def test_a_folder_keeps_its_structure_and_failures_are_named(sctok, small_codec, tokens, tmp_path):
    folder = tmp_path / "in"
    for place in ("a.sct", "x/b.sct", "x/other codec.sct", "cut.sct", "x/foreign.sct"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_sct(folder / place, tokens)
    write_sct(folder / "x/other codec.sct", dataclasses.replace(tokens, codec_hash="f" * 16))
    write_sct(folder / "x/other codebook.sct", dataclasses.replace(tokens, codebook_hash="e" * 16))
    (folder / "cut.sct").write_bytes((folder / "a.sct").read_bytes()[:-9])
    (folder / "x/foreign.sct").write_bytes(b"RIFF")
    code, printed, said = sctok("decode", folder, "--out", tmp_path / "out", "--format", "flac", *QUICK, "--json")
    assert code == 1
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"a.flac", "x/b.flac"}
    assert soundfile.info(tmp_path / "out" / "x/b.flac").frames == 40_001
    failed = {entry["source"].removeprefix(f"{folder}/"): entry["reason"] for entry in json.loads(printed)["failed"]}
    assert failed["cut.sct"].startswith("is damaged")
    assert failed["x/foreign.sct"].startswith("is not a file that sctok writes")
    assert f"made with the codec {'f' * 16}, not with tiny ({small_codec.hash})" in failed["x/other codec.sct"]
    assert f"has no codebook {'e' * 16}" in failed["x/other codebook.sct"]
    assert len(failed) == 4
    assert "4 of 6 files failed" in said


def shard(path, tokens, **changes):
    info = {
        "samples": tokens.samples,
        "token_rate": tokens.token_rate,
        "streams": ["semantic", "acoustic"],
        "codebook_hash": tokens.codebook_hash,
        "codec_hash": tokens.codec_hash,
    }
    with TokenShardWriter(path, codebook_sizes=tokens.codebook_sizes) as writer:
        writer.add("x/a.b", tokens.tokens, info)
        writer.add("x/odd", tokens.tokens, {**info, **changes})


def test_a_shard_reports_the_bits_of_its_tokens(sctok, tokens, file, tmp_path):
    shard(tmp_path / "s.tar", tokens)
    code, printed, _ = sctok("decode", tmp_path / "s.tar", "--out", tmp_path / "out", *QUICK, "--json")
    assert code == 0
    seconds, bits = tokens.samples / 16_000, len(tokens.tokens) * tokens.bits_per_pair
    assert json.loads(printed)["bits_per_second"] == pytest.approx(bits / seconds)


def test_token_shards_are_decoded(sctok, tokens, file, tmp_path):
    shard(tmp_path / "s" / "shard-00000.tar", tokens)
    assert sctok("decode", tmp_path / "s", "--out", tmp_path / "out", *QUICK)[0] == 0
    assert sctok("decode", file, *QUICK)[0] == 0
    from_shard, alone = (
        soundfile.read(path)[0] for path in (tmp_path / "out/x/a.b.wav", file.with_suffix(".decoded.wav"))
    )
    np.testing.assert_allclose(from_shard, alone, atol=2 / 32768)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"streams": ["semantic"]}, "has the streams ['semantic']"),
        ({"codec_hash": None}, "description is damaged"),
        ({"token_rate": 50}, "the tokens have a rate of 50 per second, but the codec tiny has a rate of 25"),
        ({"samples": 5}, "do not fit 5 samples"),
    ],
)
def test_tokens_of_a_shard_that_do_not_fit_are_named(sctok, tokens, tmp_path, changes, reason):
    shard(tmp_path / "s.tar", tokens, **changes)
    code, printed, _ = sctok("decode", tmp_path / "s.tar", "--out", tmp_path / "out", *QUICK, "--json")
    assert code == 1
    (failed,) = json.loads(printed)["failed"]
    assert failed["source"].endswith("s.tar:x/odd")
    assert reason in failed["reason"]
    assert (tmp_path / "out" / "x" / "a.b.wav").exists()


def test_existing_audio_is_replaced_or_kept(sctok, file):
    target = file.with_suffix(".decoded.wav")
    soundfile.write(target, np.zeros(40_001), 16_000)
    before = target.stat().st_ino
    code, printed, _ = sctok("decode", file, *QUICK, "--skip-existing", "--json")
    assert (code, json.loads(printed)["kept"], target.stat().st_ino) == (0, 1, before)
    soundfile.write(target, np.zeros(40_000), 16_000)
    assert sctok("decode", file, *QUICK, "--skip-existing")[0] == 0
    assert soundfile.info(target).frames == 40_001


def test_invalid_output_paths_are_refused(sctok, file, tokens, tmp_path):
    shard(tmp_path / "s.tar", tokens)
    (tmp_path / "empty").mkdir()
    for arguments, reason in [
        ([file, file, "--out", tmp_path / "b.wav"], "cannot be written to one file"),
        ([tmp_path / "s.tar"], "give a folder for the audio with --out"),
        ([tmp_path / "s.tar", "--out", tmp_path / "b.wav"], "a token shard, cannot be written to one file"),
        (
            [file, "--out", tmp_path / "b.mp3"],
            "b.mp3: results can only be written as .wav; give such a file",
        ),
        (
            [file, "--out", tmp_path / "b.sct"],
            "b.sct: results can only be written as .wav; give such a file",
        ),
        ([tmp_path / "empty"], "no .sct files or token shards in this folder"),
        ([tmp_path / "nowhere.sct"], "nowhere.sct: No such file or directory"),
    ]:
        code, _, said = sctok("decode", *arguments)
        assert code == 1
        assert reason in said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "options", [["--sampler", "euler"], ["--eta", "2"], ["--steps", "0"], ["--guidance", "nan"], ["--format", "mp3"]]
)
def test_wrong_usage_is_refused(options, capsys):
    assert main(["decode", "a.sct", *options]) == 2


def test_more_steps_than_in_the_schedule_are_refused(sctok, file):
    code, _, said = sctok("decode", file, "--steps", 1001)
    assert code == 1
    assert "1001" in said


def test_inspect_describes_a_token_file(file, tokens, capsys):
    assert main(["inspect", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["samples"], facts["codec_hash"]) == ("token file", 40_001, read_sct(file).codec_hash)


def test_audio_of_one_input_does_not_replace_audio_of_another(sctok, file, tokens, tmp_path):
    (tmp_path / "b").mkdir()
    write_sct(tmp_path / "b" / "a.sct", tokens)
    code, printed, said = sctok("decode", file, tmp_path / "b" / "a.sct", "--out", tmp_path / "out", *QUICK, "--json")
    assert code == 1
    assert "a.wav is already the result of another input; give it another --out" in said
    assert json.loads(printed)["files"] == 1
