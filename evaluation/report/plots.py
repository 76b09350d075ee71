"""The report's figures, as files and as inline SVG with the colours of the page."""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sctok.formats.codebooks import Segment
from sctok.formats.files import atomic_path

from .tables import CodecScores, quality_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#16191d", "#cdd2d7"  # in a page: currentColor and var(--line)
PALETTE = ("#2f7fc1", "#cf6a11", "#2b9a5a", "#8a66c2", "#cc4458", "#16959b", "#96774a", "#75808c")
MARKERS = "osD^vPX*"
STYLE: Any = {  # untyped, because parameter names differ between versions of matplotlib
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "axes.prop_cycle": f"cycler(color={PALETTE})",
    "svg.fonttype": "none",
    "svg.hashsalt": "sctok",
}
PANEL, COLUMNS = (3.5, 2.7), 3
DOTS_PER_INCH = 160
REM_PER_INCH = 6.5


@dataclass(frozen=True)
class Plot:
    """A figure, its file name and its title."""

    name: str
    title: str
    figure: "Figure"

    @property
    def width(self) -> float:
        """Width in inches."""
        return float(self.figure.get_size_inches()[0])


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


@_styled()
def quality_plot(
    rows: Sequence[CodecScores], metrics: Sequence[Mapping[str, Any]], name: str, title: str
) -> Plot | None:
    """Plot each metric's mean and interval against the bit rate, with a line for each family of codecs.

    Returns None if no codec has a bit rate and a score.
    """
    panels = [(metric, points) for metric in metrics if (points := quality_points(rows, metric["name"]))]
    if not panels:
        return None
    families = sorted({point.family for _, points in panels for point in points})
    figure, grid = _panels(len(panels))
    for axes, (metric, points) in zip(grid, panels, strict=True):
        for index, family in enumerate(families):
            own = sorted((p for p in points if p.family == family), key=lambda point: point.kbps)
            if not own:
                continue
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            x, y = [p.kbps for p in own], [p.mean for p in own]
            error = [[p.mean - p.low for p in own], [p.high - p.mean for p in own]]
            axes.errorbar(
                x, y, error, color=colour, marker=marker, markersize=5, linewidth=1.1, elinewidth=1, label=family
            )
        _bitrate_axis(axes, [p.kbps for p in points])
        unit = f", {metric['unit']}" if metric.get("unit") else ""
        arrow = {"higher": " ↑", "lower": " ↓"}.get(str(metric.get("better")), "")
        axes.set_title(f"{metric['name']}{unit}{arrow}")
    handles = {label: h for axes in grid for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = min(len(families), 6)
    figure.legend(
        [handles[f] for f in families], families, loc="outside lower center", ncols=columns, handletextpad=0.3
    )
    return Plot(name, title, figure)


@_styled()
def inertia_plot(curves: Mapping[str, Sequence[float]]) -> Plot | None:
    """Plot the inertia after each iteration of k-means, with a line for each codebook; None without curves."""
    if not curves:
        return None
    figure, (axes,) = _panels(1, (6.4, 3.4))
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", linewidth=1.2, label=label)
    axes.set_xlabel("iteration")
    axes.set_ylabel("inertia per patch embedding")
    axes.legend(ncols=1 + len(curves) // 9)
    return Plot("inertia", "Inertia after each iteration of k-means", figure)


@_styled()
def usage_plot(counts: Mapping[str, NDArray[np.int64]]) -> Plot | None:
    """Plot each centroid's share of the vectors by rank, relative to an equal share; None without counts."""
    used = {label: np.sort(values)[::-1] for label, values in counts.items() if values.sum()}
    if not used:
        return None
    figure, (axes,) = _panels(1, (6.4, 3.4))
    for label, values in used.items():
        rank = np.arange(1, len(values) + 1) / len(values)
        share = values * (len(values) / values.sum())
        axes.plot(rank, np.where(share > 0, share, np.nan), label=label)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("centroids, most used first")
    axes.set_ylabel("usage, 1 = equal share")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(ncols=1 + len(used) // 9)
    return Plot("usage", "Codebook usage", figure)


def principal_plane(centroids: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project centroids (k, width) on their first two principal components.

    Returns positions (k, 2) and the explained share of the variance (2,). Missing components are zero.
    """
    centred = np.asarray(centroids, np.float64) - centroids.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    positions = np.zeros((len(centred), 2))
    positions[:, : axes.shape[1]] = centred @ axes
    shares = np.zeros(2)
    if (total := values.sum()) > 0:
        shares[: axes.shape[1]] = np.clip(values[::-1][:2], 0, None) / total
    return positions, shares


@_styled()
def centroid_map(label: str, centroids: NDArray[np.float32], segments: Sequence[Segment], name: str) -> Plot:
    """Draw centroids (k, width) in the plane of their first two principal components, coloured by domain."""
    positions, shares = principal_plane(centroids)
    figure, (axes,) = _panels(1, (6.4, 5.0))
    colours = np.empty(len(positions), dtype=object)
    for index, segment in enumerate(segments):
        colours[segment.start : segment.stop] = PALETTE[index % len(PALETTE)]
        axes.scatter([], [], s=18, color=PALETTE[index % len(PALETTE)], label=segment.domain)
    shuffled = np.random.default_rng(0).permutation(len(positions))  # so that no domain covers the others
    size = float(np.clip(20_000 / len(positions), 2, 16))
    x, y = positions[shuffled].T
    axes.scatter(x, y, s=size, c=list(colours[shuffled]), alpha=0.7, linewidths=0, rasterized=True)
    axes.set_xlabel(f"first component, {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second component, {shares[1]:.0%}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="best", markerscale=1.5)
    return Plot(name, f"Centroids of {label} by domain", figure)


@_styled()
def spectrogram_plot(
    spectrograms: Mapping[str, NDArray[np.float32]], seconds: float, marks: Mapping[float, float], name: str, title: str
) -> Plot:
    """Draw spectrograms in dB (frames, bins) below each other, with a common time axis and range of 80 dB.

    marks: marked frequencies in Hz and their positions from 0 to 1.
    """
    figure, grid = _panels(len(spectrograms), (7.2, 1.2), columns=1)
    top = max(float(levels.max()) for levels in spectrograms.values())
    for axes, (label, levels) in zip(grid, spectrograms.items(), strict=True):
        extent = (0, seconds, 0, 1)
        axes.imshow(levels.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - 80, vmax=top)
        axes.grid(False)
        axes.set_yticks(list(marks.values()), [f"{hertz / 1000:g}k" for hertz in marks])
        axes.set_title(label)
        if axes is not grid[-1]:
            axes.set_xticks([])
    grid[-1].set_xlabel("seconds")
    return Plot(name, title, figure)


@_styled()
def ratings_plot(rows: Sequence[Mapping[str, Any]], name: str, title: str) -> Plot | None:
    """Plot mean ratings with their intervals, one row (`label`, `mean`, `low`, `high`) for each stimulus."""
    if not rows:
        return None
    figure, (axes,) = _panels(1, (6.4, 0.9 + 0.34 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        low, high = (row["mean"] if row[end] is None else row[end] for end in ("low", "high"))
        error = [[row["mean"] - low], [high - row["mean"]]]
        axes.errorbar(
            row["mean"], place, xerr=error, color=PALETTE[0], marker="o", markersize=5, elinewidth=1.4, capsize=3
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("rating, 0 to 100")
    return Plot(name, title, figure)


def save_plot(plot: Plot, folder: Path) -> list[Path]:
    """Write `<name>.png` and `<name>.svg` with a white background to `folder`, atomically, and return their paths."""
    paths = [folder / f"{plot.name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        with atomic_path(path) as temporary:
            _draw(plot, temporary, path.suffix[1:], facecolor="white")
    return paths


@_styled()
def _draw(plot: Plot, file: Path | io.StringIO, kind: str, **options: Any) -> None:
    metadata = {"Date": None} if kind == "svg" else {}
    plot.figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=metadata, **options)
    plot.figure.set_layout_engine("none")  # keep the current layout


def inline_svg(plot: Plot) -> str:
    """Return the figure as an SVG element for HTML, with flexible size, the page's colours and unique ids."""
    buffer = io.StringIO()
    _draw(plot, buffer, "svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"[^\w-]", "-", plot.name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = text.replace('<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', "", 1)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    widest = plot.width * REM_PER_INCH
    head = f'<svg role="img" aria-label="{escape(plot.title)}" style="max-width: {widest:.0f}rem"'
    text = text.replace("<svg", head, 1)
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)")


def _panels(count: int, size: tuple[float, float] = PANEL, *, columns: int = COLUMNS) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = math.ceil(count / across)
    figure = Figure(figsize=(size[0] * across, size[1] * down + 0.3), layout="constrained")
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


def _bitrate_axis(axes: "Axes", kbps: Sequence[float]) -> None:
    low, high = min(kbps), max(kbps)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.35, high * 1.35)
    marks = [mark for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low / 1.3 <= mark <= high * 1.3]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel("kbit/s")
