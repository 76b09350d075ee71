"""How long the tokens of a collection would take on other machines, how much disk, and what they would wait for."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds
from sctok.audio.windows import SAMPLE_RATE, WINDOW_PATCHES, token_count, window_count
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.runs.selection import measure_seconds
from sctok.corpus.runs.stages import ENCODER, FILTERBANK, NEAREST
from sctok.corpus.runs.subsets import hash_key

from .hardware import Hardware

CORES, FEEDING, READING, WRITING = "decoding", "feeding the device", "reading", "writing"
REMEDIES = {
    ENCODER: "more devices, or a smaller encoder: this is what the device is for",
    NEAREST: "a smaller codebook, or more devices",
    FILTERBANK: "more devices",
    CORES: "more cores, or audio of fewer channels and lower sample rates",
    FEEDING: "more devices",
    READING: "faster storage",
    WRITING: "a faster disk",
}
_TAR_BLOCK, _NPY_HEADER, _INFO_BYTES, _RECORD_BYTES = 512, 128, 700, 150
_PATCH_VALUES = 256


class EncoderSizes(Protocol):
    """Sizes of an encoder."""

    @property
    def width(self) -> int:
        """Values of a position."""
        ...

    @property
    def depth(self) -> int:
        """Blocks."""
        ...


@dataclass(frozen=True)
class Survey:
    """A collection: files, seconds of audio, windows and bytes in all, tokens' bytes on disk.

    surveyed: how many files that was measured of; the rest is extrapolated. deviation: standard error of the seconds
    for that reason. unreadable: of those that were looked at.
    """

    files: int
    seconds: float
    windows: float
    input_bytes: float
    output_bytes: float
    surveyed: int
    unreadable: int
    deviation: float


@dataclass(frozen=True)
class Costs:
    """Seconds of one core or device.

    device: of one window, stage by stage. decode: of a core, for a second of audio. feed: of the process that feeds a
    device, for a window.
    """

    device: Mapping[str, float]
    decode: float
    feed: float


@dataclass(frozen=True)
class Fleet:
    """What is to do the work, all machines together: devices, cores, and bytes that storage reads and writes a second.

    shared: whether the devices are those cores. Raises RunError for less than one device or core.
    """

    devices: int
    cores: int
    read_rate: float
    write_rate: float
    shared: bool = False

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise RunError(f"there must be at least 1 device, not {self.devices}")
        if self.cores < 1:
            raise RunError(f"there must be at least 1 core, not {self.cores}")
        if not (self.read_rate > 0 and self.write_rate > 0):
            raise RunError(f"storage must read and write, not {self.read_rate} and {self.write_rate} bytes a second")


@dataclass(frozen=True)
class Estimate:
    """Hours of a run, and of each part if nothing else took time; the part that decides, and what would help."""

    hours: float
    parts: Mapping[str, float]
    bottleneck: str
    remedy: str
    times_real_time: float


def encoder_flops(config: EncoderSizes) -> float:
    """Return the operations of products in one window: 513 positions through linear layers and attention."""
    positions, width = WINDOW_PATCHES + 1, config.width
    block = 24 * positions * width**2 + 4 * positions**2 * width
    return float(config.depth * block + 2 * WINDOW_PATCHES * _PATCH_VALUES * width)


def search_flops(width: int, stack: int, centroids: int) -> float:
    """Return the operations of all distances in one window: 512 / stack vectors of stack · width values."""
    return 2.0 * WINDOW_PATCHES * width * centroids


def token_bytes(samples: int, stack: int, centroids: int, streams: int = 1) -> int:
    """Return about how many bytes the tokens of a file take in a shard, with what is said of the file around it."""
    value = 2 if centroids <= 1 << 16 else 4
    tokens = _NPY_HEADER + token_count(samples, stack) * streams * value
    return sum(_TAR_BLOCK * (1 + math.ceil(size / _TAR_BLOCK)) for size in (tokens, _INFO_BYTES)) + 2 * _RECORD_BYTES


def table_costs(
    hardware: Hardware, config: EncoderSizes, precision: str, stack: int, centroids: int
) -> dict[str, float]:
    """Return the seconds of one window on a device of the table, stage by stage."""
    return {
        ENCODER: hardware.encoder_seconds(encoder_flops(config), precision, config.width),
        NEAREST: hardware.search_seconds(search_flops(config.width, stack, centroids)),
        FILTERBANK: hardware.filterbank_seconds,
    }


def survey_inputs(
    listed: Iterable[AudioItem | BadItem], *, stack: int, centroids: int, most: int = 1000, seed: int = 0
) -> tuple[Survey, list[AudioItem]]:
    """Look at a collection, by the headers of at most `most` files that are chosen by hash.

    Returns:
        what it holds, and the readable ones of those files.

    Raises:
        RunError: there is no audio, or none that can be read.
    """
    chosen, files, bad, first = _choose(listed, most, seed)
    found = [(item, _seconds(item)) for item in chosen]
    readable = [(item, seconds) for item, seconds in found if seconds]
    if not readable:
        if found or first is None:
            raise RunError(
                f"none of {len(found)} files that were looked at can be read" if found else "no audio was found"
            )
        raise RunError(f"none of {bad} inputs can be read, such as {first.path}: {first.reason}")
    scale = files / len(found)
    lengths = [seconds for _, seconds in readable]
    samples = [round(seconds * SAMPLE_RATE) for seconds in lengths]
    survey = Survey(
        files=files,
        seconds=scale * sum(lengths),
        windows=scale * sum(map(window_count, samples)),
        input_bytes=scale * sum(_size(item) for item, _ in readable),
        output_bytes=scale * sum(token_bytes(each, stack, centroids) for each in samples),
        surveyed=len(found),
        unreadable=len(found) - len(readable) + bad,
        deviation=0.0 if files == len(found) else files * _deviation(lengths) / math.sqrt(len(lengths)),
    )
    return survey, [item for item, _ in readable]


def estimate(survey: Survey, costs: Costs, fleet: Fleet) -> Estimate:
    """Return how long a run takes whose parts go on beside each other: what takes longest decides.

    The stages of a device come one after the other, and where the devices are the cores, so does the work of those.
    """
    on_device = {name: survey.windows * each / fleet.devices for name, each in costs.device.items()}
    # A core of each device feeds it.
    free = fleet.cores if fleet.shared else max(1, fleet.cores - fleet.devices)
    cores = {CORES: survey.seconds * costs.decode / free, FEEDING: survey.windows * costs.feed / fleet.devices}
    storage = {READING: survey.input_bytes / fleet.read_rate, WRITING: survey.output_bytes / fleet.write_rate}
    beside = [{**on_device, **cores}] if fleet.shared else [on_device, *({name: cores[name]} for name in cores)]
    slowest = max([*beside, *({name: value} for name, value in storage.items())], key=lambda part: sum(part.values()))
    seconds, bottleneck = sum(slowest.values()), max(slowest, key=lambda name: slowest[name])
    return Estimate(
        hours=seconds / 3600,
        parts={name: value / 3600 for name, value in {**on_device, **cores, **storage}.items()},
        bottleneck=bottleneck,
        remedy=REMEDIES[bottleneck],
        times_real_time=survey.seconds / seconds,
    )


def _choose(
    listed: Iterable[AudioItem | BadItem], most: int, seed: int
) -> tuple[list[AudioItem], int, int, BadItem | None]:
    """Return `most` of the files with the lowest hashes, how many there are, how many inputs are none, the first."""
    kept: list[tuple[int, str, AudioItem]] = []
    files, bad, first = 0, 0, None
    for entry in listed:
        if not isinstance(entry, AudioItem):
            bad, first = bad + 1, first or entry
            continue
        files += 1
        kept.append((hash_key(seed, entry.key), entry.key, entry))
        if len(kept) >= 2 * most:
            kept = sorted(kept, key=lambda each: each[:2])[:most]
    return [item for _, _, item in sorted(kept, key=lambda each: each[:2])[:most]], files, bad, first


def _seconds(item: AudioItem) -> float:
    stated = audio_seconds(item)
    return measure_seconds(item, channel=None) if stated is None else stated


def _size(item: AudioItem) -> int:
    if item.size is not None:
        return item.size
    path = Path(item.path)
    return path.stat().st_size if path.exists() else 0


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
