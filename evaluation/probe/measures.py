"""The measures of a probe: accuracy of classifiers, token statistics and stability, and ABX errors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .abx import AbxItem, AbxMode, abx_error, dtw_distances, item_frames
from .features import EmbeddedClips, System, clip_samples, embed_clips, encode_clip, name_filter
from .labels import LabelledClip, LabelledTask, Rejected, fold_numbers, task_faults
from .mlp import MlpConfig, ProbeResult, probe_folds
from .token_stability import sound_changes, token_stability
from .token_statistics import token_purity, token_statistics

MEASURES = ("probe", "tokens", "stability")
POOLINGS = ("mean", "rows")
STABILITY_SECONDS = 10.24
Row = dict[str, Any]


@dataclass(frozen=True)
class ProbeConfig:
    """What to measure in each task. Raises ValueError if a value is out of range.

    Attributes:
        mlp: configuration of the classifiers.
        seconds: seconds of each clip to use, from its start.
        pooling: see `pool_clip`.
        representations: shell patterns of the representations to probe; empty for all.
        measures: some of "probe", "tokens" and "stability".
        stability_clips: clips of each task for "stability", evenly spread; 10.24 s of each are used.
    """

    mlp: MlpConfig = field(default_factory=MlpConfig)
    seconds: float = 30.0
    pooling: str = "mean"
    representations: tuple[str, ...] = ()
    measures: tuple[str, ...] = MEASURES
    stability_clips: int = 50

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.stability_clips < 1:
            raise ValueError(f"seconds {self.seconds} and stability_clips {self.stability_clips} must be positive")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if not self.measures or not set(self.measures) <= set(MEASURES):
            raise ValueError(
                f"measures must be some of {', '.join(MEASURES)}, not {', '.join(self.measures) or 'none'}"
            )

    def to_json(self) -> Row:
        """Return the configuration as a JSON object."""
        return {**asdict(self), "representations": list(self.representations), "measures": list(self.measures)}


def probe_task(
    task: LabelledTask,
    systems: Sequence[System],
    config: ProbeConfig,
    progress: Callable[[int], object] = lambda clips: None,
    device: torch.device | None = None,
) -> dict[str, list[Row]]:
    """Measure a task and return rows by section of the report.

    Args:
        task: from `read_task`.
        systems: systems to probe.
        config: what to measure.
        progress: called with the number of clips just read.
        device: device for training the classifiers, None for the CPU.

    Raises:
        ValueError: no clip can be read, no representation matches, or the readable clips have too few classes or
            groups.
    """
    probing = "probe" in config.measures
    if probing:
        task_faults(task.clips, config.mlp.folds)  # fail before any clip is read
    wanted = name_filter(config.representations) if probing else lambda name: False
    embedded = embed_clips(
        task.clips, systems, seconds=config.seconds, pooling=config.pooling, wanted=wanted, progress=progress
    )
    failed = [*task.rejected, *embedded.failed]
    _check_measurable("clips", len(task.clips), failed, embedded.clips)
    rows: dict[str, list[Row]] = {"failed": [asdict(each) for each in failed]}
    if probing:
        _check_represented(embedded.vectors, config)
        rows["notes"] = [{"note": note} for note in task_faults(embedded.clips, config.mlp.folds)]
        rows["tasks"] = _probe_rows(task, embedded, config.mlp, device)
    if {"tokens", "stability"} & set(config.measures):
        rows["tokens"] = _token_rows(task, embedded, systems, config)
    return rows


def _check_measurable(kind: str, total: int, failed: Sequence[Rejected], readable: Sequence[object]) -> None:
    if not readable:
        raise ValueError(f"none of {total} {kind} can be read: {failed[-1].source}: {failed[-1].reason}")


def _check_represented(representations: Mapping[str, object], config: ProbeConfig) -> None:
    if not representations:
        raise ValueError(f"no representation matches {', '.join(config.representations)}")


def _probe_rows(
    task: LabelledTask, embedded: EmbeddedClips, config: MlpConfig, device: torch.device | None
) -> list[Row]:
    clips = embedded.clips
    folds = fold_numbers(clips, config.folds, config.seed)
    classes, labels = np.unique([clip.label for clip in clips], return_inverse=True)
    groups = np.array([clip.group for clip in clips])
    about = {
        "domain": task.domain,
        "clips": len(clips),
        "classes": len(classes),
        "groups": len(np.unique(groups)),
        "folds": int(folds.max()) + 1,
        "majority": float(np.bincount(labels).max() / len(labels)),
        "seconds": embedded.seconds,
    }
    return [
        {"representation": name, "width": vectors.shape[1], **about, **_result_row(result, groups)}
        for name, vectors in embedded.vectors.items()
        for result in [probe_folds(vectors, labels.astype(np.int64), folds, config, device)]
    ]


def _result_row(result: ProbeResult, groups: NDArray[np.str_]) -> Row:
    return {
        "accuracy": result.accuracy,
        "standard_error": result.standard_error,
        "group_standard_error": result.group_standard_error(groups),
        "fold_accuracies": result.fold_accuracies,
        "fold_standard_error": result.fold_standard_error,
        "chosen": [point._asdict() for point in result.chosen],
        "epochs": list(result.epochs),
        "validation": list(result.validation),
    }


def _token_rows(
    task: LabelledTask, embedded: EmbeddedClips, systems: Sequence[System], config: ProbeConfig
) -> list[Row]:
    labels = [clip.label for clip in embedded.clips]
    stability = _stability(embedded.clips, systems, config) if "stability" in config.measures else {}
    rows = []
    for name, stream in ((name, stream) for system in systems for name, stream in system.streams.items()):
        row = {"domain": task.domain, "stream": name, **asdict(stream)}
        if "tokens" in config.measures:
            row |= asdict(token_statistics(embedded.tokens[name], stream.size, stream.per_second))
            row |= asdict(token_purity(embedded.tokens[name], labels, config.mlp.seed))
        rows.append({**row, "stability": stability.get(name, {})})
    return rows


def _stability(
    clips: Sequence[LabelledClip], systems: Sequence[System], config: ProbeConfig
) -> Mapping[str, Mapping[str, Row]]:
    """Return the results of `token_stability` by stream and change."""
    count = min(config.stability_clips, len(clips))
    chosen = [clips[i] for i in np.linspace(0, len(clips) - 1, count).round().astype(int)]
    sounds = [clip_samples(clip.item, min(config.seconds, STABILITY_SECONDS)) for clip in chosen]
    rows: dict[str, dict[str, Row]] = {}
    for each in token_stability(sounds, systems, config.mlp.seed, sound_changes):
        row = asdict(each)
        rows.setdefault(row.pop("stream"), {})[row.pop("change")] = row
    return rows


def probe_abx(
    items: Sequence[AbxItem],
    rejected: Sequence[Rejected],
    systems: Sequence[System],
    config: ProbeConfig,
    progress: Callable[[int], object] = lambda clips: None,
) -> dict[str, list[Row]]:
    """Compute the ABX errors of each representation, within and across speakers, and return rows by section.

    The frames of an item are the steps of a representation, with concatenated frequency rows.

    Args:
        items, rejected: from `read_abx_items`.
        systems: systems to probe.
        config: seconds of each clip, and representations.
        progress: called with the number of clips just read.

    Raises:
        ValueError: no clip can be read, no representation matches, there are no triples, or there are too many items.
    """
    wanted = name_filter(config.representations)
    frames: dict[str, list[NDArray[np.float32]]] = {}
    readable: list[AbxItem] = []
    failed = list(rejected)
    by_clip: dict[str, list[AbxItem]] = {}
    for item in items:
        by_clip.setdefault(item.clip.path, []).append(item)
    for group in by_clip.values():
        for found in _clip_items(group, systems, config.seconds, wanted):
            if isinstance(found, Rejected):
                failed.append(found)
                continue
            readable.append(found[0])
            for name, vector in found[1].items():
                frames.setdefault(name, []).append(vector)
        progress(1)
    _check_measurable("items", len(items), failed, readable)
    _check_represented(frames, config)
    rows = [{"representation": name, **row} for name in frames for row in _abx_rows(readable, frames[name])]
    return {"abx": rows, "failed": [asdict(each) for each in failed]}


def _clip_items(
    group: Sequence[AbxItem], systems: Sequence[System], seconds: float, wanted: Callable[[str], bool]
) -> Iterator[tuple[AbxItem, dict[str, NDArray[np.float32]]] | Rejected]:
    """Yield each item of one clip with its frames by representation, or why the item or the whole clip is rejected."""
    try:
        _, encoded = encode_clip(group[0].clip, systems, seconds)
    except ValueError as error:
        yield Rejected(group[0].clip.key, str(error))
        return
    flat = {
        name: (each.values.reshape(len(each.values), -1), each.seconds)
        for clip in encoded
        for name, each in clip.vectors.items()
        if wanted(name)
    }
    for item in group:
        try:
            yield item, {name: item_frames(*frames, item) for name, frames in flat.items()}
        except ValueError as error:
            yield Rejected(item.clip.key, str(error))


def _abx_rows(items: Sequence[AbxItem], frames: Sequence[NDArray[np.float32]]) -> list[Row]:
    distances = dtw_distances(frames)
    rows, reasons = [], []
    modes: tuple[AbxMode, ...] = ("within", "across")
    for mode in modes:
        try:
            rows.append(asdict(abx_error(items, distances, mode)))
        except ValueError as error:
            reasons.append(str(error))
    if not rows:
        raise ValueError("; ".join(reasons))
    return rows
