"""Labelled audio: a folder with a subfolder per class or a table of paths and labels; folds that keep groups whole."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok.audio.errors import AudioError
from sctok.audio.inputs.manifests import is_manifest, read_rows
from sctok.audio.inputs.sources import AudioItem, BadItem, list_audio

ANY_DOMAIN = "all"
FEWEST_FOLDS = 3  # one to test, one to choose by, one to train on


@dataclass(frozen=True)
class LabelledClip:
    """A clip, its class, the group that may not straddle folds, its domain, and its fold where that is prescribed."""

    item: AudioItem
    label: str
    group: str
    domain: str = ANY_DOMAIN
    fold: str = ""


@dataclass(frozen=True)
class Rejected:
    """A clip that has no part in the results, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class LabelledTask:
    """Clips to tell apart by their labels, in their order, and those that are left out."""

    name: str
    clips: tuple[LabelledClip, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def domain(self) -> str:
        """The domain of all clips, or "all"."""
        domains = {clip.domain for clip in self.clips}
        return domains.pop() if len(domains) == 1 else ANY_DOMAIN


def read_task(source: str | Path, audio: Path | None = None) -> LabelledTask:
    """Read the labels of a task.

    Args:
        source: a folder with one subfolder of audio per class, each clip a group of its own; or a manifest (CSV, TSV,
            JSONL, Parquet) with columns `path` and `label`, and `group`, `domain` and `fold` where there are such.
        audio: what paths in a manifest are relative to; its own folder where None.

    Returns:
        The task, called like the folder or the file. Rows that cannot be used (no label, no file, a path that is
        listed before) are among its rejected clips.

    Raises:
        ValueError: the source is not there or is no such thing, or holds no clip that can be used.
    """
    path = Path(source)
    if path.is_dir():
        found = list(_folder_clips(path))
    elif path.is_file() and is_manifest(path):
        found = list(_manifest_clips(path, audio or path.parent))
    elif path.exists():
        raise ValueError(f"{path} is neither a folder of classes nor a table (CSV, TSV, JSONL, Parquet) of labels")
    else:
        raise ValueError(f"{path} is not there; name a folder of classes or a table of labels")
    clips = tuple(each for each in found if isinstance(each, LabelledClip))
    rejected = tuple(each for each in found if isinstance(each, Rejected))
    if not clips:
        faults = f": {rejected[0].source} {rejected[0].reason}" if rejected else ""
        advice = "; paths are relative to its folder unless --audio says otherwise" if path.is_file() else ""
        raise ValueError(f"{path} lists no clip that can be used{faults}{advice}")
    return LabelledTask(path.resolve().name if path.is_dir() else path.stem, clips, rejected)


def _folder_clips(folder: Path) -> Iterable[LabelledClip | Rejected]:
    classes = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} has no subfolders; a task has one for each class, with its clips in it")
    for each in classes:
        try:
            for item in list_audio([each]):
                name = f"{each.name}/{item.key}"
                if isinstance(item, BadItem):
                    yield Rejected(name, item.reason)
                else:
                    yield LabelledClip(item, each.name, name)
        except AudioError as error:
            yield Rejected(each.name, str(error))


def _manifest_clips(manifest: Path, audio: Path) -> Iterable[LabelledClip | Rejected]:
    seen: dict[str, str] = {}
    for number, row in read_rows(manifest, "path"):
        source = f"row {number}" if isinstance(row, str) else text_of(row, "path") or f"row {number}"
        fault = row if isinstance(row, str) else _row_fault(manifest, row, audio, seen)
        if fault is not None:
            yield Rejected(source, fault)
            continue
        assert not isinstance(row, str)
        label = seen[source] = text_of(row, "label")
        yield LabelledClip(
            audio_item(source, audio),
            label,
            text_of(row, "group") or source,
            text_of(row, "domain") or ANY_DOMAIN,
            text_of(row, "fold"),
        )


def _row_fault(manifest: Path, row: Mapping[str, Any], audio: Path, seen: Mapping[str, str]) -> str | None:
    if "label" not in row:
        raise ValueError(f"{manifest} has no column 'label'; its columns are {', '.join(row)}")
    path, label = text_of(row, "path"), text_of(row, "label")
    if not path or not label:
        return "has no path" if not path else "has no label"
    if path in seen:
        return "is listed before" if seen[path] == label else f"is listed before with the label {seen[path]}"
    return missing_file(path, audio)


def missing_file(path: str, audio: Path) -> str | None:
    """Return why there is no such file, or None."""
    return None if (audio / path).is_file() else f"is not there (looked for {audio / path})"


def text_of(row: Mapping[str, Any], column: str) -> str:
    """Return a cell as text without spaces around it, "" where there is none."""
    value = row.get(column)
    return "" if value is None else str(value).strip()


def audio_item(path: str, audio: Path) -> AudioItem:
    """Return the item of a path that is relative to a folder."""
    return AudioItem(path, str(audio / path), suffix=Path(path).suffix.lower())


def task_faults(clips: Sequence[LabelledClip], folds: int) -> list[str]:
    """Return what limits the results of clips in so many folds, in sentences.

    Raises:
        ValueError: there is one class alone, or too few groups for a fold to test, one to choose by and one to train.
    """
    groups: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for clip in clips:
        groups.setdefault(clip.label, set()).add(clip.group)
        counts[clip.label] = counts.get(clip.label, 0) + 1
    if len(groups) < 2:
        raise ValueError(f"all {len(clips)} clips are of the class {clips[0].label!r}; a task has two classes or more")
    total = len(set().union(*groups.values()))
    if total < FEWEST_FOLDS:
        raise ValueError(f"its clips are of {total} groups; {FEWEST_FOLDS} folds of whole groups are the fewest")
    notes = [f"there are {total} groups, so {total} folds instead of {folds}"] if total < folds else []
    folds = min(folds, total)
    alone = [label for label, found in groups.items() if len(found) == 1]
    few = [f"{label} ({count})" for label, count in counts.items() if count < folds]
    notes += [f"classes with fewer clips than the {folds} folds: {', '.join(few)}"] if few else []
    notes += [f"classes of one group, tested without having been trained: {', '.join(alone)}"] if alone else []
    return notes


def fold_numbers(clips: Sequence[LabelledClip], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold int64 (n,) of each clip: the prescribed ones, in their sorted order, or `assign_folds`.

    Raises:
        ValueError: prescribed folds are fewer than three, are missing for some clips, or split a group.
    """
    named = sorted({clip.fold for clip in clips})
    if named == [""]:
        return assign_folds([clip.label for clip in clips], [clip.group for clip in clips], folds, seed)
    if "" in named or len(named) < FEWEST_FOLDS:
        raise ValueError(f"the column fold has to name one of {FEWEST_FOLDS} folds or more for every clip")
    where: dict[str, str] = {}
    for clip in clips:
        if where.setdefault(clip.group, clip.fold) != clip.fold:
            raise ValueError(f"the group {clip.group} is in the folds {where[clip.group]} and {clip.fold}")
    return np.array([named.index(clip.fold) for clip in clips], np.int64)


def assign_folds(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Return folds int64 (n,) from 0, at most `folds` and at most one for each group, with classes spread over them.

    Groups are taken in the order of how uneven their classes are, equals in random order; each goes to the fold where
    the classes then are most evenly spread.
    """
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group, label), 1)
    folds = min(folds, len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    held = np.zeros((folds, len(classes)))
    fold_of = np.zeros(len(names), np.int64)
    for each in order:
        tried = held + np.eye(folds)[:, :, None] * counts[each]
        spread = (tried / counts.sum(axis=0)).std(axis=1).mean(axis=1)
        size = held.sum(axis=1)
        fold_of[each] = np.lexsort((size, spread.round(12)))[0]
        held[fold_of[each]] += counts[each]
    return fold_of[group]
