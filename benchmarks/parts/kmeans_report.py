"""Comparisons, Markdown tables and figures of benchmarks/kmeans.py."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .kmeans_systems import OURS
from .markdown import table

TICKS = (-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50, 100)
FLAT = "superkmeans"  # the goal is half of this system's time to the target


def median_curve(runs: Sequence[Sequence[tuple[float, float]]]) -> list[list[float]]:
    """Return the median seconds and inertia of each step over the runs."""
    return [[statistics.median(values) for values in zip(*steps, strict=True)] for steps in zip(*runs, strict=False)]


def first_time(curve: Sequence[Sequence[float]], target: float | None) -> float | None:
    """Return the first second at which a curve is at or below the target, or None if it never is."""
    return min((seconds for seconds, inertia in curve if target is not None and inertia <= target), default=None)


def points_below(curves: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Return the points of peers at which the best inertia of sctok so far is higher, or missing."""
    found = []
    for name, curve in curves.items():
        for seconds, inertia in curve if name != OURS else []:
            ours = min((value for at, value in curves[OURS] if at <= seconds), default=None)
            if ours is None or ours > inertia:
                found.append({"peer": name, "seconds": seconds, "inertia": inertia, OURS: ours})
    return found


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Return the slope of log seconds over log size by least squares."""
    sizes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def describe_machine(peers: dict[str, str | None], threads: int) -> dict[str, Any]:
    """Return the processor, the load and the versions of the measurement."""
    names = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("sctok", "torch", "numpy")},
        "peers": peers,
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def fastest_exact(details: dict[str, Any]) -> tuple[str, float] | None:
    """Return the name and seconds of the fastest peer without a wrong label on one task."""
    exact = [(seconds, name) for name, seconds in details["seconds"].items() if not details["mismatches"][name]]
    peers = sorted(pair for pair in exact if pair[1] != OURS)
    return (peers[0][1], peers[0][0]) if peers else None


def fastest(details: dict[str, Any]) -> tuple[str, float] | None:
    """Return the name and seconds of the fastest peer on one task, with or without wrong labels."""
    peers = sorted((seconds, name) for name, seconds in details["seconds"].items() if name != OURS)
    return (peers[0][1], peers[0][0]) if peers else None


def final_ratios(each: dict[str, Any]) -> dict[str, float]:
    """Return the ratio of sctok's worst and best inertia to the best run of all peers, by kind of start."""
    ratios = {}
    for kind in ("given", "own"):
        peers = [value for name, values in each[kind].items() if name != OURS for value in values]
        if peers:
            ratios[f"{kind}, worst"] = max(each[kind][OURS]) / min(peers)
            ratios[f"{kind}, best"] = min(each[kind][OURS]) / min(peers)
    return ratios


def markdown_report(results: dict[str, Any]) -> str:
    """Return the tables of all measurements."""
    parts = [_machine(results), _targets(results)]
    for kind, what in (
        ("trained", "two iterations of Lloyd on other vectors"),
        ("sampled", "other vectors, as they are"),
    ):
        if tables := results.get("assign_details", {}).get(kind):
            parts.append(_assign(tables, f"### Nearest centroid, centroids: {what}", results["machine"]["peers"]))
    for name, each in results.get("time_details", {}).items():
        parts.append(_time(name, each, results["machine"]["peers"]))
    if "final_inertia" in results:
        parts.append(_final(results["final_inertia"]))
    if "scaling" in results:
        parts.append(_scaling(results["scaling"]))
    if "memory" in results:
        parts.append(_memory(results["memory"]))
    return "\n\n".join(parts)


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    peers = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["peers"].items())
    load = " ".join(f"{value:.1f}" for value in machine["load"])
    sizes = "Quick sizes: a trial of the script, not a measurement. " if results["quick"] else ""
    return (
        f"{sizes}{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, load at the end "
        f"{load}; Python {machine['python']}, {versions}. Peers: {peers}."
    )


def _targets(results: dict[str, Any]) -> str:
    rows: list[tuple[str, str, bool]] = []
    for kind, tables in results.get("assign_details", {}).items():
        for name, each in tables.items():
            ours = each["seconds"][OURS]
            if name == "isotropic":
                ratio = each["seconds"]["pytorch"] / ours
                rows.append((f"Assign, {name}, {kind}: at least the speed of pytorch", f"{ratio:.2f}×", ratio >= 1))
            elif found := fastest_exact(each):
                ratio = found[1] / ours
                rows.append((f"Assign, {name}, {kind}: 4× {found[0]}", f"{ratio:.2f}×", ratio >= 4))
    for name, each in results.get("time_details", {}).items():
        rows += _time_targets(name, each)
    for name, each in results.get("final_inertia", {}).items():
        for kind, ratio in final_ratios(each).items():
            rows.append((f"Final inertia, {name}, {kind} run: at most 1.002", f"{ratio:.4f}", ratio <= 1.002))
    for axis, each in results.get("scaling", {}).items():
        rows.append((f"Linear in {axis}: slope at most 1.05", f"{each['slope']:.2f}", each["slope"] <= 1.05))
    if memory := results.get("memory"):
        used = memory["peak"] - memory["empty"]
        share = used / memory["budget"]
        rows.append(("Memory above a small run: at most the budget", f"{share:.0%}", share <= 1))
    return table(("to reach", "measured", "reached"), [(a, b, "yes" if c else "**no**") for a, b, c in rows])


def _time_targets(name: str, each: dict[str, Any]) -> list[tuple[str, str, bool]]:
    ours, rows = each["reached"].get(OURS), []
    if FLAT in each["reached"]:
        flat = each["reached"][FLAT]
        least = each["curves"][FLAT][-1][0] if flat is None else flat  # not reached: it takes longer
        ratio = least / ours if ours is not None else 0.0
        what = f"Time to inertia, {name}: half of {FLAT}"
        rows.append((what, f"{'more than ' if flat is None else ''}{ratio:.1f}× faster", ratio >= 2))
    below = len(each["peers_below"])
    return [*rows, (f"Curve, {name}: no point of a peer below sctok", f"{below} points", below == 0)]


def _assign(tables: dict[str, Any], title: str, peers: dict[str, str | None]) -> str:
    rows = []
    for name in (OURS, *peers):
        cells = []
        for each in tables.values():
            rows_measured = each["measured_rows"].get(name)
            seconds = each["seconds"].get(name, each["extrapolated"].get(name))
            if seconds is None:
                cells.append("–" if name == OURS or peers.get(name) else "not installed")
                continue
            about = (
                f"≈ {seconds:.0f} (from {rows_measured} points)" if name in each["extrapolated"] else f"{seconds:.3f}"
            )
            cells.append(f"{about}, {each['mismatches'][name]} wrong")
        if set(cells) != {"–"}:
            rows.append((name, *cells))
    rows.append((f"{OURS}, centroids prepared before", *(f"{each['prepared']:.3f}" for each in tables.values())))
    for what, choose in (("fastest exact peer", fastest_exact), ("fastest peer", fastest)):
        cells = []
        for each in tables.values():
            found = choose(each)
            cells.append(f"{found[1] / each['seconds'][OURS]:.2f}× ({found[0]})" if found else "–")
        rows.append((f"**{what} / {OURS}**", *cells))
    shapes = "; ".join(
        f"{name} {each['points']:,} points, {each['centroids']:,} centroids, D = {each['dim']}, "
        f"{each['rescored']:,} rows decided in float64, {each['reference_mismatches']} of {each['reference_rows']} "
        "random rows different from the oracle"
        for name, each in tables.items()
    )
    return f"{title}\n\n{shapes}. Seconds, and labels that are not the float64 argmin.\n\n" + table(
        ("system", *tables), rows
    )


def _time(name: str, each: dict[str, Any], peers: dict[str, str | None]) -> str:
    rows = []
    for system in (OURS, *peers):
        curve = each["curves"].get(system)
        if curve is None:
            why = each["refused"].get(system) or ("" if peers.get(system) else "not installed")
            if why:
                rows.append((system, why, "", "", ""))
            continue
        first, last = curve[0], curve[-1]
        inertia = [f"{point[0]:.3g} s, {_relative(point[1], each['target'])}" for point in (first, last)]
        reached = each["reached"][system]
        seconds = f"not in {last[0]:.3g}" if reached is None else f"{reached:.3g}"
        rows.append((system, seconds, *inertia, f"{each['runs'][system]} × {len(curve)}"))
    lines = [
        f"### Time to inertia, {name}: {each['vectors']:,} vectors, K = {each['k']:,}",
        f"Target {_value(each['target'])}, the inertia of faiss.Kmeans after 10 iterations. The whole call of "
        f"sctok, including the certified last pass, took {each['whole_call']:.3g} s; its reported inertia is within "
        f"{each['inertia_error']:.0e} of a separate evaluation.",
        table(("system", "seconds to target", "first codebook", "last codebook", "runs × steps"), rows),
    ]
    lines.append(_peers_below(each))
    return "\n\n".join(lines)


def _peers_below(each: dict[str, Any]) -> str:
    by_peer: dict[str, list[dict[str, Any]]] = {}
    for point in each["peers_below"]:
        by_peer.setdefault(point["peer"], []).append(point)
    if not by_peer:
        return "No peer is below the curve of sctok at any time."
    rows = []
    for name, points in by_peer.items():
        gaps = [100 * (point[OURS] / point["inertia"] - 1) for point in points if point[OURS] is not None]
        seconds = sorted(point["seconds"] for point in points)
        early = len(points) - len(gaps)
        rows.append((name, str(early), str(len(gaps)), f"{seconds[0]:.3g} to {seconds[-1]:.3g}", _percent(gaps)))
    header = ("peer below the curve of sctok", "points before its first", "points later", "seconds", "later, at most")
    return table(header, rows)


def _percent(gaps: Sequence[float]) -> str:
    return f"{max(gaps):.2f} %" if gaps else ""


def _value(target: float | None) -> str:
    return "unknown (FAISS is not installed)" if target is None else f"{target:,.0f}"


def _relative(inertia: float, target: float | None) -> str:
    return f"{inertia:,.0f}" if target is None else f"{100 * (inertia / target - 1):+.2f} %"


def _final(final: dict[str, Any]) -> str:
    blocks = []
    for name, each in final.items():
        rows = []
        for kind, what in (("given", "the same first centroids"), ("own", "own seeding")):
            for system, values in each[kind].items():
                rows.append(
                    (f"{system}, {what}", *(f"{x:,.0f}" for x in (min(values), statistics.median(values), max(values))))
                )
        head = (
            f"### Final inertia, {name}: {each['vectors']:,} vectors, K = {each['k']:,}, {len(each['own'][OURS])} seeds"
        )
        blocks.append(f"{head}\n\n" + table(("system", "best", "median", "worst"), rows))
    return "\n\n".join(blocks)


def _scaling(scaling: dict[str, Any]) -> str:
    blocks = []
    for axis, each in scaling.items():
        other = "centroids" if axis == "points" else "points"
        rows = [[f"{size:,}" for size, _ in each["seconds"]], [f"{seconds:.4f}" for _, seconds in each["seconds"]]]
        head = f"### Seconds of an assignment by {axis}, {each['fixed']:,} {other}: slope {each['slope']:.2f}"
        blocks.append(f"{head}\n\n" + table((axis, *rows[0]), [("seconds", *rows[1])]))
    return "\n\n".join(blocks)


def _memory(memory: dict[str, Any]) -> str:
    names = ("features on disk", "budget", "peak of a small run", "peak", "above the small run")
    values = [memory[key] for key in ("stored", "budget", "empty", "peak")] + [memory["peak"] - memory["empty"]]
    rows = [(name, f"{value / 2**20:.1f}") for name, value in zip(names, values, strict=True)]
    return "### Memory of `sctok cluster --memory`, MiB\n\n" + table(("", "MiB"), rows)


def save_plots(results: dict[str, Any], folder: Path) -> None:
    """Write inertia against time for each set, and seconds against size, as SVG and PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for name, each in results.get("time_details", {}).items():
        figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
        _draw_curves(axes, name, each)
        _save(figure, folder / f"inertia-{name}")
    if "scaling" in results:
        figure, panes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        for axes, (axis, each) in zip(panes, results["scaling"].items(), strict=True):
            sizes, seconds = zip(*each["seconds"], strict=True)
            axes.loglog(sizes, seconds, marker="o", color="black")
            axes.set(xlabel=axis, ylabel="seconds", title=f"slope {each['slope']:.2f}")
            axes.grid(alpha=0.3, which="both")
        _save(figure, folder / "scaling")


def _draw_curves(axes: Any, name: str, each: dict[str, Any]) -> None:
    from matplotlib.ticker import NullLocator

    base = each["target"] or min(value for curve in each["curves"].values() for _, value in curve)
    for system, curve in each["curves"].items():
        seconds, inertia = zip(*curve, strict=True)
        style: dict[str, Any] = {"linewidth": 3, "color": "black", "zorder": 5} if system == OURS else {"alpha": 0.85}
        axes.plot(seconds, [100 * (value / base - 1) for value in inertia], marker="o", label=system, **style)
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xscale="log", xlabel="seconds, seeding included", ylabel="inertia above faiss.Kmeans after 10 iterations, %"
    )
    axes.set_yscale("symlog", linthresh=1)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_title(f"{name}: {each['vectors']:,} vectors, K = {each['k']:,}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _save(figure: Any, stem: Path) -> None:
    figure.savefig(stem.with_suffix(".svg"))
    figure.savefig(stem.with_suffix(".png"), dpi=150)
