"""What decoding, feeding a device, writing and, where it is the device, the encoder cost on this machine."""

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
from sctok.codec.semantic import SemanticQuantizer
from sctok.corpus.runs.stages import ENCODER, FILTERBANK, NEAREST, StageTimes
from sctok.features.extractor import FeatureExtractor
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.formats.stacking import stack_patches

DECODE_SECONDS = 300.0  # of audio, at most
WINDOWS = 8
FED_WINDOWS = 256
_PIECE_WINDOWS = 8
FED_WINDOWS = 256
_WRITTEN = 1 << 25


@dataclass
class _Nothing:
    """A file of which nothing is kept."""

    item: AudioItem

    def wants(self, window: int, samples: int | None) -> bool:
        return True


def decode_cost(items: Sequence[AudioItem]) -> float:
    """Return the CPU seconds that a second of audio takes to decode and resample, from the first 300 s of files."""
    start, samples = time.process_time(), 0
    for item in items:
        for piece in read_pieces(item, None, _PIECE_WINDOWS):
            samples += piece.samples or 0
        if samples >= DECODE_SECONDS * SAMPLE_RATE:
            break
    return (time.process_time() - start) / max(1, samples) * SAMPLE_RATE


def feed_cost(items: Sequence[AudioItem]) -> float:
    """Return the CPU seconds that a window takes from a decoding process into a batch, of this process alone."""
    passed, start = 0, 0.0

    def pass_by(waves: Waves, last: Ends) -> Sequence[None]:
        return [None] * len(last)

    def counted(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        nonlocal passed, start
        for chunk in chunks:
            start = start or time.process_time()  # once the other process has started
            passed += len(chunk.waves)
            yield chunk
            if passed >= FED_WINDOWS:
                return

    with closing(load_windows(items, workers=1)) as chunks:  # type: ignore[type-var]
        for _ in encode_files(counted(chunks), DirectLanes(pass_by, WINDOWS), _Nothing):
            pass
    return (time.process_time() - start) / max(1, passed)


def device_costs(
    extractor: FeatureExtractor, items: Sequence[AudioItem], *, stack: int, centroids: int
) -> dict[str, float]:
    """Return the seconds of a window on this machine's device, stage by stage.

    The codebook is a stand-in, of vectors of the same audio.
    """
    waves, last = _windows(items)
    times = StageTimes(str(extractor.device))
    extractor.stage = times
    vectors = stack_patches(torch.as_tensor(extractor.embed(waves, last), device=extractor.device), stack)
    quantizer = SemanticQuantizer(_stand_in(vectors.cpu().numpy(), stack, centroids, extractor), extractor.device)
    quantizer.labels(vectors)
    times.seconds.clear()  # of calls that compile
    with times(NEAREST):
        quantizer.labels(stack_patches(torch.as_tensor(extractor.embed(waves, last), device=extractor.device), stack))
    inside = times.seconds[ENCODER] + times.seconds[FILTERBANK]
    times.seconds[NEAREST] -= inside
    return {name: times.seconds[name] / len(waves) for name in (ENCODER, NEAREST, FILTERBANK)}


def _stand_in(vectors: npt.NDArray[np.float32], stack: int, centroids: int, extractor: FeatureExtractor) -> Codebook:
    random = np.random.default_rng(0)
    rows = vectors.reshape(-1, vectors.shape[-1])
    chosen = rows[random.integers(len(rows), size=centroids)]
    chosen = chosen + (0.1 * rows.std() * random.standard_normal(chosen.shape)).astype(np.float32)
    info = CodebookInfo("merged", (), stack, extractor.name, extractor.hash)
    return Codebook(chosen, np.ones(centroids, np.int64), info)


def write_rate(folder: Path) -> float:
    """Return the bytes a second that a folder's disk takes, of 32 MiB that are synced."""
    data = os.urandom(_WRITTEN)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN / (time.perf_counter() - start)


def _windows(items: Sequence[AudioItem]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    found = (wave for chunk in load_windows(items, workers=0) for wave in chunk.waves)
    waves = list(itertools.islice(found, WINDOWS))
    return np.stack([waves[index % len(waves)] for index in range(WINDOWS)]), np.zeros(WINDOWS, bool)
