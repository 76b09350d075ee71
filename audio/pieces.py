"""Cutting decoded audio into pieces of whole windows."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.inputs.sources import AudioItem

from .errors import AudioError
from .windows import FRAME_SHIFT, SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SPAN, window_count

_OVERLAP = WINDOW_SPAN - WINDOW_SAMPLES


class Piece(NamedTuple):
    """Successive windows of a file as one stretch of audio, float32 (n,), without overlaps and padding.

    The last piece of a file has its length `samples`, or the `error` that ended its decoding.
    """

    audio: NDArray[np.float32]
    windows: int
    samples: int | None
    error: str | None


def empty_span(windows: int) -> NDArray[np.float32]:
    """Return silence, float32 (n,), that spans successive windows."""
    return np.zeros((windows - 1) * WINDOW_SAMPLES + WINDOW_SPAN if windows else 0, np.float32)


def window_rows(span: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the windows (w, WINDOW_SPAN) of a span (n,), as a view."""
    if not len(span):
        return np.empty((0, WINDOW_SPAN), np.float32)
    return np.lib.stride_tricks.sliding_window_view(span, WINDOW_SPAN, writeable=True)[::WINDOW_SAMPLES]


def cut_pieces(blocks: Iterable[NDArray[np.float32]], piece_windows: int) -> Iterator[Piece]:
    """Yield `piece_windows` windows at a time of a file whose audio is `blocks`, each float32 (n,)."""
    step = piece_windows * WINDOW_SAMPLES
    parts: list[NDArray[np.float32]] = []
    held = total = windows = 0
    for block in blocks:
        parts.append(block)
        held += len(block)
        total += len(block)
        if held < step + _OVERLAP:
            continue
        audio = np.concatenate(parts)
        start = 0
        while len(audio) - start >= step + _OVERLAP:
            yield Piece(audio[start : start + step + _OVERLAP], piece_windows, None, None)
            windows += piece_windows
            start += step
        parts = [audio[start:].copy()]
        held = len(parts[0])
    audio = np.concatenate(parts) if parts else np.empty(0, np.float32)
    left = window_count(total) - windows
    for start in range(0, left, piece_windows):
        count = min(piece_windows, left - start)
        first = start * WINDOW_SAMPLES
        stretch = audio[first : first + count * WINDOW_SAMPLES + _OVERLAP]
        yield Piece(stretch, count, total if start + count == left else None, None)


def read_pieces(item: AudioItem, channel: int | None, piece_windows: int) -> Iterator[Piece]:
    """Yield the pieces of one file; an error that ends its decoding becomes the `error` of the last piece."""
    try:
        blocks = stream_audio(item.open(), name=item.name, channel=channel)
        if item.start is not None and item.seconds is not None:
            blocks = _stretch(blocks, item.name, item.start, item.seconds)
        yield from cut_pieces(blocks, piece_windows)
    except AudioError as error:
        yield _failure(str(error))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        yield _failure(str(AudioError(item.name, f"cannot be decoded: {type(error).__name__}: {error}")))


def _stretch(
    blocks: Iterator[NDArray[np.float32]], name: str, start: float, seconds: float
) -> Iterator[NDArray[np.float32]]:
    """Yield the samples of a stretch of a file, counted at 16 kHz. What precedes the stretch is decoded too."""
    first, end = round(start * SAMPLE_RATE), round((start + seconds) * SAMPLE_RATE)
    position = 0
    for block in blocks:
        part = block[max(0, first - position) : max(0, end - position)]
        position += len(block)
        if len(part):
            yield part
        if position >= end:
            return
    # Durations in manifests are rounded; only more than a frame shift is an error.
    if end - position > FRAME_SHIFT:
        raise AudioError(name, f"ends after {position / SAMPLE_RATE:.3f} s, before the cut at {start + seconds:.3f} s")


def _failure(reason: str) -> Piece:
    return Piece(np.empty(0, np.float32), 0, None, reason)
