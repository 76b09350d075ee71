"""The main jobs in an empty folder, right after installation: nothing has to be made first."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from tests.training.trainings import encoder

from sctok.cli.app import main
from sctok.codec.storage.codec_folder import load_codec
from sctok.features.checkpoints import save_weights
from sctok.formats.bundled import bundled_codebook
from sctok.formats.codebooks import codebook_hash
from sctok.formats.token_shards import read_token_shard

from .conftest import write_noise

Sctok = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sctok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sctok:
    """Run a command in a folder that holds only audio; return its exit code, what it printed and what it said."""
    write_noise(tmp_path / "audio" / "clip.wav", 20_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCTOK_ROOT", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def hashes(folder: str) -> set[str]:
    return {info["codebook_hash"] for _, _, info in read_token_shard(Path(folder) / "shard-00000.tar")}


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ([], 100),
        (["--token-rate", 50], 50),
        (["--token-rate", 25, "--codebook", 4096, "--encoder", "mini"], 25),
        (["--codebook", "merged-4096-r25"], 25),
    ],
)
def test_tokenize(sctok: Sctok, options: list[object], rate: int) -> None:
    code, out, err = sctok("tokenize", "audio", "--json", "--workers", 0, *options)
    assert code == 0, err
    assert json.loads(out)["codebook_size"] == 4096
    assert hashes("sctok-data/tokens/audio") == {codebook_hash(bundled_codebook(rate))}
    by_name = "merged-4096-r25" in options
    assert (f"using the bundled codebook merged-4096-r{rate} (encoder mini); run sctok" in err) != by_name


def test_tokens_name_the_bundled_codebook_that_made_them(sctok: Sctok) -> None:
    assert sctok("tokenize", "audio", "--workers", 0)[0] == 0
    for place in ("sctok-data/tokens/audio", "sctok-data/tokens/audio/shard-00000.tar", "merged-4096-r100"):
        code, out, err = sctok("inspect", place, "--json")
        assert code == 0, err
        assert json.loads(out)["bundled_codebook"] == "merged-4096-r100"
    assert sctok("verify", "sctok-data/tokens/audio")[0] == 0
    assert sctok("export", "audio", "--to", "npy")[0] == 0


@pytest.mark.parametrize("name", ["base", "own.safetensors"])
def test_tokenize_refuses_the_bundled_codebook_for_another_encoder(sctok: Sctok, name: str) -> None:
    save_weights(Path("own.safetensors"), encoder(), {})
    code, _, err = sctok("tokenize", "audio", "--encoder", name)
    assert code == 1
    assert f"no merged codebook at 100 tokens per second for the encoder {name}" in err
    assert f"Run sctok extract --encoder {name}, sctok cluster and sctok merge first" in err
    assert not Path("sctok-data").exists()


def test_a_named_bundled_codebook_is_refused_for_another_encoder(sctok: Sctok) -> None:
    save_weights(Path("own.safetensors"), encoder(), {})
    code, _, err = sctok("tokenize", "audio", "--encoder", "own.safetensors", "--codebook", "merged-4096-r100")
    assert code == 1
    assert "centroids was made with the encoder mini" in err


@pytest.mark.slow
def test_train_with_bundled_parts(sctok: Sctok) -> None:
    """Two steps of `--config mini`, whose validation is cut down to one window."""
    text = (files("sctok.configs") / "mini.toml").read_text("utf-8")
    text = text.replace("validation_windows = 48", "validation_windows = 1").replace(
        "listen_every = 5", "listen_every = 0"
    )
    Path("short.toml").write_text(text)
    code, _, err = sctok("train", "audio", "--config", "short.toml", "--steps", 2, "--batch-size", 1)
    assert code == 0, err
    assert "using the bundled codebook merged-4096-r50 (encoder mini)" in err
    assert "using the VAE and vocoder of the bundled codec mini" in err
    made = load_codec("sctok-data/codecs/my-short")
    assert [codebook_hash(book) for book in made.tokens.codebooks] == [codebook_hash(bundled_codebook(50))]


@pytest.mark.parametrize("config", ["paper-25", "paper-50", "paper-100"])
def test_train_names_the_parts_that_the_paper_configurations_need(sctok: Sctok, config: str) -> None:
    code, _, err = sctok("train", "audio", "--config", config)
    assert code == 2
    said = " ".join(err.replace("│", " ").split())
    assert f"{config} names no vae and no vocoder: give --vae and --vocoder (a codec such as mini, or a file)" in said
