"""Select the inputs of a run by name and by duration."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from sctok.audio.inputs.sources import AudioItem, BadItem

from .planning import Choice
from .run_folder import RunError
from .subsets import choose_hours, measure_seconds


@dataclass(frozen=True)
class Selection:
    """Limits on the listed inputs; no limits by default.

    include, exclude: shell patterns for the key with its suffix (the path below an input folder) or for its last part;
    `*` also matches slashes. An input is selected if it matches any of `include`, or `include` is empty, and none of
    `exclude`. min_seconds, max_seconds: inclusive limits on the duration, read from the header of a file, or by
    decoding it if the header has none. Unreadable files are selected, so that they are recorded as failures. Raises
    RunError for limits that nothing can satisfy.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_seconds: float | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= (self.min_seconds or 0.0) <= (float("inf") if self.max_seconds is None else self.max_seconds):
            raise RunError(
                f"no audio can last at least {self.min_seconds} s and at most {self.max_seconds} s; change the limits"
            )

    def wants(self, item: AudioItem) -> bool:
        """Return whether the name of an input is selected."""
        return (not self.include or _fits(item, self.include)) and not _fits(item, self.exclude)

    def choice(self, channel: int | None, max_hours: float | None = None, seed: int = 0) -> Choice | None:
        """Return a function that selects new inputs by duration and total hours; None if there are no such limits."""
        seconds_of = partial(measure_seconds, channel=channel)
        bounded = self.min_seconds is not None or self.max_seconds is not None
        if max_hours is None and not bounded:
            return None

        def choose(
            news: Iterable[AudioItem | BadItem], planned: float
        ) -> Iterable[tuple[AudioItem | BadItem, float | None]]:
            kept = self._bounded(news, channel) if bounded else news
            if max_hours is None:
                return ((entry, None) for entry in kept)
            return choose_hours(kept, planned, hours=max_hours, seed=seed, seconds_of=seconds_of)

        return choose

    def _bounded(self, news: Iterable[AudioItem | BadItem], channel: int | None) -> Iterator[AudioItem | BadItem]:
        low, high = self.min_seconds or 0.0, float("inf") if self.max_seconds is None else self.max_seconds
        for entry in news:
            if isinstance(entry, AudioItem):
                seconds = measure_seconds(entry, channel=channel)
                if seconds and not low <= seconds <= high:
                    continue
            yield entry


def _fits(item: AudioItem, patterns: tuple[str, ...]) -> bool:
    name = f"{item.key}{item.suffix}"
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in (name, name.rpartition("/")[2]))
