from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk
from sctok.audio.windows import WINDOW_SPAN
from sctok.codec import encoding
from sctok.codec.codec import Codec
from sctok.codec.encoding import centred

from .tiny import replace_parts, tiny_parts


def chunks_of(name: str, waves: NDArray[np.float32], size: int, error: str | None = None) -> Iterator[Chunk]:
    """Yield the windows (n, 164,080) of a file in chunks of `size` windows."""
    for start in range(0, len(waves), size):
        last = start + size >= len(waves)
        samples = 1000 if last and error is None else None
        yield Chunk(AudioItem(name, name), start, waves[start : start + size], last, samples, error if last else None)


def random_windows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, WINDOW_SPAN), np.float32) + 0.5


def test_mean_of_each_file_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CENTRED_WINDOWS", 5)
    files = {"a": random_windows(1), "b": random_windows(5), "long": random_windows(6)}
    given = [chunk for name, waves in files.items() for chunk in chunks_of(name, waves, 2)]
    found = list(centred(given))
    assert [(chunk.item, chunk.first_window, chunk.last) for chunk in found] == [
        (chunk.item, chunk.first_window, chunk.last) for chunk in given
    ]
    for name, waves in files.items():
        result = np.concatenate([chunk.waves for chunk in found if chunk.item.key == name])
        mean = 0.0 if name == "long" else waves[:, :163_840].mean(dtype=np.float64)
        np.testing.assert_allclose(result, waves - mean, atol=1e-6)


def test_truncated_files_are_not_changed() -> None:
    given = list(chunks_of("a", random_windows(3), 2, error="truncated"))
    for before, after in zip(given, centred(given), strict=True):
        assert after.error == before.error
        np.testing.assert_array_equal(after.waves, before.waves)


def test_long_files_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CENTRED_WINDOWS", 2)
    taken = []

    def chunks() -> Iterator[Chunk]:
        for chunk in chunks_of("a", random_windows(8), 1):
            taken.append(chunk)
            yield chunk

    next(centred(chunks()))
    assert len(taken) == 3


def test_published_steps_ignore_an_offset() -> None:
    parts = tiny_parts()
    encoder = replace(parts.tokens.encoder, metadata={**parts.tokens.encoder.metadata, "published_steps": True})
    codec = Codec(replace_parts(parts, encoder=encoder), torch.device("cpu"), "fp32")
    wave = np.random.default_rng(0).standard_normal(200_000).astype(np.float32) * 0.1
    np.testing.assert_array_equal(codec.encode(wave, 16_000).tokens, codec.encode(wave + 0.25, 16_000).tokens)
