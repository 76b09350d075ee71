"""Has an encoder learned anything? Linear probes on clip means, beside random weights and log-mel features.

    python benchmarks/probe_encoder.py AUDIO --encoder mini --out docs/pretraining/mini

AUDIO holds `tasks/*.csv` with columns path, label, group; clips of one group never straddle training and test.
Features are scaled to unit variance and a logistic regression is fitted in each of five grouped folds.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sctok.audio.filterbank import filterbank
from sctok.audio.loader import load_windows
from sctok.audio.sources import AudioItem
from sctok.audio.windows import COLUMN_SAMPLES, FRAME_SHIFT, PATCH_ROWS, audio_columns
from sctok.features.checkpoints import EncoderWeights, load_weights
from sctok.features.encoder import AudioMAE
from sctok.features.extractor import FeatureExtractor
from sctok.features.masked import MaskedAutoencoder

TASKS = ("speech_digit", "music_pitch48", "music_instrument12", "music_drum_type", "general_events")
FOLDS = 5
Rows = NDArray[np.float32]
Pool = Callable[[NDArray[np.float32], NDArray[np.bool_], int], Rows]


def random_encoder(like: EncoderWeights, seed: int = 0) -> EncoderWeights:
    """Return weights of the same shape as pretraining starts from."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(AudioMAE(like.config), 64, 1, 1).encoder
    return EncoderWeights("random", like.config, {k: v.detach() for k, v in model.state_dict().items()}, {})


def encoder_rows(weights: EncoderWeights) -> Pool:
    """Return a function from windows to the patch embeddings (n, E) that hold audio."""
    extractor = FeatureExtractor(weights, torch.device("cpu"), "fp32")

    def rows(waves: NDArray[np.float32], last: NDArray[np.bool_], samples: int) -> Rows:
        return extractor.embed(waves, last).reshape(-1, extractor.width)[: audio_columns(samples) * PATCH_ROWS]

    return rows


def mel_rows(waves: NDArray[np.float32], last: NDArray[np.bool_], samples: int) -> Rows:
    """Return the log-mel frames (n, 128) that hold audio."""
    frames = filterbank(torch.from_numpy(waves), torch.zeros(len(last), dtype=torch.bool)).flatten(0, 1)
    return frames[: -(-samples // FRAME_SHIFT)].numpy()


def clip_features(paths: list[Path], pools: dict[str, Pool], seconds: float) -> dict[str, list[tuple[Rows, Rows]]]:
    """Return (mean, deviation) over the rows of each clip, for every kind of feature."""
    features: dict[str, list[tuple[Rows, Rows]]] = {name: [] for name in pools}
    items = [AudioItem(str(i), str(path), None, None, path.suffix, {}) for i, path in enumerate(paths)]
    limit = int(seconds * 16_000)
    for chunk in load_windows(items, workers=0, chunk_windows=10_000):
        if chunk.error is not None or chunk.samples is None:
            raise ValueError(f"{chunk.item.path}: {chunk.error}")
        samples = min(chunk.samples, limit)
        count = -(-samples // (64 * COLUMN_SAMPLES))
        last = np.arange(count) == len(chunk.waves) - 1
        for name, pool in pools.items():
            rows = pool(chunk.waves[:count], last, samples)
            features[name].append((rows.mean(0), rows.std(0)))
    return features


def probe_accuracy(features: Rows, labels: NDArray[np.str_], groups: NDArray[np.str_]) -> tuple[float, float]:
    """Return the accuracy over all held-out clips of grouped folds, and its standard error."""
    correct = np.zeros(len(labels), bool)
    for train, test in GroupKFold(min(FOLDS, len(set(groups)))).split(features, labels, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        correct[test] = model.fit(features[train], labels[train]).predict(features[test]) == labels[test]
    return float(correct.mean()), float(correct.std() / np.sqrt(len(correct)))


def probe_tasks(
    audio: Path, weights: EncoderWeights, tasks: tuple[str, ...], seconds: float
) -> list[dict[str, object]]:
    """Return one row per task and kind of feature."""
    pools = {"trained": encoder_rows(weights), "random": encoder_rows(random_encoder(weights)), "log-mel": mel_rows}
    results: list[dict[str, object]] = []
    for task in tasks:
        with (audio / "tasks" / f"{task}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        labels = np.array([row["label"] for row in rows])
        groups = np.array([row["group"] for row in rows])
        features = clip_features([audio / row["path"] for row in rows], pools, seconds)
        majority = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
        for name, pairs in features.items():
            means, both = np.stack([m for m, _ in pairs]), np.stack([np.concatenate(pair) for pair in pairs])
            accuracy, error = probe_accuracy(means, labels, groups)
            accuracy_both, error_both = probe_accuracy(both, labels, groups)
            results.append(
                {"task": task, "clips": len(rows), "classes": len(set(labels)), "majority": majority, "features": name}
                | {"mean": accuracy, "mean_error": error, "mean_std": accuracy_both, "mean_std_error": error_both}
            )
            print(results[-1], flush=True)
    return results


def markdown(results: list[dict[str, object]], weights: EncoderWeights) -> str:
    """Return the table for people."""
    lines = [
        f"Encoder `{weights.name}`, hash `{weights.hash}`. Accuracy ± standard error, five grouped folds.",
        "",
        "| task | clips / classes | majority | features | clip mean | clip mean and deviation |",
        "|---|---|---|---|---|---|",
    ]
    for row in results:
        cells = [f"{row[a]:.3f} ± {row[b]:.3f}" for a, b in (("mean", "mean_error"), ("mean_std", "mean_std_error"))]
        lines.append(
            f"| {row['task']} | {row['clips']} / {row['classes']} | {row['majority']:.2f} | {row['features']} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Probe one encoder and write `probe.md` and `probe.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("audio", type=Path)
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each clip, from its start")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = load_weights(args.encoder)
    results = probe_tasks(args.audio, weights, tuple(args.tasks), args.seconds)
    table = markdown(results, weights)
    print(table)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "probe.md").write_text(table, encoding="utf-8")
        (args.out / "probe.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
