"""Table I at laptop scale: codecs at several bit rates, on clips that the bundled models were not trained on.

    python benchmarks/paper/table_i.py AUDIO             about half an hour on two cores; --quick: minutes

The paper compares with EnCodec, DAC and others at 0.35 to 2 kbit/s. Here, Codec2, Opus and MP3 replace them, and
`--codec` adds any codec of `sctok evaluate`. The claim is tested against the codec of each family with the nearest
higher bit rate.
"""

import argparse

from paper_codecs import Scores, better, held_out, installed, score
from paper_common import DOMAINS, Interval, Report, add_options

OURS = ("mini",)
OTHERS = ("codec2:700C", "codec2:1200", "codec2:2400", "codec2:3200", "opus:6", "opus:12", "mp3:8", "mp3:16")
ANCHORS = ("lowpass:3500", "original")
QUICK = ("mini:steps=4,name=mini", "codec2:700C", "codec2:1200", "opus:6", "lowpass:3500")
METRICS = ("mel_dac", "stft_dac", "mel_db", "visqol_audio", "stoi")
CLAIMED = ("mel_dac", "visqol_audio")


def rate(scores: Scores, codec: str) -> float:
    """Return the mean bit rate in kbit/s over clips, or 0 if it is unknown."""
    found = scores.mean(codec, "kbps")
    return found.mean if isinstance(found, Interval) else 0.0


def rivals(scores: Scores, ours: str) -> list[str]:
    """Return the codec of each family with the nearest higher bit rate."""
    families: dict[str, list[str]] = {}
    for name in scores.codecs:
        if (
            name not in (ours, "original")
            and not name.startswith("lowpass")
            and rate(scores, name) > rate(scores, ours)
        ):
            families.setdefault(name.split("-")[0], []).append(name)
    return [min(names, key=lambda name: rate(scores, name)) for names in families.values()]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--ours", nargs="+", default=list(OURS), help="codecs of sctok to compare")
    parser.add_argument("--codec", nargs="+", default=[], help="additional codecs, as for `sctok evaluate`")
    parser.add_argument("--clips", type=int, help="number of clips of each domain")
    parser.add_argument("--metrics", nargs="+", help="metrics (default: those of the paper that are installed)")
    options = parser.parse_args()
    clips = options.clips or (2 if options.quick else 20)
    specs = [*QUICK, *options.codec] if options.quick else [*options.ours, *OTHERS, *ANCHORS, *options.codec]
    work = options.work / "table_i"
    metrics = options.metrics or (["mel_dac", "stft_dac"] if options.quick else installed(METRICS))
    references = held_out(options.audio, work, clips, options.seed)
    scores = score(references, specs, metrics, work)
    settings = {"clips": len(references), "codecs": specs, "quick": options.quick, "seed": options.seed}
    report = Report("table_i", "Table I: codecs at several bit rates", settings)
    for part in ("all", *DOMAINS):
        domains = DOMAINS if part == "all" else (part,)
        rows = [
            [name, f"{rate(scores, name):.2f}", *(scores.mean(name, metric, domains) for metric in metrics)]
            for name in scores.codecs
        ]
        report.table(part if part != "all" else "mean of domains", ["codec", "kbit/s", *metrics], rows)
    claim(report, scores, scores.codecs[0], [metric for metric in metrics if metric in CLAIMED])
    report.write(options.out)


def claim(report: Report, scores: Scores, ours: str, metrics: list[str]) -> None:
    """Add the verdicts on differences from codecs of higher bit rates."""
    for rival in rivals(scores, ours):
        for metric in metrics:
            for domain in DOMAINS:
                found = scores.difference(ours, rival, metric, (domain,))
                if found is None:
                    continue
                text = f"{domain}: {ours} at {rate(scores, ours):.2f} kbit/s beats {rival} at {rate(scores, rival):.2f}"
                report.claim(f"{text} on {metric}", found.held(better(metric)), f"difference {found}")


if __name__ == "__main__":
    main()
