"""`sctok tokenize --codec` as a user meets it: both streams of a whole corpus."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from tests.codec.tiny import ACOUSTIC_SIZE, CODEBOOK_SIZES, replace_parts, tiny_parts

from sctok.cli.app import main
from sctok.codec.encoding import WindowEncoder
from sctok.codec.storage.codec_folder import save_codec
from sctok.features.extractor import FeatureExtractor
from sctok.formats.codebooks import save_codebook
from sctok.formats.sct import read_sct
from sctok.formats.token_shards import read_token_shard

from .conftest import write_noise

SHARDED = ("--files-per-shard", 2, "--workers", 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four readable files, one of them silent and one of two windows, and one that is no audio."""
    folder = tmp_path_factory.mktemp("audio") / "corpus"
    write_noise(folder / "x" / "stereo.flac", 50_000, rate=44_100, channels=2)
    write_noise(folder / "short.wav", 800)
    write_noise(folder / "long.wav", 200_001)
    soundfile.write(folder / "silent.wav", np.zeros(30_000), 16_000)
    (folder / "x" / "text.wav").write_text("this is no audio")
    return folder


@pytest.fixture(scope="module")
def tokenized(corpus, codec_folder, tmp_path_factory):
    """The run folder of that corpus."""
    out = tmp_path_factory.mktemp("runs") / "clean"
    options = ["--codec", codec_folder, "--device", "cpu", *SHARDED]
    assert main(["tokenize", str(corpus), "--out", str(out), *map(str, options)]) == 0
    return out


def entries(folder):
    return {key: (tokens, info) for path in folder.glob("*.tar") for key, tokens, info in read_token_shard(path)}


def tree(folder):
    """Return the hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_tokens_equal_the_tokens_of_encode(sctok, corpus, tokenized, tmp_path):
    assert sctok("encode", corpus, "--out", tmp_path)[0] == 1
    found = entries(tokenized)
    assert found.keys() == {"x/stereo", "short", "long", "silent"}
    for key, (tokens, _) in found.items():
        np.testing.assert_array_equal(tokens, read_sct(tmp_path / f"{key}.sct").tokens, key)


def test_run_and_files_record_what_made_the_tokens(tokenized, small_codec):
    run = json.loads((tokenized / "run.json").read_text())
    wanted = {
        "streams": ["semantic", "acoustic"],
        "codec_hash": small_codec.hash,
        "codebook_hash": small_codec.codebook_hash(),
        "encoder_hash": small_codec.encoder_hash,
        "token_rate": 25,
    }
    assert run["codebook_sizes"] == [max(CODEBOOK_SIZES), ACOUSTIC_SIZE]
    for _, info in ((None, run), *entries(tokenized).values()):
        assert {name: info[name] for name in wanted} == wanted


def test_the_summary_describes_both_streams(tokenized):
    summary = json.loads((tokenized / "summary.json").read_text())
    tokens = np.concatenate([tokens for tokens, _ in entries(tokenized).values()])
    used = [len(np.unique(stream)) for stream in tokens.T]
    assert (summary["codebook_size"], summary["acoustic_size"]) == (max(CODEBOOK_SIZES), ACOUSTIC_SIZE)
    assert [summary["codebook_used"], summary["acoustic_used"]] == used
    assert summary["tokens"] == len(tokens)


@pytest.mark.parametrize(
    "options",
    [
        ("--batch-size", 1, "--workers", 0),
        ("--batch-size", 5, "--workers", 1),
        pytest.param(("--device", "cpu,cpu"), marks=pytest.mark.slow),
        pytest.param(("--engine", "ray"), marks=pytest.mark.slow),
    ],
)
def test_bytes_do_not_depend_on_the_execution(sctok, codec_folder, corpus, tokenized, tmp_path, options):
    if "ray" in options:
        pytest.importorskip("ray")
    settings = ["--codec", codec_folder, "--files-per-shard", 2, "--out", tmp_path / "run"]
    assert main(["tokenize", str(corpus), *map(str, [*settings, "--device", "cpu", *options])]) == 0
    assert tree(tmp_path / "run") == tree(tokenized)


def test_ranks_share_the_shards(sctok, corpus, tokenized, tmp_path):
    for rank in (1, 0):
        ranked = ("--rank", rank, "--world-size", 2)
        assert sctok("tokenize", corpus, "--out", tmp_path / "run", *SHARDED, *ranked)[0] == 0
    assert tree(tmp_path / "run") == tree(tokenized)


def test_several_codebooks_embed_once_and_equal_single_runs(sctok, tmp_path, monkeypatch):
    corpus, windows = tmp_path / "corpus", []
    write_noise(corpus / "a.wav", 800)
    write_noise(corpus / "b.wav", 170_000)
    embed = WindowEncoder.embed

    def counted(self, waves, last):
        windows.append(len(waves))
        return embed(self, waves, last)

    monkeypatch.setattr(WindowEncoder, "embed", counted)
    both = ",".join(map(str, CODEBOOK_SIZES))
    assert sctok("tokenize", corpus, "--out", tmp_path / "many", "--codebook", both, *SHARDED)[0] == 0
    assert sum(windows) == 3
    for size in CODEBOOK_SIZES:
        out = tmp_path / "single" / f"corpus-{size}"
        assert sctok("tokenize", corpus, "--out", out, "--codebook", size, *SHARDED)[0] == 0
    assert tree(tmp_path / "many") == tree(tmp_path / "single")


def test_failures_are_retried(sctok, tmp_path):
    for samples in (900, 1_000):
        write_noise(tmp_path / "in" / f"{samples}.wav", samples)
    (tmp_path / "in" / "950.wav").write_text("this is no audio")
    assert sctok("tokenize", tmp_path / "in", "--out", tmp_path / "run", *SHARDED)[0] == 0
    write_noise(tmp_path / "in" / "950.wav", 950)
    assert sctok("tokenize", tmp_path / "in", "--out", tmp_path / "run", *SHARDED, "--retry-failed")[0] == 0
    assert sctok("tokenize", tmp_path / "in", "--out", tmp_path / "clean", *SHARDED)[0] == 0
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_features_that_are_not_finite_fail_only_their_file(sctok, tmp_path, monkeypatch):
    embed = FeatureExtractor.embed_with_mel

    def sick(self, waves, last):
        embedded, mel = embed(self, waves, last)
        embedded[np.abs(waves).max(axis=1) > 0.9, 100] = np.nan
        return embedded, mel

    monkeypatch.setattr(FeatureExtractor, "embed_with_mel", sick)
    write_noise(tmp_path / "in" / "a.wav", 900)
    soundfile.write(tmp_path / "in" / "loud.wav", np.full(900, 0.99), 16_000)
    assert sctok("tokenize", tmp_path / "in", "--out", tmp_path / "run", *SHARDED)[0] == 0
    assert entries(tmp_path / "run").keys() == {"a"}
    assert "not finite" in (tmp_path / "run" / "failed.jsonl").read_text()


def test_verify_reads_both_streams(tokenized, capsys):
    assert main(["verify", str(tokenized), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 4


def test_export_knows_the_sizes_of_both_streams(tokenized, tmp_path):
    options = ["--to", "npy", "--layout", "interleaved", "--out", str(tmp_path / "npy")]
    assert main(["export", str(tokenized), *options]) == 0
    described = json.loads((tmp_path / "npy" / "export.json").read_text())
    assert described["streams"] == ["semantic", "acoustic"]
    assert described["vocabulary_size"] == max(CODEBOOK_SIZES) + ACOUSTIC_SIZE


def test_decode_turns_a_run_back_into_sound(sctok, tmp_path):
    audio = write_noise(tmp_path / "a.wav", 5_000)
    assert sctok("tokenize", audio, "--out", tmp_path / "run", *SHARDED)[0] == 0
    assert sctok("decode", tmp_path / "run", "--out", tmp_path / "out", "--steps", 1)[0] == 0
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 5_000


def test_a_published_codec_reads_the_same_windows_as_encode(tmp_path, monkeypatch):
    parts = tiny_parts()
    save_codec(
        tmp_path / "codec",
        replace_parts(parts, encoder=replace(parts.tokens.encoder, metadata={"published_steps": True})),
    )
    embedded = []
    embed = WindowEncoder.embed

    def recorded(self, waves, last):
        embedded.append(waves.copy())
        return embed(self, waves, last)

    monkeypatch.setattr(WindowEncoder, "embed", recorded)
    soundfile.write(tmp_path / "a.wav", np.full(20_000, 0.5), 16_000)
    for command, out in (("encode", "a.sct"), ("tokenize", "run")):
        options = ["--codec", tmp_path / "codec", "--device", "cpu", "--out", tmp_path / out, "--workers", 0]
        assert main([command, *map(str, [tmp_path / "a.wav", *options])]) == 0
    assert embedded[0][0, 0] < 0.49  # the mean is gone
    np.testing.assert_array_equal(embedded[0], embedded[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--token-rate", 100), "has 25 tokens per second, not 100"),
        (("--encoder", "mini"), "uses its own encoder"),
        (("--codebook", 4096), "has no codebook 4096; it has"),
        (("--codebook", f"{CODEBOOK_SIZES[0]},{CODEBOOK_SIZES[0]}"), "two codebooks have the same size"),
    ],
)
def test_options_that_do_not_fit_the_codec_are_wrong_usage(sctok, corpus, tmp_path, options, said):
    code, printed, message = sctok("tokenize", corpus, "--out", tmp_path / "run", *options)
    assert (code, printed) == (2, "")
    assert said in message
    assert not (tmp_path / "run").exists()


def test_a_codebook_file_must_belong_to_the_codec(sctok, corpus, small_codec, tmp_path):
    own = tiny_parts().tokens.codebooks[0]
    save_codebook(tmp_path / "own.safetensors", own)
    save_codebook(tmp_path / "other.safetensors", replace(own, centroids=own.centroids + 1))
    options = ("--out", tmp_path / "run", "--workers", 0, "--json")
    code, _, said = sctok("tokenize", corpus, *options, "--codebook", tmp_path / "other.safetensors")
    assert (code, "has no codebook" in said) == (2, True)
    code, printed, _ = sctok("tokenize", corpus, *options, "--codebook", tmp_path / "own.safetensors")
    assert (code, json.loads(printed)["codebook_size"]) == (0, own.k)


def test_a_folder_of_another_codec_is_refused(sctok, corpus, tokenized, tmp_path):
    save_codec(tmp_path / "codec", tiny_parts(seed=1))
    options = ["--codec", tmp_path / "codec", "--device", "cpu", "--out", tokenized, *SHARDED]
    before = tree(tokenized)
    assert main(["tokenize", *map(str, [corpus, *options])]) == 1
    assert tree(tokenized) == before


def test_a_folder_of_one_stream_is_refused(sctok, corpus, codec_folder, tokenized, tmp_path, capsys):
    book = tiny_parts().tokens.codebooks[1]
    save_codebook(tmp_path / "book.safetensors", book)
    encoder = codec_folder / "encoder.safetensors"
    options = ["--codebook", tmp_path / "book.safetensors", "--encoder", encoder, "--out", tokenized, *SHARDED]
    assert main(["tokenize", *map(str, [corpus, *options])]) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "codec_hash" in said


def test_a_codebook_of_features_without_padding_is_refused(sctok, corpus, tmp_path):
    own = tiny_parts().tokens.codebooks[0]
    cut = replace(own, metadata=replace(own.metadata, encoder_hash=f"{own.metadata.encoder_hash}-cut"))
    save_codebook(tmp_path / "cut.safetensors", cut)
    code, _, said = sctok("tokenize", corpus, "--out", tmp_path / "run", "--codebook", tmp_path / "cut.safetensors")
    assert (code, "omit --codec" in said) == (2, True)
