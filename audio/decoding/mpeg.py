"""Finding the whole frames of MPEG audio (MP3, MP2, MP1), and reading the header in the first one.

Decoders stop if the format changes, if the stated number of frames is too small, and at bytes between frames.
Therefore they get only the frames found here, one format at a time.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from .sections import Range, Window

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS_1 = {
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS_2_LAYER_I = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_PLAIN_MARGIN = 1 << 16  # bytes after the frames that libsndfile skips without harm
_XING_COUNT, _XING_BYTES, _XING_TABLE, _XING_QUALITY = 1, 2, 4, 8


class Format(NamedTuple):
    """The properties that all frames of one decoder share."""

    version: int  # the two bits of the header: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    layer: int  # the two bits of the header: 1 is layer III, 2 is II, 3 is I
    rate: int
    channels: int

    @property
    def samples(self) -> int:
        """Samples per channel in a frame."""
        if self.layer == 3:
            return 384
        return 576 if self.layer == 1 and self.version != 3 else 1152


class _Run(NamedTuple):
    start: int
    end: int
    frames: int
    format: Format


@dataclass(frozen=True)
class MpegPart:
    """Successive frames of one format.

    head: a corrected header, which replaces the one in their first bytes that states the length. samples: length of the
    frames. promised: length that the header stated; both without the encoder's delay and padding. plain: a decoder
    reads a file of only this part correctly without help. endless: no header states the length to a decoder.
    """

    format: Format
    ranges: tuple[Range, ...]
    head: bytes
    samples: int
    promised: int | None
    plain: bool
    endless: bool = True


def _parse(word: int) -> tuple[Format, int] | None:
    """Return the format and the bytes of the frame with this 32-bit header, or None if it is not a header."""
    version, layer = word >> 19 & 3, word >> 17 & 3
    bitrate, rate = word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return None
    if version == 3:
        kbits = _KBITS_1[layer][bitrate - 1]
    else:
        kbits = (_KBITS_2_LAYER_I if layer == 3 else _KBITS_2)[bitrate - 1]
    hertz, padding = _RATES[version][rate], word >> 9 & 1
    form = Format(version, layer, hertz, 1 if word >> 6 & 3 == 3 else 2)
    if layer == 3:
        return form, (12_000 * kbits // hertz + padding) * 4
    return form, form.samples // 8 * 1000 * kbits // hertz + padding


def starts_mpeg(window: Window, start: int) -> bool:
    """Return whether frames begin at `start`: three of one format, or fewer that end with the file."""
    position, form = start, None
    for _ in range(3):
        found = _parse(int.from_bytes(window.at(position, 4), "big"))
        if found is None or form not in (None, found[0]) or position + found[1] > window.end:
            return form is not None and window.at(position, 3) == b"TAG"
        form = found[0]
        position += found[1]
        if position == window.end:
            return True
    return True


def _runs(window: Window, start: int) -> Iterator[_Run]:
    """Yield runs of adjacent whole frames of one format."""
    known: dict[int, tuple[Format, int]] = {}
    first, position, frames, form = start, start, 0, None
    buffer, base = b"", start
    while position < window.end:
        if not 0 <= position - base <= len(buffer) - 4:
            buffer, base = window.piece(position), position
            if len(buffer) < 4:
                break
        word = int.from_bytes(buffer[position - base : position - base + 4], "big")
        key = word & 0xFFFEFEC0
        found = known.get(key) or _parse(word)
        if found is not None and found[0] == form and position + found[1] <= window.end:
            known[key] = found
            frames += 1
            position += found[1]
            continue
        if frames and form is not None:
            yield _Run(first, position, frames, form)
        frames = 0
        if found is not None and _is_followed(window, position, found):
            form, first = found[0], position
            continue
        position = _next_sync(window, position + 1)
        following = _parse(int.from_bytes(window.at(position, 4), "big"))
        form, first = (following[0] if following else None), position
    if frames and form is not None:
        yield _Run(first, position, frames, form)


def _is_followed(window: Window, position: int, found: tuple[Format, int]) -> bool:
    """Return whether another frame of the same format follows a frame, or the file ends with it."""
    end = position + found[1]
    if end >= window.end:
        return end == window.end
    following = _parse(int.from_bytes(window.at(end, 4), "big"))
    return following is not None and following[0] == found[0]


def _next_sync(window: Window, position: int) -> int:
    """Return the start of the next frame that another frame follows, or the end of the file."""
    while piece := window.piece(position):
        for match in _SYNC.finditer(piece):
            place = position + match.start()
            found = _parse(int.from_bytes(window.at(place, 4), "big"))
            if found is not None and _is_followed(window, place, found):
                return place
        position += max(1, len(piece) - 1)
    return window.end


def mpeg_parts(window: Window, start: int) -> list[MpegPart]:
    """Return the frames from `start` on, grouped by format in the order of the file."""
    groups = groupby(_runs(window, start), key=lambda run: run.format)
    parts = [_part(window, list(runs), later=number > 0) for number, (_, runs) in enumerate(groups)]
    return [part for part in parts if part.samples > 0]


def _part(window: Window, runs: list[_Run], later: bool) -> MpegPart:
    form, first = runs[0].format, runs[0].start
    frames = sum(run.frames for run in runs)
    ranges = tuple((run.start, run.end) for run in runs)
    near = len(runs) == 1 and window.end - runs[0].end <= _PLAIN_MARGIN
    frame = window.at(first, (_parse(int.from_bytes(window.at(first, 4), "big")) or (form, 4))[1])
    if frame[36:40] == b"VBRI":
        promised = struct.unpack_from(">I", frame, 50)[0] * form.samples if len(frame) >= 54 else None
        ranges = ((first + len(frame), runs[0].end), *ranges[1:])
        return MpegPart(form, ranges, b"", (frames - 1) * form.samples, promised, plain=False)
    side = {(3, 2): 32, (3, 1): 17, (2, 2): 17, (2, 1): 9}[(3 if form.version == 3 else 2, form.channels)]
    place = 4 + side
    if form.layer != 1 or frame[place : place + 4] not in (b"Xing", b"Info"):
        return MpegPart(form, ranges, b"", frames * form.samples, None, plain=False)
    return _with_header(form, ranges, bytearray(frame), place + 4, frames - 1, near, later)


def _with_header(
    form: Format, ranges: tuple[Range, ...], frame: bytearray, place: int, frames: int, near: bool, later: bool
) -> MpegPart:
    """Return a part whose first frame is a Xing or Info header, with its counts set to those of the whole frames.

    As in ffmpeg, only the first part loses its encoder's delay and padding, and the padding only if the part ends
    there; the header of a later part becomes a frame of silence.
    """
    flags = int.from_bytes(frame[place : place + 4], "big")
    cursor, stated = place + 4, None
    if flags & _XING_COUNT:
        stated = int.from_bytes(frame[cursor : cursor + 4], "big")
        frame[cursor : cursor + 4] = frames.to_bytes(4, "big")
        cursor += 4
    if flags & _XING_BYTES:
        frame[cursor : cursor + 4] = min(0xFFFFFFFF, sum(end - start for start, end in ranges)).to_bytes(4, "big")
        cursor += 4
    cursor += 100 * bool(flags & _XING_TABLE) + 4 * bool(flags & _XING_QUALITY)
    trim = 0
    if len(frame) >= cursor + 24 and any(frame[cursor : cursor + 9]):
        delays = int.from_bytes(frame[cursor + 21 : cursor + 24], "big")
        if stated is not None and frames > stated:
            delays &= 0xFFF000
            frame[cursor + 21 : cursor + 24] = delays.to_bytes(3, "big")
        trim = (delays >> 12) + (delays & 0xFFF)
    if later:
        frame[place - 4 : place] = bytes(4)
        promised = None if stated is None else stated * form.samples
        return MpegPart(form, ranges, bytes(frame), (frames + 1) * form.samples, promised, plain=False)
    if stated is None:
        return MpegPart(form, ranges, b"", frames * form.samples, None, plain=False)
    samples, promised = frames * form.samples - trim, stated * form.samples - trim
    return MpegPart(form, ranges, bytes(frame), samples, promised, plain=near and stated == frames, endless=False)
