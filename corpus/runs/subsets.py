"""Reproducible subsets: hours of a collection and patches of a clip, chosen by hash, independent of order."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds
from sctok.audio.windows import PATCH_ROWS, SAMPLE_RATE, WINDOW_COLUMNS, audio_columns

GROUP_COLUMNS = 2  # whole pairs of columns, so that patches can be stacked by 4 inside a group
GROUP_ROWS = GROUP_COLUMNS * PATCH_ROWS

_WINDOW_GROUPS = WINDOW_COLUMNS // GROUP_COLUMNS
_LAST_CHOICE = 1 << 64  # above every 64-bit hash


def choose_hours(
    news: Iterable[AudioItem | BadItem],
    planned: float,
    *,
    hours: float,
    seed: int,
    seconds_of: Callable[[AudioItem], float],
) -> Iterator[tuple[AudioItem | BadItem, float | None]]:
    """Choose inputs until a run has at least `hours` hours of audio.

    Args:
        news: new inputs; problems among them pass through.
        planned: seconds of audio that the run already has.
        hours: of audio in the run, above 0.
        seed: decides the order of choice, together with the keys.
        seconds_of: returns the duration of an input in seconds, 0 if it is unreadable.

    Yields:
        (input, seconds) or (problem, None), in the order of `news`.
    """
    entries = list(news)
    turns = sorted(
        (hash_key(seed, entry.key), entry.key, index)
        for index, entry in enumerate(entries)
        if isinstance(entry, AudioItem)
    )
    chosen: dict[int, float] = {}
    for _, _, index in turns:
        if planned >= hours * 3600:
            break
        entry = entries[index]
        assert isinstance(entry, AudioItem)
        chosen[index] = seconds_of(entry)
        planned += chosen[index]
    for index, entry in enumerate(entries):
        if index in chosen or isinstance(entry, BadItem):
            yield entry, chosen.get(index)


def measure_seconds(item: AudioItem, *, channel: int | None) -> float:
    """Return the duration of a file in seconds from its header, or by decoding it; 0 if it is unreadable."""
    stated = audio_seconds(item)
    if stated is not None:
        return stated
    try:
        blocks = stream_audio(item.open(), name=item.name, channel=channel)
        return sum(len(block) for block in blocks) / SAMPLE_RATE
    except AudioError:
        return 0.0


def hash_key(seed: int, key: str) -> int:
    """Return a 64-bit hash of the seed and the key."""
    text = f"{seed}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


class GroupSampler:
    """A random sample of a clip's groups of 16 patches (two columns, 0.32 s), drawn while its windows stream by.

    Each group has a hash of (seed, key, group), and the groups with the smallest hashes are kept: the sample depends
    only on the clip, and its length need not be known. A last group of one column is used only if there are too few
    whole groups.
    """

    def __init__(self, seed: int, key: str, tokens: int) -> None:
        """Sample at least `tokens` patches of the clip `key`, rounded up to whole groups of 16."""
        self._limit = -(-tokens // GROUP_ROWS)
        self._base = hash_key(seed, key)
        self._heap: list[tuple[int, int]] = []  # (-hash, group): the worst choice so far comes first
        self._rows: dict[int, npt.NDArray[np.float32]] = {}

    def offer(self, window: int, samples: int | None) -> bool:
        """Add the groups of the next window; `samples` is the length of the clip if this is its last window.

        Returns:
            True if a group is among the smallest so far, so that the window has to be encoded.
        """
        columns = window_columns(window, samples)
        groups, rest = divmod(columns, GROUP_COLUMNS)
        first = window * _WINDOW_GROUPS
        hashes = [int(value) for value in _mix(self._base, np.arange(first, first + groups, dtype=np.uint64))]
        wanted = False
        for group, value in enumerate(hashes + [_LAST_CHOICE] * (rest > 0), first):
            if len(self._heap) < self._limit:
                heapq.heappush(self._heap, (-value, group))
                wanted = True
            elif -value > self._heap[0][0]:
                heapq.heapreplace(self._heap, (-value, group))
                wanted = True
        return wanted

    def take(self, window: int, patches: npt.NDArray[np.float32]) -> None:
        """Keep the chosen patches of a window, given its patches (rows, E) from the first row on."""
        first = window * _WINDOW_GROUPS
        chosen = {group for _, group in self._heap}
        self._rows = {group: rows for group, rows in self._rows.items() if group in chosen}
        for group in chosen:
            start = (group - first) * GROUP_ROWS
            if 0 <= start < len(patches):
                self._rows[group] = patches[start : start + GROUP_ROWS].copy()

    def rows(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the chosen groups (16, E) in order of time; the last one may be (8, E)."""
        for group in sorted(group for _, group in self._heap):
            yield self._rows[group]


def window_columns(window: int, samples: int | None) -> int:
    """Return the number of columns of a window that hold audio; `samples` may be None if a later window follows."""
    if samples is None:
        return WINDOW_COLUMNS
    return min(WINDOW_COLUMNS, max(0, audio_columns(samples) - window * WINDOW_COLUMNS))


def _mix(base: int, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash 64-bit values with a 64-bit key, using the finaliser of SplitMix64."""
    mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(base)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
