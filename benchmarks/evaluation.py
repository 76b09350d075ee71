"""Does scoring a thousand pairs of ten seconds take five minutes on two cores, and do the metrics agree with peers?

    python benchmarks/evaluation.py [--pairs 1000] [--workers 2] [--metrics signal] [--json FILE]

Speed: pairs are cut out of the bundled clips, degraded by noise at various levels, and scored by the processes of
`sctok evaluate`; writing the files is not counted. Agreement: the largest difference from torchmetrics, auraloss and
pystoi over the clips, if they are installed.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path

import numpy as np

import sctok
from sctok.audio.decoding.decode import read_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.metrics.base import Metric
from sctok.evaluation.metrics.pairs import Pair, to_pcm, write_flac
from sctok.evaluation.metrics.processes import ScoreTask, score_tasks
from sctok.evaluation.metrics.registry import all_metrics, choose_metrics

SECONDS = 10.0
TARGET_SECONDS = 300.0
CLIPS = sorted((Path(sctok.__file__).parent / "samples").glob("*/*.flac"))


def pair_of(clip: Path, level: float, seed: int) -> Pair:
    """Return ten seconds of a clip, repeated if it is shorter, and the same with noise at `level` times its RMS."""
    wave = read_audio(clip)
    samples = round(SECONDS * SAMPLE_RATE)
    wave = np.resize(np.roll(wave, -seed * 997), samples)
    noise = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    return Pair(wave, wave + np.float32(level * np.sqrt(np.mean(wave**2))) * noise)


def write_pairs(folder: Path, count: int, metrics: Sequence[Metric]) -> list[ScoreTask]:
    """Write `count` pairs to files and return the measurements to make, including speech metrics for all."""
    tasks = []
    kinds = product(range(-(-count // len(CLIPS))), CLIPS)
    for number, (turn, clip) in enumerate(islice(kinds, count)):
        pair = pair_of(clip, 0.02 * (1 + turn % 20), turn)
        paths = folder / f"{number}-a.flac", folder / f"{number}-b.flac"
        for path, wave in zip(paths, (pair.reference, pair.estimate), strict=True):
            write_flac(path, to_pcm(wave), SAMPLE_RATE)
        tasks.append(ScoreTask("bench", str(number), *paths, None, tuple(metrics)))
    return tasks


def speed(pairs: int, workers: int, metrics: Sequence[Metric]) -> dict[str, object]:
    """Return the wall time of scoring, and the number of missing values."""
    failed = 0

    def report(codec: str, key: str, entry: dict[str, object]) -> None:
        nonlocal failed
        failed += "failed" in entry

    with tempfile.TemporaryDirectory() as folder:
        tasks = write_pairs(Path(folder), pairs, metrics)
        start = time.perf_counter()
        score_tasks(tasks, workers, report)
        seconds = time.perf_counter() - start
    projected = seconds * 1000 / pairs
    return {
        "pairs": pairs,
        "workers": workers,
        "metrics": [metric.name for metric in metrics],
        "seconds": round(seconds, 1),
        "seconds_per_1000_pairs": round(projected, 1),
        "failed": failed,
        "target_met": projected < TARGET_SECONDS,
    }


def cost(metrics: Sequence[Metric]) -> list[dict[str, object]]:
    """Return the processor time of each metric for one pair, in this process with one thread."""
    pair = pair_of(CLIPS[-1], 0.1, 0)
    rows = []
    for metric in metrics:
        metric.score(pair)
        start = time.process_time()
        metric.score(pair)
        rows.append({"metric": metric.name, "cpu_seconds_per_pair": round(time.process_time() - start, 4)})
    return rows


def agreement(clips: int) -> list[dict[str, object]]:
    """Return the largest differences between the metrics and their peers over the bundled clips."""
    ours = all_metrics()
    pairs = [pair_of(clip, 0.1, seed) for seed, clip in enumerate(CLIPS[:: max(1, len(CLIPS) // clips)])]
    rows = []
    for name, peer, module, function in _peers():
        if find_spec(module) is None:
            continue
        values = [(float(ours[name].score(pair)), function(pair)) for pair in pairs]  # type: ignore[arg-type]
        worst = max(abs(a - b) / max(abs(b), 1e-9) for a, b in values)
        rows.append({"metric": name, "peer": peer, "clips": len(values), "largest_relative_difference": float(worst)})
    return rows


def _peers() -> list[tuple[str, str, str, Callable[[Pair], float]]]:
    return [
        ("si_sdr", "torchmetrics, zero_mean", "torchmetrics", _torchmetrics_si_sdr),
        ("stoi", "pystoi", "pystoi", _pystoi),
        ("stft_db", "auraloss, log magnitudes", "auraloss", _auraloss_stft_db),
    ]


def _torchmetrics_si_sdr(pair: Pair) -> float:
    import torch
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as peer

    waves = [torch.from_numpy(wave.astype(np.float64)) for wave in (pair.estimate, pair.reference)]
    return peer(*waves, zero_mean=True).item()


def _pystoi(pair: Pair) -> float:
    from pystoi import stoi

    return float(stoi(pair.reference.astype(np.float64), pair.estimate.astype(np.float64), SAMPLE_RATE))


def _auraloss_stft_db(pair: Pair) -> float:
    import torch
    from auraloss.freq import STFTLoss

    level = np.linalg.norm(pair.estimate) / np.linalg.norm(pair.reference)
    waves = [torch.from_numpy(wave)[None, None] for wave in (pair.estimate, pair.reference * np.float32(level))]
    total = 0.0
    for size in (2048, 512):
        # auraloss limits the power, sctok the magnitude, at 1e-10. With its default of 1e-8, silence would differ.
        loss = STFTLoss(size, size // 4, size, window="ones", w_sc=0, w_log_mag=1, w_lin_mag=0, eps=1e-20)
        total += loss(*waves).item() * 10 / np.log(10) / 2
    return total


def main() -> None:
    """Print speed, cost and agreement; write them as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--metrics", default="signal")
    parser.add_argument("--clips", type=int, default=len(CLIPS), help="number of clips to compare with peers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    metrics, left_out = choose_metrics(options.metrics.split(","), all_metrics(), transcripts=False)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "left_out": left_out,
        "agreement": agreement(options.clips),
        "cost": cost(metrics),
        "speed": speed(options.pairs, options.workers, metrics),
    }
    for name, value in result.items():
        rows = value if isinstance(value, list) else [value]
        print(f"\n{name}", *rows, sep="\n  ")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
