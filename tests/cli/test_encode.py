"""`sctok encode` as a user meets it."""

import json
import tarfile

import numpy as np
import pytest
import soundfile
from tests.codec.tiny import CODEBOOK_SIZES

from sctok.cli.app import main
from sctok.formats.sct import read_sct
from sctok.formats.token_shards import read_token_shard

from .conftest import write_noise


def test_tokens_are_written_next_to_the_audio_file(sctok, small_codec, tmp_path):
    audio = write_noise(tmp_path / "a.wav", 40_000)
    code, printed, _ = sctok("encode", audio, "--json")
    assert code == 0
    found = read_sct(tmp_path / "a.sct")
    expected = small_codec.encode(soundfile.read(audio)[0], 16_000)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert (found.samples, found.codec_hash, found.codebook_hash) == (40_000, small_codec.hash, expected.codebook_hash)
    facts = json.loads(printed)
    assert (facts["files"], facts["kept"], facts["failed"], facts["audio_seconds"]) == (1, 0, [], 2.5)
    assert facts["bytes"] == (tmp_path / "a.sct").stat().st_size
    assert facts["bits_per_second"] == len(found.tokens) * 12 / 2.5


def test_the_table_shows_bit_rate_and_speed(sctok, tmp_path):
    code, printed, _ = sctok("encode", write_noise(tmp_path / "a.wav", 16_000))
    assert code == 0
    assert all(title in printed for title in ("kbit/s", "× real time", "tokens/s"))


def test_a_folder_keeps_its_structure_and_failures_are_named(sctok, tmp_path):
    folder = tmp_path / "in"
    write_noise(folder / "x" / "stereo.flac", 50_000, rate=44_100, channels=2)
    write_noise(folder / "short.wav", 800)
    write_noise(folder / "long.wav", 400_001)
    (folder / "x" / "text.wav").write_text("this is no audio")
    soundfile.write(folder / "nan.wav", np.array([0, np.nan]), 16_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(30_000), 16_000)
    code, printed, said = sctok("encode", folder, "--out", tmp_path / "out", "--json")
    assert code == 1
    lengths = {
        str(path.relative_to(tmp_path / "out")): read_sct(path).samples
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert lengths == {"x/stereo.sct": 18_141, "short.sct": 800, "long.sct": 400_001, "silent.sct": 30_000}
    failed = {entry["source"].rpartition("/")[2]: entry["reason"] for entry in json.loads(printed)["failed"]}
    assert failed.keys() == {"text.wav", "nan.wav"}
    assert "sample 1 (0.000 s) is nan" in failed["nan.wav"]
    assert f"failed: {folder}/nan.wav: sample 1" in said
    assert "2 of 6 files failed" in said


def test_tokens_do_not_depend_on_the_other_files(sctok, tmp_path):
    for samples in (3_000, 200_000, 170_000):
        write_noise(tmp_path / "in" / f"{samples}.wav", samples)
    assert sctok("encode", tmp_path / "in", "--out", tmp_path / "together")[0] == 0
    assert sctok("encode", tmp_path / "in" / "170000.wav", "--out", tmp_path / "alone.sct")[0] == 0
    assert (tmp_path / "alone.sct").read_bytes() == (tmp_path / "together" / "170000.sct").read_bytes()


def test_the_codebook_is_chosen_by_size(sctok, tmp_path):
    audio = write_noise(tmp_path / "a.wav", 16_000)
    assert sctok("encode", audio, "--codebook", CODEBOOK_SIZES[0])[0] == 0
    assert read_sct(tmp_path / "a.sct").codebook_sizes[0] == CODEBOOK_SIZES[0]
    code, _, said = sctok("encode", audio, "--codebook", 4096)
    assert code == 2
    assert "has no codebook 4096" in said


def test_existing_results_are_replaced_or_kept(sctok, tmp_path):
    audio = write_noise(tmp_path / "a.wav", 16_000)
    target = tmp_path / "a.sct"
    assert sctok("encode", audio, "--codebook", CODEBOOK_SIZES[0])[0] == 0
    first = target.stat().st_ino
    code, printed, _ = sctok("encode", audio, "--codebook", CODEBOOK_SIZES[0], "--skip-existing", "--json")
    assert (code, json.loads(printed)["kept"], target.stat().st_ino) == (0, 1, first)
    assert sctok("encode", audio, "--skip-existing")[0] == 0
    assert read_sct(target).codebook_sizes[0] == CODEBOOK_SIZES[1]
    whole = target.read_bytes()
    target.write_bytes(whole[:-1])
    assert sctok("encode", audio, "--skip-existing")[0] == 0
    assert target.read_bytes() == whole
    second = target.stat().st_ino
    assert sctok("encode", audio)[0] == 0
    assert target.stat().st_ino != second


def test_two_inputs_with_the_same_output_path_are_reported(sctok, tmp_path):
    inputs = [write_noise(tmp_path / name, 8_000) for name in ("a.wav", "a.flac")]
    code, printed, _ = sctok("encode", *inputs, "--json")
    assert code == 1
    assert "already the result of another input" in json.loads(printed)["failed"][0]["reason"]
    code, _, said = sctok("encode", *inputs, "--out", tmp_path / "b.sct")
    assert code == 1
    assert "2 inputs cannot be written to one file" in said


def test_tar_shards_need_a_folder(sctok, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(write_noise(tmp_path / "a.wav", 8_000), "a.wav")
    code, _, said = sctok("encode", tmp_path / "s.tar")
    assert code == 1
    assert "--out" in said
    assert sctok("encode", tmp_path / "s.tar", "--out", tmp_path / "out")[0] == 0
    assert read_sct(tmp_path / "out" / "a.sct").samples == 8_000


def test_one_token_shard_holds_all_files(sctok, small_codec, tmp_path):
    write_noise(tmp_path / "in" / "x" / "a.wav", 8_000)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    code, printed, _ = sctok("encode", tmp_path / "in", "--out", tmp_path / "t.tar", "--json")
    assert (code, json.loads(printed)["files"]) == (1, 1)
    ((key, tokens, info),) = read_token_shard(tmp_path / "t.tar")
    expected = small_codec.encode(soundfile.read(tmp_path / "in" / "x" / "a.wav")[0], 16_000)
    assert (key, tokens.dtype) == ("x/a", np.uint16)
    np.testing.assert_array_equal(tokens, expected.tokens)
    assert info == {
        "samples": 8_000,
        "sample_rate": 16_000,
        "token_rate": 25,
        "streams": ["semantic", "acoustic"],
        "codebook_hash": expected.codebook_hash,
        "codec_hash": small_codec.hash,
        "encoder_hash": small_codec.encoder_hash,
        "source": {"path": str(tmp_path / "in" / "x" / "a.wav")},
    }
    assert sctok("decode", tmp_path / "t.tar", "--out", tmp_path / "out", "--steps", 1)[0] == 0
    assert soundfile.info(tmp_path / "out" / "x" / "a.wav").frames == 8_000


def test_the_number_of_decoding_processes_changes_nothing(sctok, tmp_path):
    for samples in (3_000, 20_000):
        write_noise(tmp_path / "in" / f"{samples}.wav", samples)
    for workers in (0, 2):
        assert sctok("encode", tmp_path / "in", "--out", tmp_path / str(workers), "--workers", workers)[0] == 0
    for samples in (3_000, 20_000):
        one, other = (tmp_path / str(workers) / f"{samples}.sct" for workers in (0, 2))
        assert one.read_bytes() == other.read_bytes()


def test_a_codec_in_the_work_directory_is_found_by_name(codec_folder, tmp_path, capsys):
    audio = write_noise(tmp_path / "a.wav", 8_000)
    (tmp_path / "root" / "codecs").mkdir(parents=True)
    (tmp_path / "root" / "codecs" / "mine").symlink_to(codec_folder)
    assert main(["encode", str(audio), "--codec", "mine", "--root", str(tmp_path / "root")]) == 0
    assert main(["encode", str(audio), "--codec", "other", "--root", str(tmp_path / "root")]) == 1
    assert "other is neither a bundled codec" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a.wav", "--channel", "-1"], ["a.wav", "--device", "tpu"]])
def test_wrong_usage_is_refused(arguments, capsys):
    assert main(["encode", *arguments]) == 2


def test_a_missing_input_is_reported_in_one_line(sctok, tmp_path):
    code, _, said = sctok("encode", tmp_path / "nowhere.wav")
    assert code == 1
    assert said.strip().endswith("nowhere.wav: no such file or folder")


def test_ctrl_c_reports_that_a_shard_starts_over_and_leaves_no_files(sctok, tmp_path, monkeypatch):
    audio = write_noise(tmp_path / "in" / "a.wav", 8_000)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sctok.formats.token_shards.TokenShardWriter.add", interrupt)
    code, _, said = sctok("encode", audio, "--out", tmp_path / "t.tar")
    assert code == 130
    assert "no part of it is kept" in said
    assert "--skip-existing" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_ctrl_c_says_how_to_resume(sctok, tmp_path, monkeypatch, command):
    for name in ("a", "b"):
        write_noise(tmp_path / "in" / f"{name}.wav", 8_000)
    options = ["--out", tmp_path / "out"] if command == "encode" else [tmp_path / "out", "--steps", 1]
    written = []

    def stop_at_the_second(path, *_, **__):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return 1

    writer = "write_sct" if command == "encode" else "write_audio"
    monkeypatch.setattr(f"sctok.codec.files.{writer}", stop_at_the_second)
    code, _, said = sctok(command, tmp_path / "in", *options)
    assert code == 130
    assert "finished files are kept; run the same command with --skip-existing to resume" in said


def test_temporary_files_of_a_killed_command_are_removed(sctok, tmp_path):
    write_noise(tmp_path / "in" / "a.wav", 8_000)
    stale, foreign = (tmp_path / "out" / f"{name}.sct.tmp-{2**31 - 1}" for name in ("a", "mine"))
    sound = tmp_path / "sound" / f"a.wav.tmp-{2**31 - 1}"
    for path in (stale, foreign, sound):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert sctok("encode", tmp_path / "in", "--out", tmp_path / "out")[0] == 0
    assert sctok("decode", tmp_path / "out", "--out", tmp_path / "sound", "--steps", 1)[0] == 0
    assert (stale.exists(), foreign.exists(), sound.exists()) == (False, True, False)


def test_temporary_files_of_a_killed_shard_command_are_removed(sctok, tmp_path):
    stale = tmp_path / f"t.tar.tmp-{2**31 - 1}"
    stale.touch()
    assert sctok("encode", write_noise(tmp_path / "in" / "a.wav", 8_000), "--out", tmp_path / "t.tar")[0] == 0
    assert not stale.exists()
