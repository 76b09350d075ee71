"""Lists the inputs of encoding and decoding, and chooses the paths of the results."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sctok.audio.decoding.containers import FFMPEG_SUFFIXES, SOUNDFILE_SUFFIXES
from sctok.audio.inputs.sources import AudioItem, BadItem, audio_seconds, list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import FormatError
from sctok.formats.sct import MAX_ROWS, SCT_SUFFIX, CodecTokens, read_sct
from sctok.formats.token_shards import read_token_shard
from sctok.formats.untrusted.paths import path_inside

STREAMS = ["semantic", "acoustic"]
SHARD_SUFFIX = ".tar"


@dataclass(frozen=True)
class AudioJob:
    """Audio to encode, or the reason why it cannot be read, and the path of the result."""

    item: AudioItem | BadItem
    target: Path


@dataclass(frozen=True)
class DecodeTask:
    """Tokens to decode, or the reason why there are none, their name in messages, and the path of the audio."""

    source: str
    tokens: CodecTokens | str
    target: Path


def list_audio_jobs(inputs: Sequence[str | Path], out: Path | None, suffix: str) -> list[AudioJob]:
    """List the audio in `inputs`, as `list_audio` does, and choose the path of each result.

    An input whose result would replace an input or another result becomes a BadItem.

    out: a file that ends in `suffix`, for a single input; a folder, in which results have the keys of their inputs; or
    None to write results next to their inputs.

    Raises:
        AudioError: an input does not exist or contains no audio.
        ValueError: `out` is a file and there are several inputs, or it is None and an input is in a tar shard.
    """
    groups: list[Sequence[str | Path]] = [[each] for each in inputs] if out is None else [inputs]
    _check_out(out, (suffix, SHARD_SUFFIX) if suffix == SCT_SUFFIX else (suffix,))
    listed = [item for group in groups for item in list_audio(group)]
    if _is_file(out, suffix) and len(listed) > 1:
        raise ValueError(f"{out}: {len(listed)} inputs cannot be written to one file; give a folder")
    taken: set[Path] = set()
    return [_audio_job(item, out, suffix, taken) for item in listed]


def _audio_job(item: AudioItem | BadItem, out: Path | None, suffix: str, taken: set[Path]) -> AudioJob:
    if isinstance(item, BadItem):
        return AudioJob(item, out or Path(item.path))
    if out is None:
        if item.offset is not None:
            raise ValueError(f"{item.path} is a tar shard: give a folder for the results with --out")
        target = Path(item.path).with_suffix(suffix)
    else:
        try:
            target = out if _is_file(out, suffix) else path_inside(out, item.key, suffix)
        except FormatError as error:
            return AudioJob(BadItem(item.key, item.path, str(error)), out)
    path = Path(os.path.realpath(target))
    if path == Path(os.path.realpath(item.path)):
        return AudioJob(BadItem(item.key, item.path, "its result would replace it; give another path"), target)
    if path in taken:
        reason = f"{target} is already the result of another input; give a folder with --out"
        return AudioJob(BadItem(item.key, item.path, reason), target)
    taken.add(path)
    return AudioJob(item, target)


def audio_lengths(jobs: Sequence[AudioJob]) -> list[int] | None:
    """Return the lengths in samples at 16 kHz according to the headers, or None if any length is unknown."""
    seconds = [audio_seconds(job.item) for job in jobs if isinstance(job.item, AudioItem)]
    return None if None in seconds else [math.ceil(each * SAMPLE_RATE) for each in seconds if each is not None]


def list_token_jobs(inputs: Sequence[str | Path], out: Path | None, suffix: str) -> Iterator[DecodeTask]:
    """Yield the tokens in `inputs` in the order of their paths, one file in memory at a time.

    If a file cannot be read, or its audio would replace other audio, the task has the reason in place of tokens.

    inputs: `.sct` files, token shards, and folders of them. out: a file that ends in `suffix`, for a single `.sct`; a
    folder; or None to write `<name>.decoded<suffix>` next to each input, so that the original audio is kept.

    Raises:
        ValueError: a folder contains no tokens, `out` is a file and there are several inputs, or it is None and an
            input is a token shard.
        FileNotFoundError: an input does not exist.
    """
    taken: set[Path] = set()
    for job in _token_jobs(inputs, out, suffix):
        path = Path(os.path.realpath(job.target))
        if isinstance(job.tokens, str):
            yield job
        elif path in taken:
            yield replace(job, tokens=f"{job.target} is already the result of another input; give it another --out")
        else:
            taken.add(path)
            yield job


def _token_jobs(inputs: Sequence[str | Path], out: Path | None, suffix: str) -> Iterator[DecodeTask]:
    _check_out(out, (suffix,))
    if "" in inputs:
        raise ValueError("one of the inputs is an empty name; use . for the current folder")
    files = [file for each in inputs for file in _token_files(Path(each))]
    shards = [path for path, _ in files if path.suffix == SHARD_SUFFIX]
    if _is_file(out, suffix) and (len(files) > 1 or shards):
        raise ValueError(f"{out}: several inputs, or a token shard, cannot be written to one file; give a folder")
    if out is None and shards:
        raise ValueError(f"{shards[0]} is a token shard: give a folder for the audio with --out")
    for path, relative in files:
        if path.suffix == SHARD_SUFFIX:
            assert out is not None
            yield from _shard_jobs(path, out, suffix)
        elif out is None:
            yield _sct_job(path, path.with_suffix(f".decoded{suffix}"))
        elif _is_file(out, suffix):
            yield _sct_job(path, out)
        else:
            yield _with_target(_sct_job(path, out), out, str(relative.with_suffix("")), suffix)


def _check_out(out: Path | None, suffixes: Sequence[str]) -> None:
    """Raise ValueError if `out` is not a folder and has the suffix of another kind of file."""
    kinds = {*FFMPEG_SUFFIXES, *SOUNDFILE_SUFFIXES, SCT_SUFFIX, SHARD_SUFFIX} - set(suffixes)
    if out is not None and out.suffix.lower() in kinds and not out.is_dir():
        raise ValueError(f"{out}: results can only be written as {' or '.join(suffixes)}; give such a file or a folder")


def _is_file(out: Path | None, suffix: str) -> bool:
    return out is not None and out.suffix.lower() == suffix and not out.is_dir()


def _token_files(path: Path) -> list[tuple[Path, Path]]:
    """Return the token files of an input, each with its path relative to the input."""
    if not path.is_dir():
        os.stat(path)  # noqa: PTH116  # raises FileNotFoundError
        return [(path, Path(path.name))]
    found = sorted(each for each in path.rglob("*") if each.suffix in (SCT_SUFFIX, SHARD_SUFFIX) and each.is_file())
    if not found:
        raise FormatError(f"{path}: no {SCT_SUFFIX} files or token shards in this folder or its subfolders")
    return [(each, each.relative_to(path)) for each in found]


def _sct_job(path: Path, target: Path) -> DecodeTask:
    try:
        return DecodeTask(str(path), read_sct(path), target)
    except OSError as error:
        return DecodeTask(str(path), error.strerror or str(error), target)
    except FormatError as error:
        return DecodeTask(str(path), str(error).removeprefix(f"{path} "), target)


def _shard_jobs(path: Path, out: Path, suffix: str) -> Iterator[DecodeTask]:
    try:
        for key, tokens, info in read_token_shard(path):
            yield _with_target(DecodeTask(f"{path}:{key}", _shard_tokens(tokens, info), out), out, key, suffix)
    except FormatError as error:
        yield DecodeTask(str(path), str(error).removeprefix(f"{path} "), out)


def _with_target(job: DecodeTask, out: Path, key: str, suffix: str) -> DecodeTask:
    """Set the target of a job to a path in `out`, or its tokens to the reason why that is impossible."""
    try:
        return replace(job, target=path_inside(out, key, suffix))
    except FormatError as error:
        return job if isinstance(job.tokens, str) else replace(job, tokens=str(error))


def _shard_tokens(tokens: NDArray[Any], info: dict[str, Any]) -> CodecTokens | str:
    if info.get("streams") != STREAMS:
        return f"has the streams {info.get('streams')}, not {STREAMS}: encode the audio with a codec"
    sizes = (MAX_ROWS, MAX_ROWS)  # token shards do not record them; the codec finds them by the hashes
    try:
        return CodecTokens(
            tokens, info["samples"], info["token_rate"], sizes, info["codebook_hash"], info["codec_hash"]
        )
    except KeyError as error:
        return f"its description has no {error}"
    except (ValueError, TypeError) as error:
        return f"its description is damaged: {error}"
