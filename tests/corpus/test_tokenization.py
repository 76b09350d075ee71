import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fakes import (
    FakeExtractor,
    fake_codebook,
    make_cut,
    make_fake,
    run_command,
    tokenize_with_books,
    tree,
    write_audio,
    write_collection,
)

from sctok.audio.loader import Chunk
from sctok.audio.windows import WINDOW_SAMPLES, span_samples, token_count
from sctok.corpus.engines.processes import RunResult
from sctok.corpus.runs.run_folder import RunError, RunFolder
from sctok.corpus.runs.sharding import Execution
from sctok.corpus.tokenization import TokenizationConfig, tokenize_corpus
from sctok.corpus.verification import verify_folder
from sctok.features.extractor import CUT, FeatureExtractor
from sctok.features.tokenizer import TokenStreams
from sctok.formats.codebooks import Codebook, CodebookInfo, codebook_hash
from sctok.formats.stacking import stack_patches
from sctok.formats.token_shards import read_token_shard
from sctok.runtime.stages import Stage


def tokens_by_key(folder: Path) -> dict[str, np.ndarray]:
    return {key: tokens for path in sorted(folder.glob("*.tar")) for key, tokens, _ in read_token_shard(path)}


def tokenize_with(inputs: list[Path], targets: dict[Path, Codebook], **settings: Any) -> list[RunResult[Any]]:
    config, execution = TokenizationConfig(files_per_shard=3), Execution(batch_size=3, workers=0, **settings)
    extractors: list[FakeExtractor] = []

    def make(device: str) -> FakeExtractor:
        extractors.append(FakeExtractor())
        return extractors[-1]

    return tokenize_with_books(inputs, targets, make, config, execution)


@pytest.fixture(scope="module")
def tokenized(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clean"
    run_command("tokenize", [collection], folder)
    return folder


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("samples", [700, 40_000, WINDOW_SAMPLES, 2 * WINDOW_SAMPLES + 2561])
def test_tokens_are_the_nearest_centroids_of_stacked_features(tmp_path: Path, stack: int, samples: int) -> None:
    write_audio(tmp_path / "in" / "a.wav", samples)
    codebook = fake_codebook(stack=stack)
    tokenize_with_books([tmp_path / "in"], {tmp_path / "out": codebook}, lambda device: FakeExtractor())
    windows = samples // WINDOW_SAMPLES + 1
    audio = np.zeros(windows * WINDOW_SAMPLES, np.float32)
    audio[:samples] = soundfile.read(tmp_path / "in" / "a.wav", dtype="float32")[0]
    last = np.arange(windows) == windows - 1
    features = FakeExtractor().embed(audio.reshape(windows, -1), last).astype(np.float64)
    points = stack_patches(features, stack).reshape(-1, 8 * stack)
    distances = ((points[:, None] - codebook.centroids.astype(np.float64)) ** 2).sum(axis=-1)
    expected = distances.argmin(axis=1)[: token_count(samples, stack)]
    np.testing.assert_array_equal(tokens_by_key(tmp_path / "out")["a"][:, 0], expected)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 64}, {"workers": 2, "batch_size": 5}])
def test_bytes_do_not_depend_on_packing_or_workers(
    collection: Path, tokenized: Path, tmp_path: Path, settings: dict[str, int]
) -> None:
    run_command("tokenize", [collection], tmp_path / "run", **settings)
    assert tree(tmp_path / "run") == tree(tokenized)


def test_tokens_of_a_file_do_not_depend_on_the_others(collection: Path, tokenized: Path, tmp_path: Path) -> None:
    together = {key.rpartition("/")[2]: tokens for key, tokens in tokens_by_key(tokenized).items()}
    for path in sorted(collection.rglob("clïp[0-4].wav")):
        run_command("tokenize", [path], tmp_path / path.stem)
        np.testing.assert_array_equal(tokens_by_key(tmp_path / path.stem)[path.stem], together[path.stem])


def test_keys_keep_the_folder_structure(tokenized: Path) -> None:
    assert set(tokens_by_key(tokenized)) == {f"part {index % 3}/clïp{index}" for index in range(10)}


def test_info_has_the_provenance_of_tokens(collection: Path, tokenized: Path) -> None:
    info = {key: info for path in tokenized.glob("*.tar") for key, _, info in read_token_shard(path)}["part 0/clïp0"]
    config = json.loads((tokenized / "run.json").read_text())
    assert info == {
        "samples": 1,
        "sample_rate": 16_000,
        "token_rate": 50,
        "streams": ["semantic"],
        "codebook_hash": codebook_hash(fake_codebook()),
        "codec_hash": None,
        "encoder_hash": FakeExtractor.hash,
        "config_hash": RunFolder(tokenized, config, ".tar").config_hash,
        "source": {"path": str(collection / "part 0" / "clïp0.wav")},
    }


def test_manifest_columns_reach_the_info(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 4000)
    (tmp_path / "list.csv").write_text("path,speaker\na.wav,ünal\n")
    run_command("tokenize", [tmp_path / "list.csv"], tmp_path / "run")
    ((_, _, info),) = read_token_shard(tmp_path / "run" / "shard-00000.tar")
    assert info["source"] == {"path": str(tmp_path / "a.wav"), "speaker": "ünal"}


def test_summary_describes_the_corpus(tokenized: Path) -> None:
    summary = json.loads((tokenized / "summary.json").read_text())
    tokens = np.concatenate(list(tokens_by_key(tokenized).values()))[:, 0]
    counts = np.bincount(tokens, minlength=32)
    shares = counts[counts > 0] / counts.sum()
    assert summary["files"] == 10
    assert summary["failed"] == 3
    assert summary["tokens"] == len(tokens)
    assert summary["codebook_size"] == 32
    assert summary["codebook_used"] == np.count_nonzero(counts)
    assert summary["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=0.006)
    assert summary["tokens_per_second"] == pytest.approx(25, abs=1)


def test_features_that_are_not_finite_fail_only_their_file(tmp_path: Path) -> None:
    class Sick(FakeExtractor):
        def embed(self, waves: np.ndarray, last: np.ndarray) -> np.ndarray:
            embedded = super().embed(waves, last)
            embedded[embedded > 1.9] = np.nan
            return embedded

    write_audio(tmp_path / "in" / "a.wav", 20_000)
    soundfile.write(tmp_path / "in" / "loud.wav", np.ones(20_000) * 0.99, 16_000)
    run_command("tokenize", [tmp_path / "in"], tmp_path / "out", make=lambda device: Sick())
    assert set(tokens_by_key(tmp_path / "out")) == {"a"}
    assert "not finite" in (tmp_path / "out" / "failed.jsonl").read_text()


def test_a_codebook_of_another_encoder_is_refused(collection: Path, tmp_path: Path) -> None:
    targets = {tmp_path / "run": fake_codebook(encoder_hash="ffff")}
    with pytest.raises(ValueError, match=r"ffff.*0123456789abcdef"):
        tokenize_with_books([collection], targets, lambda device: FakeExtractor())
    assert not (tmp_path / "run").exists()


def test_another_codebook_in_the_same_folder_is_refused(collection: Path, tokenized: Path) -> None:
    with pytest.raises(RunError, match=r"codebook_hash.*other settings|other settings.*codebook_hash"):
        tokenize_with([collection], {tokenized: fake_codebook(k=31)})


def test_features_and_tokens_do_not_share_a_folder(collection: Path, tokenized: Path) -> None:
    with pytest.raises(RunError, match="other settings"):
        run_command("extract", [collection], tokenized)


BOOKS = {"8": fake_codebook(8, 1), "32": fake_codebook(32, 2), "5": fake_codebook(5, 4)}


def test_several_codebooks_in_one_pass_equal_single_runs(collection: Path, tmp_path: Path) -> None:
    results = tokenize_with([collection], {tmp_path / "many" / name: book for name, book in BOOKS.items()})
    assert [result.summary.codebook_size for result in results] == [8, 32, 5]
    for name, book in BOOKS.items():
        tokenize_with([collection], {tmp_path / "single" / name: book})
    assert tree(tmp_path / "many") == tree(tmp_path / "single")


def test_several_codebooks_encode_audio_once(collection: Path, tmp_path: Path) -> None:
    extractor = FakeExtractor()
    for count in (1, 3):
        extractor.batches.clear()
        targets = {tmp_path / str(count) / name: book for name, book in list(BOOKS.items())[:count]}
        tokenize_with_books([collection], targets, lambda device: extractor, execution=Execution(workers=0))
        assert sum(extractor.batches) == 14


def test_missing_shards_are_added_and_the_others_stay(collection: Path, tmp_path: Path) -> None:
    targets = {tmp_path / "many" / name: book for name, book in BOOKS.items()}
    tokenize_with([collection], targets)
    clean = tree(tmp_path / "many")
    before = {path: path.stat().st_ino for path in (tmp_path / "many" / "32").glob("shard-*")}
    (tmp_path / "many" / "8" / "shard-00001.tar").unlink()
    (tmp_path / "many" / "5" / "shard-00002.tar").unlink()
    tokenize_with([collection], targets)
    assert tree(tmp_path / "many") == clean
    assert {path: path.stat().st_ino for path in (tmp_path / "many" / "32").glob("shard-*")} == before


def test_another_codebook_gets_the_plan_of_a_run_with_added_files(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for name in "ba":
        write_audio(tmp_path / "in" / f"{name}.wav", 3000)
        tokenize_with([tmp_path / "in"], {old: BOOKS["8"]})
    tokenize_with([tmp_path / "in"], {new: BOOKS["32"], old: BOOKS["8"]})
    assert (new / "manifest.jsonl").read_bytes() == (old / "manifest.jsonl").read_bytes()
    write_audio(tmp_path / "in" / "0.wav", 3000)
    tokenize_with([tmp_path / "in"], {new: BOOKS["32"], old: BOOKS["8"]})
    assert tokens_by_key(new).keys() == tokens_by_key(old).keys() == {"0", "a", "b"}


def test_runs_with_other_histories_are_not_mixed(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_audio(tmp_path / "in" / "b.wav", 3000)
    tokenize_with([tmp_path / "in"], {old: BOOKS["8"]})
    write_audio(tmp_path / "in" / "a.wav", 3000)
    for target in ({new: BOOKS["32"]}, {old: BOOKS["8"]}):
        tokenize_with([tmp_path / "in"], target)
    with pytest.raises(RunError, match="in another order") as caught:
        tokenize_with([tmp_path / "in"], {new: BOOKS["32"], old: BOOKS["8"]})
    assert "\n" not in str(caught.value)


def test_failures_are_retried_in_all_runs(tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 4)
    targets = {tmp_path / "many" / name: book for name, book in BOOKS.items()}
    tokenize_with([audio], targets)
    write_audio(audio / "part 1" / "empty.wav", 3000)
    results = tokenize_with([audio], targets, retry_failed=True)
    assert [result.summary.failed for result in results] == [2, 2, 2]
    tokenize_with([audio], {tmp_path / "clean" / name: book for name, book in BOOKS.items()})
    assert tree(tmp_path / "many") == tree(tmp_path / "clean")


@pytest.fixture(scope="module")
def cut(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cut"
    run_command("tokenize", [collection], folder, make=make_cut)
    return folder


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 64}, {"workers": 2, "batch_size": 5}])
def test_bytes_do_not_depend_on_packing_without_padding(
    collection: Path, cut: Path, tmp_path: Path, settings: dict[str, int]
) -> None:
    run_command("tokenize", [collection], tmp_path / "run", make=make_cut, **settings)
    assert tree(tmp_path / "run") == tree(cut)


def test_tokens_of_a_file_do_not_depend_on_the_others_without_padding(tmp_path: Path, small_weights: Any) -> None:
    """With a real encoder, whose batches of short windows are larger than one."""
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32", CUT)
    audio = [write_audio(tmp_path / "in" / f"{n}.wav", length, n) for n, length in enumerate([16_000, 20_000] * 5)]
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (2, span_samples(16))).astype(np.float32)
    vectors = stack_patches(extractor.embed(noise, np.ones(2, bool)), 2).reshape(128, 64)
    book = Codebook(vectors, np.ones(128, np.int64), CodebookInfo("merged", (), 2, "small", extractor.hash))
    tokenize_with_books([tmp_path / "in"], {tmp_path / "all": book}, lambda device: extractor)
    together = tokens_by_key(tmp_path / "all")
    assert len(np.unique(np.concatenate(list(together.values())))) > 20
    for path in audio[::3]:
        tokenize_with_books([path], {tmp_path / path.stem: book}, lambda device: extractor)
        np.testing.assert_array_equal(tokens_by_key(tmp_path / path.stem)[path.stem], together[path.stem])


def test_without_padding_only_last_windows_differ(tokenized: Path, cut: Path) -> None:
    kept, seen = tokens_by_key(tokenized), tokens_by_key(cut)
    assert {key: tokens.shape for key, tokens in kept.items()} == {key: tokens.shape for key, tokens in seen.items()}
    long = "part 1/clïp4"  # 25 s
    np.testing.assert_array_equal(seen[long][: 2 * 256], kept[long][: 2 * 256])


def test_padding_does_not_change_the_number_of_tokens(tmp_path: Path) -> None:
    for number, samples in enumerate([160, 2560, 33_000, 50_000, WINDOW_SAMPLES - 1, WINDOW_SAMPLES + 40_000]):
        write_audio(tmp_path / "in" / f"{number}.wav", samples)
    for make in (make_fake, make_cut):
        books = {
            tmp_path / make.__name__ / str(stack): fake_codebook(8, stack, make("cpu").hash) for stack in (1, 2, 4)
        }
        tokenize_with_books([tmp_path / "in"], books, make)
    for stack in ("1", "2", "4"):
        kept, seen = (tokens_by_key(tmp_path / make.__name__ / stack) for make in (make_fake, make_cut))
        assert {key: tokens.shape for key, tokens in kept.items()} == {
            key: tokens.shape for key, tokens in seen.items()
        }


def test_a_codebook_with_another_padding_is_refused(collection: Path, tmp_path: Path) -> None:
    for make, hash_ in ((make_cut, FakeExtractor.hash), (make_fake, f"{FakeExtractor.hash}-cut")):
        with pytest.raises(ValueError, match=f"{FakeExtractor.hash}-cut"):
            tokenize_with_books([collection], {tmp_path / "run": fake_codebook(encoder_hash=hash_)}, make)
    assert not (tmp_path / "run").exists()


class LoudnessTokenizer:
    """A tokenizer unknown to the corpus layer: three streams, and no codebook of centroids."""

    def __init__(self) -> None:
        self.stage: Stage = nullcontext
        self.extractor = FakeExtractor()
        self.outputs = [TokenStreams(("loudness", "third", "parity"), (8, 3, 2), 50, "no-book", "loud-codec")]

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        return chunks

    def tokenize(self, waves: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
        features = self.extractor.embed(waves, last)
        levels = (4 * stack_patches(features, 2).max(axis=-1)).clip(0, 7).astype(np.int64)
        return [np.stack([levels, levels % 3, levels % 2], axis=-1)]


def test_a_new_tokenizer_needs_no_change_in_the_corpus_layer(collection: Path, tmp_path: Path) -> None:
    (result,) = tokenize_corpus([collection], [tmp_path / "run"], lambda device: LoudnessTokenizer())
    tokens = np.concatenate(list(tokens_by_key(tmp_path / "run").values()))
    np.testing.assert_array_equal(tokens[:, 1:], np.stack([tokens[:, 0] % 3, tokens[:, 0] % 2], axis=1))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["codebook_size"], summary["third_size"], summary["parity_size"]) == (8, 3, 2)
    assert summary["third_used"] == len(np.unique(tokens[:, 1]))
    assert result.summary.files == 10
    assert verify_folder(tmp_path / "run").faults == []


def test_the_corpus_layer_imports_no_codec() -> None:
    folder = Path(__file__).parents[2] / "corpus"
    assert not [path for path in folder.rglob("*.py") if "sctok.codec" in path.read_text("utf-8")]
