"""Markdown tables and figures of benchmarks/codec.py."""

import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .markdown import table

# Seconds per window of 10.24 s of the published implementation, at 100 tokens per second on two cores.
PUBLISHED_RATE, PUBLISHED_STEPS = 100, 50
PUBLISHED_STAGES = {
    "AudioMAE": 0.46,
    "BiLSTM + VQ": 3.7,
    "T-UNet step with guidance": 0.8,
    "VAE": 4.2,
    "vocoder": 6.9,
}
PUBLISHED_ANY_RATE = ("AudioMAE", "VAE", "vocoder")  # have the same size at all token rates
PUBLISHED_ENCODE = 4.9
PUBLISHED_NOTE = (
    "The published figures are reference measurements of the published implementation at 100 tokens/s, stand-in "
    "weights, one window at a time on two such cores, made on another occasion: they are constants here, not measured "
    "in this run. They are shown only next to a codec of the published sizes."
)
TARGETS = {"encode": 2.5, "equal steps": 1.6, "equal quality": 5.0}


def published_decode(steps: int) -> float:
    """Return the seconds per window in which the published implementation decodes with `steps` DDIM steps."""
    stages = PUBLISHED_STAGES
    return steps * stages["T-UNet step with guidance"] + stages["VAE"] + stages["vocoder"]


def speed_report(results: dict[str, Any]) -> str:
    """Return the tables of stages and totals."""
    return "\n\n".join((_heading(results), _stages(results), _totals(results), PUBLISHED_NOTE))


def _heading(results: dict[str, Any]) -> str:
    machine, codec = results["machine"], results["codec"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = " ".join(f"{value:.1f}" for value in machine["load"])
    sizes = ", ".join(f"{name} {value / 1e6:,.1f} M" for name, value in codec["parameters"].items())
    return (
        f"### Codec {codec['name']}, {codec['token_rate']} tokens/s, {results['windows']} windows of 10.24 s\n\n"
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {results['device']}, "
        f"{results['precision']}, load at the end {load}; Python {machine['python']}, {versions}. T-UNet batches of "
        f"{results['at_once']} windows. Parameters: {sizes}; codebook {codec['codebook']:,} rows."
    )


def _stages(results: dict[str, Any]) -> str:
    rows, codec = [], results["codec"]
    for name, each in results["stages"].items():
        gflop, seconds = each["gflop"], each["seconds"]
        like = codec["published_sizes"] and (codec["token_rate"] == PUBLISHED_RATE or name in PUBLISHED_ANY_RATE)
        published = PUBLISHED_STAGES.get(name) if like else None
        rows.append(
            (
                name,
                "–" if gflop is None else f"{gflop:,.3g}",
                f"{seconds:.4f}",
                "–" if gflop is None else f"{gflop / seconds:,.0f}",
                "–" if published is None else f"{published:g}",
                "–" if published is None else f"{published / seconds:.2f}×",
            )
        )
    header = ("stage", "GFLOP per window", "seconds per window", "GFLOP/s", "published, s", "speed-up")
    return table(header, rows)


def _totals(results: dict[str, Any]) -> str:
    encode = results["encode"]
    rows = [_total("encode", encode, PUBLISHED_ENCODE, PUBLISHED_ENCODE, results["codec"])]
    for each in results["decode"]:
        eta = f", η = {each['eta']:g}" if each["name"] == "ddim" else ""
        name = f"decode, {each['name']}{eta}, {each['steps']} steps, guidance {each['guidance']:g}"
        published = published_decode(each["steps"]), published_decode(PUBLISHED_STEPS)
        rows.append(_total(name, each, *published, results["codec"]))
    targets = (
        f"To reach: encode {TARGETS['encode']:g}×, decode {TARGETS['equal steps']:g}× at equal steps and "
        f"{TARGETS['equal quality']:g}× with the fewer steps that give the quality of {PUBLISHED_STEPS}."
    )
    header = (
        "seconds per window",
        "sum of stages",
        "whole call",
        "published, equal steps",
        "speed-up",
        f"published, {PUBLISHED_STEPS} steps",
        "speed-up",
    )
    return f"{table(header, rows)}\n\n{targets}"


def _total(name: str, ours: dict[str, float], equal: float, full: float, codec: dict[str, Any]) -> tuple[str, ...]:
    cells = (name, f"{ours['stages']:.3f}", f"{ours['whole']:.3f}")
    if not codec["published_sizes"] or codec["token_rate"] != PUBLISHED_RATE:
        return (*cells, *("–",) * 4)
    return (*cells, *(text for each in (equal, full) for text in (f"{each:.1f}", f"{each / ours['whole']:.2f}×")))


def quality_report(results: dict[str, Any]) -> str:
    """Return the tables of distances by steps, by guidance and with shuffled tokens."""
    runs = results["runs"]
    head = (
        f"### Quality of {results['codec']['name']}: DAC mel distance of {len(results['clips'])} clips, "
        f"{results['seconds']:.0f} s\n\nMean over clips, smaller is better, ± one standard error."
    )
    floors = ", ".join(f"{name} {each['mean']:.3f}" for name, each in results["floors"].items())
    at, base = runs["at"], results["shuffled"]["none"]
    kind = f"{at['name']}, η = {at['eta']:g}, {at['steps']} steps, guidance {at['guidance']:g}"
    parts = [head, f"Without tokens: {floors}."]
    for axis, fixed in (("steps", f"guidance {at['guidance']:g}"), ("guidance", f"{at['steps']} steps")):
        parts.append(_curves(axis, results[axis], fixed, _value))
    parts.append(f"Difference from {kind}, clip by clip:")
    for axis in ("steps", "guidance"):
        parts.append(_curves(axis, results[axis], "difference", partial(_difference, base)))
    parts.append(_shuffled(results["shuffled"]))
    return "\n\n".join(parts)


def _shuffled(shuffled: dict[str, dict[str, Any]]) -> str:
    base, rows = shuffled["none"], []
    for name, each in shuffled.items():
        lower = [theirs - ours for ours, theirs in zip(base["distances"], each["distances"], strict=True)]
        share = f"{100 * (1 - base['mean'] / each['mean']):.1f} %, in {sum(x > 0 for x in lower)} of {len(lower)} clips"
        rows.append((name, _value(each), "–" if each is base else share))
    return table(("tokens shuffled within each clip", "distance", "unshuffled is lower by"), rows)


def _curves(
    axis: str, curves: dict[str, list[dict[str, Any]]], fixed: str, cell: Callable[[dict[str, Any]], str]
) -> str:
    values = [f"{each[axis]:g}" for each in next(iter(curves.values()))]
    rows = [(name, *map(cell, runs)) for name, runs in curves.items()]
    return table((f"{axis} ({fixed})", *values), rows)


def _difference(base: dict[str, Any], run: dict[str, Any]) -> str:
    found = [ours - theirs for ours, theirs in zip(run["distances"], base["distances"], strict=True)]
    spread = f" ± {statistics.stdev(found) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.3f}{spread}"


def _value(run: dict[str, Any]) -> str:
    return f"{run['mean']:.3f}" + ("" if run["error"] is None else f" ± {run['error']:.3f}")


def need_matplotlib() -> None:
    """Exit with a message if matplotlib is missing, before hours of measurement."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--plots needs matplotlib: pip install sctok[eval], or leave --plots out")


def save_quality_plots(results: dict[str, Any], folder: Path) -> None:
    """Write PNG plots of distance against steps and guidance (the paper's Figure 6) and for shuffled tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    runs = results["runs"]
    floor = results["floors"]["VAE and vocoder"]["mean"]
    figure, panes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _draw(panes[0], "steps", results["steps"], f"guidance {runs['at']['guidance']:g}")
    panes[0].set_xscale("log")
    panes[0].set_xticks(runs["steps"], [str(step) for step in runs["steps"]])
    panes[0].minorticks_off()
    _draw(panes[1], "guidance", results["guidance"], f"{runs['at']['steps']} steps")
    for axes in panes:
        axes.axhline(floor, color="grey", linestyle=":", label="VAE and vocoder only")
        axes.legend()
    figure.savefig(folder / "quality-sampling.png", dpi=150)
    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    names, bars = list(results["shuffled"]), list(results["shuffled"].values())
    means, errors = [each["mean"] for each in bars], [each["error"] or 0.0 for each in bars]
    axes.bar(names, means, yerr=errors, color="lightgrey", ecolor="black", capsize=4)
    axes.axhline(floor, color="grey", linestyle=":")
    axes.set(xlabel="tokens shuffled within each clip", ylabel="DAC mel distance")
    figure.savefig(folder / "quality-shuffled.png", dpi=150)


def _draw(axes: Any, axis: str, curves: dict[str, list[dict[str, Any]]], title: str) -> None:
    for name, runs in curves.items():
        axes.plot([each[axis] for each in runs], [each["mean"] for each in runs], marker="o", label=name)
    axes.set(xlabel=axis, ylabel="DAC mel distance", title=title)
    axes.grid(alpha=0.3, which="both")
