"""Labelled audio: folders with a subfolder for each class, tables of labels, and folds that do not split groups."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sctok.audio.errors import AudioError
from sctok.audio.inputs.manifests import is_manifest, read_rows
from sctok.audio.inputs.sources import AudioItem, BadItem, list_audio
from sctok.evaluation.scores import ALL_DOMAINS

MIN_FOLDS = 3  # for testing, validation and training


@dataclass(frozen=True)
class LabelledClip:
    """A clip, its class, its group (never split between folds), its domain, and its fold if that is prescribed."""

    item: AudioItem
    label: str
    group: str
    domain: str = ALL_DOMAINS
    fold: str = ""


@dataclass(frozen=True)
class Rejected:
    """A clip that is left out of the results, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class LabelledTask:
    """A classification task: its clips in order, and the rejected ones."""

    name: str
    clips: tuple[LabelledClip, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def domain(self) -> str:
        """The domain of all clips, or "all"."""
        domains = {clip.domain for clip in self.clips}
        return domains.pop() if len(domains) == 1 else ALL_DOMAINS


def read_task(source: str | Path, audio: Path | None = None) -> LabelledTask:
    """Read the labels of a task, which is named after the folder or the file.

    Rows without a path, a label or a file, and repeated paths, are rejected.

    Args:
        source: a folder with one subfolder of audio for each class, each clip its own group; or a table (CSV, TSV,
            JSONL, Parquet) with columns `path` and `label`, and optionally `group`, `domain` and `fold`.
        audio: the folder that paths in a table are relative to, None for the table's folder.

    Raises:
        ValueError: the source does not exist, is neither a folder nor a table, or has no usable clip.
    """
    path = Path(source)
    if path.is_dir():
        found = list(_folder_clips(path))
    elif path.is_file() and is_manifest(path):
        found = list(_table_clips(path, audio or path.parent))
    elif path.exists():
        raise ValueError(f"{path} is neither a folder of classes nor a table (CSV, TSV, JSONL, Parquet) of labels")
    else:
        raise ValueError(f"{path} does not exist; name a folder of classes or a table of labels")
    clips = tuple(each for each in found if isinstance(each, LabelledClip))
    rejected = tuple(each for each in found if isinstance(each, Rejected))
    if not clips:
        first = f": {rejected[0].source} {rejected[0].reason}" if rejected else ""
        advice = "; paths are relative to its folder, or to --audio" if path.is_file() else ""
        raise ValueError(f"{path} has no usable clip{first}{advice}")
    return LabelledTask(path.resolve().name if path.is_dir() else path.stem, clips, rejected)


def _folder_clips(folder: Path) -> Iterable[LabelledClip | Rejected]:
    classes = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} has no subfolders; a task has one for each class, with the clips of the class")
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


def _table_clips(table: Path, audio: Path) -> Iterable[LabelledClip | Rejected]:
    labels: dict[str, str] = {}
    for number, row, fault in labelled_rows(table, audio):
        path, label = row["path"], row["label"]
        if path in labels:
            other = f" with the label {labels[path]}" if labels[path] != label else ""
            yield Rejected(path, f"is repeated{other}")
        elif fault:
            yield Rejected(path or f"row {number}", fault)
        else:
            labels[path] = label
            yield LabelledClip(
                audio_item(path, audio), label, row["group"] or path, row["domain"] or ALL_DOMAINS, row["fold"]
            )


def labelled_rows(table: Path, audio: Path) -> Iterator[tuple[int, Mapping[str, str], str]]:
    """Yield the rows of a table with the columns `path`, relative to the folder `audio`, and `label`.

    Each row has its number, its cells by column ("" if missing), and why it is unusable, else "".
    Raises ValueError if the table has no such columns.
    """
    for number, row in read_rows(table, "path"):
        if isinstance(row, str):
            yield number, defaultdict(str), row
            continue
        if "label" not in row:
            raise ValueError(f"{table} has no column 'label'; its columns are {', '.join(row)}")
        cells = defaultdict(str, {name: str(value).strip() for name, value in row.items() if value is not None})
        fault = next((f"has no {column}" for column in ("path", "label") if not cells[column]), "")
        if not fault and not (audio / cells["path"]).is_file():
            fault = f"does not exist ({audio / cells['path']})"
        yield number, cells, fault


def audio_item(path: str, audio: Path) -> AudioItem:
    """Return the item for a path that is relative to a folder."""
    return AudioItem(path, str(audio / path), suffix=Path(path).suffix.lower())


def task_faults(clips: Sequence[LabelledClip], folds: int) -> list[str]:
    """Return the limitations of a task with the given number of folds, as sentences.

    Raises:
        ValueError: there is only one class, or there are too few groups for testing, validation and training.
    """
    groups: dict[str, set[str]] = {}
    for clip in clips:
        groups.setdefault(clip.label, set()).add(clip.group)
    counts = Counter(clip.label for clip in clips)
    if len(groups) < 2:
        raise ValueError(f"all {len(clips)} clips are of the class {clips[0].label!r}; a task needs at least two")
    total = len(set().union(*groups.values()))
    if total < MIN_FOLDS:
        raise ValueError(f"the clips belong to {total} groups; a task needs at least {MIN_FOLDS}, one for each fold")
    notes = [f"there are {total} groups, so {total} folds instead of {folds}"] if total < folds else []
    folds = min(folds, total)
    single = [label for label, found in groups.items() if len(found) == 1]
    few = [f"{label} ({count})" for label, count in counts.items() if count < folds]
    notes += [f"classes with fewer clips than the {folds} folds: {', '.join(few)}"] if few else []
    notes += [f"classes with a single group, tested but never trained on: {', '.join(single)}"] if single else []
    return notes


def fold_numbers(clips: Sequence[LabelledClip], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold int64 (n,) of each clip: prescribed folds, numbered in sorted order, or those by `assign_folds`.

    Raises:
        ValueError: there are fewer than three prescribed folds, some clips lack one, or a group is split.
    """
    named = sorted({clip.fold for clip in clips})
    if named == [""]:
        return assign_folds([clip.label for clip in clips], [clip.group for clip in clips], folds, seed)
    if "" in named or len(named) < MIN_FOLDS:
        raise ValueError(f"the column fold must name a fold for every clip, and at least {MIN_FOLDS} folds")
    fold_of: dict[str, str] = {}
    for clip in clips:
        if fold_of.setdefault(clip.group, clip.fold) != clip.fold:
            raise ValueError(f"the group {clip.group} is in the folds {fold_of[clip.group]} and {clip.fold}")
    return np.array([named.index(clip.fold) for clip in clips], np.int64)


def assign_folds(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Distribute clips over folds int64 (n,), with classes spread evenly and groups not split.

    There are at most `folds` folds and at most one for each group. The groups with the most uneven classes are assigned
    first, ties in random order; each goes to the fold that then has the most even spread of classes.
    """
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group, label), 1)
    folds = min(folds, len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    assigned = np.zeros((folds, len(classes)))
    fold_of = np.zeros(len(names), np.int64)
    for each in order:
        tried = assigned + np.eye(folds)[:, :, None] * counts[each]
        spread = (tried / counts.sum(axis=0)).std(axis=1).mean(axis=1)
        size = assigned.sum(axis=1)
        fold_of[each] = np.lexsort((size, spread.round(12)))[0]
        assigned[fold_of[each]] += counts[each]
    return fold_of[group]
