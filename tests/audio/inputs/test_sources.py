"""Listing audio: order, keys, metadata, and bad items."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds, list_audio

RATE = 16_000


def wave(samples: int = 1_600) -> np.ndarray:
    return (0.1 * np.sin(np.arange(samples) * 0.1)).astype(np.float32)


def audio_bytes(samples: int = 1_600, container: str = "WAV", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave(samples), rate, format=container)
    return file.getvalue()


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(audio_bytes())
    return folder


def make_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def items(*inputs: str | Path, **columns: str) -> list[AudioItem]:
    listed = list(list_audio(inputs, **columns))
    assert not [bad for bad in listed if isinstance(bad, BadItem)]
    return [item for item in listed if isinstance(item, AudioItem)]


def keys(*inputs: str | Path) -> list[str]:
    return [item.key for item in items(*inputs)]


def bad(*inputs: str | Path) -> list[BadItem]:
    return [item for item in list_audio(inputs) if isinstance(item, BadItem)]


def test_folder_is_listed_bytewise_by_relative_path(tmp_path: Path) -> None:
    names = ["b.wav", "a/z.flac", "a-b/x.ogg", "a/b/c.MP3", "a.opus", "Z.wav", "é.wav", "a/ü ß/東京 1.wav"]
    make(tmp_path, *names, "notes.txt", ".hidden.wav", ".cache/x.wav", "cover.jpg")
    listed = items(tmp_path)
    relative = [os.path.relpath(item.path, tmp_path) for item in listed]
    assert relative == sorted(names, key=os.fsencode)
    assert [item.key for item in listed] == [name.rsplit(".", 1)[0] for name in relative]
    assert [item.suffix for item in listed] == ["." + name.rsplit(".", 1)[1].lower() for name in relative]


def test_names_with_dots_lose_the_last_suffix_only(tmp_path: Path) -> None:
    assert keys(make(tmp_path, "a.b/c.d.wav")) == ["a.b/c.d"]


def test_single_files_keep_their_stem(tmp_path: Path) -> None:
    make(tmp_path, "x/b c.wav", "x/a.flac", "x/rec.001")
    assert keys(tmp_path / "x/b c.wav", tmp_path / "x/a.flac", tmp_path / "x/rec.001") == ["b c", "a", "rec.001"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path / "data", "a/x.wav")
    make(tmp_path / "far", "y.wav")
    (tmp_path / "data/link.wav").symlink_to(tmp_path / "far/y.wav")
    (tmp_path / "data/other").symlink_to(tmp_path / "far")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data/self")
    (tmp_path / "data/dangling.wav").symlink_to(tmp_path / "nothing.wav")
    assert keys(tmp_path / "data") == ["a/x", "dangling", "link", "other/y"]


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/notes.txt").touch()
    with pytest.raises(AudioError, match=r"no audio in this folder or below it; looked for .*\.flac.*\.wav") as caught:
        list_audio([tmp_path])
    assert str(caught.value).startswith(str(tmp_path))


def test_input_that_does_not_exist(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    with pytest.raises(AudioError, match="nowhere: no such file or folder"):
        list_audio([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(AudioError, match="none given"):
        list_audio([])


def test_folder_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.wav", "locked/b.wav", "z.wav")
    scan = os.scandir

    def guarded(path: str) -> object:
        if path.rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("os.scandir", guarded)
    listed = list(list_audio([tmp_path]))
    assert [type(item) for item in listed] == [AudioItem, BadItem, AudioItem]
    assert listed[1].path.rstrip("/") == str(tmp_path / "locked")
    assert "permission denied" in listed[1].reason


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    (tmp_path / os.fsdecode(b"b\xff.wav")).write_bytes(audio_bytes())
    assert keys(tmp_path / "a.wav") == ["a"]
    (problem,) = bad(tmp_path)
    assert "not valid UTF-8" in problem.reason
    assert (problem.key + problem.path + problem.reason).isprintable()


def test_duplicate_keys_name_both_files(tmp_path: Path) -> None:
    make(tmp_path / "one", "a.flac", "a.wav", "sub/b.wav")
    make(tmp_path / "two", "a.wav", "c.wav")
    listed = list(list_audio([tmp_path / "one", tmp_path / "two", tmp_path / "two/c.wav"]))
    assert [item.key for item in listed if isinstance(item, AudioItem)] == ["a", "sub/b", "c"]
    problems = [item for item in listed if isinstance(item, BadItem)]
    assert [item.path for item in problems] == [
        str(tmp_path / "one/a.wav"),
        str(tmp_path / "two/a.wav"),
        str(tmp_path / "two/c.wav"),
    ]
    assert all(f"already taken by {tmp_path / 'one/a.flac'}" in item.reason for item in problems[:2])
    assert f"already taken by {tmp_path / 'two/c.wav'}" in problems[2].reason


def test_repeated_inputs_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "data", "a.wav")
    make(tmp_path, "b.wav")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "c.wav").symlink_to(tmp_path / "b.wav")
    monkeypatch.chdir(tmp_path)
    given = [tmp_path / "data", "data", "data/../data/", "link", "b.wav", tmp_path / "b.wav", "c.wav", "link/a.wav"]
    listed = list(list_audio(given))
    assert [item.key for item in listed if isinstance(item, AudioItem)] == ["a", "b", "c"]
    assert [item.path for item in listed if isinstance(item, BadItem)] == ["link/a.wav"]


def test_folders_of_results_are_skipped(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "sctok-data/tokens/x/kept.wav", "theirs/b.wav", "torn/c.wav", "z.wav", "pipe/d.wav")
    make_tar(tmp_path / "sctok-data/tokens/x/shard-00000.tar", {"a.tokens.npy": b"x"})
    (tmp_path / "sctok-data/tokens/x/run.json").write_text('{"format": "sctok-run", "format_version": 1}')
    (tmp_path / "theirs/run.json").write_text('{"format": "other"}')
    (tmp_path / "torn/run.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe/run.json")
    assert keys(tmp_path) == ["a", "pipe/d", "theirs/b", "torn/c", "z"]


def write_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(mark.join(f'"{value}"' for value in line) + "\n" for line in lines), "utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_manifest(tmp_path: Path, suffix: str) -> None:
    make(tmp_path / "data", "x/a ü.wav", "b.wav")
    make(tmp_path / "far", "c.wav")
    paths = ["x/a ü.wav", "./b.wav", str(tmp_path / "far/c.wav"), "../far/c.wav", str(tmp_path / "data/b.wav")]
    rows: list[dict[str, object]] = [{"path": path, "speaker": f"s, {i}"} for i, path in enumerate(paths)]
    manifest = write_manifest(tmp_path / "data" / f"list{suffix}", rows)
    listed = list(list_audio([manifest]))
    good = [item for item in listed if isinstance(item, AudioItem)]
    assert [item.metadata for item in good] == [{"speaker": f"s, {i}"} for i in range(4)]
    below = str(tmp_path / "far/c").removeprefix("/")
    assert [item.key for item in good] == ["x/a ü", "b", below, "far/c"]
    assert all(len(read_audio(item.open())) == 1_600 for item in good)
    assert [(item.key, type(item)) for item in listed[4:]] == [("b", BadItem)]
    assert "already taken by a file in " in listed[4].reason


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest_keys_and_columns_of_other_names(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, "a.wav", "b.wav")
    rows: list[dict[str, object]] = [{"file": "a.wav", "id": "one/1"}, {"file": "b.wav", "id": ""}]
    manifest = write_manifest(tmp_path / f"list{suffix}", rows)
    listed = items(manifest, path_column="file", key_column="id")
    assert [(item.key, item.metadata) for item in listed] == [("one/1", {}), ("b", {})]


def test_manifest_values_become_json(tmp_path: Path) -> None:
    import datetime

    make(tmp_path, "a.wav")
    row = {"path": "a.wav", "n": 3, "x": float("nan"), "day": datetime.date(2020, 1, 2), "raw": b"123", "of": [1.5]}
    (item,) = items(write_manifest(tmp_path / "list.parquet", [row]))
    assert item.metadata == {"n": 3, "x": None, "day": "2020-01-02", "raw": "3 bytes", "of": [1.5]}
    json.dumps(item.metadata, allow_nan=False)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_missing_files_of_a_manifest_are_listed_as_bad(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, "a.wav", "c.wav")
    rows: list[dict[str, object]] = [{"path": name, "n": 1} for name in ("a.wav", "b.wav", "", "c.wav")]
    manifest = write_manifest(tmp_path / f"list{suffix}", rows)
    listed = list(list_audio([manifest]))
    assert [type(item) for item in listed] == [AudioItem, BadItem, BadItem, AudioItem]
    assert listed[1] == BadItem("b", str(tmp_path / "b.wav"), f"no such file (row 2 of {manifest})")
    assert listed[2] == BadItem("", str(manifest), "row 3 has no 'path'")


def test_invalid_rows_are_reported(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    (tmp_path / "list.csv").write_text("path,n\na.wav,1,2,3\na.wav,1\n")
    assert [item.reason for item in bad(tmp_path / "list.csv")] == [
        "row 1 has more values than the 2 columns of the header"
    ]
    (tmp_path / "list.jsonl").write_text('{"path": "a.wav"}\n{"path": \n[1]\n{"n": 1}\n')
    reasons = [item.reason for item in bad(tmp_path / "list.jsonl")]
    assert reasons[0].startswith("row 2 is not valid JSON")
    assert reasons[1:] == ["row 3 is not a JSON object", "row 4 has no 'path'"]


def test_rows_with_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.wav", "locked/b.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    look = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    names = ["locked/b.wav", "x" * 300 + ".wav", "pipe.wav", "half \ud800.wav", "nul \0.wav", "a.wav"]
    listed = list(list_audio([write_manifest(tmp_path / "list.jsonl", [{"path": name} for name in names])]))
    reasons = ["permission denied", "File name too long", "is not a file", "no such file", "no such file"]
    for number, (problem, reason) in enumerate(zip(listed, reasons, strict=False), start=1):
        assert isinstance(problem, BadItem)
        assert problem.reason.startswith(reason)
        assert f"(row {number} of " in problem.reason
    assert [item.key for item in listed[5:]] == ["a"]


@pytest.mark.parametrize("depth", [101, 600, 100_000])
def test_rows_that_are_nested_too_deeply(tmp_path: Path, depth: int) -> None:
    make(tmp_path, "a.wav")
    nested = "[" * depth + "]" * depth
    (tmp_path / "list.jsonl").write_text(f'{{"path": "a.wav", "x": {nested}}}\n{nested}\n{{"path": "a.wav"}}\n')
    first, second, good = list_audio([tmp_path / "list.jsonl"])
    assert isinstance(first, BadItem)
    assert isinstance(second, BadItem)
    assert first.reason.startswith("row 1 is not valid JSON")
    assert second.reason.startswith("row 2 is not valid JSON")
    assert good.key == "a"


@pytest.mark.parametrize("key", ["../up", "/root", "a//b", "a/./b"])
def test_keys_that_leave_their_folder_are_refused(tmp_path: Path, key: str) -> None:
    make(tmp_path, "a.wav")
    (problem,) = bad(write_manifest(tmp_path / "list.csv", [{"path": "a.wav", "key": key}]))
    assert "cannot be a key" in problem.reason


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest_without_the_column(tmp_path: Path, suffix: str) -> None:
    manifest = write_manifest(tmp_path / f"list{suffix}", [{"file": "a.wav", "n": 1}])
    with pytest.raises(AudioError, match=r"has no column 'path'; its columns are file, n"):
        list_audio([manifest])


def test_files_that_are_not_manifests(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "header.csv").write_text("path\n")
    (tmp_path / "text.parquet").write_text("not a table")
    (tmp_path / "latin.csv").write_bytes("path\nä.wav\n".encode("latin-1"))
    for name, reason in [
        ("empty.jsonl", "lists no files"),
        ("header.csv", "lists no files"),
        ("text.parquet", "is not a readable Parquet file"),
        ("latin.csv", "is not UTF-8 text"),
    ]:
        with pytest.raises(AudioError, match=f"{name}: {reason}"):
            list_audio([tmp_path / name])


def test_manifest_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.wav")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(f'{{"path": "a.wav", "key": "k{i}"}}\n' for i in range(10_000)))
    listing = list_audio([manifest])
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(1) or loads(text))
    assert next(listing).key == "k0"
    assert len(parsed) == 1


def test_tar_members_are_read_in_place(tmp_path: Path) -> None:
    members = {
        "a/one.wav": audio_bytes(1_000),
        "a/one.json": b'{"speaker": "x", "n": 1}',
        "a/one.txt": "grüß".encode(),
        "a/one.jpg": b"xx",
        "./b c/zwei ü.flac": audio_bytes(3_000, "FLAC"),
        "b c/zwei ü.json": b"[1, 2]",
        "b c/zwei ü.txt": b"x" * 100_000,
        "three.mp3": audio_bytes(8_000, "MP3"),
    }
    path = make_tar(tmp_path / "shard.tar", members)
    one, two, three = items(path)
    assert [one.key, two.key, three.key] == ["a/one", "b c/zwei ü", "three"]
    assert one.metadata == {"speaker": "x", "n": 1, "txt": "grüß"}
    assert two.metadata == {"json": [1, 2]}
    for item, name in [(one, "a/one.wav"), (two, "./b c/zwei ü.flac"), (three, "three.mp3")]:
        assert path.read_bytes()[item.offset : item.offset + item.size] == members[name]
        np.testing.assert_array_equal(read_audio(item.open(), name=item.name), read_audio(members[name], name=name))
    assert one.name == f"{path}:a/one.wav"


def test_metadata_of_a_tar_becomes_json(tmp_path: Path) -> None:
    nested = "[" * 30_000
    members = {
        "a.wav": audio_bytes(),
        "a.json": b'{"snr": NaN, "of": [Infinity, 1e999, 1]}',
        "b.wav": audio_bytes(),
        "b.json": b"-Infinity",
        "c.wav": audio_bytes(),
        "c.json": nested.encode(),
    }
    metadata = [item.metadata for item in items(make_tar(tmp_path / "s.tar", members))]
    assert metadata == [{"snr": None, "of": [None, None, 1]}, {"json": None}, {"json": nested}]


def test_keys_of_tars_do_not_depend_on_the_shard(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(tmp_path / f"s-{number:03d}.tar", {f"{number}{part}.wav": audio_bytes() for part in "ab"})
    expected = ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert keys(f"{tmp_path}/s-{{000..002}}.tar") == expected
    assert keys(tmp_path) == expected
    with pytest.raises(AudioError, match=r"s-003\.tar: no such file or folder"):
        list_audio([f"{tmp_path}/s-{{000..003}}.tar"])


def test_folder_with_files_and_tars(tmp_path: Path) -> None:
    make(tmp_path, "x/a.wav", "x/c.wav")
    make_tar(tmp_path / "x/b.tar", {"t.wav": audio_bytes(), "x/c.wav": audio_bytes()})
    listed = list(list_audio([tmp_path]))
    assert [item.key for item in listed] == ["x/a", "t", "x/c", "x/c"]
    assert f"already taken by a file in {tmp_path / 'x/b.tar'}" in listed[3].reason


def test_several_audio_files_of_one_sample(tmp_path: Path) -> None:
    names = ["a.mix.wav", "a.voice.wav", "b.mix.wav", "c.wav", "c.flac"]
    path = make_tar(tmp_path / "s.tar", dict.fromkeys(names, audio_bytes()))
    listed = list(list_audio([path]))
    assert [item.key for item in listed] == ["a.mix", "a.voice", "b", "c", "c"]
    assert isinstance(listed[4], BadItem)


@pytest.mark.parametrize("cut", [-700, 3_000, 600])
def test_a_truncated_tar_gives_its_intact_members(tmp_path: Path, cut: int) -> None:
    path = make_tar(tmp_path / "s.tar", {f"{name}.wav": audio_bytes(500) for name in "abcd"})
    whole = [item.key for item in items(path)]
    ends = {item.key: item.offset + item.size for item in items(path)}
    data = path.read_bytes()[: ends["d"] + 512 if cut > 0 else None][:cut]
    if cut == -700:
        data = path.read_bytes()[: ends["d"] - 700]
    path.write_bytes(data)
    listed = list(list_audio([path]))
    assert [item.key for item in listed[:-1]] == [key for key in whole if ends[key] <= len(data)]
    assert isinstance(listed[-1], BadItem)
    assert "truncated" in listed[-1].reason or "cut short" in listed[-1].reason


def test_tar_without_end_mark_and_with_a_damaged_header(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", {f"{name}.wav": audio_bytes(500) for name in "abcd"})
    b, c = items(path)[1:3]
    data = path.read_bytes()
    path.write_bytes(data[: c.offset - 512])
    listed = list(list_audio([path]))
    assert [item.key for item in listed[:-1]] == ["a", "b"]
    assert "no end mark" in listed[-1].reason
    path.write_bytes(data[: c.offset - 512] + b"junk" * 128 + data[c.offset :])
    listed = list(list_audio([path]))
    assert [item.key for item in listed[:-1]] == ["a", "b"]
    assert "is damaged at byte" in listed[-1].reason
    assert b.key == "b"


def test_files_that_are_not_tars(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("not a tar " * 100)
    (tmp_path / "empty.tar").touch()
    make_tar(tmp_path / "silent.tar", {"a.txt": b"x"})
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(make(tmp_path, "a.wav") / "a.wav", "a.wav")
    for name in ("text", "empty", "packed"):
        (problem,) = bad(tmp_path / f"{name}.tar")
        assert "not an uncompressed tar archive" in problem.reason
    assert bad(tmp_path / "silent.tar")[0].reason == "holds no audio files"
    shutil.copy(tmp_path / "packed.tar", tmp_path / "packed.tar.gz")
    with pytest.raises(AudioError, match="compressed archive"):
        list_audio([tmp_path / "packed.tar.gz"])


def test_links_inside_a_tar_are_listed_as_bad(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert "link" in bad(path)[0].reason


def test_items_survive_json(tmp_path: Path) -> None:
    make(tmp_path, "ü.wav")
    make_tar(tmp_path / "s.tar", {"t.wav": audio_bytes(), "t.json": b'{"n": [1]}'})
    for item in items(tmp_path):
        assert AudioItem.from_json(json.loads(json.dumps(item.to_json()))) == item
        assert hash(item) == hash(AudioItem.from_json(item.to_json()))


def test_seconds_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(audio_bytes(12_000, rate=48_000))
    (tmp_path / "b.m4a").write_bytes(b"x")
    (tmp_path / "c.wav").write_text("text")
    make_tar(tmp_path / "s.tar", {"t.flac": audio_bytes(4_000, "FLAC")})
    assert [audio_seconds(item) for item in items(tmp_path)] == [0.25, None, None, 0.25]
    assert audio_seconds(AudioItem("x", str(tmp_path / "x.wav"), suffix=".wav")) is None


def test_seconds_of_a_file_named_raw(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(audio_bytes(4_000, "FLAC"))
    (tmp_path / "y.raw").write_text("text")
    assert [audio_seconds(item) for item in items(tmp_path / "x.raw", tmp_path / "y.raw")] == [0.25, None]


def test_tar_that_vanished(tmp_path: Path) -> None:
    (item,) = items(make_tar(tmp_path / "s.tar", {"t.wav": audio_bytes()}))
    (tmp_path / "s.tar").unlink()
    with pytest.raises(AudioError, match=r"s\.tar:t\.wav: no such file"):
        item.open()
