"""Table IV at laptop scale: accuracy and inertia by number of centroids, ensemble of domains and one k-means.

    python benchmarks/paper/table_iv.py AUDIO            about 2 hours on two cores; --quick: minutes

For each size K, `merged` joins k-means of general sound (K/2), speech and music (K/4 each), as in the paper. `pooled`
is one k-means with K centroids over the same vectors. Both are measured on held-out clips: the share of the variance
that quantization loses, and the accuracy of HEAR's probe on clip means of the centroids. `--features` takes a work
directory of sctok with features of the three domains.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from paper_common import DOMAINS, QUICK_TASKS, TASKS, Interval, Report, Values, add_options, bootstrap
from paper_features import DomainFeatures, embedded, feature_root, fit_all, probe, read_features, read_tasks

from sctok.evaluation.probe.features import EncoderSystem, MelSystem
from sctok.evaluation.probe.mlp import MlpConfig
from sctok.features.checkpoints import load_weights
from sctok.features.extractor import FeatureExtractor
from sctok.formats.codebooks import Codebook
from sctok.kernels.assign import nearest_centroid

SIZES, QUICK_SIZES = (256, 512, 1024, 2048, 4096, 8192), (64, 256)
VECTORS, QUICK_VECTORS = 100_000, 4_000
KINDS = ("merged", "pooled")


def lost_variance(features: DomainFeatures, book: Codebook) -> tuple[Values, Values]:
    """Return for each held-out clip the lost share of the variance (c,) and its number of vectors (c,)."""
    points = torch.from_numpy(features.held_out)
    found = nearest_centroid(points, torch.from_numpy(book.centroids)).distances.double().numpy()
    variance = features.held_out.astype(np.float64).var(axis=0).sum()
    weights = np.bincount(features.clip)
    sums = np.bincount(features.clip, found / variance)
    return sums[weights > 0] / weights[weights > 0], weights[weights > 0].astype(np.float64)


def inertia_table(report: Report, features: dict[str, DomainFeatures], books: dict[str, Codebook]) -> None:
    """Add the lost variance by size, kind and domain, and the verdicts on the claims."""
    lost = {name: {domain: lost_variance(features[domain], book) for domain in DOMAINS} for name, book in books.items()}
    sizes = sorted({book.k for book in books.values()})

    def mean(name: str, domains: tuple[str, ...] = DOMAINS) -> Interval:
        return bootstrap([lost[name][d][0] for d in domains], [lost[name][d][1] for d in domains])

    def difference(first: str, second: str, domains: tuple[str, ...] = DOMAINS) -> Interval:
        return bootstrap(
            [lost[first][d][0] - lost[second][d][0] for d in domains], [lost[first][d][1] for d in domains]
        )

    rows = [
        [k, kind, mean(f"{kind}-{k}"), *(mean(f"{kind}-{k}", (d,)) for d in DOMAINS)] for k in sizes for kind in KINDS
    ]
    report.table("Variance lost, held-out clips", ["K", "codebook", "mean of domains", *DOMAINS], rows)
    for k in sizes:
        found = difference(f"merged-{k}", f"pooled-{k}")
        report.claim(
            f"With K = {k} the ensemble loses less of the variance than one k-means",
            found.held("lower"),
            f"difference of the lost shares {found}",
        )
    steps = [difference(f"merged-{big}", f"merged-{small}") for small, big in pairwise(sizes)]
    worst = max(steps, key=lambda step: step.high)
    report.claim("Inertia falls with every doubling of the centroids", worst.held("lower"), f"smallest step {worst}")


def accuracy_table(report: Report, correct: dict[str, dict[str, Values]], sizes: list[int]) -> None:
    """Add the accuracies by representation (name → task → hits), and the verdicts on the claims."""
    tasks = list(next(iter(correct.values())))

    def difference(first: str, second: str) -> Interval:
        return bootstrap([correct[first][task] - correct[second][task] for task in tasks])

    rows = [
        [name, bootstrap(list(hits.values())), *(bootstrap([hits[task]]) for task in tasks)]
        for name, hits in correct.items()
    ]
    report.table("Accuracy of the probe", ["features", "mean of tasks", *tasks], rows)
    for k in sizes:
        found = difference(f"merged-{k}", f"pooled-{k}")
        report.claim(
            f"With K = {k} the ensemble is more accurate than one k-means", found.held(), f"difference {found}"
        )
    found = difference(f"merged-{sizes[-1]}", f"merged-{sizes[0]}")
    report.claim(f"{sizes[-1]} centroids are more accurate than {sizes[0]}", found.held(), f"difference {found}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--features", type=Path, help="work directory of sctok with features/ (default: extracted here)"
    )
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--token-rate", type=int, default=50, choices=(25, 50, 100))
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--vectors", type=int, help="number of vectors of each domain to cluster")
    parser.add_argument("--tasks", nargs="+")
    options = parser.parse_args()
    sizes = sorted(options.sizes or (QUICK_SIZES if options.quick else SIZES))
    vectors = options.vectors or (QUICK_VECTORS if options.quick else VECTORS)
    config = MlpConfig(grid_points=1, max_epochs=60) if options.quick else MlpConfig()
    work = options.work / "table_iv"
    root = feature_root(options.audio, options.features, options.work, options.quick, options.encoder)
    features = {d: read_features(root, d, options.token_rate, vectors, options.seed) for d in DOMAINS}
    books = fit_all(features, sizes, options.token_rate, work, options.seed)
    settings = {"sizes": sizes, "vectors": {d: len(f.train) for d, f in features.items()}, "quick": options.quick}
    settings |= {"token_rate": options.token_rate, "encoder": options.encoder, "seed": options.seed}
    report = Report("table_iv", "Table IV: number of centroids, and the ensemble", settings)
    inertia_table(report, features, books)
    system = EncoderSystem(
        FeatureExtractor(load_weights(options.encoder), torch.device("cpu"), "fp32"), [*books.values()]
    )
    correct: dict[str, dict[str, Values]] = {}
    for task in read_tasks(options.audio, options.tasks or (QUICK_TASKS if options.quick else TASKS)):
        clips, found = embedded(task, [MelSystem(), system], work, 10.24)
        names = {
            "log-mel": "log-mel with deviation",
            "not quantized": f"{options.encoder}/features-r{options.token_rate}",
        }
        names |= {name: f"{options.encoder}/{name}-r{options.token_rate}" for name in books}
        for name, key in names.items():
            correct.setdefault(name, {})[task.name] = probe(clips, name, found[key], config, work)
    accuracy_table(report, correct, sizes)
    report.write(options.out)


if __name__ == "__main__":
    main()
