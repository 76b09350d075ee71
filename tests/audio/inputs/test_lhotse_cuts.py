"""Manifests of other toolkits: cuts of lhotse, audio folders of Hugging Face datasets, NeMo."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sctok.audio.inputs.sources import AudioItem, BadItem, list_audio
from sctok.audio.loader import load_windows


@pytest.fixture
def recording(tmp_path: Path) -> np.ndarray:
    """Return the samples of `rec.wav`, 2 s at 16 kHz."""
    samples = (np.random.default_rng(1).uniform(-0.5, 0.5, 32_000) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "rec.wav", samples, 16_000, subtype="PCM_16")
    return samples.astype(np.float32) / 32768


def cut(folder: Path, start: float, duration: float, **changes: Any) -> dict[str, Any]:
    """Return a cut as `CutSet.to_jsonl` of lhotse writes it."""
    source = {"type": "file", "channels": [0], "source": str(folder / "rec.wav")}
    recording = {"id": "rec", "sources": [source], "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0}
    row = {
        "id": f"cut-{start}",
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [{"id": "s", "text": "hello", "speaker": "anna", "start": 0, "duration": duration}],
        "recording": {**recording, "channel_ids": [0]},
        "type": "MonoCut",
    }
    return {**row, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_a_cut_gives_its_stretch_of_the_recording(tmp_path: Path, recording: np.ndarray, name: str) -> None:
    rows = [cut(tmp_path, 0.5, 0.25), cut(tmp_path, 0.0, 2.0), cut(tmp_path, 1.0, 1.0)]
    items = list(list_audio([write(tmp_path / name, rows)]))
    assert [item.key for item in items] == ["cut-0.5", "cut-0.0", "cut-1.0"]
    assert items[0].metadata == {"text": "hello", "speaker": "anna"}
    assert items[1].start is None
    for item, (first, last) in zip(items, [(8000, 12000), (0, 32000), (16000, 32000)], strict=True):
        (chunk,) = load_windows([item], workers=0)
        assert chunk.samples == last - first
        np.testing.assert_array_equal(chunk.waves[0, : chunk.samples], recording[first:last])
        assert AudioItem.from_json(json.loads(json.dumps(item.to_json()))) == item


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"duration": 0}, "lasts 0"),
        ({"start": "x"}, "could not convert"),
        ({"recording": {"sources": []}}, "not one file"),
        ({"recording": {"sources": [{"type": "command", "source": "sox"}]}}, "not one file"),
        ({"recording": {"sources": [{"type": "file", "source": "rec.wav"}], "channel_ids": [0, 1]}}, "one channel of"),
        ({"recording": {"sources": [{"type": "file", "source": "no.wav"}]}}, "No such file|no such file"),
    ],
)
def test_an_unreadable_cut_does_not_stop_the_others(
    tmp_path: Path, recording: np.ndarray, changes: dict[str, Any], reason: str
) -> None:
    manifest = write(tmp_path / "cuts.jsonl", [cut(tmp_path, 0.25, 1.0), {**cut(tmp_path, 0.5, 1.0), **changes}])
    good, bad = list_audio([manifest])
    assert isinstance(good, AudioItem)
    assert isinstance(bad, BadItem)
    assert any(part in bad.reason for part in reason.split("|"))


def test_a_cut_beyond_the_end_is_an_error(tmp_path: Path, recording: np.ndarray) -> None:
    (item,) = list_audio([write(tmp_path / "cuts.jsonl", [cut(tmp_path, 1.5, 1.0)])])
    *_, chunk = load_windows([item], workers=0)
    assert "ends after 2.000 s, before the cut at 2.500 s" in (chunk.error or "")


@pytest.mark.parametrize("column", ["file_name", "audio_filepath"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_path_columns_of_other_toolkits(tmp_path: Path, recording: np.ndarray, column: str, suffix: str) -> None:
    manifest = tmp_path / f"metadata{suffix}"
    row = {column: "rec.wav", "text": "hi"}
    manifest.write_text(f"{column},text\nrec.wav,hi\n" if suffix == ".csv" else json.dumps(row))
    (item,) = list_audio([manifest])
    assert (item.key, item.metadata) == ("rec", {"text": "hi"})


def test_a_damaged_gzip_is_named(tmp_path: Path, recording: np.ndarray) -> None:
    manifest = write(tmp_path / "cuts.jsonl.gz", [cut(tmp_path, 0.5, 1.0)])
    manifest.write_bytes(manifest.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"cuts\.jsonl\.gz.*gzip"):
        list(list_audio([manifest]))
