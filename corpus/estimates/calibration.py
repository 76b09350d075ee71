"""Measure the cost of decoding, feeding a device, writing, and encoding on this machine."""

import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk, load_windows
from sctok.audio.packing import encode_files
from sctok.audio.pieces import read_pieces
from sctok.audio.transfer import DirectLanes, Ends, Waves
from sctok.audio.windows import SAMPLE_RATE
from sctok.features.extractor import FeatureExtractor
from sctok.features.tokenizer import SemanticQuantizer
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.formats.stacking import stack_patches
from sctok.runtime.stages import EMBEDDING, FILTERBANK, NEAREST, StageTimer

DECODE_SECONDS = 300.0  # of audio, at most
WINDOWS = 8  # that the encoder is timed with
FED_WINDOWS = 256
_PIECE_WINDOWS = 8
_WRITTEN_BYTES = 1 << 25


@dataclass
class _NoResults:
    """A file whose results are dropped."""

    item: AudioItem

    def wants(self, window: int, samples: int | None) -> bool:
        return True


def decode_cost(items: Sequence[AudioItem]) -> float:
    """Return the CPU seconds to decode and resample one second of audio, measured on the first 300 s of files."""
    start, samples = time.process_time(), 0
    for item in items:
        for piece in read_pieces(item, None, _PIECE_WINDOWS):
            samples += piece.samples or 0
        if samples >= DECODE_SECONDS * SAMPLE_RATE:
            break
    return (time.process_time() - start) / max(1, samples) * SAMPLE_RATE


def feed_cost(items: Sequence[AudioItem]) -> float:
    """Return the CPU seconds of this process to move one window from a decoding process into a batch."""
    passed, start = 0, 0.0

    def drop(waves: Waves, last: Ends) -> Sequence[None]:
        return [None] * len(last)

    def counted(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        nonlocal passed, start
        for chunk in chunks:
            start = start or time.process_time()  # after the other process has started
            passed += len(chunk.waves)
            yield chunk
            if passed >= FED_WINDOWS:
                return

    with closing(load_windows(items, workers=1)) as chunks:  # type: ignore[type-var]
        for _ in encode_files(counted(chunks), DirectLanes(drop, WINDOWS), _NoResults):
            pass
    return (time.process_time() - start) / max(1, passed)


def device_costs(
    extractor: FeatureExtractor, items: Sequence[AudioItem], *, stack: int, centroids: int
) -> dict[str, float]:
    """Return the seconds per window on the device of this machine, by stage.

    The codebook is a stand-in made of vectors of the same audio.
    """
    waves, last = _windows(items)
    times = StageTimer(str(extractor.device))
    extractor.stage = times
    vectors = stack_patches(torch.as_tensor(extractor.embed(waves, last), device=extractor.device), stack)
    quantizer = SemanticQuantizer(_stand_in(vectors.cpu().numpy(), stack, centroids, extractor), extractor.device)
    quantizer.labels(vectors)
    times.seconds.clear()  # of the calls that compile
    with times(NEAREST):
        quantizer.labels(stack_patches(torch.as_tensor(extractor.embed(waves, last), device=extractor.device), stack))
    inside = times.seconds[EMBEDDING] + times.seconds[FILTERBANK]
    times.seconds[NEAREST] -= inside
    return {name: times.seconds[name] / len(waves) for name in (EMBEDDING, NEAREST, FILTERBANK)}


def _stand_in(vectors: npt.NDArray[np.float32], stack: int, centroids: int, extractor: FeatureExtractor) -> Codebook:
    random = np.random.default_rng(0)
    rows = vectors.reshape(-1, vectors.shape[-1])
    chosen = rows[random.integers(len(rows), size=centroids)]
    chosen = chosen + (0.1 * rows.std() * random.standard_normal(chosen.shape)).astype(np.float32)
    info = CodebookInfo("merged", (), stack, extractor.name, extractor.hash)
    return Codebook(chosen, np.ones(centroids, np.int64), info)


def write_rate(folder: Path) -> float:
    """Return the write speed of a folder's disk in bytes per second, measured with 32 MiB and a sync."""
    data = os.urandom(_WRITTEN_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN_BYTES / (time.perf_counter() - start)


def _windows(items: Sequence[AudioItem]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    found = (wave for chunk in load_windows(items, workers=0) for wave in chunk.waves)
    waves = list(itertools.islice(found, WINDOWS))
    return np.stack([waves[index % len(waves)] for index in range(WINDOWS)]), np.zeros(WINDOWS, bool)
