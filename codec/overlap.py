"""Decoding windows: the tokens of each window, and the cross-fade of their waveforms.

Encoding makes the tokens of a file in windows of 10.24 s without overlap. Decoding treats the tokens as one sequence
and uses other windows of the same length, which overlap by 6.25 % or 0.64 s (SemantiCodec, section III-E). A window has
512, 256 or 128 tokens at stack factor 1, 2 or 4, of which it shares 32, 16 or 8 with the next.

In the published code, the vocoder returns 32 samples too many per window. Its output therefore lags by 2 ms more with
every window, and its length is rounded to 0.16 s. Here every window starts at its tokens, and the output is as long as
the input. Windows that would contain only padding are not decoded.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from sctok.audio.windows import WINDOW_PATCHES, WINDOW_SAMPLES
from sctok.formats.sct import TokenPairs

OVERLAP_RATIO = 0.0625
OVERLAP_SAMPLES = int(OVERLAP_RATIO * WINDOW_SAMPLES)  # 10,240: 0.64 s
HOP_SAMPLES = WINDOW_SAMPLES - OVERLAP_SAMPLES  # 153,600: 9.6 s
NO_TOKEN = -1


def decode_window_count(samples: int) -> int:
    """Return the number of decoding windows of `samples` samples at 16 kHz."""
    return 0 if samples == 0 else 1 + max(0, -(-(samples - WINDOW_SAMPLES) // HOP_SAMPLES))


def window_tokens(tokens: TokenPairs, window: int, stack_factor: int) -> TokenPairs:
    """Return the tokens of one decoding window, int64 (512 / stack factor, 2), padded with -1.

    Args:
        tokens: int64 (n, 2), tokens of the whole file.
        window: index from 0. Its audio starts at sample window · 153,600.
        stack_factor: 1, 2 or 4.
    """
    length = WINDOW_PATCHES // stack_factor
    start = window * (length - int(OVERLAP_RATIO * length))
    padded = np.full((length, tokens.shape[1]), NO_TOKEN, np.int64)
    existing = tokens[start : start + length]
    padded[: len(existing)] = existing
    return padded


def cross_fade(waves: Iterable[NDArray[np.float32]], samples: int) -> Iterator[NDArray[np.float32]]:
    """Join the waveforms of the windows of a file by linear cross-fades, including end points, as published.

    If two windows agree in their overlap, the result equals them exactly. Memory: one window.

    Args:
        waves: waveforms of the windows in order, each float32 (163,840 or more,). Further samples are dropped.
        samples: length of the file.

    Yields:
        Blocks, float32 (at most 163,840,), with `samples` samples in total.

    Raises:
        ValueError: a waveform is shorter, or there are fewer waveforms than decode_window_count(samples).
    """
    remaining, tail = samples, np.empty(0, np.float32)
    fade_in = np.linspace(0, 1, OVERLAP_SAMPLES, dtype=np.float32)
    for wave in waves:
        if len(wave) < WINDOW_SAMPLES:
            raise ValueError(f"a window decodes to {len(wave)} samples, not {WINDOW_SAMPLES}")
        block = wave[:WINDOW_SAMPLES].copy()
        if len(tail):
            block[:OVERLAP_SAMPLES] = tail + fade_in * (block[:OVERLAP_SAMPLES] - tail)
        if remaining <= WINDOW_SAMPLES:
            yield block[:remaining]
            return
        yield block[:HOP_SAMPLES]
        remaining, tail = remaining - HOP_SAMPLES, block[HOP_SAMPLES:]
    if remaining:
        raise ValueError(f"{samples} samples need {decode_window_count(samples)} windows, but there are fewer")
