"""Is the filterbank as fast as kaldi-native-fbank? Milliseconds of one core per second of audio, both in one run.

    python benchmarks/frontend.py [--json FILE]

kaldi-native-fbank refuses 128 mel bins at this frame size, because some triangles hold no FFT bin. It computes 80.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import torch

from sctok.audio.filterbank import filterbank
from sctok.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SPAN

KALDI_BINS = 80


def kaldi(waves: np.ndarray) -> None:
    """Compute every frame of each wave with kaldi-native-fbank."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = KALDI_BINS
    options.htk_compat = True
    for wave in waves:
        bank = knf.OnlineFbank(options)
        bank.accept_waveform(SAMPLE_RATE, wave)
        bank.input_finished()
        np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    waves = np.random.default_rng(0).standard_normal((args.windows, WINDOW_SPAN)).astype(np.float32) * 0.1
    batch, last = torch.from_numpy(waves), torch.zeros(args.windows, dtype=torch.bool)
    systems: dict[str, Callable[[], object]] = {
        f"kaldi-native-fbank, {KALDI_BINS} bins": lambda: kaldi(waves),
        f"sctok, 128 bins, batch of {args.windows}": lambda: filterbank(batch, last),
        "sctok, 128 bins, one by one": lambda: [filterbank(batch[i : i + 1], last[:1]) for i in range(args.windows)],
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(args.repeats + 1):
        for name, function in systems.items():
            elapsed = seconds(function)
            if repeat:
                times[name].append(elapsed)
    audio = args.windows * WINDOW_SAMPLES / SAMPLE_RATE
    rows = {name: 1000 * statistics.median(each) / audio for name, each in times.items()}
    first = next(iter(rows.values()))
    print(f"{'system':40s} {'ms per s of audio':>18s} {'speed-up':>9s}")
    for name, value in rows.items():
        print(f"{name:40s} {value:18.3f} {first / value:8.2f}x")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
