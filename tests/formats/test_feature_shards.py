import os
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.formats import hdf5_rows as row_file
from sctok.formats.feature_hashes import ClipRows
from sctok.formats.feature_shards import FeatureShard, FeatureShardWriter
from sctok.formats.files import FormatError
from sctok.formats.hdf5_rows import chunk_rows
from sctok.formats.stacking import stack_patches

PROVENANCE: dict[str, Any] = {
    "encoder": "mini",
    "encoder_hash": "0123456789abcdef",
    "filterbank": {"mel_bins": 128, "frame_shift": 160},
    "precision": "fp32",
    "config_hash": "fedcba9876543210",
}
SPECIAL_KEYS = ["été/два слова.wav", "a.b.c", "name\udcff", "'; DROP", "日本"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "_CHUNK_BYTES", 1024)


def random_features(rows: int, width: int, seed: int = 0) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float16)


def write(path: Path, columns: list[int], width: int = 6) -> list[npt.NDArray[np.float16]]:
    clips = [random_features(8 * count, width, seed) for seed, count in enumerate(columns)]
    with FeatureShardWriter(path, width=width, provenance=PROVENANCE) as writer:
        for index, features in enumerate(clips):
            writer.add_clip(f"clip {index}", features, 2560 * columns[index], {"index": index})
    return clips


@settings(max_examples=60, deadline=None)
@given(
    columns=st.lists(st.integers(0, 30), max_size=8),
    width=st.integers(1, 9),
    stack=st.sampled_from([1, 2, 4]),
    block_rows=st.integers(1, 70),
    data=st.data(),
)
def test_round_trip(columns: list[int], width: int, stack: int, block_rows: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clips = write(Path(folder) / "s.h5", columns, width)
        with FeatureShard(Path(folder) / "s.h5") as shard:
            expected = np.concatenate(
                [np.zeros((0, width * stack), np.float32), *(stack_patches(clip, stack) for clip in clips)]
            ).astype(np.float32)
            assert [clip.rows for clip in shard.clips] == [8 * count for count in columns]
            assert shard.rows == 8 * sum(columns)
            assert shard.stacked_rows(stack) == len(expected)
            starts = range(0, len(expected), block_rows)
            blocks = [shard.read(first, min(first + block_rows, len(expected)), stack) for first in starts]
            assert all(block.dtype == np.float32 for block in blocks)
            np.testing.assert_array_equal(np.concatenate([expected[:0], *blocks]), expected)
            start = data.draw(st.integers(0, len(expected)))
            stop = data.draw(st.integers(start, len(expected)))
            np.testing.assert_array_equal(shard.read(start, stop, stack), expected[start:stop])


def test_clip_table_and_provenance(tmp_path: Path) -> None:
    with FeatureShardWriter(tmp_path / "s.h5", width=4, provenance=PROVENANCE) as writer:
        for index, key in enumerate(SPECIAL_KEYS):
            writer.add_clip(key, random_features(8 * index, 4), index, {"title": key, "n": np.int64(index), "x": None})
    with FeatureShard(tmp_path / "s.h5") as shard:
        assert shard.clips[2] == ClipRows(SPECIAL_KEYS[2], 8, 16, 2, {"title": SPECIAL_KEYS[2], "n": 2, "x": None})
        assert [clip.key for clip in shard.clips] == SPECIAL_KEYS
        assert {name: shard.provenance[name] for name in PROVENANCE} == PROVENANCE
        assert shard.provenance["sctok_version"]
        assert shard.encoder_hash == PROVENANCE["encoder_hash"]
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs["encoder"] == "mini"
        assert file.attrs["config_hash"] == PROVENANCE["config_hash"]
        assert file["features"].dtype == np.float16
        assert file["features"].compression is None
        assert file["features"].chunks[0] % 8 == 0


@pytest.mark.parametrize("width", [1, 192, 768, 100_000])
def test_chunks_are_whole_columns_of_a_sensible_size(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.undo()
    rows = chunk_rows(width)
    assert rows % 8 == 0
    assert rows == 8 or (1 << 18) <= rows * width * 2 <= (1 << 20)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=6), dropped=st.integers(0, 700))
def test_bytes_depend_only_on_the_content(cuts: list[int], dropped: int) -> None:
    features = random_features(400, 6)
    with tempfile.TemporaryDirectory() as folder:
        with FeatureShardWriter(Path(folder) / "whole.h5", width=6, provenance=PROVENANCE) as writer:
            writer.add_clip("a", features, 5, {"b": 1, "a": 2})
        turned = dict(reversed(PROVENANCE.items()))
        with FeatureShardWriter(Path(folder) / "pieces.h5", width=6, provenance=turned) as writer:
            writer.begin_clip("broken off")
            writer.append_rows(random_features(dropped // 2, 6))
            writer.discard_clip()
            writer.begin_clip("a")
            for part in np.split(features.astype(np.float32), sorted(cuts)):
                writer.append_rows(part)
            writer.finish_clip(5, {"a": 2, "b": 1})
            writer.begin_clip("broken off")
            writer.append_rows(random_features(dropped, 6))
            writer.discard_clip()
        assert (Path(folder) / "whole.h5").read_bytes() == (Path(folder) / "pieces.h5").read_bytes()
        assert len(list(Path(folder).iterdir())) == 2


def content_hash(path: Path) -> str:
    with FeatureShard(path) as shard:
        shard.verify()
        return shard.content_hash


def test_the_content_hash_covers_every_value_and_the_clip_table(tmp_path: Path) -> None:
    def written(features: npt.ArrayLike, key: str = "a", samples: int = 5, **metadata: Any) -> str:
        with FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=PROVENANCE) as writer:
            writer.add_clip("before", random_features(8, 6, 1), 1)
            writer.add_clip(key, features, samples, metadata)
        return content_hash(tmp_path / "s.h5")

    features = random_features(400, 6)
    changed = features.copy()
    changed[399, 5] += 1
    hashes = [written(features), written(changed), written(features, "b"), written(features, samples=6)]
    hashes += [written(features, x=1), written(features[::-1])]
    assert len(set(hashes)) == len(hashes)
    assert all(len(value) == 16 for value in hashes)
    assert hashes[0] == written(np.asfortranarray(features)) == written(features.astype(np.float64))


def test_the_content_hash_forgets_discarded_clips(tmp_path: Path) -> None:
    for name, dropped in (("plain.h5", 0), ("dropped.h5", 400)):
        with FeatureShardWriter(tmp_path / name, width=6, provenance=PROVENANCE) as writer:
            for index, rows in enumerate((8, 0, 304)):
                if dropped:
                    writer.begin_clip("dropped")
                    writer.append_rows(random_features(dropped, 6, 9))
                    writer.discard_clip()
                writer.add_clip(str(index), random_features(rows, 6, index), rows)
    assert content_hash(tmp_path / "plain.h5") == content_hash(tmp_path / "dropped.h5")


@pytest.mark.parametrize("row", [0, 399])
def test_reading_finds_a_flipped_bit(tmp_path: Path, row: int) -> None:
    path = tmp_path / "s.h5"
    (features,) = write(path, [50])
    content = bytearray(path.read_bytes())
    place = content.find(features[row].tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    with (
        FeatureShard(path) as shard,
        pytest.raises(FormatError, match=rf"s\.h5 is damaged .*rows {row // 64 * 64} .*extract again"),
    ):
        shard.read(row, row + 1)


def see(path: Path) -> tuple[object, ...]:
    """Return everything that readers can read from a shard."""
    with FeatureShard(path) as shard:
        return shard.provenance, shard.clips, shard.content_hash, shard.rows, shard.read(0, shard.rows).tobytes()


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), damage=st.binary(min_size=1, max_size=80))
def test_no_changed_byte_of_the_file_changes_what_is_read(place: float, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.h5"
        write(path, [9, 0, 31])
        whole, content = see(path), path.read_bytes()
        start = int(place * len(content))
        path.write_bytes((content[:start] + damage + content[start + len(damage) :])[: len(content)])
        try:
            found = see(path)
        except FormatError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert found == whole


def test_swapped_chunks_are_found(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    (features,) = write(path, [50])
    content = path.read_bytes()
    first, second = (content.index(features[row : row + 64].tobytes()) for row in (0, 64))
    size = features[:64].nbytes
    swapped = bytearray(content)
    swapped[first : first + size], swapped[second : second + size] = content[second:][:size], content[first:][:size]
    path.write_bytes(swapped)
    with FeatureShard(path) as shard, pytest.raises(FormatError, match="rows 0 to 64 do not match their checksum"):
        shard.read(0, 8)


def unsealed(path: Path) -> Path:
    """Turn a shard into one of a version without checksums."""
    with h5py.File(path, "r+"):
        pass  # HDF5 cuts off what follows its data
    return path


def test_shards_without_checksums_are_read(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", [9, 31])
    whole = see(tmp_path / "s.h5")
    assert see(unsealed(tmp_path / "s.h5")) == whole


def test_lost_checksums_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", [9, 31])
    os.truncate(tmp_path / "s.h5", (tmp_path / "s.h5").stat().st_size - 1)
    with pytest.raises(FormatError, match=r"s\.h5 is damaged \(it is truncated, or its checksums are damaged\)"):
        FeatureShard(tmp_path / "s.h5")


def test_hdf5_reads_a_shard_without_sctok(tmp_path: Path) -> None:
    (features,) = write(tmp_path / "s.h5", [50])
    with h5py.File(tmp_path / "s.h5") as file:
        np.testing.assert_array_equal(file["features"][:], features)


def test_verify_finds_a_changed_clip_table_without_checksums(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", [2, 3])
    with h5py.File(unsealed(tmp_path / "s.h5"), "r+") as file:
        table = file["clips"][:]
        table["samples"][1] += 1
        file["clips"][:] = table
    with FeatureShard(tmp_path / "s.h5") as shard, pytest.raises(FormatError, match=r"s\.h5 is damaged"):
        shard.verify()


def test_memory_holds_one_chunk_of_a_long_clip(tmp_path: Path) -> None:
    with FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=PROVENANCE) as writer:
        writer.begin_clip("long")
        for _ in range(50):
            writer.append_rows(random_features(64, 6))
        assert next(tmp_path.iterdir()).stat().st_size > 40 * 64 * 6 * 2
        writer.finish_clip(1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((8, 6), 70_000.0, np.float32), "too large for float16"),
        (np.full((8, 6), np.nan, np.float32), "not finite"),
        (np.full((8, 6), -np.inf, np.float32), "not finite"),
        (np.zeros((8, 5), np.float32), r"shape \(8, 5\), not \(n, 6\)"),
        (np.zeros(6, np.float32), r"shape \(6,\)"),
        (np.zeros((12, 6), np.float32), "12 rows, not whole columns of 8"),
    ],
)
def test_invalid_features_are_refused_and_the_shard_stays_usable(
    tmp_path: Path, features: npt.NDArray[np.float32], message: str
) -> None:
    with FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=PROVENANCE) as writer:
        writer.add_clip("before", random_features(8, 6), 1)
        with pytest.raises(FormatError, match=f"s.h5: .*'odd one' .*{message}"):
            writer.add_clip("odd one", features, 1)
        writer.add_clip("after", random_features(16, 6), 1)
    with FeatureShard(tmp_path / "s.h5") as shard:
        assert [(clip.key, clip.first_row, clip.rows) for clip in shard.clips] == [("before", 0, 8), ("after", 8, 16)]


def test_invalid_keys_and_metadata_are_refused(tmp_path: Path) -> None:
    with FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=PROVENANCE) as writer:
        writer.add_clip("a", random_features(8, 6), 1)
        for key in ("a", "", "nul\0", "half \ud800"):
            with pytest.raises(FormatError, match="key"):
                writer.add_clip(key, random_features(8, 6), 1)
        with pytest.raises(FormatError, match="metadata of clip 'b': this cannot be written as JSON"):
            writer.add_clip("b", random_features(8, 6), 1, {"x": float("nan")})
        writer.add_clip("b", random_features(8, 6), 1)


@pytest.mark.parametrize("provenance", [{}, {"encoder": "mini"}, {"encoder": "", "encoder_hash": "x"}])
def test_features_must_name_their_encoder(tmp_path: Path, provenance: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must name encoder"):
        FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=provenance)


@pytest.mark.parametrize("error", [ValueError("bad file"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail_half_way() -> None:
        with FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=PROVENANCE) as writer:
            writer.add_clip("a", random_features(800, 6), 1)
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_clip_fails_the_shard(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="clip 'a' was neither finished nor discarded"),
        FeatureShardWriter(tmp_path / "s.h5", width=6, provenance=PROVENANCE) as writer,
    ):
        writer.begin_clip("a")
    assert list(tmp_path.iterdir()) == []


def test_readers_share_a_file(tmp_path: Path) -> None:
    (clip,) = write(tmp_path / "s.h5", [5])
    with FeatureShard(tmp_path / "s.h5") as one, FeatureShard(tmp_path / "s.h5") as two:
        np.testing.assert_array_equal(one.read(0, 40), clip.astype(np.float32))
        np.testing.assert_array_equal(two.read(0, 40), clip.astype(np.float32))


def test_reading_outside_the_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", [3])
    with FeatureShard(tmp_path / "s.h5") as shard:
        for start, stop in ((-1, 2), (3, 2), (0, 5)):
            with pytest.raises(ValueError, match=f"rows {start} to {stop} of 4 cannot be read"):
                shard.read(start, stop, 4)
        with pytest.raises(ValueError, match="stack factor 3"):
            shard.read(0, 1, 3)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_shards_are_refused(tmp_path: Path, fraction: float) -> None:
    write(tmp_path / "s.h5", [20, 31])
    content = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "s.h5").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(FormatError, match=r"s\.h5 is (damaged|not a file that sctok writes)") as caught:
        FeatureShard(tmp_path / "s.h5")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", [2])
    flipped = bytearray((tmp_path / "s.h5").read_bytes())
    flipped[1] ^= 1
    (tmp_path / "flipped.h5").write_bytes(flipped)
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.zeros(3)
    for name in ("flipped", "text", "foreign"):
        with pytest.raises(FormatError, match=rf"{name}\.h5 is not a file that sctok writes"):
            FeatureShard(tmp_path / f"{name}.h5")
    with pytest.raises(FileNotFoundError, match=r"missing\.h5"):
        FeatureShard(tmp_path / "missing.h5")


def edit_version(file: h5py.File) -> None:
    file.attrs["format_version"] = 2


def edit_table(file: h5py.File) -> None:
    table = file["clips"][:]
    table["rows"][1] += 8
    file["clips"][:] = table


def edit_metadata(file: h5py.File) -> None:
    table = file["clips"][:]
    table["metadata"][0] = b"{"
    file["clips"][:] = table


def edit_precision(file: h5py.File) -> None:
    data = file["features"][:].astype(np.float32)
    del file["features"]
    file["features"] = data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_version, "version 2 of sctok-features, this sctok reads version 1; update sctok"),
        (edit_table, "damaged .* rows"),
        (edit_metadata, "damaged"),
        (edit_precision, "float32, not float16"),
        (lambda file: file.__delitem__("clips"), "damaged"),
        (lambda file: file.__delitem__("features"), "damaged"),
        (lambda file: file.attrs.__delitem__("provenance"), "damaged"),
        (lambda file: file.attrs.__delitem__("content_hash"), "damaged"),
    ],
)
def test_inconsistent_shards_are_refused(tmp_path: Path, edit: Any, message: str) -> None:
    write(tmp_path / "s.h5", [2, 3])
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        edit(file)
    with pytest.raises(FormatError, match=rf"s\.h5 .*{message}") as caught:
        FeatureShard(tmp_path / "s.h5")
    assert "\n" not in str(caught.value)
