"""Has an encoder learned anything? Linear probes on clip means, beside random weights and log-mel features.

    python benchmarks/probe_encoder.py AUDIO --encoder mini --out docs/pretraining/mini

AUDIO holds `tasks/*.csv` with columns path, label, group; clips of one group never straddle training and test.
Features are scaled to unit variance and a logistic regression is fitted in each of five grouped folds, its strength
chosen by three grouped folds inside the training part. Poolings: `mean` over all patches (E values) or frames (128),
and `mean, deviation` over frames (256).
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
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sctok.audio.filterbank import filterbank
from sctok.audio.loader import load_windows
from sctok.audio.sources import AudioItem
from sctok.audio.windows import FRAME_SHIFT, PATCH_ROWS, SAMPLE_RATE, WINDOW_SAMPLES, audio_columns
from sctok.features.checkpoints import EncoderWeights, load_weights
from sctok.features.encoder import AudioMAE
from sctok.features.extractor import FeatureExtractor
from sctok.features.masked import MaskedAutoencoder

TASKS = ("speech_digit", "music_pitch48", "music_instrument12", "music_drum_type", "general_events")
FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = [0.001, 0.01, 0.1, 1.0, 10.0]
Rows = NDArray[np.float32]
Embed = Callable[[NDArray[np.float32], NDArray[np.bool_], int], Rows]
System = tuple[Embed, Callable[[Rows], dict[str, Rows]]]


def random_encoder(like: EncoderWeights, seed: int = 0) -> EncoderWeights:
    """Return weights of the same shape as pretraining starts from."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(AudioMAE(like.config), 64, 1, 1).encoder
    return EncoderWeights("random", like.config, {k: v.detach() for k, v in model.state_dict().items()}, {})


def encoder_rows(weights: EncoderWeights) -> Embed:
    """Return a function from windows to the patch embeddings (n, E) that hold audio."""
    extractor = FeatureExtractor(weights, torch.device("cpu"), "fp32")

    def rows(waves: NDArray[np.float32], last: NDArray[np.bool_], samples: int) -> Rows:
        return extractor.embed(waves, last).reshape(-1, extractor.width)[: audio_columns(samples) * PATCH_ROWS]

    return rows


def mel_rows(waves: NDArray[np.float32], last: NDArray[np.bool_], samples: int) -> Rows:
    """Return the log-mel frames (n, 128) that hold audio."""
    frames = filterbank(torch.from_numpy(waves), torch.zeros(len(last), dtype=torch.bool)).flatten(0, 1)
    return frames[: -(-samples // FRAME_SHIFT)].numpy()


def pool_patches(rows: Rows) -> dict[str, Rows]:
    """Pool the patches (n, E) of a clip."""
    return {"mean": rows.mean(0)}


def pool_frames(rows: Rows) -> dict[str, Rows]:
    """Pool the log-mel frames (n, 128) of a clip."""
    return {"mean": rows.mean(0), "mean, deviation": np.concatenate([rows.mean(0), rows.std(0)])}


def clip_features(paths: list[Path], systems: dict[str, System], seconds: float) -> dict[tuple[str, str], Rows]:
    """Return the pooled features (clips, D) by system and pooling."""
    features: dict[tuple[str, str], list[Rows]] = {}
    items = [AudioItem(str(i), str(path), None, None, path.suffix, {}) for i, path in enumerate(paths)]
    limit = int(seconds * SAMPLE_RATE)
    for chunk in load_windows(items, workers=0, chunk_windows=10_000):
        if chunk.error is not None or chunk.samples is None:
            raise ValueError(f"{chunk.item.path}: {chunk.error}")
        samples = min(chunk.samples, limit)
        count = -(-samples // WINDOW_SAMPLES)
        last = np.arange(count) == len(chunk.waves) - 1
        for name, (embed, pool) in systems.items():
            for pooling, values in pool(embed(chunk.waves[:count], last, samples)).items():
                features.setdefault((name, pooling), []).append(values)
    return {which: np.stack(rows) for which, rows in features.items()}


def probe_accuracy(features: Rows, labels: NDArray[np.str_], groups: NDArray[np.str_]) -> tuple[float, float]:
    """Return the accuracy over all held-out clips of grouped folds, and its standard error."""
    correct = np.zeros(len(labels), bool)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    for train, test in GroupKFold(min(FOLDS, len(set(groups)))).split(features, labels, groups):
        inner = GroupKFold(min(INNER_FOLDS, len(set(groups[train]))))
        search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=inner, n_jobs=-1)
        search.fit(features[train], labels[train], groups=groups[train])
        correct[test] = search.predict(features[test]) == labels[test]
    return float(correct.mean()), float(correct.std() / np.sqrt(len(correct)))


def probe_tasks(
    audio: Path, weights: EncoderWeights, tasks: tuple[str, ...], seconds: float
) -> list[dict[str, object]]:
    """Return one row per task and kind of feature."""
    systems: dict[str, System] = {
        "trained": (encoder_rows(weights), pool_patches),
        "random": (encoder_rows(random_encoder(weights)), pool_patches),
        "log-mel": (mel_rows, pool_frames),
    }
    results: list[dict[str, object]] = []
    for task in tasks:
        with (audio / "tasks" / f"{task}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        labels = np.array([row["label"] for row in rows])
        groups = np.array([row["group"] for row in rows])
        majority = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
        about = {"task": task, "clips": len(rows), "classes": len(set(labels)), "majority": majority}
        for (name, pooling), features in clip_features([audio / row["path"] for row in rows], systems, seconds).items():
            accuracy, error = probe_accuracy(features, labels, groups)
            results.append({**about, "features": name, "pooling": pooling, "accuracy": accuracy, "error": error})
            print(results[-1], flush=True)
    return results


def markdown(results: list[dict[str, object]], weights: EncoderWeights) -> str:
    """Return the table for people: a row per task, a column per system and pooling."""
    columns = list(dict.fromkeys((row["features"], row["pooling"]) for row in results))
    lines = [
        f"Encoder `{weights.name}`, hash `{weights.hash}`. Accuracy ± standard error, {FOLDS} grouped folds.",
        "",
        "| task | clips / classes | majority | " + " | ".join(f"{name}: {pooling}" for name, pooling in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for task in dict.fromkeys(row["task"] for row in results):
        rows = {(row["features"], row["pooling"]): row for row in results if row["task"] == task}
        first = next(iter(rows.values()))
        cells = [f"{rows[column]['accuracy']:.3f} ± {rows[column]['error']:.3f}" for column in columns]
        about = f"| {task} | {first['clips']} / {first['classes']} | {first['majority']:.2f} | "
        lines.append(about + " | ".join(cells) + " |")
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
