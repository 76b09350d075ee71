"""Which of the listed inputs a run takes: by name, and by length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds
from sctok.audio.windows import SAMPLE_RATE

from .planning import Choice, Renewal
from .run_folder import RunError
from .sharding import Execution
from .subsets import choose_hours


@dataclass(frozen=True)
class Selection:
    """Limits on what is listed; none of them by default.

    include, exclude: patterns as of the shell, held against the key with its suffix (the path below an input folder)
    and against its last part; `*` passes over slashes. Taken is what fits any of the former, if there are any, and
    none of the latter. min_seconds, max_seconds: bounds on the length, both taken in, by the header of a file or, where
    that does not say, by decoding it; what cannot be read passes, to be recorded as a failure. Raises RunError for
    bounds that nothing fits.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_seconds: float | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= (self.min_seconds or 0.0) <= (float("inf") if self.max_seconds is None else self.max_seconds):
            raise RunError(f"no audio lasts at least {self.min_seconds} s and at most {self.max_seconds} s")

    def wants(self, item: AudioItem) -> bool:
        """Return whether an input's name fits."""
        return (not self.include or _fits(item, self.include)) and not _fits(item, self.exclude)

    def choice(self, channel: int | None, max_hours: float | None = None, seed: int = 0) -> Choice | None:
        """Return what reduces new inputs to those of the right lengths and to so many hours; None for all of them."""
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

    def renewal(self, execution: Execution, channel: int | None) -> Renewal:
        """Return which inputs that a run knows already are read again."""
        seconds_of = partial(measure_seconds, channel=channel)
        return Renewal(execution.refresh, execution.retry_failed, execution.mine, seconds_of)

    def _bounded(self, news: Iterable[AudioItem | BadItem], channel: int | None) -> Iterator[AudioItem | BadItem]:
        low, high = self.min_seconds or 0.0, float("inf") if self.max_seconds is None else self.max_seconds
        for entry in news:
            if isinstance(entry, AudioItem):
                seconds = measure_seconds(entry, channel=channel)
                if seconds and not low <= seconds <= high:
                    continue
            yield entry


def measure_seconds(item: AudioItem, *, channel: int | None) -> float:
    """Return the duration of a file from its header, or by decoding it; 0 if it is unreadable."""
    stated = audio_seconds(item)
    if stated is not None:
        return stated
    try:
        blocks = stream_audio(item.open(), name=item.name, channel=channel)
        return sum(len(block) for block in blocks) / SAMPLE_RATE
    except AudioError:
        return 0.0


def _fits(item: AudioItem, patterns: tuple[str, ...]) -> bool:
    name = f"{item.key}{item.suffix}"
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in (name, name.rpartition("/")[2]))
