"""Recognising a file by its content, and splitting it into links that libsndfile can read."""

import re
import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

from sctok.audio.errors import AudioError, truncated

from .headers import MPEG_TAGS, Extent, is_placeholder, sound_extent
from .mpeg import MpegPart, mpeg_parts, starts_mpeg
from .ogg import ogg_links
from .sections import Range, Window

SOUNDFILE_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .voc".split()  # noqa: SIM905
)
FFMPEG_SUFFIXES = frozenset(
    ".m4a .m4b .mp4 .mov .3gp .aac .ac3 .eac3 .amr .ape .dts .mka .mkv .ra .spx .tak .tta .webm .wma .wv".split()  # noqa: SIM905
)
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES

_SLACK_FRAMES = 2  # encoders of MPEG audio disagree about the first and the last frame
_FLAC_OPENING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_FLAC_COUNT = slice(21, 26)  # the low half of byte 21 and the next four: samples in the file
_OGG_CODECS = ("Vorbis", "Opus")
_MAX_LINKS = 10_000
_PLAIN_TAG_BYTES = 1 << 20  # libsndfile would read larger tags into memory
_MAX_PATCHED_BYTES = 1 << 15
_BEYOND_32_BITS = 2**32 - 2**16


@dataclass(frozen=True)
class Link:
    """A part of a file that libsndfile reads as a file of its own.

    ranges: the bytes of the part; None for the whole file. head: replaces the first bytes. endless: hide the length
    from libsndfile, which would guess it. promised: number of samples that the header states, if libsndfile does not
    report it or must not see it. slack: how many of these may be missing. mpeg: the part consists of MPEG frames.
    complete: a decoder error after the promised samples does not affect the sound.
    """

    ranges: tuple[Range, ...] | None = None
    head: bytes = b""
    endless: bool = False
    promised: int | None = None
    slack: int = 0
    mpeg: bool = False
    complete: bool = False


class LeftToFfmpegError(AudioError):
    """A file that libsndfile cannot read, or would read only in part without an error."""


def find_links(file: BinaryIO, name: str) -> list[Link]:
    """Return the links of a file in order, whatever its suffix.

    Raises AudioError if headers promise more than the file holds, LeftToFfmpegError if libsndfile would lose sound.
    """
    window = Window(file)
    start = _after_tags(window, 0)
    frames = start
    while (content := _after_tags(window, frames + _zeros(window, frames))) > frames:
        frames = content
    opening = window.at(frames, 4)
    if opening == b"OggS":
        return _ogg(window, frames, name)
    if opening == b"fLaC":
        return _flac(window, frames)
    if starts_mpeg(window, frames):
        return _mpeg(window, frames, name)
    return _by_headers(window, start, name)


def has_seekable_sound(file: BinaryIO) -> bool:
    """Return whether libsndfile can seek in a file: sound in blocks, or FLAC of stated length."""
    try:
        links = find_links(file, "")
    except AudioError:
        return False
    return len(links) == 1 and not links[0].mpeg and (links[0].ranges is None or links[0].complete)


def _after_tags(window: Window, start: int) -> int:
    """Return where the content after ID3v2 tags begins."""
    while size := _tag_bytes(window, start):
        start += size
    return start


def _tag_bytes(window: Window, start: int) -> int:
    head = window.at(start, 10)
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:]) >= 0x80:
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + 10 * bool(head[5] & 0x10)


def _zeros(window: Window, start: int) -> int:
    count = 0
    while piece := window.piece(start + count):
        kept = len(piece.lstrip(b"\0"))
        count += len(piece) - kept
        if kept:
            break
    return count


def _mpeg(window: Window, start: int, name: str) -> list[Link]:
    parts = mpeg_parts(window, start)
    for part in parts:
        missing = (part.promised or 0) - part.samples
        if missing > _SLACK_FRAMES * part.format.samples:
            raise truncated(name, f"{part.promised} samples", f"{part.samples}")
    if len(parts) == 1 and parts[0].plain and start == _tag_bytes(window, 0) <= _PLAIN_TAG_BYTES:
        return [replace(_mpeg_link(parts[0]), ranges=None, head=b"", endless=False)]
    if not parts or len(parts) > _MAX_LINKS:
        raise LeftToFfmpegError(name, f"changes its format {len(parts)} times")
    return [_mpeg_link(part) for part in parts]


def _mpeg_link(part: MpegPart) -> Link:
    slack = _SLACK_FRAMES * part.format.samples
    return Link(part.ranges, part.head, endless=part.endless, promised=part.samples, slack=slack, mpeg=True)


def _ogg(window: Window, start: int, name: str) -> list[Link]:
    try:
        found = ogg_links(window, start)
    except ValueError as error:
        raise LeftToFfmpegError(name, f"is an Ogg file with {error}") from error
    if found and not found[-1].ended:
        raise AudioError(name, "is truncated: its last Ogg stream has no last page; fetch it again")
    others = sorted({link.codec for link in found} - set(_OGG_CODECS))
    if others or not found or len(found) > _MAX_LINKS:
        raise LeftToFfmpegError(name, f"an Ogg file of {' and '.join(others) or 'no audio'}")
    if len(found) == 1 and found[0].ranges == [(0, window.end)]:
        return [Link()]
    return [Link(tuple(link.ranges)) for link in found]


def _flac(window: Window, start: int) -> list[Link]:
    starts, position = [start], start + 4
    while len(starts) < _MAX_LINKS and (piece := window.piece(position)):
        if match := _FLAC_OPENING.search(piece):
            starts.append(position + match.start())
        position += match.end() if match else max(1, len(piece) - 7)
    return [_flac_link(window, *pair) for pair in zip(starts, [*starts[1:], window.end], strict=True)]


def _flac_link(window: Window, start: int, end: int) -> Link:
    """Return one FLAC stream, with a header that has no pictures and no length.

    A length that is too small would end the decoding early.
    """
    head = bytearray(window.at(start, 42))
    sound = _flac_frames(window, start)
    if len(head) < 42 or sound >= end:
        return Link(((start, end),))
    promised = (int.from_bytes(head[_FLAC_COUNT], "big") & 0xFFFFFFFFF) or None
    head[_FLAC_COUNT] = (int.from_bytes(head[_FLAC_COUNT], "big") & ~0xFFFFFFFFF).to_bytes(5, "big")
    head[4] |= 0x80  # the last block of metadata
    if window.at(end - 128, 3) == b"TAG":
        end -= 128
    return Link(((start, start + 42), (sound, end)), bytes(head), promised=promised, complete=promised is not None)


def _flac_frames(window: Window, start: int) -> int:
    """Return where the metadata of a stream ends."""
    position, last = start + 4, False
    while not last and len(block := window.at(position, 4)) == 4:
        last = bool(block[0] & 0x80)
        position += 4 + int.from_bytes(block[1:], "big")
    return position


def _by_headers(window: Window, start: int, name: str) -> list[Link]:
    _check_avi(window, start, name)
    parts: list[Link] = []
    position: int | None = start
    while position is not None and (extent := sound_extent(window, position)) is not None:
        held = max(0, window.end - extent.start)
        promised = _checked_bytes(extent, held, name)
        if extent.tag in MPEG_TAGS and starts_mpeg(window, extent.start):
            return _mpeg(Window(window.file, extent.start + promised), extent.start, name)
        head = b"" if extent.promised == promised else _with_size(window, position, extent, promised)
        count = promised // extent.block if extent.unit == "samples" else None
        parts.append(Link(((position, window.end),), head, promised=count))
        position = _next_header(window, position, extent.start + promised)
        if len(parts) > _MAX_LINKS:
            raise LeftToFfmpegError(name, f"more than {_MAX_LINKS} files in one")
    if not parts:
        return [Link(((start, window.end),) if start else None)]
    if len(parts) == 1 and start == 0 and not parts[0].head:
        return [replace(parts[0], ranges=None)]
    starts = [first for part in parts for first, _ in part.ranges or ()]
    ends = [*starts[1:], window.end]
    return [replace(part, ranges=((first, end),)) for part, first, end in zip(parts, starts, ends, strict=True)]


def _with_size(window: Window, start: int, extent: Extent, size: int) -> bytes:
    """Return a header with its size field replaced by `size`; empty if that is impossible."""
    if extent.size_field is None or extent.start - start > _MAX_PATCHED_BYTES:
        return b""
    position, size_format, header = extent.size_field
    if size + header >= 1 << 8 * struct.calcsize(size_format):
        return b""
    head = bytearray(window.at(start, extent.start - start))
    struct.pack_into(size_format, head, position - start, size + header)
    return bytes(head)


def _checked_bytes(extent: Extent, held: int, name: str) -> int:
    """Return how many bytes after a header are sound. Raises AudioError if not all of them can be read."""
    if extent.several:
        raise LeftToFfmpegError(name, "holds several stretches of sound")
    if extent.promised is None or is_placeholder(extent, held):
        return held
    if extent.promised // extent.block > held // extent.block:
        raise truncated(name, f"{extent.promised // extent.block} {extent.unit}", f"{held // extent.block}")
    if extent.bits == 32 and held - extent.promised >= _BEYOND_32_BITS:
        reason = f"holds {held} bytes after a header that states {extent.promised}; convert it to RF64 or FLAC"
        raise AudioError(name, reason)
    return min(held, extent.promised)


def _check_avi(window: Window, start: int, name: str) -> None:
    head = window.at(start, 12)
    size, held = int.from_bytes(head[4:8], "little"), window.end - start - 8
    if head[:4] == b"RIFF" and head[8:] == b"AVI " and size > held and not is_placeholder(Extent(8, size), held):
        raise truncated(name, f"{size} bytes", f"{held}")


def _next_header(window: Window, start: int, end: int) -> int | None:
    """Return where the next file begins, after one from `start` with sound up to `end`; None if no file follows."""
    head = window.at(start, 12)
    places = [end, end + (end & 1)]
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        places.append(start + 8 + size + (size & 1))
    later = (place for place in places if place > start and len(head) == 12)
    return next((place for place in later if _same_kind(head, window.at(place, 12))), None)


def _same_kind(head: bytes, other: bytes) -> bool:
    return head[:4] == other[:4] and (head[:4] not in (b"RIFF", b"RIFX", b"FORM") or head[8:] == other[8:])
