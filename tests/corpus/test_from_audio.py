"""`sctok cluster --from-audio`: codebooks from audio, whose features are not kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeExtractor, tree, write_audio, write_collection

from sctok.cli.app import main
from sctok.corpus.from_audio import sample_hours
from sctok.corpus.runs.locks import try_lock
from sctok.formats.codebooks import Codebook, load_codebook

Cluster = Callable[..., tuple[int, str, str]]
BOOK = "speech-8-r100.safetensors"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[FakeExtractor]:
    """The loaded encoders, which record their batches."""
    loaded: list[FakeExtractor] = []

    def load(name: str, device: str, precision: str, padding: str = "keep") -> FakeExtractor:
        loaded.append(FakeExtractor(padding=padding))
        return loaded[-1]

    monkeypatch.setattr("sctok.features.extractor.load_encoder", load)
    return loaded


@pytest.fixture
def sctok(
    tmp_path: Path, encoded: list[FakeExtractor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cluster:
    """Run a command line below `tmp_path`, with the domain speech and 8 centroids by default."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *arguments: object, **more: Any) -> tuple[int, str, str]:
        options = {"domain": "speech", **({"k": 8} if command == "cluster" else {}), **more}
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        code = main([command, *map(str, arguments), *given])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def book(root: str = "sctok-data") -> Codebook:
    return load_codebook(Path(root) / "codebooks" / BOOK)


def facts(codebook: Codebook) -> dict[str, Any]:
    return {**(codebook.metadata.certificate or {})}


@pytest.mark.parametrize(
    "sample", [{}, {"max_hours": 0.004}, {"tokens_per_clip": 40, "seed": 3}, {"channel": 0, "exclude": "clïp4*"}]
)
def test_codebooks_equal_codebooks_of_stored_features(
    sctok: Cluster, collection: Path, tmp_path: Path, sample: dict[str, Any]
) -> None:
    code, _, err = sctok("cluster", "--from-audio", collection, workers=0, **sample)
    assert code == 0, err
    sctok("extract", collection, root="other", workers=0, **{"max_hours": 1, **sample})
    sctok("cluster", root="other", seed=sample.get("seed", 0))
    direct, stored = book(), book("other")
    np.testing.assert_array_equal(direct.centroids, stored.centroids)
    np.testing.assert_array_equal(direct.counts, stored.counts)
    assert facts(direct)["config_hash"] == facts(stored)["config_hash"]
    assert not list(tmp_path.glob("sctok-data/**/*.h5"))


def test_the_codebook_describes_its_audio_and_failures_are_listed(
    sctok: Cluster, collection: Path, tmp_path: Path
) -> None:
    code, _, err = sctok("cluster", "--from-audio", collection, workers=0)
    origin = facts(book())["from_audio"]
    assert code == 0
    assert (origin["files"], origin["failed"], origin["seed"]) == (10, 3, 0)
    assert origin["hours"] > 0
    assert "3 inputs failed" in err
    ledger = tmp_path / "sctok-data" / "codebooks" / "speech.failed.jsonl"
    assert sorted(json.loads(line)["key"] for line in ledger.read_text().splitlines()) == [
        "part 0/text",
        "part 1/empty",
        "part 1/truncated",
    ]


def test_existing_codebooks_are_not_made_again(
    sctok: Cluster, collection: Path, tmp_path: Path, encoded: list[FakeExtractor]
) -> None:
    sctok("cluster", "--from-audio", collection, workers=0)
    before = tree(tmp_path / "sctok-data")
    encoded.clear()
    code, _, err = sctok("cluster", "--from-audio", collection, workers=0)
    assert code == 0
    assert "exists already" in err
    assert all(not encoder.batches for encoder in encoded)
    assert tree(tmp_path / "sctok-data") == before


def test_a_codebook_with_other_settings_is_refused_before_encoding(
    sctok: Cluster, collection: Path, encoded: list[FakeExtractor]
) -> None:
    sctok("cluster", "--from-audio", collection, workers=0)
    encoded.clear()
    code, _, err = sctok("cluster", "--from-audio", collection, workers=0, seed=1)
    assert code == 1
    assert "--overwrite" in err
    assert all(not encoder.batches for encoder in encoded)
    assert sctok("cluster", "--from-audio", "--overwrite", collection, workers=0, seed=1)[0] == 0
    assert facts(book())["from_audio"]["seed"] == 1


def test_an_interrupted_command_resumes_and_ends_in_the_same_bytes(
    sctok: Cluster,
    collection: Path,
    tmp_path: Path,
    encoded: list[FakeExtractor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sctok.corpus.from_audio.train_domains", stop)
        assert sctok("cluster", "--from-audio", collection, workers=0)[0] == 130
    encoded.clear()
    sctok("cluster", "--from-audio", collection, workers=0)
    assert all(not encoder.batches for encoder in encoded)
    sctok("cluster", "--from-audio", collection, workers=0, root="clean")
    assert tree(tmp_path / "sctok-data") == tree(tmp_path / "clean")


def test_repaired_files_are_read_by_retry_failed(sctok: Cluster, tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 6)
    sctok("cluster", "--from-audio", audio, workers=0)
    write_audio(audio / "part 1" / "empty.wav", 3000)
    code, _, err = sctok("cluster", "--from-audio", "--retry-failed", audio, workers=0)
    assert code == 0, err
    assert facts(book())["from_audio"]["files"] == 7


def test_a_second_command_at_the_same_time_is_refused(sctok: Cluster, collection: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sctok-data" / "codebooks" / ".audio"
    folder.mkdir(parents=True)
    with try_lock(folder / "speech.lock") or pytest.fail("the lock is free"):
        code, _, err = sctok("cluster", "--from-audio", collection, workers=0)
    assert code == 1
    assert "another sctok cluster" in err


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["--from-audio"], {}, "needs audio"),
        (["audio"], {}, "--from-audio"),
        (["--from-audio", "audio"], {"features": "x"}, "--features"),
        (["--from-audio", "audio"], {"domain": "speech,music"}, "one domain"),
        (["--from-audio", "audio"], {"domain": "all"}, "one domain"),
        (["--from-audio", "audio"], {"domain": "merged"}, "merged"),
        (["--from-audio", "audio"], {"max_hours": 0}, "not above 0"),
    ],
)
def test_wrong_usage(sctok: Cluster, arguments: list[str], options: dict[str, Any], message: str) -> None:
    code, _, err = sctok("cluster", *arguments, **options)
    assert code == 2
    assert message in err


def test_unreadable_audio_is_an_error_with_the_reason(sctok: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    code, _, err = sctok("cluster", "--from-audio", tmp_path / "bad.wav", workers=0)
    assert code == 1
    assert "bad.wav: " in err
    assert "libsndfile: Format not recognised" in err


def test_the_sample_has_1024_vectors_per_centroid_and_fits_in_half_of_the_memory() -> None:
    assert sample_hours([64, 4096], 1, 768, None) == pytest.approx(1024 * 4096 / 50 / 3600)
    assert sample_hours([4096], 4, 768, None) == pytest.approx(1024 * 4096 * 4 / 50 / 3600)
    hours = sample_hours([4096], 2, 768, 1 << 30)
    assert hours * 3600 * 50 / 2 * (2 * 768 * 2 + 1) == pytest.approx(1 << 29, rel=1e-3)


def test_codebooks_of_changed_files_are_refused_unless_overwritten(sctok: Cluster, tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 4)
    assert sctok("cluster", "--from-audio", audio, workers=0)[0] == 0
    write_audio(audio / "part 0" / "clïp0.wav", 9000, seed=77)
    code, _, err = sctok("cluster", "--from-audio", audio, workers=0)
    assert code == 1
    assert "audio files that have changed since; use --overwrite" in err
    assert sctok("cluster", "--from-audio", "--overwrite", audio, workers=0)[0] == 0
