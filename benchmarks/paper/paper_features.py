"""Features, codebooks and probes for the benchmarks of the paper's tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from paper_common import DOMAINS, TASKS, Values, kept, say

from sctok.audio.inputs.held_out import key_share
from sctok.cli.app import main as sctok
from sctok.evaluation.probe.features import System, embed_clips, name_filter
from sctok.evaluation.probe.labels import LabelledTask, fold_numbers, read_task
from sctok.evaluation.probe.mlp import MlpConfig, probe_folds
from sctok.features.checkpoints import load_weights
from sctok.formats.codebooks import Codebook, CodebookInfo, Segment, load_codebook, save_codebook
from sctok.formats.feature_shards import FeatureShard
from sctok.formats.files import atomic_path, hash_arrays, hash_json
from sctok.formats.stacking import stack_factor
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources.vectors import ArraySource

HELD_OUT = 0.1  # share of the clips that no k-means sees
SHARES = {"general": 2, "speech": 4, "music": 4}  # divisors of the size of a merged codebook: the paper's 2 : 1 : 1
POOLED = "pooled"

Rows = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DomainFeatures:
    """Stacked features (n, D) to cluster, and held-out ones (m, D) with the number of their clip (m,)."""

    train: Rows
    held_out: Rows
    clip: NDArray[np.int64]
    encoder: tuple[str, str]


def feature_root(audio: Path, given: Path | None, work: Path, quick: bool, encoder: str = "mini") -> Path:
    """Return a work directory with features of all domains by the encoder: the given one, or a new one.

    Raises SystemExit if the given features are from another encoder, or features cannot be extracted.
    """
    weights, hours = load_weights(encoder), 0.05 if quick else 2.5
    root = given or work / f"sctok-{weights.hash}-{hours:g}h"
    for domain in DOMAINS:
        folder = root / "features" / domain
        if given is None and not (folder / "summary.json").exists():
            say(f"extracting {domain}")
            options = ["--domain", domain, "--max-hours", str(hours), "--root", str(root), "--encoder", encoder]
            if sctok(["extract", str(audio / domain), *options]):
                raise SystemExit(f"features of {domain} could not be extracted")
        for path in folder.glob("shard-*.h5"):
            with FeatureShard(path) as shard:
                if shard.encoder_hash != weights.hash:
                    raise SystemExit(f"{path} is of another encoder ({shard.encoder_hash}): leave --features out")
    return root


def read_features(root: Path, domain: str, token_rate: int, most: int, seed: int) -> DomainFeatures:
    """Read up to `most` features of a domain to cluster, and a fifth as many held-out ones, by random clips."""
    stack, rng = stack_factor(token_rate), np.random.default_rng((seed, DOMAINS.index(domain)))
    train: list[Rows] = []
    held_out: list[Rows] = []
    clips: list[NDArray[np.int64]] = []
    encoder = ("", "")
    for path in sorted((root / "features" / domain).glob("shard-*.h5")):
        with FeatureShard(path) as shard:
            encoder = str(shard.provenance.get("encoder", "")), shard.encoder_hash
            vectors = shard.read(0, shard.stacked_rows(stack), stack)
            place = 0
            for clip in shard.clips:
                count = clip.rows // stack if stack < 4 else clip.rows // 16 * 4
                rows = vectors[place : place + count]
                place += count
                if key_share(f"paper {clip.key}") < HELD_OUT:
                    held_out.append(rows)
                    clips.append(np.full(count, len(held_out) - 1))
                else:
                    train.append(rows)
    if not train or not held_out:
        raise SystemExit(f"{root}: too few clips of {domain} to hold a tenth of them out")
    chosen = np.sort(rng.permutation(sum(map(len, train)))[:most])
    numbers, held = np.concatenate(clips), np.concatenate(held_out)
    few = np.sort(rng.permutation(len(held))[: most // 5])
    return DomainFeatures(np.concatenate(train)[chosen], held[few], numbers[few], encoder)


def fit_all(
    features: Mapping[str, DomainFeatures], sizes: Sequence[int], token_rate: int, work: Path, seed: int
) -> dict[str, Codebook]:
    """Return merged and pooled codebooks by name, `merged-K` and `pooled-K`, from the work folder if possible."""
    encoder = next(iter(features.values())).encoder
    sources = {domain: (features[domain].train, [k // SHARES[domain] for k in sizes]) for domain in DOMAINS}
    sources[POOLED] = (np.concatenate([features[domain].train for domain in DOMAINS]), list(sizes))
    parts: dict[tuple[str, int], Rows] = {}
    for domain, (rows, ks) in sources.items():
        for k, found in _fitted(domain, rows, ks, work / "codebooks", seed).items():
            parts[domain, k] = found
    books = {}
    for k in sizes:
        order = ("general", "speech", "music")
        merged = [parts[domain, k // SHARES[domain]] for domain in order]
        stops = np.cumsum([len(rows) for rows in merged]).tolist()
        segments = [
            Segment(domain, stop - len(rows), stop) for domain, rows, stop in zip(order, merged, stops, strict=True)
        ]
        books[f"merged-{k}"] = _book("merged", np.concatenate(merged), segments, token_rate, encoder, seed)
        books[f"pooled-{k}"] = _book(POOLED, parts[POOLED, k], [], token_rate, encoder, seed)
    return books


def _book(
    domain: str, rows: Rows, segments: Sequence[Segment], token_rate: int, encoder: tuple[str, str], seed: int
) -> Codebook:
    info = CodebookInfo(domain, tuple(segments), stack_factor(token_rate), *encoder, seed=seed)
    return Codebook(rows, np.zeros(len(rows), np.int64), info)


def _fitted(name: str, rows: Rows, ks: Sequence[int], folder: Path, seed: int) -> dict[int, Rows]:
    source = hash_arrays({"rows": rows})
    paths = {k: folder / f"{name}-{k}-{source}-{seed}.safetensors" for k in ks}
    missing = [k for k in ks if not paths[k].exists()]
    if missing:
        say(f"k-means of {name}: {len(rows)} vectors, {', '.join(map(str, missing))} centroids")
        for k, found in fit_codebooks(ArraySource(rows), missing, KMeansConfig(seed=seed)).items():
            info = CodebookInfo(name, (), 1, "", source, seed=seed)
            save_codebook(paths[k], Codebook(found.centroids, np.zeros(k, np.int64), info))
    return {k: load_codebook(paths[k]).centroids for k in ks}


def read_tasks(audio: Path, names: Iterable[str] = TASKS) -> list[LabelledTask]:
    """Read the existing tasks of AUDIO/tasks."""
    found = [audio / "tasks" / f"{name}.csv" for name in names]
    there = [read_task(path, audio) for path in found if path.exists()]
    if not there:
        raise SystemExit(f"{audio / 'tasks'} holds none of {', '.join(names)}")
    return there


def embedded(task: LabelledTask, systems: Sequence[System], work: Path, seconds: float) -> tuple[LabelledTask, Any]:
    """Return the readable clips of a task and their vectors by representation, stored in the work folder."""
    about = [task.name, seconds, [dict(system.about) for system in systems], [clip.item.key for clip in task.clips]]
    path = work / "vectors" / f"{task.name}-{hash_json(about)}.npz"
    if not path.exists():
        say(f"embedding {len(task.clips)} clips of {task.name}")
        found = embed_clips(task.clips, systems, seconds=seconds, wanted=name_filter(()))
        keys = np.array([clip.item.key for clip in found.clips])
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, __keys__=keys, **found.vectors)
    with np.load(path) as file:
        vectors = {name: file[name] for name in file.files if name != "__keys__"}
        readable = set(file["__keys__"].tolist())
    clips = tuple(clip for clip in task.clips if clip.item.key in readable)
    return LabelledTask(task.name, clips), vectors


def probe(task: LabelledTask, name: str, vectors: Rows, config: MlpConfig, work: Path) -> Values:
    """Return for each clip whether the probe classified it correctly, bool (n,), stored in the work folder."""
    settings = [task.name, name, config.to_json(), hash_arrays({"vectors": vectors})]

    def compute() -> list[bool]:
        _, labels = np.unique([clip.label for clip in task.clips], return_inverse=True)
        folds = fold_numbers(task.clips, config.folds, config.seed)
        found = probe_folds(vectors, labels.astype(np.int64), folds, config, torch.device("cpu"))
        return [bool(each) for each in found.correct]

    label = name.replace("/", "-").replace(" ", "-")
    return np.array(kept(work / "probes", f"{task.name}-{label}", settings, compute), np.float64)
