import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes import WIDTH, FakeExtractor, make_cut, run_command, tree, write_audio, write_collection

from sctok.audio.errors import AudioError
from sctok.audio.windows import WINDOW_SAMPLES, WINDOW_SPAN, audio_columns, span_samples
from sctok.corpus.runs.run_folder import RunError
from sctok.formats.feature_shards import FeatureShard


def rows_by_key(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.h5")):
        with FeatureShard(path) as shard:
            for clip in shard.clips:
                found[clip.key] = shard.read(clip.first_row, clip.first_row + clip.rows)
    return found


def failures(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def extracted(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "clean"
    run_command("extract", [collection], folder)
    return folder


def test_only_columns_with_audio_have_rows(extracted: Path) -> None:
    for path in extracted.glob("*.h5"):
        with FeatureShard(path) as shard:
            for clip in shard.clips:
                assert clip.rows == 8 * audio_columns(clip.samples), clip.key


def test_rows_equal_the_output_of_the_encoder(tmp_path: Path) -> None:
    samples = WINDOW_SAMPLES + 2561
    write_audio(tmp_path / "in" / "a.wav", samples)
    run_command("extract", [tmp_path / "in"], tmp_path / "out")
    audio = np.zeros(2 * WINDOW_SAMPLES, np.float32)
    audio[:samples] = soundfile.read(tmp_path / "in" / "a.wav", dtype="float32")[0]
    expected = FakeExtractor().embed(audio.reshape(2, -1), np.array([False, True])).reshape(-1, WIDTH)
    np.testing.assert_array_equal(rows_by_key(tmp_path / "out")["a"], expected[: 66 * 8].astype(np.float16))


def test_provenance_and_source_are_written(extracted: Path) -> None:
    config = json.loads((extracted / "run.json").read_text())
    assert config["kind"] == "features"
    assert config["domain"] == "speech"
    with FeatureShard(extracted / "shard-00000.h5") as shard:
        assert shard.provenance["encoder_hash"] == FakeExtractor.hash
        assert shard.provenance["config_hash"]
        assert shard.provenance["filterbank"]["mel_bins"] == 128
        assert Path(shard.clips[0].metadata["path"]).is_absolute()


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 64}, {"workers": 2, "batch_size": 5}])
def test_bytes_do_not_depend_on_packing_or_workers(
    collection: Path, extracted: Path, tmp_path: Path, settings: dict[str, int]
) -> None:
    run_command("extract", [collection], tmp_path / "run", **settings)
    assert tree(tmp_path / "run") == tree(extracted)


def test_windows_of_many_files_fill_batches(collection: Path, tmp_path: Path) -> None:
    extractor = FakeExtractor()
    run_command("extract", [collection], tmp_path / "run", make=lambda device: extractor, batch_size=4)
    assert set(extractor.batches[:-1]) == {4}


def test_unreadable_files_are_listed_with_reasons(collection: Path, extracted: Path) -> None:
    found = failures(extracted)
    assert [Path(row["path"]).name for row in found] == ["text.wav", "empty.wav", "truncated.wav"]
    assert all(row["reason"] and "\n" not in row["reason"] for row in found)
    assert not [row for row in found if row["path"] in row["reason"]]
    assert [row["key"] for row in found] == ["part 0/text", "part 1/empty", "part 1/truncated"]
    assert len(rows_by_key(extracted)) == 10


def test_summary_counts_what_was_written(extracted: Path) -> None:
    summary = json.loads((extracted / "summary.json").read_text())
    rows = sum(map(len, rows_by_key(extracted).values()))
    assert (summary["files"], summary["failed"], summary["rows"], summary["shards"]) == (10, 3, rows, 5)
    assert summary["hours"] == pytest.approx(0.0145, rel=0.5)


def test_rerun_changes_nothing_and_encodes_nothing(collection: Path, tmp_path: Path) -> None:
    run_command("extract", [collection], tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("shard-*")}
    extractor = FakeExtractor()
    result = run_command("extract", [collection], tmp_path / "run", make=lambda device: extractor)
    assert extractor.batches == []
    assert result.seconds_done == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("shard-*")} == before


def test_new_inputs_go_to_new_shards(tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 4)
    run_command("extract", [audio], tmp_path / "run")
    before = tree(tmp_path / "run")
    write_audio(audio / "a new one.wav", 5000)
    result = run_command("extract", [audio], tmp_path / "run")
    after = tree(tmp_path / "run")
    shards = {name: digest for name, digest in before.items() if name.startswith("shard-")}
    assert shards.items() <= after.items()
    assert set(after) - set(before) == {"shard-00003.h5", "shard-00003.sha256.json", ".claims/shard-00003.lock"}
    assert result.summary.files == 5


def test_a_file_that_fails_midway_leaves_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sctok.audio import pieces

    real = pieces.stream_audio

    def broken(source: object, **options: object):
        blocks = real(source, **options)
        if "b.wav" in str(source):
            for _ in range(40):
                yield next(blocks)
            raise AudioError(source, "is damaged")
        yield from blocks

    for name in "abc":
        write_audio(tmp_path / "in" / f"{name}.wav", 18 * WINDOW_SAMPLES if name == "b" else 4000, seed=ord(name))
    monkeypatch.setattr(pieces, "stream_audio", broken)
    run_command("extract", [tmp_path / "in"], tmp_path / "out")
    assert set(rows_by_key(tmp_path / "out")) == {"a", "c"}
    assert "is damaged" in failures(tmp_path / "out")[0]["reason"]
    monkeypatch.undo()
    (tmp_path / "in" / "b.wav").unlink()
    run_command("extract", [tmp_path / "in"], tmp_path / "without")
    config = tree(tmp_path / "without")
    assert tree(tmp_path / "out")["shard-00000.h5"] == config["shard-00000.h5"]


def test_features_that_are_not_finite_fail_only_their_file(tmp_path: Path) -> None:
    class Sick(FakeExtractor):
        def embed(self, waves: np.ndarray, last: np.ndarray) -> np.ndarray:
            embedded = super().embed(waves, last)
            embedded[:, 3] = np.where(embedded[:, 3] > 1.4, np.nan, embedded[:, 3])
            return embedded

    write_audio(tmp_path / "in" / "a.wav", 20_000)
    import soundfile

    soundfile.write(tmp_path / "in" / "loud.wav", np.ones(20_000) * 0.99, 16_000)
    run_command("extract", [tmp_path / "in"], tmp_path / "out", make=lambda device: Sick())
    assert set(rows_by_key(tmp_path / "out")) == {"a"}
    (failure,) = failures(tmp_path / "out")
    assert failure["key"] == "loud"
    assert "not finite" in failure["reason"]
    assert str(tmp_path / "out") not in failure["reason"]


def test_a_run_finishes_if_all_files_fail(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_text("no audio")
    result = run_command("extract", [tmp_path / "in"], tmp_path / "out")
    assert (result.summary.files, result.summary.failed, result.shards_left) == (0, 1, 0)


def test_an_empty_folder_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(AudioError, match="no audio"):
        run_command("extract", [tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channel": 0}, "channel"),
        ({"tokens_per_clip": 16}, "tokens_per_clip"),
        ({"seed": 1}, "seed"),
        ({"files_per_shard": 4}, "files_per_shard"),
    ],
)
def test_other_settings_are_refused_by_name(
    collection: Path, extracted: Path, settings: dict[str, int], named: str
) -> None:
    with pytest.raises(RunError, match=named) as caught:
        run_command("extract", [collection], extracted, **settings)
    assert "\n" not in str(caught.value)
    assert str(extracted) in str(caught.value)


def test_another_encoder_is_refused(collection: Path, extracted: Path) -> None:
    class Other(FakeExtractor):
        hash = "fedcba9876543210"

    with pytest.raises(RunError, match=r"encoder_hash.*0123456789abcdef.*fedcba9876543210"):
        run_command("extract", [collection], extracted, make=lambda device: Other())


def test_a_renamed_encoder_resumes_with_the_same_bytes(collection: Path, extracted: Path, tmp_path: Path) -> None:
    class Renamed(FakeExtractor):
        name = "renamed"

    shutil.copytree(extracted, tmp_path / "run")
    (tmp_path / "run" / "shard-00001.h5").unlink()
    run_command("extract", [collection], tmp_path / "run", make=lambda device: Renamed())
    assert tree(tmp_path / "run") == tree(extracted)


@pytest.mark.parametrize("tokens", [1, 20, 512])
def test_tokens_per_clip_keeps_whole_groups_in_order(
    collection: Path, extracted: Path, tmp_path: Path, tokens: int
) -> None:
    run_command("extract", [collection], tmp_path / "run", tokens_per_clip=tokens)
    chosen = rows_by_key(tmp_path / "run")
    for key, rows in rows_by_key(extracted).items():
        kept = chosen[key]
        assert len(kept) == min(-(-tokens // 16) * 16, len(rows)), key
        groups = [rows[start : start + 16].tobytes() for start in range(0, len(rows), 16)]
        places = [groups.index(kept[start : start + 16].tobytes()) for start in range(0, len(kept), 16)]
        assert places == sorted(set(places)), key


def test_tokens_per_clip_do_not_depend_on_order_or_batch(collection: Path, tmp_path: Path) -> None:
    files = sorted(collection.rglob("*.wav"))
    run_command("extract", files, tmp_path / "a", tokens_per_clip=20, batch_size=1)
    run_command("extract", files[::-1], tmp_path / "b", tokens_per_clip=20, batch_size=7)
    first, second = rows_by_key(tmp_path / "a"), rows_by_key(tmp_path / "b")
    assert first.keys() == second.keys()
    for key, rows in first.items():
        np.testing.assert_array_equal(rows, second[key], err_msg=key)


def test_the_choice_of_patches_changes_with_the_seed(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", 3 * WINDOW_SAMPLES)
    kept = []
    for seed in (0, 0, 1):
        folder = tmp_path / f"run {len(kept)}"
        run_command("extract", [tmp_path / "in"], folder, tokens_per_clip=64, seed=seed)
        kept.append(rows_by_key(folder)["a"].tobytes())
    assert kept[0] == kept[1] != kept[2]


def test_windows_without_a_chosen_patch_are_not_encoded(tmp_path: Path) -> None:
    write_audio(tmp_path / "in" / "a.wav", 30 * WINDOW_SAMPLES)
    extractor = FakeExtractor()
    run_command("extract", [tmp_path / "in"], tmp_path / "out", make=lambda device: extractor, tokens_per_clip=16)
    assert sum(extractor.batches) < 12


def test_max_hours_is_reached_in_any_order(collection: Path, tmp_path: Path) -> None:
    files = sorted(collection.rglob("*.wav"))
    chosen = []
    for name, inputs in (("a", files), ("b", files[::-1])):
        run_command("extract", inputs, tmp_path / name, max_hours=0.002)
        rows = [json.loads(line) for line in (tmp_path / name / "manifest.jsonl").read_text().splitlines()]
        assert sum(row["seconds"] for row in rows) >= 0.002 * 3600
        chosen.append({row["item"]["key"] for row in rows})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) < len(files)


def test_max_hours_does_not_grow_on_a_rerun(collection: Path, tmp_path: Path) -> None:
    run_command("extract", [collection], tmp_path / "run", max_hours=0.002)
    before = tree(tmp_path / "run")
    run_command("extract", [collection], tmp_path / "run", max_hours=0.002)
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize(
    "settings",
    [
        {"channel": -1},
        {"tokens_per_clip": 0},
        {"max_hours": 0.0},
        {"seed": -1},
        {"files_per_shard": 0},
        {"batch_size": 0},
    ],
)
def test_values_out_of_range_are_refused(collection: Path, tmp_path: Path, settings: dict[str, float]) -> None:
    with pytest.raises(RunError, match="must be"):
        run_command("extract", [collection], tmp_path / "run", **settings)


def test_rows_without_padding_equal_the_output_for_columns_with_tokens(tmp_path: Path) -> None:
    samples = WINDOW_SAMPLES + 2561
    write_audio(tmp_path / "in" / "a.wav", samples)
    run_command("extract", [tmp_path / "in"], tmp_path / "out", make=make_cut)
    audio = np.zeros(WINDOW_SAMPLES + span_samples(2), np.float32)
    audio[:samples] = soundfile.read(tmp_path / "in" / "a.wav", dtype="float32")[0]
    whole = make_cut("cpu").embed(audio[None, :WINDOW_SPAN], np.array([False]))[0]
    rest = make_cut("cpu").embed(audio[None, WINDOW_SAMPLES:], np.array([True]))[0]
    expected = np.concatenate([whole, rest]).astype(np.float16)
    np.testing.assert_array_equal(rows_by_key(tmp_path / "out")["a"], expected)
    with FeatureShard(tmp_path / "out" / "shard-00000.h5") as shard:
        assert shard.encoder_hash == f"{FakeExtractor.hash}-cut"


@pytest.mark.parametrize("settings", [{}, {"tokens_per_clip": 40}])
def test_bytes_do_not_depend_on_packing_without_padding(
    collection: Path, tmp_path: Path, settings: dict[str, int]
) -> None:
    for batch_size in (1, 64):
        folder = tmp_path / str(batch_size)
        run_command("extract", [collection], folder, make=make_cut, batch_size=batch_size, **settings)
    assert tree(tmp_path / "1") == tree(tmp_path / "64")


def test_features_with_padding_and_without_do_not_share_a_folder(collection: Path, extracted: Path) -> None:
    with pytest.raises(RunError, match=r"encoder_hash.*-cut"):
        run_command("extract", [collection], extracted, make=make_cut)
