"""Table VI at laptop scale: a semantic codebook by k-means, compared with a learned one.

    python benchmarks/paper/table_vi.py AUDIO            about 40 minutes on two cores; --quick: minutes

All codebooks quantize the same frozen features. `k-means` is merged from the three domains, as in the paper. `learned`
follows the features by moving averages, batch by batch, like the quantizers of neural codecs (random initial codes,
decay 0.9, as in the published acoustic codebook). `learned, restarts` starts with vectors and replaces unused codes. In
the paper, the learned quantizer has a trained projection before it. Measured on held-out clips: used codes, perplexity,
lost variance, accuracy of the probe, and the mel distance of codecs trained with each codebook.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from paper_codecs import held_out, score
from paper_common import DOMAINS, QUICK_TASKS, TASKS, Report, Values, add_options, bootstrap, say
from paper_features import DomainFeatures, embedded, feature_root, fit_all, probe, read_features, read_tasks
from paper_training import Budget, Variant, codec_spec, train_all
from table_iv import lost_variance

from sctok.codec.models.ema_codebook import EMAVectorQuantizer, VQConfig
from sctok.evaluation.probe.features import EncoderSystem
from sctok.evaluation.probe.mlp import MlpConfig
from sctok.features.checkpoints import load_weights
from sctok.features.extractor import FeatureExtractor
from sctok.formats.codebooks import Codebook, CodebookInfo, load_codebook, save_codebook
from sctok.formats.files import hash_arrays, hash_json
from sctok.kernels.assign import nearest_centroid

BATCH = 2048  # vectors of eight windows at 50 tokens per second
LEARNED = {"learned": {"decay": 0.9}, "learned-restarts": {"decay": 0.98, "init": "rows", "restart_threshold": 0.03}}
RATE = 50


def learn(name: str, vectors: np.ndarray, like: Codebook, steps: int, work: Path, seed: int) -> Codebook:
    """Learn a codebook of the size of `like` from vectors (n, D) in random batches."""
    settings = [LEARNED[name], hash_arrays({"vectors": vectors}), like.k, steps, seed]
    path = work / "codebooks" / f"{name}-{like.k}-{hash_json(settings)}.safetensors"
    if not path.exists():
        say(f"{name}: {steps} batches")
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        quantizer = EMAVectorQuantizer(VQConfig(vectors.shape[1], like.k, **LEARNED[name])).train()
        for _ in range(steps):
            quantizer(torch.from_numpy(vectors[rng.integers(0, len(vectors), BATCH)])[None])
        about = like.metadata
        info = CodebookInfo(name, (), about.stack_factor, about.encoder, about.encoder_hash, seed, "moving averages")
        save_codebook(path, Codebook(quantizer.codes.numpy(), np.zeros(like.k, np.int64), info))
    return load_codebook(path)


def use(features: dict[str, DomainFeatures], book: Codebook) -> tuple[int, float]:
    """Return the number of codes that held-out features use, and their perplexity."""
    points = torch.from_numpy(np.concatenate([each.held_out for each in features.values()]))
    counts = torch.bincount(
        nearest_centroid(points, torch.from_numpy(book.centroids)).labels, minlength=book.k
    ).double()
    shares = counts[counts > 0] / counts.sum()
    return int((counts > 0).sum()), float(torch.exp(-(shares * shares.log()).sum()))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--features", type=Path, help="work directory of sctok with features/ (default: extracted here)"
    )
    parser.add_argument("--size", type=int, help="size of the codebooks")
    parser.add_argument("--steps", type=int, help="steps of each training of a codec; 0 for none")
    parser.add_argument("--clips", type=int, help="number of clips of each domain")
    options = parser.parse_args()
    quick, work = options.quick, options.work / "table_vi"
    size, batches = options.size or (128 if quick else 4096), 50 if quick else 3000
    root = feature_root(options.audio, options.features, options.work, options.quick)
    features = {d: read_features(root, d, RATE, 2_000 if quick else 100_000, options.seed) for d in DOMAINS}
    books = {"k-means": fit_all(features, [size], RATE, work, options.seed)[f"merged-{size}"]}
    everything = np.concatenate([each.train for each in features.values()])
    for name in LEARNED:
        books[name] = learn(name, everything, books["k-means"], batches, work, options.seed)
    settings = {"size": size, "batches": batches, "quick": quick, "seed": options.seed, "training_steps": options.steps}
    report = Report("table_vi", "Table VI: k-means against a learned semantic codebook", settings)
    semantics(report, features, books, work, options)
    if options.steps != 0:
        codecs(report, books, work, options)
    report.write(options.out)


def semantics(
    report: Report,
    features: dict[str, DomainFeatures],
    books: dict[str, Codebook],
    work: Path,
    options: argparse.Namespace,
) -> None:
    """Add the lost variance and the accuracy of each codebook."""
    lost = {name: [lost_variance(features[domain], book) for domain in DOMAINS] for name, book in books.items()}
    system = EncoderSystem(FeatureExtractor(load_weights("mini"), torch.device("cpu"), "fp32"), [*books.values()])
    config = MlpConfig(grid_points=1, max_epochs=60) if options.quick else MlpConfig()
    hits: dict[str, list[Values]] = {name: [] for name in books}
    for task in read_tasks(options.audio, QUICK_TASKS if options.quick else TASKS):
        clips, found = embedded(task, [system], work, 10.24)
        for name, key in zip(books, system.streams, strict=True):
            hits[name].append(probe(clips, name, found[key], config, work))
    rows = []
    for name, book in books.items():
        used, perplexity = use(features, book)
        variance = bootstrap([values for values, _ in lost[name]], [weights for _, weights in lost[name]])
        rows.append([name, used, f"{perplexity:.0f}", variance, bootstrap(hits[name])])
    report.table("Held-out clips", ["codebook", "codes used", "perplexity", "variance lost", "accuracy"], rows)
    for name in LEARNED:
        pairs = zip(hits["k-means"], hits[name], strict=True)
        found = bootstrap([ours - theirs for ours, theirs in pairs])
        report.claim(f"k-means is more accurate than {name}", found.held(), f"difference {found}")


def codecs(report: Report, books: dict[str, Codebook], work: Path, options: argparse.Namespace) -> None:
    """Add the mel distances of codecs trained with each codebook."""
    budget, steps = Budget.of(options.quick, options.steps), 2 if options.quick else 20
    variants = [Variant(name, [book]) for name, book in books.items()]
    folders = train_all(variants, options.audio, work, budget, options.seed)
    references = held_out(options.audio, work, options.clips or (2 if options.quick else 20), options.seed)
    scores = score(references, [codec_spec(name, folders[name], steps) for name in folders], ["mel_dac"], work)
    rows = [[name, scores.mean(name, "mel_dac")] for name in folders]
    report.table("Codecs trained with them, mean of domains", ["codebook", "mel_dac"], rows)
    for name in LEARNED:
        found = scores.difference("k-means", name, "mel_dac")
        assert found is not None
        report.claim(f"A codec with k-means sounds nearer than with {name}", found.held("lower"), f"difference {found}")


if __name__ == "__main__":
    main()
