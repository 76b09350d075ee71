"""ABX: is a sound nearer to another of its own class than to one of another class? (Schatz et al., 2013)"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sctok.audio.inputs.manifests import is_manifest, read_rows
from sctok.audio.inputs.sources import AudioItem
from sctok.runtime.jit import compiled

from .labels import Rejected, audio_item, missing_file, text_of

Mode = Literal["within", "across"]
MAX_ITEMS = 4000  # whose distances, a matrix of floats, fill 64 MB
_COMPARED = 1 << 20  # triples at once


@dataclass(frozen=True)
class AbxItem:
    """A stretch of a clip from `start` to `end` in seconds (all of it where None), its class, who says it and where.

    Sounds are compared in the same `context` alone, such as the phones around them.
    """

    clip: AudioItem
    label: str
    speaker: str = ""
    context: str = ""
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class AbxResult:
    """error: share of triples in which X is nearer to B, ties counting half, as a mean over pairs of classes.

    standard_error: jackknife over classes, None for two. pairs: ordered pairs of classes. triples: how many there were.
    """

    mode: Mode
    error: float
    standard_error: float | None
    pairs: int
    triples: int
    items: int


def read_abx_items(table: str | Path, audio: Path | None = None) -> tuple[list[AbxItem], list[Rejected]]:
    """Read the items of an ABX test, and the rows that cannot be used.

    Args:
        table: a manifest with columns `path` and `label`, and `start`, `end`, `speaker` and `context` where there are.
        audio: what its paths are relative to; its own folder where None.

    Raises:
        ValueError: it is not there, is no table, has no column for labels, or no row that can be used.
    """
    path = Path(table)
    if not path.is_file() or not is_manifest(path):
        raise ValueError(f"{path} is not a table (CSV, TSV, JSONL, Parquet) of items: path, label, start, end, speaker")
    items: list[AbxItem] = []
    rejected: list[Rejected] = []
    for number, row in read_rows(path, "path"):
        if not isinstance(row, str) and "label" not in row:
            raise ValueError(f"{path} has no column 'label'; its columns are {', '.join(row)}")
        try:
            if isinstance(row, str):
                raise ValueError(row)
            source = text_of(row, "path")
            start, end = (_seconds(text_of(row, name), name) for name in ("start", "end"))
            if fault := missing_file(source, audio or path.parent) if source else "has no path":
                raise ValueError(fault)
            if not text_of(row, "label"):
                raise ValueError("has no label")
            if end is not None and end <= (start or 0.0):
                raise ValueError(f"ends at {end:g} s, before its start")
            where = text_of(row, "speaker"), text_of(row, "context")
            items.append(AbxItem(audio_item(source, audio or path.parent), text_of(row, "label"), *where, start, end))
        except ValueError as error:
            rejected.append(Rejected(f"row {number}", str(error)))
    if not items:
        faults = f": {rejected[0].source} {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{path} lists no item that can be used{faults}")
    return items, rejected


def _seconds(text: str, name: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value < float("inf"):
        raise ValueError(f"has {text!r} for {name}, which is no time in seconds")
    return value


def item_frames(frames: NDArray[np.float32], seconds: float, item: AbxItem) -> NDArray[np.float32]:
    """Return the frames of an item, (n, D), n > 0, out of those of its clip (T, D), each `seconds` long.

    They are those whose middle lies in the item, or else the one that holds the item's middle.

    Raises:
        ValueError: the item starts behind the end of the clip.
    """
    start, end = item.start or 0.0, len(frames) * seconds if item.end is None else item.end
    if start >= len(frames) * seconds:
        raise ValueError(f"starts at {start:g} s, behind the {len(frames) * seconds:g} s of the clip that are read")
    middles = (np.arange(len(frames)) + 0.5) * seconds
    inside = np.flatnonzero((middles >= start) & (middles < end))
    if len(inside):
        return frames[inside]
    return frames[[min(int((start + end) / 2 / seconds), len(frames) - 1)]]


def dtw_distances(items: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the distances float32 (n, n) of items, float32 (frames, D) each with a frame or more.

    The distance of frames is their angle over pi, half where one is zero. That of items is its mean along the path of
    dynamic time warping with the least sum, the shortest such path where several have it.

    Raises:
        ValueError: there are none, or more than 4000.
    """
    if not 0 < len(items) <= MAX_ITEMS:
        raise ValueError(f"{len(items)} items: 1 to {MAX_ITEMS} can be compared; leave some rows out")
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
    """Write to out (m,) the distances of the item whose frames are the rows of angles to those that end at stops."""
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


def abx_error(items: Sequence[AbxItem], distances: NDArray[np.float32], mode: Mode = "within") -> AbxResult:
    """Return the error of ABX over all triples of items.

    A and X are two items of one class, B is of another. Within: all three are of one speaker. Across: A and B are of
    one, X is of another. Triples are averaged for each pair of classes, speakers and context; then, for each pair of
    classes, over speakers and contexts; then over pairs.

    Args:
        items: n of them.
        distances: (n, n).
        mode: within or across.

    Raises:
        ValueError: there are no triples, too many items, or another shape or mode.
    """
    if mode not in get_args(Mode) or distances.shape != (len(items), len(items)):
        raise ValueError(f"mode {mode!r} or shape {distances.shape} does not fit {len(items)} items")
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
        needed = "two items of a class" if mode == "within" else "a class said by two speakers"
        raise ValueError(f"no triples {mode} speakers: there have to be {needed} and an item of another class beside")
    pairs = {pair: float(np.mean(found)) for pair, found in scores.items()}
    return AbxResult(mode, float(np.mean(list(pairs.values()))), _jackknife(pairs), len(pairs), triples, len(items))


def _cell_error(distances: NDArray[np.float32], a: list[int], b: list[int], xs: list[int]) -> tuple[float, int]:
    """Return the error and the number of triples of items of three cells; an item is not compared with itself."""
    wrong, count = 0.0, 0
    at_once = max(1, _COMPARED // (len(a) * len(b)))
    for start in range(0, len(xs), at_once):
        some = np.array(xs[start : start + at_once])
        to_a, to_b = distances[some[:, None], a][:, :, None], distances[some[:, None], b][:, None, :]
        valid = (some[:, None] != np.array(a))[:, :, None]
        wrong += float((((to_a > to_b) + 0.5 * (to_a == to_b)) * valid).sum())
        count += int(valid.sum()) * len(b)
    return wrong / count, count


def _jackknife(pairs: dict[tuple[str, str], float]) -> float | None:
    """Return the standard error of the mean over pairs, over classes that are left out in turn."""
    classes = sorted({label for pair in pairs for label in pair})
    left = [[score for pair, score in pairs.items() if label not in pair] for label in classes]
    means = np.array([np.mean(scores) for scores in left if scores])
    if len(means) < 3:
        return None
    return float(np.sqrt((len(means) - 1) / len(means) * np.square(means - means.mean()).sum()))
