"""The filterbank of the published SemantiCodec codecs, bit-exact on the CPU that computed our reference values.

It computes what `filterbank` does in the steps of torchaudio, all in float32. The difference of at most 1e-4 does not
matter for features, but the chaotic recurrence of the acoustic encoder turns any difference into other tokens.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .filterbank import ABSENT_FRAMES, DEVIATION, ENERGY_FLOOR, FFT_SIZE, LOW_HZ, MEAN, PREEMPHASIS, check_spans
from .windows import FRAME_LENGTH, FRAME_SHIFT, MEL_BINS, SAMPLE_RATE, WINDOW_FRAMES, WINDOW_SAMPLES


def centre(waves: Tensor) -> Tensor:
    """Subtract the mean of a file, padding included, from all its windows, float32 (n, 164,080).

    The two halves are summed separately, as by two threads, so that the result does not depend on their number.
    """
    halves = waves[:, :WINDOW_SAMPLES].reshape(2, -1).sum(dim=1)
    return waves - (halves[0] + halves[1]) / (len(waves) * WINDOW_SAMPLES)


def published_filterbank(waves: Tensor, last: Tensor) -> Tensor:
    """Return the filterbank (B, 1024, 128) of windows (B, 164,080) that were centred by `centre`.

    Like `filterbank`, it takes the first c columns of windows as well. Raises ValueError for another shape.
    """
    check_spans(waves)
    mel = torch.stack([_log_mel(wave) for wave in waves])
    mel[:, WINDOW_FRAMES - ABSENT_FRAMES :].masked_fill_(last.to(mel.device)[:, None, None], 0.0)
    return (mel - MEAN) / (2 * DEVIATION)


def _log_mel(wave: Tensor) -> Tensor:
    frames = wave.unfold(0, FRAME_LENGTH, FRAME_SHIFT)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    frames = (frames - PREEMPHASIS * previous) * torch.hann_window(FRAME_LENGTH, periodic=False, device=wave.device)
    power = torch.fft.rfft(F.pad(frames, (0, FFT_SIZE - FRAME_LENGTH))).abs().pow(2.0)
    return (power @ _mel_filters(wave.device)).clamp_min(ENERGY_FLOOR).log()


@cache
def _mel_filters(device: torch.device) -> Tensor:
    """Return Kaldi's triangular filters computed in float32, (257, 128)."""

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    step = (mel(SAMPLE_RATE / 2) - mel(LOW_HZ)) / (MEL_BINS + 1)
    index = torch.arange(MEL_BINS)[:, None]
    left, centre, right = (mel(LOW_HZ) + (index + offset) * step for offset in (0, 1.0, 2.0))
    bins = 1127.0 * (1.0 + SAMPLE_RATE / FFT_SIZE * torch.arange(FFT_SIZE // 2) / 700.0).log()
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0.0)
    return F.pad(filters, (0, 1)).to(device).T  # without the Nyquist bin
