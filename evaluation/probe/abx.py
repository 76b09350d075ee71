"""ABX discrimination (Schatz et al., 2013): how often an item is nearer to another class than to its class."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sctok.audio.inputs.manifests import is_manifest
from sctok.audio.inputs.sources import AudioItem
from sctok.runtime.jit import compiled

from .labels import Rejected, audio_item, labelled_rows

AbxMode = Literal["within", "across"]
MAX_ITEMS = 4000  # their distances take 64 MB
_MAX_TRIPLES = 1 << 20  # compared at once


@dataclass(frozen=True)
class AbxItem:
    """A part of a clip from `start` to `end` in seconds (None: the clip's ends), its class and its speaker.

    Only items with the same `context`, such as the surrounding phones, are compared.
    """

    clip: AudioItem
    label: str
    speaker: str = ""
    context: str = ""
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class AbxResult:
    """The result of an ABX test.

    Attributes:
        mode: "within" or "across" speakers.
        error: share of triples in which X is nearer to B, averaged over pairs of classes; ties count half.
        standard_error: jackknife over classes, None for two classes.
        pairs, triples, items: numbers of ordered pairs of classes, triples and items.
    """

    mode: AbxMode
    error: float
    standard_error: float | None
    pairs: int
    triples: int
    items: int


def read_abx_items(table: str | Path, audio: Path | None = None) -> tuple[list[AbxItem], list[Rejected]]:
    """Read the items of an ABX test, and the rejected rows.

    Args:
        table: a table with columns `path` and `label`, and optionally `start`, `end`, `speaker` and `context`.
        audio: the folder that paths are relative to, None for the table's folder.

    Raises:
        ValueError: the file does not exist or is not a table, or it has no column for labels or no usable row.
    """
    path = Path(table)
    folder = audio or path.parent
    if not path.is_file() or not is_manifest(path):
        raise ValueError(f"{path} is not a table (CSV, TSV, JSONL, Parquet) of items: path, label, start, end, speaker")
    items: list[AbxItem] = []
    rejected: list[Rejected] = []
    for number, row, fault in labelled_rows(path, folder):
        try:
            if fault:
                raise ValueError(fault)
            start, end = (_seconds(row[name], name) for name in ("start", "end"))
            if end is not None and end <= (start or 0.0):
                raise ValueError(f"ends at {end:g} s, before its start")
            clip = audio_item(row["path"], folder)
            items.append(AbxItem(clip, row["label"], row["speaker"], row["context"], start, end))
        except ValueError as error:
            rejected.append(Rejected(f"row {number}", str(error)))
    if not items:
        first = f": {rejected[0].source} {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{path} has no usable item{first}")
    return items, rejected


def _seconds(text: str, name: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value < float("inf"):
        raise ValueError(f"has {text!r} for {name}, which is not a time in seconds")
    return value


def item_frames(frames: NDArray[np.float32], seconds: float, item: AbxItem) -> NDArray[np.float32]:
    """Select the frames of an item, (n, D), n > 0, from the frames of its clip (T, D), each `seconds` long.

    These are the frames with their middle inside the item. Without any, it is the frame at the item's middle.

    Raises:
        ValueError: the item starts after the end of the clip.
    """
    start, end = item.start or 0.0, len(frames) * seconds if item.end is None else item.end
    if start >= len(frames) * seconds:
        raise ValueError(f"starts at {start:g} s, after the {len(frames) * seconds:g} s of the clip that are used")
    middles = (np.arange(len(frames)) + 0.5) * seconds
    inside = np.flatnonzero((middles >= start) & (middles < end))
    if len(inside):
        return frames[inside]
    return frames[[min(int((start + end) / 2 / seconds), len(frames) - 1)]]


def dtw_distances(items: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the distances float32 (n, n) of items, float32 (frames, D) each, with one or more frames.

    The distance of two frames is their angle divided by pi, and 0.5 if one is zero. The distance of two items is its
    mean along the dynamic time warping path with the least sum; of equal sums, the shortest path.

    Raises:
        ValueError: there are no items, or more than 4000.
    """
    if not 0 < len(items) <= MAX_ITEMS:
        raise ValueError(f"got {len(items)} items, but ABX compares 1 to {MAX_ITEMS}; remove some rows")
    stops = np.cumsum([len(each) for each in items])
    frames = np.concatenate(items).astype(np.float64)
    frames /= np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    distances = np.zeros((len(items), len(items)), np.float32)
    for i in range(len(items)):
        start = stops[i] - len(items[i])
        angles = np.arccos(np.clip(frames[start : stops[i]] @ frames[start:].T, -1, 1)) / np.pi
        _warp(angles, stops[i:] - start, distances[i, i:])
    return np.maximum(distances, distances.T)


@compiled()
def _warp(angles, stops, out):  # type: ignore[no-untyped-def]
    """Write to out (m,) the distances between the item of the rows of angles and the items that end at stops (m,)."""
    rows = angles.shape[0]
    start = 0
    for item in range(len(stops)):
        columns = stops[item] - start
        cost = np.empty((rows, columns))
        steps = np.empty((rows, columns))
        for i in range(rows):
            for j in range(columns):
                best, length = np.inf, 0.0
                if i == 0 and j == 0:
                    best = 0.0
                if i > 0 and j > 0:
                    best, length = cost[i - 1, j - 1], steps[i - 1, j - 1]
                if i > 0 and (cost[i - 1, j], steps[i - 1, j]) < (best, length):
                    best, length = cost[i - 1, j], steps[i - 1, j]
                if j > 0 and (cost[i, j - 1], steps[i, j - 1]) < (best, length):
                    best, length = cost[i, j - 1], steps[i, j - 1]
                cost[i, j], steps[i, j] = best + angles[i, start + j], length + 1
        out[item] = cost[-1, -1] / steps[-1, -1]
        start = stops[item]


def abx_error(items: Sequence[AbxItem], distances: NDArray[np.float32], mode: AbxMode) -> AbxResult:
    """Compute the ABX error over all triples of items.

    A and X are items of one class, B is of another class. "within": all three have the same speaker. "across": A and B
    have the same speaker, X has another. Errors are averaged over the triples of each pair of classes, speakers and
    context, then over speakers and contexts, then over pairs of classes.

    Args:
        items: n items.
        distances: (n, n).
        mode: "within" or "across" speakers.

    Raises:
        ValueError: there are no triples, or the shape or the mode is wrong.
    """
    if mode not in get_args(AbxMode) or distances.shape != (len(items), len(items)):
        raise ValueError(f"mode {mode!r} is unknown, or shape {distances.shape} does not match {len(items)} items")
    scores: dict[tuple[str, str], list[float]] = {}
    triples = 0
    cells: dict[str, dict[str, dict[str, list[int]]]] = {}
    for number, item in enumerate(items):
        cells.setdefault(item.context, {}).setdefault(item.speaker, {}).setdefault(item.label, []).append(number)
    for speakers in cells.values():
        for speaker, own in speakers.items():
            others = [own] if mode == "within" else [found for name, found in speakers.items() if name != speaker]
            for a, b in permutations(own, 2):
                for other in others:
                    xs = other.get(a, [])
                    if xs and (mode == "across" or len(xs) > 1):
                        score, count = _cell_error(distances, own[a], own[b], xs)
                        scores.setdefault((a, b), []).append(score)
                        triples += count
    if not scores:
        needed = "two items of a class" if mode == "within" else "a class with two speakers"
        raise ValueError(f"no triples {mode} speakers: they need {needed}, and an item of another class")
    pairs = {pair: float(np.mean(errors)) for pair, errors in scores.items()}
    return AbxResult(mode, float(np.mean(list(pairs.values()))), _jackknife(pairs), len(pairs), triples, len(items))


def _cell_error(distances: NDArray[np.float32], a: list[int], b: list[int], xs: list[int]) -> tuple[float, int]:
    """Return the error and the number of triples of three lists of items; an item is not compared with itself."""
    wrong, count = 0.0, 0
    at_once = max(1, _MAX_TRIPLES // (len(a) * len(b)))
    for start in range(0, len(xs), at_once):
        some = np.array(xs[start : start + at_once])
        to_a, to_b = distances[some[:, None], a][:, :, None], distances[some[:, None], b][:, None, :]
        valid = (some[:, None] != np.array(a))[:, :, None]
        wrong += float((((to_a > to_b) + 0.5 * (to_a == to_b)) * valid).sum())
        count += int(valid.sum()) * len(b)
    return wrong / count, count


def _jackknife(pairs: dict[tuple[str, str], float]) -> float | None:
    """Return the jackknife standard error of the mean over pairs, leaving out one class at a time."""
    classes = sorted({label for pair in pairs for label in pair})
    remaining = [[score for pair, score in pairs.items() if label not in pair] for label in classes]
    means = np.array([np.mean(scores) for scores in remaining if scores])
    if len(means) < 3:
        return None
    return float(np.sqrt((len(means) - 1) / len(means) * np.square(means - means.mean()).sum()))
