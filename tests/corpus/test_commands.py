"""`sctok extract` and `sctok tokenize` as a user types them, with the fake encoder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeExtractor, fake_codebook, write_audio

from sctok.cli.app import main
from sctok.formats.codebooks import codebook_path, export_npy, load_codebook, save_codebook
from sctok.formats.token_shards import read_token_shard

Sctok = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sctok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sctok:
    """Run a command line below `tmp_path` and return its exit code, stdout and stderr."""

    def load(name: str, device: str, precision: str, padding: str = "keep") -> FakeExtractor:
        return FakeExtractor(padding=padding)

    monkeypatch.setattr("sctok.features.extractor.load_encoder", load)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--workers", "0"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def codebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "sctok-data" / "codebooks"
    for k, stack in ((16, 1), (32, 1), (8, 2)):
        save_codebook(codebook_path(folder, "merged", k, 100 // stack), fake_codebook(k, stack))
    return folder


def test_extract_writes_below_the_root_and_prints_a_table(sctok: Sctok, collection: Path, tmp_path: Path) -> None:
    code, out, err = sctok("extract", collection, "--domain", "speech")
    assert code == 0
    assert (tmp_path / "sctok-data" / "features" / "speech" / "shard-00000.h5").exists()
    assert "real time" in out
    assert "sctok-data/features/speech" in out
    assert "warning: 3 inputs failed" in err
    assert "failed.jsonl" in err
    assert "--retry-failed" in err


def test_json_is_one_object_on_stdout(sctok: Sctok, collection: Path) -> None:
    code, out, _ = sctok("extract", collection, "--domain", "speech", "--json", "--tokens-per-clip", 16)
    found = json.loads(out)
    assert code == 0
    assert (found["files"], found["failed"], found["shards_left"]) == (10, 3, 0)
    assert found["audio_seconds_done"] > 30


def test_a_second_run_says_that_nothing_is_left(sctok: Sctok, collection: Path) -> None:
    sctok("extract", collection, "--domain", "speech")
    code, out, err = sctok("extract", collection, "--domain", "speech")
    assert code == 0
    assert "nothing left to do" in err
    assert "real time" not in out


def test_tokenize_finds_the_largest_codebook_and_names_the_run(
    sctok: Sctok, collection: Path, codebooks: Path, tmp_path: Path
) -> None:
    code, out, _ = sctok("tokenize", collection, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["codebook_size"] == 32
    assert found["folder"] == "sctok-data/tokens/collection"
    assert len(list(read_token_shard(tmp_path / found["folder"] / "shard-00000.tar"))) == 10


@pytest.mark.parametrize(
    ("options", "size"),
    [(["--codebook", "16"], 16), (["--token-rate", "50"], 8), (["--codebook", "book.safetensors"], 8)],
)
def test_codebooks_by_size_rate_and_path(
    sctok: Sctok, collection: Path, codebooks: Path, options: list[str], size: int
) -> None:
    save_codebook("book.safetensors", fake_codebook(8, 2))
    code, out, err = sctok("tokenize", collection, "--name", "my_run", "--json", *options)
    assert code == 0, err
    assert json.loads(out)["codebook_size"] == size


def test_several_codebooks_have_a_folder_each(sctok: Sctok, collection: Path, codebooks: Path) -> None:
    code, out, err = sctok("tokenize", collection, "--codebook", "16,32", "--json")
    assert code == 0, err
    assert [found["folder"] for found in json.loads(out)] == [f"sctok-data/tokens/collection-{k}" for k in (16, 32)]
    assert sctok("tokenize", collection, "--codebook", "32", "--name", "collection-32")[2].count("nothing left") == 1
    assert sctok("tokenize", collection, "--codebook", "32,32")[0] == 2


def test_a_codebook_of_another_rate_than_its_name_says_is_refused(
    sctok: Sctok, collection: Path, codebooks: Path
) -> None:
    save_codebook(codebook_path(codebooks, "merged", 16, 100), fake_codebook(16, 2))
    code, out, err = sctok("tokenize", collection, "--codebook", "16", "--token-rate", 100)
    assert (code, out) == (1, "")
    assert "merged-16-r100.safetensors holds the codebook merged-16-r50" in err


def test_published_centroids(sctok: Sctok, collection: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sctok.features.checkpoints.load_weights", lambda name: FakeExtractor())
    export_npy(fake_codebook(8, 2), tmp_path / "book.npy")
    code, out, err = sctok("tokenize", collection, "--codebook", "book.npy", "--token-rate", 50, "--json")
    assert code == 0, err
    assert json.loads(out)["codebook_size"] == 8


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["extract", "missing", "--domain", "speech"], 1, "missing"),
        (["extract", "empty", "--domain", "speech"], 1, "empty"),
        (["extract", "broken", "--domain", "speech"], 1, "failed.jsonl"),
        (["extract", "broken", "--domain", "a/b"], 2, "a/b"),
        (["extract", "broken", "--domain", "speech", "--max-hours", "0"], 2, "max-hours"),
        (["extract", "broken", "--domain", "speech", "--tokens-per-clip", "0"], 2, "tokens-per-clip"),
        (["extract", "broken", "--domain", "speech", "--device", "toaster"], 2, "toaster"),
        (["extract", "broken", "--domain", "speech", "--precision", "int3"], 2, "int3"),
        (["tokenize", "broken", "--codebook", "99"], 1, "sctok-data/codebooks: no merged codebook of 99 centroids"),
        (["tokenize", "broken", "empty"], 2, "--name"),
        (["tokenize", "broken", "--token-rate", "7"], 2, "token-rate"),
        (["tokenize", "broken", "--codebook", "no.safetensors"], 1, "no.safetensors"),
    ],
)
def test_bad_input_is_one_line(sctok: Sctok, tmp_path: Path, arguments: list[str], code: int, named: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "text.wav").write_text("no audio")
    found, out, err = sctok(*arguments)
    assert found == code, err
    assert out == ""
    assert named in err
    assert "Traceback" not in err
    if code == 1:
        assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]


def test_features_of_another_encoder_are_refused(
    sctok: Sctok, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sctok("extract", collection, "--domain", "speech")
    monkeypatch.setattr(FakeExtractor, "hash", "f" * 16)
    code, _, err = sctok("extract", collection, "--domain", "speech")
    assert code == 1
    assert "encoder_hash" in err.splitlines()[-1]


def test_ctrl_c_says_how_to_go_on(sctok: Sctok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_audio(tmp_path / "audio" / "a.wav", 4000)
    with monkeypatch.context() as patch:
        patch.setattr(FakeExtractor, "embed", interrupt)
        code, _, err = sctok("extract", "audio", "--domain", "speech")
    assert code == 130
    assert "run the same command to resume" in err.splitlines()[-1]
    assert list(tmp_path.rglob("*.tmp-*")) == []
    assert sctok("extract", "audio", "--domain", "speech")[0] == 0


def test_features_without_padding_make_codebooks_that_tokenize_knows(
    sctok: Sctok, collection: Path, tmp_path: Path
) -> None:
    """From features, and straight from audio, to the same codebook and its tokens."""
    sctok("extract", collection, "--domain", "speech", "--padding", "cut")
    sctok("cluster", "--domain", "speech", "--k", 8)
    options = ["--from-audio", collection, "--domain", "speech", "--k", 8, "--max-hours", 1]
    code, _, err = sctok("cluster", *options, "--padding", "cut", "--output", tmp_path)
    assert code == 0, err
    for folder in (tmp_path, tmp_path / "sctok-data" / "codebooks"):
        book = load_codebook(folder / "speech-8-r100.safetensors")
        assert book.metadata.encoder_hash == f"{FakeExtractor.hash}-cut"
        save_codebook(tmp_path / "book.safetensors", book)
        code, _, err = sctok("tokenize", collection, "--codebook", "book.safetensors", "--name", "run")
        assert code == 0, err
    assert "nothing left to do" in err
    run = json.loads((tmp_path / "sctok-data" / "tokens" / "run" / "run.json").read_text())
    assert run["encoder_hash"] == f"{FakeExtractor.hash}-cut"


def test_a_codebook_with_padding_is_no_reason_to_keep_it_from_audio(sctok: Sctok, collection: Path) -> None:
    options = ["--from-audio", collection, "--domain", "speech", "--k", 8]
    assert sctok("cluster", *options)[0] == 0
    code, _, err = sctok("cluster", *options, "--padding", "cut")
    assert code == 1
    assert "--overwrite" in err


def test_codebooks_with_padding_and_without_do_not_go_together(sctok: Sctok, collection: Path, tmp_path: Path) -> None:
    for name, ending in (("keep", ""), ("cut", "-cut")):
        save_codebook(f"{name}.safetensors", fake_codebook(8 + len(name), 1, FakeExtractor.hash + ending))
    code, out, err = sctok("tokenize", collection, "--codebook", "keep.safetensors,cut.safetensors")
    assert (code, out) == (2, "")
    assert "run a command for each" in err
