"""Files of audio to files of tokens and back: what can be done is done, what fails is reported."""

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
    """What became of one input.

    source: what messages call it. target: where the result is. reason: why there is none, one line. samples: of audio
    at 16 kHz. token_bits: of its tokens. bytes_written: of the result, or of its tokens where many share a file;
    0 where it was there already.
    """

    source: str
    target: Path
    samples: int = 0
    token_bits: int = 0
    bytes_written: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Reading:
    """How audio is read and encoded: rows or hash of the codebook, the channel (None for all), decoding processes."""

    codebook: int | str | None = None
    channel: int | None = None
    workers: int = 0


def encode_files(
    codec: Codec,
    jobs: Sequence[AudioJob],
    reading: Reading,
    *,
    keep: bool = False,
    progress: WindowProgress | None = None,
) -> Iterator[Outcome]:
    """Write the tokens of audio to `.sct` files and yield what became of each, unreadable ones first.

    keep: leave a result that is there already, whole and of this codec and codebook, as it is. progress: see
    `Codec.encode_many`.

    Raises:
        DiskFullError: what has been written is whole.
        LoaderError: a decoding process died.
    """
    codebook = codec.codebook_hash(reading.codebook)
    left, done = [], []
    for job in jobs:
        there = _tokens_there(job.target) if keep and isinstance(job.item, AudioItem) else None
        if there is not None and (there.codec_hash, there.codebook_hash) == (codec.hash, codebook):
            done.append(Outcome(_name(job), job.target, there.samples))
        else:
            left.append(job)
    yield from done
    tidy = _Tidy()
    for job, found in _encoded(codec, left, reading, progress):
        if isinstance(found, str):
            yield Outcome(_name(job), job.target, reason=found)
            continue
        try:
            tidy(job.target)
            yield _done(_name(job), job.target, found, write_sct(job.target, found))
        except OSError as error:
            yield _not_written(_name(job), job.target, error)


def encode_to_shard(
    codec: Codec, jobs: Sequence[AudioJob], reading: Reading, path: Path, progress: WindowProgress | None = None
) -> Iterator[Outcome]:
    """Write the tokens of audio to one token shard, as `encode_files` does to files; it appears when all is done.

    What a killed call for the same shard left beside it is removed.
    """
    remove_stale_temporaries(path.parent, path.name)
    sizes = codec.codebook_sizes(reading.codebook)
    with TokenShardWriter(path, codebook_sizes=sizes) as writer:
        for job, found in _encoded(codec, jobs, reading, progress):
            if isinstance(found, str):
                yield Outcome(_name(job), path, reason=found)
                continue
            info = {
                "samples": found.samples,
                "sample_rate": SAMPLE_RATE,
                "token_rate": found.token_rate,
                "streams": STREAMS,
                "codebook_hash": found.codebook_hash,
                "codec_hash": found.codec_hash,
                "encoder_hash": codec.encoder_hash,
                "source": {**job.item.metadata, "path": job.item.path} if isinstance(job.item, AudioItem) else {},
            }
            try:
                writer.add(job.item.key, found.tokens, info)
                yield _done(_name(job), path, found, found.tokens.size * (2 if max(sizes) <= 1 << 16 else 4))
            except FormatError as error:
                yield Outcome(_name(job), path, reason=str(error).removeprefix(f"{path}: "))


def reconstruct_files(
    codec: Codec,
    jobs: Sequence[AudioJob],
    reading: Reading,
    sampler: SamplerConfig,
    *,
    keep: bool = False,
    progress: WindowProgress | None = None,
) -> Iterator[Outcome]:
    """Encode audio, decode its tokens and write the result, WAV or FLAC after the suffix of its target.

    Arguments, results and errors are those of `decode_files`.
    """
    left = []
    for job in jobs:
        if keep and isinstance(job.item, AudioItem) and _is_audio(job.target):
            yield Outcome(job.item.name, job.target, soundfile.info(job.target).frames)
        else:
            left.append(job)
    encoded = (DecodeTask(_name(job), found, job.target) for job, found in _encoded(codec, left, reading, None))
    yield from decode_files(codec, encoded, sampler, progress=progress)


def decode_files(
    codec: Codec,
    jobs: Iterable[DecodeTask],
    sampler: SamplerConfig,
    *,
    keep: bool = False,
    progress: WindowProgress | None = None,
) -> Iterator[Outcome]:
    """Write the audio of tokens, WAV or FLAC (16 bits) after the suffix of its target, and yield what became of each.

    keep: leave audio that is there already, and of the right length, as it is. progress: see `Codec.decode_blocks`.

    Raises:
        DiskFullError: what has been written is whole.
    """
    tidy = _Tidy()
    aside: list[Outcome] = []
    stopped: list[Exception] = []

    def fitting() -> Iterator[tuple[DecodeTask, CodecTokens]]:
        try:
            for job in jobs:
                outcome = _settled(codec, job, keep)
                if outcome is not None:
                    aside.append(outcome)
                else:
                    assert isinstance(job.tokens, CodecTokens)
                    yield job, job.tokens
        except (ValueError, OSError) as error:  # of listing or encoding: what came before is finished first
            stopped.append(error)

    for job, blocks in codec.decode_many(fitting(), sampler, progress):
        yield from aside
        aside.clear()
        assert isinstance(job.tokens, CodecTokens)
        sizes = codec.codebook_sizes(job.tokens.codebook_hash)  # which token shards do not record
        try:
            tidy(job.target)
            yield _done(
                job.source, job.target, replace(job.tokens, codebook_sizes=sizes), write_audio(job.target, blocks)
            )
        except (OSError, DecodingError) as error:
            yield _not_written(job.source, job.target, error)
    yield from aside
    if stopped:
        raise stopped[0]


def _settled(codec: Codec, job: DecodeTask, keep: bool) -> Outcome | None:
    """Return what became of a job that has nothing to decode."""
    if isinstance(job.tokens, str):
        return Outcome(job.source, job.target, reason=job.tokens)
    try:
        codec.check(job.tokens)
    except ValueError as error:
        return Outcome(job.source, job.target, reason=str(error))
    if keep and _is_audio(job.target, job.tokens.samples):
        return Outcome(job.source, job.target, job.tokens.samples)
    return None


def write_audio(path: Path, blocks: Iterable[NDArray[np.float32]]) -> int:
    """Write mono blocks float32 (n,) at 16 kHz to a WAV or FLAC file of 16 bits, atomically, and return its size.

    What exceeds full scale is clipped. Raises ValueError for another suffix; DiskFullError; OSError.
    """
    if path.suffix.lower() not in AUDIO_FORMATS:
        raise ValueError(f"{path}: audio is written as {' or '.join(AUDIO_FORMATS)}")
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
        except AssertionError:  # soundfile's own where less than all was taken
            if sink.failure is None:
                raise
        if sink.failure is not None:
            raise sink.failure
    return path.stat().st_size


class _Tidy:
    """Removes what writers that were killed left beside a file that is to be written."""

    def __init__(self) -> None:
        self._left: dict[Path, set[str]] = {}

    def __call__(self, path: Path) -> None:
        folder = path.parent
        if folder not in self._left:
            self._left[folder] = {each.name.rpartition(".tmp-")[0] for each in folder.glob("*.tmp-*")}
        if path.name in self._left[folder]:
            remove_stale_temporaries(folder, path.name)


class _Sink:
    """A binary file as libsndfile's callbacks need it: an error is kept, as none may leave a callback."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None
        self.tell = file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)  # writes what is buffered
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
        raise NotImplementedError  # soundfile asks for the method, not for a byte


def _encoded(
    codec: Codec, jobs: Sequence[AudioJob], reading: Reading, progress: WindowProgress | None
) -> Iterator[tuple[AudioJob, CodecTokens | str]]:
    """Yield the tokens of audio, or why there are none; first what cannot be read at all."""
    good = []
    for job in jobs:
        if isinstance(job.item, BadItem):
            yield job, job.item.reason
        else:
            good.append((job, job.item))
    chunks = load_windows([item for _, item in good], workers=reading.workers, channel=reading.channel)
    assert isinstance(chunks, Generator)  # so that its workers can be ended
    with closing(chunks):
        encoded = codec.encode_many(chunks, reading.codebook, progress)
        for (job, item), (_, found) in zip(good, encoded, strict=True):
            yield job, found.removeprefix(f"{item.name}: ") if isinstance(found, str) else found


def _name(job: AudioJob) -> str:
    return job.item.name if isinstance(job.item, AudioItem) else job.item.path


def _done(source: str, target: Path, tokens: CodecTokens, size: int) -> Outcome:
    return Outcome(source, target, tokens.samples, len(tokens.tokens) * tokens.bits_per_pair, size)


def _not_written(source: str, target: Path, error: OSError | DecodingError) -> Outcome:
    if isinstance(error, DiskFullError):
        raise error
    reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    return Outcome(source, target, reason=reason)


def _tokens_there(path: Path) -> CodecTokens | None:
    try:
        return read_sct(path)
    except (FormatError, OSError):
        return None


def _is_audio(path: Path, samples: int | None = None) -> bool:
    """Return whether there is audio at 16 kHz, of so many samples."""
    try:
        found = soundfile.info(path) if path.is_file() else None  # opening a pipe would wait for its writer
    except (soundfile.LibsndfileError, OSError):
        return False
    return found is not None and found.samplerate == SAMPLE_RATE and samples in (None, found.frames)
