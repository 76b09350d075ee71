"""The 128-bin Kaldi filterbank that AudioMAE reads, batched in PyTorch on any device."""

import math
from functools import cache

import torch
from torch import Tensor

from .windows import FRAME_LENGTH, FRAME_SHIFT, MEL_BINS, SAMPLE_RATE, WINDOW_FRAMES, WINDOW_SPAN, span_columns

FFT_SIZE = 512
LOW_HZ = 20.0
PREEMPHASIS = 0.97
ENERGY_FLOOR = torch.finfo(torch.float32).eps
# Mean and deviation over AudioSet from the training of AudioMAE, which divides by twice the deviation.
MEAN = -4.2677393
DEVIATION = 4.5689974
ABSENT_FRAMES = 2  # the last frames of a file's last window have no samples; the published code sets them to 0
SILENCE = (math.log(ENERGY_FLOOR) - MEAN) / (2 * DEVIATION)

SETTINGS = {
    "kind": "kaldi",
    "mel_bins": MEL_BINS,
    "frame_length": FRAME_LENGTH,
    "frame_shift": FRAME_SHIFT,
    "sample_rate": SAMPLE_RATE,
    "window": "hanning",
    "mean": MEAN,
    "deviation": DEVIATION,
}


def filterbank(waves: Tensor, last: Tensor) -> Tensor:
    """Return the normalised log-mel filterbank of windows, as in the published SemantiCodec code.

    Kaldi's defaults with HTK mel order, Hann window, no dither and no energy: 25 ms frames every 10 ms, mean of each
    frame removed (and with it the mean of the file), pre-emphasis 0.97, power spectrum, 20–8000 Hz.

    Args:
        waves: float32 (B, 164,080) samples at 16 kHz: a window and 240 more samples, which complete its last frames.
            Or (B, 2560·c + 240), the first c columns of windows.
        last: bool (B,), true for the last window of a file.

    Returns:
        float32 (B, 1024, 128), or (B, 16·c, 128), on the device of `waves`.

    Raises:
        ValueError: `waves` has another shape.
    """
    check_spans(waves)
    if waves.device.type == "cpu" and waves.numel() > WINDOW_SPAN:  # a window fits into the cache, a batch does not
        return torch.cat([_log_mel(waves[i : i + 1], last[i : i + 1]) for i in range(len(waves))])
    return _log_mel(waves, last)


def check_spans(waves: Tensor) -> int:
    """Return the number of columns c of windows (B, 2560·c + 240). Raises ValueError for another shape."""
    try:
        return span_columns(waves.shape[1] if waves.ndim == 2 else 0)
    except ValueError:
        found = tuple(waves.shape)
        raise ValueError(f"expected windows of shape (batch, {WINDOW_SPAN}), or whole columns, got {found}") from None


def _log_mel(waves: Tensor, last: Tensor) -> Tensor:
    frames = waves.unfold(1, FRAME_LENGTH, FRAME_SHIFT)
    frames = frames - frames.mean(dim=2, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    # In float32, rounding errors of strong partials hide bins near the energy floor: the error grows to 1.5e-4.
    padded = waves.new_zeros(*frames.shape[:2], FFT_SIZE, dtype=torch.float64)
    padded[..., :FRAME_LENGTH] = frames.sub_(previous.mul_(PREEMPHASIS)).mul_(_hann_window(waves.device))
    squares = torch.view_as_real(torch.fft.rfft(padded)).square_()
    power = (squares[..., 0] + squares[..., 1]).float()  # eight times as fast as a sum over the last dimension
    mel = (power @ _mel_filters(waves.device)).clamp_min_(ENERGY_FLOOR).log_()
    mel[:, WINDOW_FRAMES - ABSENT_FRAMES :].masked_fill_(last.to(mel.device)[:, None, None], 0.0)
    return mel.sub_(MEAN).div_(2 * DEVIATION)


@cache
def _hann_window(device: torch.device) -> Tensor:
    """Return the symmetric Hann window, float32 (400,)."""
    return torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float64).float().to(device)


@cache
def _mel_filters(device: torch.device) -> Tensor:
    """Return Kaldi's triangular filters, float32 (257, 128), evenly spaced on 1127·ln(1 + f/700)."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    low, high = mel(torch.tensor([LOW_HZ, SAMPLE_RATE / 2], dtype=torch.float64))
    edges = torch.linspace(0, 1, MEL_BINS + 2, dtype=torch.float64) * (high - low) + low
    bins = mel(torch.arange(FFT_SIZE // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT_SIZE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp_min(0)
    filters[-1] = 0  # Kaldi ignores the Nyquist bin
    return filters.float().to(device)
