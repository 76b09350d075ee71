"""Patch embeddings of a collection in HDF5 feature shards: `sctok extract`."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.loader import Chunk
from sctok.audio.transfer import Ends, Waves, to_array
from sctok.audio.windows import PATCH_ROWS
from sctok.corpus.engines.processes import RunResult, Summary, execute_run, samples_to_hours
from sctok.corpus.runs.events import RunListener, ignore_events
from sctok.corpus.runs.planning import plan_runs
from sctok.corpus.runs.resume import ShardContents
from sctok.corpus.runs.run_folder import RunError, RunFolder, check_name
from sctok.corpus.runs.selection import Selection
from sctok.corpus.runs.sharding import (
    Execution,
    MakeExtractor,
    check_at_least,
    check_device,
    describe_extractor,
    describe_source,
)
from sctok.corpus.runs.subsets import GroupSampler, window_columns
from sctok.features.extractor import CUT, Extractor
from sctok.formats.feature_hashes import ClipRows
from sctok.formats.feature_shards import FEATURES_VERSION, FeatureShard, FeatureShardWriter
from sctok.runtime.stages import Stage

PROVENANCE = ("encoder", "encoder_hash", "filterbank", "precision", "channel", "sctok_version")
SUFFIX = ".h5"
_COPIED_ROWS = 8192


@dataclass(frozen=True)
class ExtractionConfig:
    """Settings that determine the features of a run, in addition to the encoder.

    domain: name of the kind of audio. channel: to read; None mixes all channels. tokens_per_clip: number of patches to
    keep of each file, rounded up to a multiple of 16; None keeps all. max_hours: hours of audio after which no more
    files are chosen; None takes all. seed: of both choices. files_per_shard: number of files in one shard. Raises
    RunError for values out of range.
    """

    domain: str
    channel: int | None = None
    tokens_per_clip: int | None = None
    max_hours: float | None = None
    seed: int = 0
    files_per_shard: int = 256

    def __post_init__(self) -> None:
        check_name(self.domain, "domain")
        check_at_least("channel", self.channel, 0)
        check_at_least("tokens per clip", self.tokens_per_clip, 1)
        if self.max_hours is not None and not self.max_hours > 0:
            raise RunError(f"max hours must be above 0, not {self.max_hours}")
        check_at_least("seed", self.seed, 0)
        check_at_least("files per shard", self.files_per_shard, 1)


@dataclass(frozen=True)
class ExtractionSummary(Summary):
    """The contents of a folder of features. rows: number of patch embeddings. width: number of values in each."""

    rows: int
    width: int


def extract_features(
    inputs: Sequence[str | Path],
    folder: Path,
    make_extractor: MakeExtractor,
    config: ExtractionConfig,
    execution: Execution | None = None,
    progress: RunListener = ignore_events,
    selection: Selection | None = None,
) -> RunResult[ExtractionSummary]:
    """Write the patch embeddings of all audio in `inputs` to feature shards in `folder`, or resume a run that does.

    The bytes in `folder` depend only on the inputs, the encoder and `config`.

    Args:
        inputs: folders, files, manifests and tar shards, as `list_audio` takes them.
        folder: the run folder; created if absent.
        make_extractor: loads the encoder onto a device; picklable if there are several devices.
        config: what to extract.
        execution: devices, batch size and decoding processes.
        progress: receives the events of `execute_run`.
        selection: which new inputs to take; inputs that the run already has stay in it.

    Raises:
        RunError: the folder belongs to another configuration, or its shards do not fit its plan.
        AudioError: an input cannot be listed.
        DiskFullError: finished shards stay valid; the same call resumes.
    """
    execution = execution or Execution()
    extractor = make_extractor(execution.devices[0])
    run = plan_features(inputs, folder, extractor, config, selection, execution)
    return fill_run(run, extractor, make_extractor, config, execution, progress)


def plan_features(
    inputs: Sequence[str | Path],
    folder: Path,
    extractor: Extractor,
    config: ExtractionConfig,
    selection: Selection | None = None,
    execution: Execution | None = None,
) -> RunFolder:
    """Plan the run of `extract_features`, or update an existing plan. Arguments and errors are the same."""
    selection = selection or Selection()
    stored = {
        "kind": "features",
        "features_version": FEATURES_VERSION,
        **asdict(config),
        **describe_extractor(extractor),
    }
    listed = list_audio(inputs, wants=selection.wants)
    return plan_runs(
        {folder: stored},
        SUFFIX,
        lambda: listed,
        files_per_shard=config.files_per_shard,
        read_shard=read_contents,
        choose=selection.choice(config.channel, config.max_hours, config.seed),
        execution=execution,
    )[0]


def fill_run(
    run: RunFolder,
    extractor: Extractor,
    make_extractor: MakeExtractor,
    config: ExtractionConfig,
    execution: Execution,
    progress: RunListener = ignore_events,
) -> RunResult[ExtractionSummary]:
    """Process the remaining shards of a planned run; `extractor` is on the first device. See `extract_features`."""
    make_job = partial(_make_job, run, config, make_extractor)
    return execute_run([run], FeatureJob(run, config, extractor), make_job, summarise, execution, progress)[0]


def summarise(run: RunFolder, shards: Sequence[int], failed: int) -> ExtractionSummary:
    """Read finished shards of an extraction run and summarise them. Raises FormatError naming a damaged shard."""
    files = rows = samples = 0
    for index in shards:
        with FeatureShard(run.shard_path(index)) as shard:
            files += len(shard.clips)
            rows += shard.rows
            samples += sum(clip.samples for clip in shard.clips)
    return ExtractionSummary(files, failed, samples_to_hours(samples), len(shards), rows, run.config["width"])


def read_contents(path: Path) -> ShardContents:
    """Read what a feature shard says about itself. Raises FormatError."""
    with FeatureShard(path) as shard:
        return ShardContents(shard.provenance.get("config_hash"), tuple(clip.key for clip in shard.clips))


def _make_job(run: RunFolder, config: ExtractionConfig, make_extractor: MakeExtractor, device: str) -> "FeatureJob":
    extractor = make_extractor(device)
    check_device({"encoder_hash": extractor.hash, "precision": extractor.precision}, run, device)
    return FeatureJob(run, config, extractor)


class FeatureJob:
    """Embeds windows and stores the rows that hold audio."""

    def __init__(self, run: RunFolder, config: ExtractionConfig, extractor: Extractor) -> None:
        self.stage: Stage = nullcontext
        self._config = config
        self.device = torch.device(extractor.device)
        self.cut = extractor.padding == CUT
        self._extractor = extractor
        self._provenance = {
            **{name: run.config[name] for name in PROVENANCE},
            "config_hash": run.config_hash,
        }

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return windows unchanged."""
        return chunks

    def encode(self, waves: Waves, last: Ends) -> npt.NDArray[np.float32]:
        """Return the patch embeddings (w, 8 · columns, E) float32 of windows."""
        self._extractor.stage = self.stage
        return to_array(self._extractor.embed(waves, last))

    def open_clip(self, item: AudioItem) -> "FeatureClip":
        """Return a new record of a file."""
        return FeatureClip(item, self._config)

    @contextmanager
    def open_shard(self, path: Path, run: int) -> Iterator["FeatureSink"]:
        """Open a new feature shard."""
        with FeatureShardWriter(path, width=self._extractor.width, provenance=self._provenance) as writer:
            yield FeatureSink(writer)

    @contextmanager
    def read_shard(self, path: Path) -> Iterator[Iterator[tuple[str, tuple[FeatureShard, ClipRows]]]]:
        """Open a finished shard."""
        with FeatureShard(path) as shard:
            yield ((clip.key, (shard, clip)) for clip in shard.clips)


class FeatureClip:
    """The choice of patches to keep of one file while its windows are encoded."""

    def __init__(self, item: AudioItem, config: ExtractionConfig) -> None:
        self.item = item
        tokens = config.tokens_per_clip
        self.sampler = None if tokens is None else GroupSampler(config.seed, item.key, tokens)
        self.begun = False
        self._samples: int | None = None

    def wants(self, window: int, samples: int | None) -> bool:
        """Return whether patches of the window are kept."""
        self._samples = samples
        if self.sampler is not None:
            return self.sampler.offer(window, samples)
        return window_columns(window, samples) > 0

    def audio_rows(self, window: int, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the patches (rows, E) of a window that hold audio."""
        return patches[: window_columns(window, self._samples) * PATCH_ROWS]


class FeatureSink:
    """An open feature shard; the rows of a file are written at once, and removed if the file fails."""

    def __init__(self, writer: FeatureShardWriter) -> None:
        self._writer = writer

    def take(self, clip: FeatureClip, window: int, values: npt.NDArray[np.float32]) -> None:
        """Store the patches (rows, E) of a window, or keep the chosen ones until the end of the file."""
        rows = clip.audio_rows(window, values)
        if clip.sampler is not None:
            clip.sampler.take(window, rows)
        else:
            self._begin(clip)
            self._writer.append_rows(rows)

    def finish(self, clip: FeatureClip, samples: int) -> None:
        """Complete the entry of a file."""
        self._begin(clip)
        for rows in clip.sampler.rows() if clip.sampler is not None else ():
            self._writer.append_rows(rows)
        self._writer.finish_clip(samples, describe_source(clip.item))

    def discard(self, clip: FeatureClip) -> None:
        """Remove the rows of a file that failed."""
        if clip.begun:
            self._writer.discard_clip()

    def copy(self, entry: tuple[FeatureShard, ClipRows]) -> None:
        """Store a file from the previous version of the shard."""
        shard, clip = entry
        self._writer.begin_clip(clip.key)
        end = clip.first_row + clip.rows
        for start in range(clip.first_row, end, _COPIED_ROWS):
            self._writer.append_rows(shard.read(start, min(start + _COPIED_ROWS, end)))
        self._writer.finish_clip(clip.samples, clip.metadata)

    def _begin(self, clip: FeatureClip) -> None:
        if not clip.begun:
            self._writer.begin_clip(clip.item.key)
            clip.begun = True
