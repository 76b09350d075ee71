"""Table V at laptop scale: size of the acoustic codebook, and LSTMs with one and two directions.

    python benchmarks/paper/table_v.py AUDIO             about 40 minutes on two cores; --quick: minutes

All codecs start from the bundled codec with its semantic codebook and another acoustic one, and are trained alike. The
two compared LSTMs start with random weights. The one-directional LSTM is the same network without its backward
direction, and has half of its weights.
"""

import argparse

from paper_codecs import held_out, score
from paper_common import Report, add_options
from paper_training import Budget, Variant, codec_spec, train_all

from sctok.codec.storage.codec_folder import load_codebooks

SIZES, QUICK_SIZES = (512, 2048, 8192), (64, 256)
METRICS = ("mel_dac", "mel_db")
ONE_WAY, TWO_WAY = "one-directional", "two-directional"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sizes", type=int, nargs="+", help="sizes of the acoustic codebook; both LSTMs use the last")
    parser.add_argument("--steps", type=int, help="steps of each training")
    parser.add_argument("--clips", type=int, help="number of clips of each domain")
    options = parser.parse_args()
    sizes = sorted(options.sizes or (QUICK_SIZES if options.quick else SIZES))
    budget, work = Budget.of(options.quick, options.steps), options.work / "table_v"
    books = load_codebooks("mini")
    variants = [Variant(f"acoustic-{k}", books, {"codebook_size": k}) for k in sizes]
    for name in (ONE_WAY, TWO_WAY):
        variants.append(Variant(name, books, {"codebook_size": sizes[-1]}, fresh=True, one_way=name == ONE_WAY))
    folders = train_all(variants, options.audio, work, budget, options.seed)
    steps = 2 if options.quick else 20
    references = held_out(options.audio, work, options.clips or (2 if options.quick else 20), options.seed)
    scores = score(references, [codec_spec(name, folders[name], steps) for name in folders], METRICS, work)
    settings = {"sizes": sizes, "training_steps": budget.steps, "batch": budget.batch_size, "clips": len(references)}
    settings |= {"sampler_steps": steps, "seed": options.seed, "quick": options.quick}
    report = Report("table_v", "Table V: acoustic codebook and LSTM", settings)
    rows = [
        [name, scores.mean(name, "kbps"), *(scores.mean(name, metric) for metric in METRICS)] for name in scores.codecs
    ]
    report.table("Mean of domains, lower is better", ["codec", "kbit/s", *METRICS], rows)
    largest = f"acoustic-{sizes[-1]}"
    pairs = [(f"acoustic-{k}", largest, f"{sizes[-1]} acoustic codes are better than {k}") for k in sizes[:-1]]
    for worse, better, text in [*pairs, (ONE_WAY, TWO_WAY, "Two directions are better than one")]:
        found = scores.difference(better, worse, "mel_dac")
        assert found is not None
        report.claim(text, found.held("lower"), f"difference of mel_dac {found}")
    report.write(options.out)


if __name__ == "__main__":
    main()
