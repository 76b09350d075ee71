"""How does cutting padding change features? Codebooks of one-second clips, and linear probes of short clips.

    python benchmarks/tokenization_padding.py AUDIO [--encoder mini] [--clips 1200] [--tasks speech_digit …]

AUDIO is a folder of audio with `tasks/*.csv` as for benchmarks/probe_encoder.py. Explained variance: stacked features
of one-second stretches of half of the files, quantized by a codebook of the other half. Probes: clip means over the
columns that hold audio.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from parts.markdown import table
from probe_encoder import mean_and_error, right

from sctok import KMeans
from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.windows import (
    PATCH_ROWS,
    SAMPLE_RATE,
    WINDOW_COLUMNS,
    WINDOW_SAMPLES,
    WINDOW_SPAN,
    audio_columns,
    span_samples,
    token_columns,
)
from sctok.evaluation.probe.features import clip_samples
from sctok.evaluation.probe.labels import read_task
from sctok.features.checkpoints import load_weights
from sctok.features.extractor import CUT, PADDINGS, FeatureExtractor
from sctok.formats.stacking import stack_patches

STACK = 2
QUIET = 1e-3  # root mean square below which a second is left out
Values = NDArray[np.float32]


def embed(extractor: FeatureExtractor, audio: Values) -> Values:
    """Return the patch embeddings (8 · columns, width) of the columns of a clip that hold audio."""
    parts = []
    for start in range(0, len(audio), WINDOW_SAMPLES):
        rest = len(audio) - start
        columns = min(WINDOW_COLUMNS, token_columns(rest)) if extractor.padding == CUT else WINDOW_COLUMNS
        wave = np.zeros((1, span_samples(columns)), np.float32)
        heard = audio[start : start + wave.shape[1]]
        wave[0, : len(heard)] = heard
        parts.append(extractor.embed(wave, np.array([rest < WINDOW_SPAN]))[0])
    return np.concatenate(parts)[: audio_columns(len(audio)) * PATCH_ROWS]


def middle_seconds(audio: Path, count: int) -> Iterator[Values]:
    """Yield the middle seconds of `count` random files."""
    found = [item for item in list_audio([str(audio)]) if isinstance(item, AudioItem)]
    np.random.default_rng(0).shuffle(found)  # type: ignore[arg-type]
    for item in found:
        try:
            wave = read_audio(item.open(), name=item.name)
        except AudioError:
            continue
        middle = wave[(len(wave) - SAMPLE_RATE) // 2 :][:SAMPLE_RATE] if len(wave) >= SAMPLE_RATE else wave[:0]
        if len(middle) and np.sqrt(np.mean(middle**2)) > QUIET:
            yield middle
            count -= 1
        if not count:
            return


def explained_variance(vectors: Values, clusters: int) -> float:
    """Return the variance of the second half of vectors that a codebook of the first half explains."""
    train, test = np.array_split(vectors, 2)
    model = KMeans(n_clusters=clusters, random_state=0).fit(train)
    error = ((test - model.cluster_centers_[model.predict(test)]).astype(np.float64) ** 2).sum()
    return float(1 - error / ((test - train.mean(axis=0)).astype(np.float64) ** 2).sum())


def codebook_table(extractors: dict[str, FeatureExtractor], clips: list[Values], sizes: list[int]) -> str:
    """Return explained variance by size of the codebook."""
    columns = {}
    for name, extractor in extractors.items():
        features = np.stack([stack_patches(embed(extractor, clip)[None], STACK)[0] for clip in clips])
        columns[name] = features.reshape(-1, features.shape[-1])
    rows = [(f"{size:,}", *(f"{explained_variance(each, size):.3f}" for each in columns.values())) for size in sizes]
    return table(("centroids", *columns), rows)


def probe_table(extractors: dict[str, FeatureExtractor], audio: Path, tasks: list[str], repeats: int) -> str:
    """Return accuracies of linear probes, and their differences clip by clip."""
    rows = []
    for task in tasks:
        clips = read_task(audio / "tasks" / f"{task}.csv", audio).clips
        heard = [clip_samples(clip.item, 10.0) for clip in clips]
        labels, groups = (np.array([getattr(clip, name) for clip in clips]) for name in ("label", "group"))
        found = []
        for extractor in extractors.values():
            features = np.stack([embed(extractor, wave).mean(axis=0) for wave in heard])
            found.append(right(features, labels, groups, repeats))
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(shares)) for shares in found]
        length = f"{np.median([len(wave) for wave in heard]) / SAMPLE_RATE:.1f}"
        rows.append(
            (task, f"{len(clips)}", length, *cells, "{:+.3f} ± {:.3f}".format(*mean_and_error(found[1] - found[0])))
        )
    return table(("task", "clips", "median s", *extractors, "difference"), rows)


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("audio", type=Path)
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--clips", type=int, default=1200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--tasks", nargs="+", default=["speech_digit", "music_drum_type", "general_events"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    weights, cpu = load_weights(args.encoder), torch.device("cpu")
    extractors = {padding: FeatureExtractor(weights, cpu, "fp32", padding) for padding in PADDINGS}
    clips = list(middle_seconds(args.audio, args.clips))
    print(f"**Explained variance** of one-second clips ({len(clips):,}, half of them to train on)\n", flush=True)
    print(codebook_table(extractors, clips, args.sizes), flush=True)
    print("\n**Linear probes**, accuracy\n")
    print(probe_table(extractors, args.audio, args.tasks, args.repeats))


if __name__ == "__main__":
    main()
