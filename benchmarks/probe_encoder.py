"""Has an encoder learned anything? Linear probes on clip means, beside random weights and log-mel features.

    python benchmarks/probe_encoder.py AUDIO --encoder mini --out docs/pretraining/mini

AUDIO holds `tasks/*.csv` with columns path, label, group; clips of one group never straddle training and test.
Features are scaled to unit variance and a logistic regression is fitted in each of five grouped folds, its strength
chosen by three grouped folds inside the training part. Poolings: `mean` over all patches (E values) or frames (128),
and `mean, deviation` over frames (256).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sctok.evaluation.probe_features import LOG_MEL, LOG_MEL_DEVIATION, EncoderSystem, MelSystem, embed_clips
from sctok.evaluation.probe_labels import read_task
from sctok.features.checkpoints import EncoderWeights, load_weights
from sctok.features.encoder import AudioMAE
from sctok.features.extractor import FeatureExtractor
from sctok.features.masked import MaskedAutoencoder

TASKS = ("speech_digit", "music_pitch48", "music_instrument12", "music_drum_type", "general_events")
FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = [0.001, 0.01, 0.1, 1.0, 10.0]
COLUMNS = {
    "trained/features-r100": ("trained", "mean"),
    "random/features-r100": ("random", "mean"),
    LOG_MEL: ("log-mel", "mean"),
    LOG_MEL_DEVIATION: ("log-mel", "mean, deviation"),
}
Rows = NDArray[np.float32]


def random_encoder(like: EncoderWeights, seed: int = 0) -> EncoderWeights:
    """Return weights of the same shape as pretraining starts from."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(AudioMAE(like.config), 64, 1, 1).encoder
    return EncoderWeights("random", like.config, {k: v.detach() for k, v in model.state_dict().items()}, {})


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
    cpu = torch.device("cpu")
    encoders = {"trained": weights, "random": random_encoder(weights)}
    systems = [EncoderSystem(FeatureExtractor(each, cpu, "fp32"), name=name) for name, each in encoders.items()]
    results: list[dict[str, object]] = []
    for task in tasks:
        embedded = embed_clips(
            read_task(audio / "tasks" / f"{task}.csv", audio).clips, [*systems, MelSystem()], seconds=seconds
        )
        if embedded.failed:
            raise ValueError(f"{embedded.failed[0].source}: {embedded.failed[0].reason}")
        labels = np.array([clip.label for clip in embedded.clips])
        groups = np.array([clip.group for clip in embedded.clips])
        majority = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
        about = {"task": task, "clips": len(labels), "classes": len(set(labels)), "majority": majority}
        for which, (name, pooling) in COLUMNS.items():
            accuracy, error = probe_accuracy(embedded.vectors[which], labels, groups)
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
