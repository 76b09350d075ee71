"""Audio in memory of any shape, type and rate to mono blocks at 16 kHz."""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sctok.audio.decoding.decode import BLOCK_SAMPLES, MAX_RATE, MIN_RATE, Resampler, check_values, mix_down
from sctok.audio.errors import AudioError

NAME = "audio"  # name of the input in errors


def mono_blocks(
    wave: ArrayLike | Tensor, sample_rate: int, channel: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Return an iterator over audio as mono float32 blocks (n,) at 16 kHz.

    Arguments and errors are those of `Codec.encode`. Errors are raised immediately, except those about values.
    """
    in_range = isinstance(sample_rate, Real) and MIN_RATE <= sample_rate <= MAX_RATE
    if not in_range or sample_rate != int(sample_rate):
        reason = f"has a sample rate of {sample_rate!r} Hz; give a whole rate from {MIN_RATE} to {MAX_RATE} Hz"
        raise AudioError(NAME, reason)
    if isinstance(wave, Tensor):
        wave = wave.detach().cpu().to(torch.float32 if wave.is_floating_point() else wave.dtype).numpy()
    frames = _frames(np.asarray(wave))
    if not frames.size:
        raise AudioError(NAME, "holds no samples")
    if channel is not None and not (is_whole(channel) and 0 <= channel < frames.shape[1]):
        raise AudioError(NAME, f"has no channel {channel!r}: it has {frames.shape[1]} channels, numbered from 0")
    return _resampled(frames, int(sample_rate), channel)


def is_whole(value: object) -> bool:
    """Return whether a value is an integer of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _frames(wave: NDArray[Any]) -> NDArray[Any]:
    """Return a view (n, channels) of a wave."""
    if wave.ndim not in (1, 2) or wave.dtype.kind not in "fi":
        raise AudioError(
            NAME,
            f"must be floats or signed integers (n,), (channels, n) or (n, channels), not {wave.dtype} {wave.shape}",
        )
    if wave.ndim == 1:
        return wave[:, None]
    return wave if wave.shape[1] < wave.shape[0] else wave.T


def _resampled(frames: NDArray[Any], rate: int, channel: int | None) -> Iterator[NDArray[np.float32]]:
    resampler = Resampler(rate)
    full_scale = -float(np.iinfo(frames.dtype).min) if frames.dtype.kind == "i" else 1.0
    for start in range(0, len(frames), BLOCK_SAMPLES):
        block = frames[start : start + BLOCK_SAMPLES] / full_scale
        with np.errstate(over="ignore"):  # infinite values are refused below
            mono = mix_down(block.astype(np.float32), channel)
        check_values(mono, start, rate, NAME)
        out = resampler.push(mono)
        if len(out):
            yield out
    tail = resampler.finish()
    if len(tail):
        yield tail
