"""Figure 6 at laptop scale: guidance scale and steps of the sampler.

    python benchmarks/paper/figure_6.py AUDIO            about half an hour on two cores; --quick: minutes

The paper finds the best quality at a guidance scale of about 3, and little gain beyond 50 steps of DDIM.
`benchmarks/codec.py --quality` draws the same curves for more samplers.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise

from paper_codecs import Scores, better, held_out, installed, score
from paper_common import Report, add_options

GUIDANCE, QUICK_GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0), (1.0, 3.0)
STEPS, QUICK_STEPS = (5, 10, 20, 50, 100), (2, 4)
METRICS = ("mel_dac", "visqol_audio")


def spec(codec: str, steps: int, guidance: float, eta: float) -> str:
    """Return the codec with a sampler, named after the settings."""
    return f"{codec}:steps={steps},guidance={guidance:g},eta={eta:g},name={name(steps, guidance)}"


def name(steps: int, guidance: float) -> str:
    """Return the name of the setting in tables."""
    return f"steps{steps}-guidance{guidance:g}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--codec", default="mini")
    parser.add_argument("--clips", type=int, help="number of clips of each domain")
    parser.add_argument("--eta", type=float, default=1.0, help="fresh noise in each step; 1 in the published code")
    parser.add_argument("--guidance", type=float, nargs="+", help="guidance scales to try at 50 steps")
    parser.add_argument("--steps", type=int, nargs="+", help="numbers of steps to try at guidance 2")
    parser.add_argument("--metrics", nargs="+", help=f"default: those installed of {', '.join(METRICS)}")
    options = parser.parse_args()
    metrics = options.metrics or (["mel_dac"] if options.quick else installed(METRICS))
    guidance = sorted(options.guidance or (QUICK_GUIDANCE if options.quick else GUIDANCE))
    steps = sorted(options.steps or (QUICK_STEPS if options.quick else STEPS))
    at_steps, at_guidance = (2, 3.0) if options.quick else (50, 2.0)
    clips = options.clips or (2 if options.quick else 12)
    work = options.work / "figure_6"
    points = list(dict.fromkeys([*((at_steps, g) for g in guidance), *((s, at_guidance) for s in steps)]))
    references = held_out(options.audio, work, clips, options.seed)
    specs = [spec(options.codec, s, g, options.eta) for s, g in points]
    scores = score(references, specs, metrics, work)
    settings = {"codec": options.codec, "clips": len(references), "eta": options.eta, "quick": options.quick}
    report = Report("figure_6", "Figure 6: guidance and steps", {**settings, "seed": options.seed})
    for title, chosen in (
        (f"Guidance, at {at_steps} steps", [(at_steps, g) for g in guidance]),
        (f"Steps, at guidance {at_guidance:g}", [(s, at_guidance) for s in steps]),
    ):
        rows = [[s, f"{g:g}", *(scores.mean(name(s, g), metric) for metric in metrics)] for s, g in chosen]
        report.table(title, ["steps", "guidance", *(f"{m}, {better(m)} is better" for m in metrics)], rows)
    for metric in metrics:
        claims(report, scores, metric, (at_steps, at_guidance), guidance, steps)
    report.write(options.out)


def claims(
    report: Report,
    scores: Scores,
    metric: str,
    at: tuple[int, float],
    guidance: Sequence[float],
    steps: Sequence[int],
) -> None:
    """Add the verdicts on differences between settings."""

    def add(text: str, first: tuple[int, float], second: tuple[int, float]) -> None:
        found = scores.difference(name(*first), name(*second), metric)
        assert found is not None
        report.claim(text, found.held(better(metric)), f"difference of {metric} {found}")

    if 1 in guidance and 3 in guidance:
        add("Guidance 3 is better than none", (at[0], 3.0), (at[0], 1.0))
    for less, more in pairwise(g for g in guidance if g >= 3):
        add(f"Guidance {less:g} is better than {more:g}", (at[0], less), (at[0], more))
    for few, many in dict.fromkeys([*pairwise(steps), (steps[0], steps[-1])]):
        if few < many:
            add(f"{many} steps are better than {few}", (many, at[1]), (few, at[1]))


if __name__ == "__main__":
    main()
