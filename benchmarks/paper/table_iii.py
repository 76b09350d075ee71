"""Table III at laptop scale: one codec for codebooks of several sizes, compared with one for each size.

    python benchmarks/paper/table_iii.py AUDIO           about 40 minutes on two cores; --quick: minutes

The variable codec is trained with a random codebook in each batch, and decodes tokens of any of them. Each fixed codec
knows a single codebook. All start from the bundled codec, which knows another codebook, and are trained alike. The
paper claims that the variable vocabulary costs little.
"""

import argparse
from pathlib import Path

from paper_codecs import held_out, score
from paper_common import DOMAINS, Report, add_options
from paper_features import feature_root, fit_all, read_features
from paper_training import Budget, Variant, codec_spec, train_all

SIZES, QUICK_SIZES = (512, 2048, 8192), (64, 256)
METRICS = ("mel_dac", "mel_db")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--features", type=Path, help="work directory of sctok with features/ (default: extracted here)"
    )
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--steps", type=int, help="steps of each training")
    parser.add_argument("--clips", type=int, help="number of clips of each domain")
    options = parser.parse_args()
    sizes = sorted(options.sizes or (QUICK_SIZES if options.quick else SIZES))
    budget, work = Budget.of(options.quick, options.steps), options.work / "table_iii"
    root = feature_root(options.audio, options.features, options.work, options.quick)
    vectors = 2_000 if options.quick else 100_000
    features = {d: read_features(root, d, 50, vectors, options.seed) for d in DOMAINS}
    found = fit_all(features, sizes, 50, work, options.seed)
    books = {k: found[f"merged-{k}"] for k in sizes}
    variants = [Variant("variable", list(books.values())), *(Variant(f"fixed-{k}", [books[k]]) for k in sizes)]
    folders = train_all(variants, options.audio, work, budget, options.seed)
    steps = 2 if options.quick else 20
    specs = [codec_spec(f"variable-{k}", folders["variable"], steps, k) for k in sizes]
    specs += [codec_spec(f"fixed-{k}", folders[f"fixed-{k}"], steps) for k in sizes]
    references = held_out(options.audio, work, options.clips or (2 if options.quick else 20), options.seed)
    scores = score(references, specs, METRICS, work)
    settings = {"sizes": sizes, "training_steps": budget.steps, "batch": budget.batch_size, "clips": len(references)}
    settings |= {"sampler_steps": steps, "seed": options.seed, "quick": options.quick}
    report = Report("table_iii", "Table III: variable against fixed vocabulary", settings)
    names = [f"{kind}-{k}" for k in sizes for kind in ("fixed", "variable")]
    rows = [[name, *(scores.mean(name, metric) for metric in METRICS)] for name in names]
    report.table("Mean of domains, lower is better", ["codec and codebook", *METRICS], rows)
    for k in sizes:
        difference = scores.difference(f"variable-{k}", f"fixed-{k}", "mel_dac")
        assert difference is not None
        share = difference.high / scores.mean(f"fixed-{k}", "mel_dac").mean
        verdict = "held" if share < 0.02 else "did not hold" if difference.low > 0 else "was not decided"
        report.claim(
            f"With {k} centroids the variable codec is at most 2 % worse than the fixed one",
            verdict,
            f"difference of mel_dac {difference}, at most {100 * share:.1f} %",
        )
    report.write(options.out)


if __name__ == "__main__":
    main()
