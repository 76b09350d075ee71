"""Audio files to token files and back. Files that fail are reported, and all others are processed."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.audio.loader import load_windows
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import DiskFullError, FormatError, atomic_path, remove_stale_temporaries
from sctok.formats.sct import CodecTokens, read_sct, write_sct
from sctok.formats.token_shards import TokenShardWriter

from .codec import Codec, DecodingError, WindowProgress
from .listing import STREAMS, AudioJob, DecodeTask
from .samplers import SamplerConfig

AUDIO_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one input.

    source: name of the input in messages. target: path of the result. samples: length of the audio at 16 kHz.
    token_bits: size of the tokens in bits. bytes_written: size of the result, or of its tokens in a token shard; 0 if
    the result existed already. reason: why there is no result, one line.
    """

    source: str
    target: Path
    samples: int = 0
    token_bits: int = 0
    bytes_written: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Reading:
    """How to read and encode audio: codebook (rows or hash), channel (None for all) and number of worker processes."""

    codebook: int | str | None = None
    channel: int | None = None
    workers: int = 0


def encode_files(
    codec: Codec,
    jobs: Sequence[AudioJob],
    reading: Reading,
    *,
    skip_existing: bool = False,
    progress: WindowProgress | None = None,
) -> Iterator[Outcome]:
    """Encode audio to `.sct` files and yield the outcome of each. Unreadable files come first.

    skip_existing: keep existing results that are complete and made with this codec and codebook. progress: see
    `Codec.encode_many`.

    Raises:
        DiskFullError: the disk is full; all files written so far are complete.
        LoaderError: a worker process died.
    """
    codebook = codec.codebook_hash(reading.codebook)
    remaining, done = [], []
    for job in jobs:
        existing = _existing_tokens(job.target) if skip_existing and isinstance(job.item, AudioItem) else None
        if existing is not None and (existing.codec_hash, existing.codebook_hash) == (codec.hash, codebook):
            done.append(Outcome(_name(job), job.target, existing.samples))
        else:
            remaining.append(job)
    yield from done
    cleaner = _TemporaryCleaner()
    for job, tokens in _encode(codec, remaining, reading, progress):
        if isinstance(tokens, str):
            yield Outcome(_name(job), job.target, reason=tokens)
            continue
        try:
            cleaner.clean(job.target)
            yield _done(_name(job), job.target, tokens, write_sct(job.target, tokens))
        except OSError as error:
            yield _not_written(_name(job), job.target, error)


def encode_to_shard(
    codec: Codec, jobs: Sequence[AudioJob], reading: Reading, path: Path, progress: WindowProgress | None = None
) -> Iterator[Outcome]:
    """Encode audio to one token shard, which appears when it is complete. See `encode_files`.

    Temporary files that a killed call for the same shard left behind are removed.
    """
    remove_stale_temporaries(path.parent, path.name)
    sizes = codec.codebook_sizes(reading.codebook)
    with TokenShardWriter(path, codebook_sizes=sizes) as writer:
        for job, tokens in _encode(codec, jobs, reading, progress):
            if isinstance(tokens, str):
                yield Outcome(_name(job), path, reason=tokens)
                continue
            info = {
                "samples": tokens.samples,
                "sample_rate": SAMPLE_RATE,
                "token_rate": tokens.token_rate,
                "streams": STREAMS,
                "codebook_hash": tokens.codebook_hash,
                "codec_hash": tokens.codec_hash,
                "encoder_hash": codec.encoder_hash,
                "source": {**job.item.metadata, "path": job.item.path} if isinstance(job.item, AudioItem) else {},
            }
            try:
                writer.add(job.item.key, tokens.tokens, info)
                yield _done(_name(job), path, tokens, tokens.tokens.size * (2 if max(sizes) <= 1 << 16 else 4))
            except FormatError as error:
                yield Outcome(_name(job), path, reason=str(error).removeprefix(f"{path}: "))


def reconstruct_files(
    codec: Codec,
    jobs: Sequence[AudioJob],
    reading: Reading,
    sampler: SamplerConfig,
    *,
    skip_existing: bool = False,
    progress: WindowProgress | None = None,
) -> Iterator[Outcome]:
    """Encode audio, decode its tokens and write the result. See `decode_files`.

    skip_existing: keep existing audio of any length.
    """
    remaining = []
    for job in jobs:
        if skip_existing and isinstance(job.item, AudioItem) and _is_audio(job.target):
            yield Outcome(job.item.name, job.target, soundfile.info(job.target).frames)
        else:
            remaining.append(job)
    encoded = (DecodeTask(_name(job), tokens, job.target) for job, tokens in _encode(codec, remaining, reading, None))
    yield from decode_files(codec, encoded, sampler, progress=progress)


def decode_files(
    codec: Codec,
    jobs: Iterable[DecodeTask],
    sampler: SamplerConfig,
    *,
    skip_existing: bool = False,
    progress: WindowProgress | None = None,
) -> Iterator[Outcome]:
    """Decode tokens to audio files, WAV or FLAC of 16 bits according to their suffix, and yield the outcome of each.

    skip_existing: keep existing audio of the right length. progress: see `Codec.decode_blocks`.

    Raises:
        DiskFullError: the disk is full; all files written so far are complete.
    """
    cleaner = _TemporaryCleaner()
    skipped: list[Outcome] = []
    errors: list[Exception] = []

    def decodable() -> Iterator[tuple[DecodeTask, CodecTokens]]:
        try:
            for job in jobs:
                outcome = _skip(codec, job, skip_existing)
                if outcome is not None:
                    skipped.append(outcome)
                else:
                    assert isinstance(job.tokens, CodecTokens)
                    yield job, job.tokens
        except (ValueError, OSError) as error:  # of listing or encoding; raised after the earlier jobs are finished
            errors.append(error)

    for job, blocks in codec.decode_many(decodable(), sampler, progress):
        yield from skipped
        skipped.clear()
        assert isinstance(job.tokens, CodecTokens)
        sizes = codec.codebook_sizes(job.tokens.codebook_hash)  # token shards do not record them
        try:
            cleaner.clean(job.target)
            yield _done(
                job.source, job.target, replace(job.tokens, codebook_sizes=sizes), write_audio(job.target, blocks)
            )
        except (OSError, DecodingError) as error:
            yield _not_written(job.source, job.target, error)
    yield from skipped
    if errors:
        raise errors[0]


def _skip(codec: Codec, job: DecodeTask, skip_existing: bool) -> Outcome | None:
    """Return the outcome of a job that needs no decoding, else None."""
    if isinstance(job.tokens, str):
        return Outcome(job.source, job.target, reason=job.tokens)
    try:
        codec.check(job.tokens)
    except ValueError as error:
        return Outcome(job.source, job.target, reason=str(error))
    if skip_existing and _is_audio(job.target, job.tokens.samples):
        return Outcome(job.source, job.target, job.tokens.samples)
    return None


def write_audio(path: Path, blocks: Iterable[NDArray[np.float32]]) -> int:
    """Write mono blocks, float32 (n,) at 16 kHz, atomically to a WAV or FLAC file of 16 bits, and return its size.

    Values beyond full scale are clipped. Raises ValueError for another suffix, DiskFullError and OSError.
    """
    if path.suffix.lower() not in AUDIO_FORMATS:
        raise ValueError(f"{path}: audio can only be written as {' or '.join(AUDIO_FORMATS)}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        sink = _Sink(file)
        kind = AUDIO_FORMATS[path.suffix.lower()]
        try:
            with soundfile.SoundFile(sink, "w", SAMPLE_RATE, 1, "PCM_16", format=kind) as sound:
                for block in blocks:
                    sound.write(block)
        except soundfile.LibsndfileError as error:
            if sink.failure is None:
                raise OSError(f"{path} cannot be written: {error}") from error
        except AssertionError:  # raised by soundfile after a partial write
            if sink.failure is None:
                raise
        if sink.failure is not None:
            raise sink.failure
    return path.stat().st_size


class _TemporaryCleaner:
    """Removes the temporary files that killed writers left behind. Lists each folder only once."""

    def __init__(self) -> None:
        self._stale: dict[Path, set[str]] = {}

    def clean(self, path: Path) -> None:
        folder = path.parent
        if folder not in self._stale:
            self._stale[folder] = {each.name.rpartition(".tmp-")[0] for each in folder.glob("*.tmp-*")}
        if path.name in self._stale[folder]:
            remove_stale_temporaries(folder, path.name)


class _Sink:
    """A binary file for libsndfile's callbacks. It stores errors, because callbacks must not raise."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None
        self.tell = file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)  # flushes the buffer, which can fail
        except OSError as error:
            self.failure = error
            return 0

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            return 0

    def read(self, size: int) -> bytes:
        raise NotImplementedError  # soundfile requires the method but does not call it


def _encode(
    codec: Codec, jobs: Sequence[AudioJob], reading: Reading, progress: WindowProgress | None
) -> Iterator[tuple[AudioJob, CodecTokens | str]]:
    """Yield each job with its tokens, or with the reason why there are none. Jobs without readable audio come first."""
    readable = []
    for job in jobs:
        if isinstance(job.item, BadItem):
            yield job, job.item.reason
        else:
            readable.append((job, job.item))
    chunks = load_windows([item for _, item in readable], workers=reading.workers, channel=reading.channel)
    assert isinstance(chunks, Generator)  # closing it ends the worker processes
    with closing(chunks):
        encoded = codec.encode_many(chunks, reading.codebook, progress)
        for (job, item), (_, tokens) in zip(readable, encoded, strict=True):
            yield job, tokens.removeprefix(f"{item.name}: ") if isinstance(tokens, str) else tokens


def _name(job: AudioJob) -> str:
    return job.item.name if isinstance(job.item, AudioItem) else job.item.path


def _done(source: str, target: Path, tokens: CodecTokens, size: int) -> Outcome:
    return Outcome(source, target, tokens.samples, len(tokens.tokens) * tokens.bits_per_pair, size)


def _not_written(source: str, target: Path, error: OSError | DecodingError) -> Outcome:
    if isinstance(error, DiskFullError):
        raise error
    reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    return Outcome(source, target, reason=reason)


def _existing_tokens(path: Path) -> CodecTokens | None:
    try:
        return read_sct(path)
    except (FormatError, OSError):
        return None


def _is_audio(path: Path, samples: int | None = None) -> bool:
    """Return whether a file contains audio at 16 kHz, with the given number of samples if it is given."""
    try:
        info = soundfile.info(path) if path.is_file() else None  # opening a pipe would wait for its writer
    except (soundfile.LibsndfileError, OSError):
        return False
    return info is not None and info.samplerate == SAMPLE_RATE and samples in (None, info.frames)
