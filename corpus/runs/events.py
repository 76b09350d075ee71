"""What a run or an export reports while it works."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RunPlanned:
    """A run starts: the number of files and shards that are left to do."""

    files: int
    shards: int


@dataclass(frozen=True)
class WindowsEncoded:
    """A batch of `count` windows was encoded."""

    count: int


@dataclass(frozen=True)
class FileFinished:
    """A file was stored or failed. seconds: of audio. reason: why it failed, or None."""

    key: str
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class ShardFinished:
    """A shard was written and released."""

    index: int


@dataclass(frozen=True)
class StagesTimed:
    """The seconds that a process spent in each stage, reported at its end if the run is profiled."""

    seconds: Mapping[str, float]


@dataclass(frozen=True)
class WorkerLost:
    """A worker ended early; other workers take its shards."""

    device: str
    reason: str


RunEvent = RunPlanned | WindowsEncoded | FileFinished | ShardFinished | StagesTimed | WorkerLost
RunListener = Callable[[RunEvent], None]


@dataclass(frozen=True)
class ExportPlanned:
    """An export starts: the number of shards that are left to read."""

    shards: int


@dataclass(frozen=True)
class DocumentExported:
    """A file was exported as `ids` ids."""

    ids: int


@dataclass(frozen=True)
class ShardExported:
    """All files of a shard were exported."""


ExportEvent = ExportPlanned | DocumentExported | ShardExported
ExportListener = Callable[[ExportEvent], None]


def ignore_events(event: RunEvent | ExportEvent) -> None:
    """Do nothing with an event."""
