"""Estimate the time and disk space to tokenize a collection on other machines, and find the bottleneck."""

import heapq
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.audio.windows import SAMPLE_RATE, WINDOW_PATCHES, token_count, window_count
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.runs.subsets import hash_key, measure_seconds
from sctok.features.encoder import EncoderConfig
from sctok.runtime.stages import EMBEDDING, FILTERBANK, NEAREST

from .hardware import Hardware

CORES, FEEDING, READING, WRITING = "decoding", "feeding the device", "reading", "writing"
REMEDIES = {
    EMBEDDING: "more devices, or a smaller encoder (this is the work the device is for)",
    NEAREST: "a smaller codebook, or more devices",
    FILTERBANK: "more devices",
    CORES: "more cores, or audio with fewer channels and lower sample rates",
    FEEDING: "more devices",
    READING: "faster storage",
    WRITING: "a faster disk",
}
_TAR_BLOCK, _NPY_HEADER, _INFO_BYTES, _RECORD_BYTES = 512, 128, 700, 150
_PATCH_VALUES = 256


@dataclass(frozen=True)
class Survey:
    """A collection: number of files, seconds of audio, windows, bytes of input, and bytes of tokens on disk.

    surveyed: number of files that were measured; the totals are extrapolated from them. unreadable: number of surveyed
    inputs that cannot be read. deviation: standard error of the extrapolated seconds.
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

    device: to encode one window, by stage. decode: of a core, for one second of audio. feed: of the process that feeds
    a device, for one window.
    """

    device: Mapping[str, float]
    decode: float
    feed: float


@dataclass(frozen=True)
class Fleet:
    """All machines together: number of devices and cores, and bytes that storage reads and writes per second.

    shared: whether the devices are the cores. Raises RunError for less than one device or core.
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
            raise RunError(
                "the rates of reading and writing must be above 0, not "
                f"{self.read_rate} and {self.write_rate} bytes per second"
            )


@dataclass(frozen=True)
class Estimate:
    """Hours of a run, hours of each part on its own, the bottleneck, and what would speed it up."""

    hours: float
    parts: Mapping[str, float]
    bottleneck: str
    remedy: str
    times_real_time: float


def encoder_flops(config: EncoderConfig) -> float:
    """Return the floating-point operations of one window: 513 positions through linear layers and attention."""
    positions, width = WINDOW_PATCHES + 1, config.width
    block = 24 * positions * width**2 + 4 * positions**2 * width
    return float(config.depth * block + 2 * WINDOW_PATCHES * _PATCH_VALUES * width)


def search_flops(width: int, stack: int, centroids: int) -> float:
    """Return the operations of the distances of one window: 512 / stack vectors, stack · width values."""
    return 2.0 * WINDOW_PATCHES * width * centroids


def token_bytes(samples: int, stack: int, centroids: int, streams: int = 1) -> int:
    """Return the approximate bytes of the tokens of a file in a shard, including its info and records."""
    value = 2 if centroids <= 1 << 16 else 4
    tokens = _NPY_HEADER + token_count(samples, stack) * streams * value
    return sum(_TAR_BLOCK * (1 + math.ceil(size / _TAR_BLOCK)) for size in (tokens, _INFO_BYTES)) + 2 * _RECORD_BYTES


def table_costs(
    hardware: Hardware, config: EncoderConfig, precision: str, stack: int, centroids: int
) -> dict[str, float]:
    """Return the seconds per window on a device of the table, by stage."""
    return {
        EMBEDDING: hardware.encoder_seconds(encoder_flops(config), precision, config.width),
        NEAREST: hardware.search_seconds(search_flops(config.width, stack, centroids)),
        FILTERBANK: hardware.filterbank_seconds,
    }


def survey_inputs(
    listed: Iterable[AudioItem | BadItem], *, stack: int, centroids: int, most: int = 1000, seed: int = 0
) -> tuple[Survey, list[AudioItem]]:
    """Survey a collection by the headers of at most `most` files, chosen by hash.

    Returns:
        the survey, and the readable files among those chosen.

    Raises:
        RunError: there is no audio, or no readable audio.
    """
    chosen, files, bad, first = _choose(listed, most, seed)
    found = [(item, measure_seconds(item, channel=None)) for item in chosen]
    readable = [(item, seconds) for item, seconds in found if seconds]
    if not readable:
        if found or first is None:
            raise RunError(f"none of the {len(found)} surveyed files can be read" if found else "no audio was found")
        raise RunError(f"none of {bad} inputs can be read, such as {first.path}: {first.reason}")
    scale = files / len(found)
    lengths = [seconds for _, seconds in readable]
    samples = [round(seconds * SAMPLE_RATE) for seconds in lengths]
    spread = statistics.stdev(lengths) if len(lengths) > 1 else 0.0
    survey = Survey(
        files=files,
        seconds=scale * sum(lengths),
        windows=scale * sum(map(window_count, samples)),
        input_bytes=scale * sum(_size(item) for item, _ in readable),
        output_bytes=scale * sum(token_bytes(each, stack, centroids) for each in samples),
        surveyed=len(found),
        unreadable=len(found) - len(readable) + bad,
        deviation=0.0 if files == len(found) else files * spread / math.sqrt(len(lengths)),
    )
    return survey, [item for item, _ in readable]


def estimate(survey: Survey, costs: Costs, fleet: Fleet) -> Estimate:
    """Return the time of a run whose parts run in parallel, so that the slowest part determines the time.

    The stages of a device run one after the other. If the devices are the cores, decoding and feeding do so too.
    """
    on_device = {name: survey.windows * each / fleet.devices for name, each in costs.device.items()}
    # One core feeds each device.
    free = fleet.cores if fleet.shared else max(1, fleet.cores - fleet.devices)
    cores = {CORES: survey.seconds * costs.decode / free, FEEDING: survey.windows * costs.feed / fleet.devices}
    storage = {READING: survey.input_bytes / fleet.read_rate, WRITING: survey.output_bytes / fleet.write_rate}
    parallel = [{**on_device, **cores}] if fleet.shared else [on_device, *({name: cores[name]} for name in cores)]
    slowest = max([*parallel, *({name: value} for name, value in storage.items())], key=lambda part: sum(part.values()))
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
    """Return the `most` files with the lowest hashes, the number of files and of bad inputs, and the first bad one."""
    files, bad, first = 0, 0, None

    def items() -> Iterator[AudioItem]:
        nonlocal files, bad, first
        for entry in listed:
            if isinstance(entry, AudioItem):
                files += 1
                yield entry
            else:
                bad, first = bad + 1, first or entry

    chosen = heapq.nsmallest(most, items(), key=lambda item: (hash_key(seed, item.key), item.key))
    return chosen, files, bad, first


def _size(item: AudioItem) -> int:
    if item.size is not None:
        return item.size
    path = Path(item.path)
    return path.stat().st_size if path.exists() else 0
