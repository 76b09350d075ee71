"""`sctok probe`: what features and tokens know of the sound, and what the tokens are like, task by task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sctok
from sctok.formats.files import FormatError, hash_json, read_json, write_json

from .abx import AbxItem, Mode, abx_error, dtw_distances, item_frames
from .features import (
    EmbeddedClips,
    Progress,
    Samples,
    System,
    clip_samples,
    embed_clips,
    name_filter,
)
from .labels import LabelledClip, LabelledTask, Rejected, fold_numbers, task_faults
from .mlp import ProbeConfig, ProbeResult, probe_folds
from .token_purity import token_purity
from .token_stability import token_stability
from .token_statistics import token_statistics

FORMAT, FORMAT_VERSION = "sctok-probe", 1
PROBE_FILE = "probe.json"
MEASURES = ("probe", "tokens", "stability")
POOLINGS = ("mean", "rows")
STABILITY_SECONDS = 10.24
SECTIONS = ("tasks", "tokens", "abx", "notes", "failed", "errors", "done")
Row = dict[str, Any]


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured of each task.

    mlp: settings of the probes. seconds: how much of each clip is used. pooling: see `pool_clip`. representations:
    shell patterns of those that are probed, all where empty. measures: some of probe, tokens and stability.
    stability_clips: of a task, evenly spread, 10.24 s of each. Raises ValueError for values out of range.
    """

    mlp: ProbeConfig = field(default_factory=ProbeConfig)
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
        """Return the settings as a JSON object."""
        return {**asdict(self), "representations": list(self.representations), "measures": list(self.measures)}


class ProbeReport:
    """The results, kept in `probe.json` in a folder; it is written after each task, whole at any moment."""

    def __init__(self, folder: Path, settings: ProbeSettings, systems: Sequence[System]) -> None:
        """Begin, or go on with what the same settings and systems have left in the folder.

        Raises FormatError if its file is another's or damaged.
        """
        self.path = folder / PROBE_FILE
        about = {"settings": settings.to_json(), "systems": [dict(system.about) for system in systems]}
        self._head = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": folder.name, **about}
        self._created = datetime.now(UTC).isoformat()
        self.sections: dict[str, list[Row]] = {section: [] for section in SECTIONS}
        if self.path.exists():
            found = read_json(self.path)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise FormatError(f"{self.path} is not a file of sctok probe; choose another --name")
            whole = {"created", *SECTIONS} <= found.keys()
            if whole and {key: found.get(key) for key in self._head} == self._head:
                self._created = found["created"]
                self.sections = {section: found[section] for section in SECTIONS}

    def begin(self, task: str, fingerprint: str) -> bool:
        """Return whether a task is still to be done; results of what else had its name are forgotten then."""
        if {"task": task, "fingerprint": fingerprint} in self.sections["done"]:
            return False
        self.sections = {key: [row for row in rows if row["task"] != task] for key, rows in self.sections.items()}
        return True

    def add(self, task: str, fingerprint: str | None, **sections: list[Row]) -> None:
        """Add rows of a task and write the file. Without a fingerprint the task will be done again."""
        for section, rows in sections.items():
            self.sections[section] += [{"task": task, **row} for row in rows]
        if fingerprint is not None:
            self.sections["done"].append({"task": task, "fingerprint": fingerprint})
        write_json(self.path, self.to_json())

    def to_json(self) -> Row:
        """Return all of it as a JSON object."""
        return {**self._head, "created": self._created, "sctok": sctok.__version__, **self.sections}


def task_fingerprint(clips: Sequence[LabelledClip] | Sequence[AbxItem]) -> str:
    """Return a hash of what is listed, and of the sizes and times of the files."""
    return hash_json([[repr(clip), _file_state(_path_of(clip))] for clip in clips])


def _path_of(clip: LabelledClip | AbxItem) -> Path:
    return Path((clip.item if isinstance(clip, LabelledClip) else clip.clip).path)


def _file_state(path: Path) -> list[int]:
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def probe_task(
    task: LabelledTask,
    systems: Sequence[System],
    settings: ProbeSettings,
    progress: Progress = lambda count: None,
    device: torch.device | None = None,
) -> dict[str, list[Row]]:
    """Measure what `settings` say of a task and return rows by section of the report.

    progress: is told of every clip that has been read. device: where probes are trained.

    Raises:
        ValueError: no clip can be read, or those that can are no task: of one class, or of too few groups.
    """
    probing = "probe" in settings.measures
    if probing:
        task_faults(task.clips, settings.mlp.folds)  # before the work
    wanted = name_filter(settings.representations) if probing else lambda name: False
    embedded = embed_clips(
        task.clips, systems, seconds=settings.seconds, pooling=settings.pooling, wanted=wanted, progress=progress
    )
    failed = [*task.rejected, *embedded.failed]
    if not embedded.clips:
        raise ValueError(f"none of its {len(task.clips)} clips can be read: {failed[-1].source}: {failed[-1].reason}")
    rows: dict[str, list[Row]] = {"failed": [asdict(each) for each in failed]}
    if probing:
        if not embedded.vectors:
            raise ValueError(f"no representation is called like {', '.join(settings.representations)}")
        rows["notes"] = [{"note": note} for note in task_faults(embedded.clips, settings.mlp.folds)]
        rows["tasks"] = _probe_rows(task, embedded, settings.mlp, device)
    if {"tokens", "stability"} & set(settings.measures):
        rows["tokens"] = _token_rows(task, embedded, systems, settings)
    return rows


def _probe_rows(
    task: LabelledTask, embedded: EmbeddedClips, config: ProbeConfig, device: torch.device | None
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
    task: LabelledTask, embedded: EmbeddedClips, systems: Sequence[System], settings: ProbeSettings
) -> list[Row]:
    labels = [clip.label for clip in embedded.clips]
    stable = _stability(embedded.clips, systems, settings) if "stability" in settings.measures else {}
    rows = []
    for name, stream in ((name, stream) for system in systems for name, stream in system.streams.items()):
        row = {"domain": task.domain, "stream": name, **asdict(stream)}
        if "tokens" in settings.measures:
            row |= asdict(token_statistics(embedded.tokens[name], stream.size, stream.per_second))
            row |= asdict(token_purity(embedded.tokens[name], labels, settings.mlp.seed))
        rows.append({**row, "stability": stable.get(name, {})})
    return rows


def _stability(
    clips: Sequence[LabelledClip], systems: Sequence[System], settings: ProbeSettings
) -> Mapping[str, Mapping[str, Row]]:
    """Return by stream and change what `token_stability` finds."""
    count = min(settings.stability_clips, len(clips))
    chosen = [clips[i] for i in np.linspace(0, len(clips) - 1, count).round().astype(int)]
    sounds: list[Samples] = [clip_samples(clip.item, min(settings.seconds, STABILITY_SECONDS)) for clip in chosen]
    found: dict[str, dict[str, Row]] = {}
    for each in token_stability(sounds, systems, settings.mlp.seed):
        row = asdict(each)
        found.setdefault(row.pop("stream"), {})[row.pop("change")] = row
    return found


def probe_abx(
    items: Sequence[AbxItem],
    rejected: Sequence[Rejected],
    systems: Sequence[System],
    settings: ProbeSettings,
    progress: Progress = lambda count: None,
) -> dict[str, list[Row]]:
    """Return the ABX errors of each representation, within and across speakers where there are triples, by section.

    rejected: what is left out already. Frames are the steps of a representation, its frequency rows beside each other.

    Raises:
        ValueError: no clip can be read, no representation is wanted, or there are no triples, or too many items.
    """
    wanted = name_filter(settings.representations)
    frames: dict[str, list[NDArray[np.float32]]] = {}
    kept: list[AbxItem] = []
    failed = list(rejected)
    by_clip: dict[str, list[AbxItem]] = {}
    for item in items:
        by_clip.setdefault(item.clip.path, []).append(item)
    for group in by_clip.values():
        found, faults = _clip_items(group, systems, settings.seconds, wanted)
        failed += faults
        for item, vectors in found:
            kept.append(item)
            for name, vector in vectors.items():
                frames.setdefault(name, []).append(vector)
        progress(1)
    if not kept:
        raise ValueError(f"none of {len(items)} items can be read: {failed[-1].source}: {failed[-1].reason}")
    if not frames:
        raise ValueError(f"no representation is called like {', '.join(settings.representations)}")
    rows: list[Row] = []
    for name, values in frames.items():
        rows += [{"representation": name, **row} for row in _abx_rows(kept, values)]
    return {"abx": rows, "failed": [asdict(each) for each in failed]}


def _clip_items(
    group: Sequence[AbxItem], systems: Sequence[System], seconds: float, wanted: Callable[[str], bool]
) -> tuple[list[tuple[AbxItem, dict[str, NDArray[np.float32]]]], list[Rejected]]:
    found, faults = [], []
    try:
        samples = clip_samples(group[0].clip, seconds)
        codes = [system.encode(samples).vectors for system in systems]
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return [], [Rejected(group[0].clip.key, " ".join(str(error).split()))]
    for item in group:
        try:
            vectors = {
                name: item_frames(each.values.reshape(len(each.values), -1), each.seconds, item)
                for vectors in codes
                for name, each in vectors.items()
                if wanted(name)
            }
        except ValueError as error:
            faults.append(Rejected(item.clip.key, str(error)))
        else:
            found.append((item, vectors))
    return found, faults


def _abx_rows(items: Sequence[AbxItem], frames: Sequence[NDArray[np.float32]]) -> list[Row]:
    distances = dtw_distances(frames)
    rows, reasons = [], []
    modes: tuple[Mode, ...] = ("within", "across")
    for mode in modes:
        try:
            rows.append(asdict(abx_error(items, distances, mode)))
        except ValueError as error:
            reasons.append(str(error))
    if not rows:
        raise ValueError("; ".join(reasons))
    return rows
