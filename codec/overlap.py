"""Decoding windows: which tokens each covers, and the cross-fade of their waveforms back to one.

The tokens of a file are one sequence, although they were made window by window (10.24 s, without overlap). Decoding
takes other windows of the same length, each of which shares its last 6.25 % (0.64 s) with the next (SemantiCodec,
Section III-E): 512, 256 or 128 tokens with 32, 16 or 8 shared at stack factor 1, 2 or 4, and in samples the same at
all. The vocoder of the published code gives 32 samples more per window than are counted with, so that its output lags
by 2 ms more with every window, and its length is rounded to 0.16 s. Here every window stands where its tokens do, the
output is as long as the input, and no window is decoded for tokens behind its end alone.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sctok.audio.windows import WINDOW_PATCHES, WINDOW_SAMPLES
from sctok.formats.sct import TokenPairs

OVERLAP_RATIO = 0.0625
OVERLAP_SAMPLES = int(OVERLAP_RATIO * WINDOW_SAMPLES)  # 10,240: 0.64 s
HOP_SAMPLES = WINDOW_SAMPLES - OVERLAP_SAMPLES  # 153,600: 9.6 s
NO_TOKEN = -1


def decode_window_count(samples: int) -> int:
    """Return how many windows `samples` samples at 16 kHz are decoded in."""
    return 0 if samples == 0 else 1 + max(0, -(-(samples - WINDOW_SAMPLES) // HOP_SAMPLES))


def window_tokens(tokens: TokenPairs, window: int, stack_factor: int) -> TokenPairs:
    """Return the tokens of one decoding window, int64 (512 / stack factor, 2), -1 where the file has none.

    tokens: int64 (n, 2) of the whole file. window: from 0; its audio begins at sample window · 153,600.
    """
    length = WINDOW_PATCHES // stack_factor
    start = window * (length - int(OVERLAP_RATIO * length))
    filled = np.full((length, tokens.shape[1]), NO_TOKEN, np.int64)
    there = tokens[start : start + length]
    filled[: len(there)] = there
    return filled


def cross_fade(waves: Iterable[NDArray[np.float32]], samples: int) -> Iterator[NDArray[np.float32]]:
    """Yield the audio of a file, float32 blocks of at most 163,840 samples, `samples` in all.

    waves: the waveforms of its windows in order, each float32 (163,840 or more,); what is more is cut. Where two
    windows overlap one fades into the other linearly, end points included, as published; where they agree the result
    is exactly what they agree on. Memory: one window.

    Raises ValueError for a shorter waveform, or fewer waveforms than decode_window_count(samples).
    """
    left, tail = samples, np.empty(0, np.float32)
    for wave in waves:
        if len(wave) < WINDOW_SAMPLES:
            raise ValueError(f"a window decodes to {len(wave)} samples, not {WINDOW_SAMPLES}")
        block = wave[:WINDOW_SAMPLES].copy()
        if len(tail):
            block[:OVERLAP_SAMPLES] = tail + _rising() * (block[:OVERLAP_SAMPLES] - tail)
        if left <= WINDOW_SAMPLES:
            yield block[:left]
            return
        yield block[:HOP_SAMPLES]
        left, tail = left - HOP_SAMPLES, block[HOP_SAMPLES:]
    if left:
        raise ValueError(f"{left} of {samples} samples lie behind the last window")


@cache
def _rising() -> NDArray[np.float32]:
    return np.linspace(0, 1, OVERLAP_SAMPLES, dtype=np.float32)
