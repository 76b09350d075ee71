"""Has an encoder learned anything? Linear probes on clip means, compared with random weights and log-mel features.

    python benchmarks/probe_encoder.py AUDIO --encoder mini --out docs/results/pretraining/mini

AUDIO holds `tasks/*.csv` with columns path, label, group. Clips of one group are never split over training and test.
Features are scaled to unit variance. A logistic regression is fitted in each of five grouped folds, with its strength
chosen by three grouped folds inside the training part. All of that is repeated with other folds (`--repeats`).

Poolings: `mean` over all patches (E values) or frames (128), and `mean, deviation` over frames (256). `random` is the
mean of several networks of random weights (`--random`). Differences are taken clip by clip: the share of right
predictions of the trained encoder, minus that of the other features. Their standard errors describe other clips.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sctok.evaluation.probe.features import LOG_MEL, LOG_MEL_DEVIATION, EncoderSystem, MelSystem, System, embed_clips
from sctok.evaluation.probe.labels import read_task
from sctok.features.checkpoints import EncoderWeights, load_weights
from sctok.features.encoder import AudioMAE
from sctok.features.extractor import FeatureExtractor
from sctok.training.masked_autoencoder import MaskedAutoencoder

TASKS = ("speech_digit", "music_pitch48", "music_instrument12", "music_drum_type", "general_events")
FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = [0.001, 0.01, 0.1, 1.0, 10.0]
TRAINED, RANDOM, MEAN, DEVIATION = "trained: mean", "random: mean", "log-mel: mean", "log-mel: mean, deviation"
Rows = NDArray[np.float32]
Shares = NDArray[np.float64]


def random_encoder(like: EncoderWeights, seed: int) -> EncoderWeights:
    """Return random weights of the same shape, as pretraining starts from."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(AudioMAE(like.config), 64, 1, 1).encoder
    return EncoderWeights("random", like.config, {k: v.detach() for k, v in model.state_dict().items()}, {})


def right(features: Rows, labels: NDArray[np.str_], groups: NDArray[np.str_], repeats: int) -> Shares:
    """Return for each clip the share of repeats in which its held-out label was predicted."""
    correct = np.zeros(len(labels))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    for repeat in range(repeats):
        folds = GroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=repeat)
        for train, test in folds.split(features, labels, groups):
            inner = GroupKFold(min(INNER_FOLDS, len(set(groups[train]))))
            search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=inner, n_jobs=-1)
            search.fit(features[train], labels[train], groups=groups[train])
            correct[test] += search.predict(features[test]) == labels[test]
    return correct / repeats


def probe_task(path: Path, audio: Path, systems: Sequence[System], seconds: float, repeats: int) -> dict[str, object]:
    """Return the results of one task: accuracies, and differences from the trained encoder."""
    embedded = embed_clips(read_task(path, audio).clips, systems, seconds=seconds)
    if embedded.failed:
        raise ValueError(f"{embedded.failed[0].source}: {embedded.failed[0].reason}")
    labels = np.array([clip.label for clip in embedded.clips])
    groups = np.array([clip.group for clip in embedded.clips])
    found = {name: right(rows, labels, groups, repeats) for name, rows in embedded.vectors.items()}
    networks = [shares for name, shares in found.items() if name.startswith("random")]
    columns = {TRAINED: found["trained/features-r100"], RANDOM: np.mean(networks, axis=0)}
    columns |= {MEAN: found[LOG_MEL], DEVIATION: found[LOG_MEL_DEVIATION]}
    return {
        "task": path.stem,
        "clips": len(labels),
        "classes": len(set(labels)),
        "majority": float(np.unique(labels, return_counts=True)[1].max() / len(labels)),
        "accuracy": {name: mean_and_error(shares) for name, shares in columns.items()},
        "random": [float(shares.mean()) for shares in networks],
        "ahead": {name: mean_and_error(columns[TRAINED] - columns[name]) for name in (RANDOM, MEAN, DEVIATION)},
    }


def mean_and_error(values: Shares) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def markdown(results: list[dict[str, Any]], weights: EncoderWeights, repeats: int, networks: int) -> str:
    """Return Markdown tables with a row for each task and a column for each kind of features."""
    about = f"{FOLDS} grouped folds, {repeats} times; random: mean of {networks} networks"
    lines = [f"Encoder `{weights.name}`, hash `{weights.hash}`. Accuracy ± standard error; {about}.", ""]
    lines += ["| task | clips / classes | majority | " + " | ".join((TRAINED, RANDOM, MEAN, DEVIATION)) + " |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in results:
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in row["accuracy"].values()]
        start = f"| {row['task']} | {row['clips']} / {row['classes']} | {row['majority']:.2f} | "
        lines.append(start + " | ".join(cells) + " |")
    lines += ["", "Ahead of them, clip by clip, ± standard error, and in standard errors:", ""]
    lines += [f"| task | {RANDOM} | {MEAN} | {DEVIATION} |", "|---|---|---|---|"]
    for row in results:
        cells = [f"{mean:+.3f} ± {error:.3f} ({mean / error:+.1f})" for mean, error in row["ahead"].values()]
        lines.append(f"| {row['task']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Probe one encoder and write `probe.md` and `probe.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("audio", type=Path)
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds to use from the start of each clip")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions, each with other folds")
    parser.add_argument("--random", type=int, default=3, help="number of networks with random weights")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = load_weights(args.encoder)
    encoders = {"trained": weights} | {f"random-{i}": random_encoder(weights, i) for i in range(args.random)}
    extractors = {name: FeatureExtractor(each, torch.device("cpu"), "fp32") for name, each in encoders.items()}
    systems = [*(EncoderSystem(each, name=name) for name, each in extractors.items()), MelSystem()]
    results = []
    for task in args.tasks:
        path = args.audio / "tasks" / f"{task}.csv"
        results.append(probe_task(path, args.audio, systems, args.seconds, args.repeats))
        print(results[-1], flush=True)
    table = markdown(results, weights, args.repeats, args.random)
    print(table)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "probe.md").write_text(table, encoding="utf-8")
        (args.out / "probe.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
