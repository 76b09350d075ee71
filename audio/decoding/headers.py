"""Headers of uncompressed and block-compressed audio: where the sound begins, and how many bytes it should have.

libsndfile reads a file that is shorter than that without an error.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from .sections import Window

MPEG_TAGS = (0x50, 0x55)
_SAMPLE_TAGS = (1, 3, 6, 7, 0xFFFE)  # PCM, float, A-law, mu-law, extensible: one block is one sample
_BLOCK_TAGS = (0x02, 0x11, 0x31)  # MS ADPCM, IMA ADPCM, GSM; other codecs often state a wrong block size
_MAX_CHUNKS = 4096
_LARGEST_64 = 2**60
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
_MATLAB4_BYTES = (8, 4, 4, 2, 2, 1)
_NIST_FIELD = re.compile(rb"(sample_count|channel_count|sample_n_bytes) +-i +(\d+)")


@dataclass(frozen=True)
class Extent:
    """The sound in a file according to its header.

    start: its first byte. promised: its bytes, None if the header states no length. block: bytes of one `unit`; if the
    unit is "samples", one sample of all channels. tag: codec of a WAV file. several: more sound follows elsewhere.
    size_field: position and struct format of the length in the file, and how many more bytes it counts.
    """

    start: int
    promised: int | None
    block: int = 1
    unit: str = "bytes"
    bits: int = 32  # of the field that holds the length
    tag: int = 0
    several: bool = False
    size_field: tuple[int, str, int] | None = None


class _Layout(NamedTuple):
    """How a format writes chunks: their names, their sizes, and what the sizes count."""

    first: int  # where the first chunk begins
    name: int  # bytes of a name
    size: str  # struct format of a size
    data: bytes  # name of the chunk that holds the sound
    header: int  # bytes of that chunk before the first sample
    align: int = 2
    counts_header: bool = False


class _Chunk(NamedTuple):
    name: bytes
    start: int
    size: int


_RIFF = _Layout(12, 4, "<I", b"data", 0)
_RIFX = _RIFF._replace(size=">I")
_AIFF = _Layout(12, 4, ">I", b"SSND", 8)
_SVX = _Layout(12, 4, ">I", b"BODY", 0)
_W64 = _Layout(40, 16, "<Q", b"data", 0, align=8, counts_header=True)
_CAF = _Layout(8, 4, ">q", b"data", 4, align=1)


def _layout(head: bytes) -> _Layout | None:
    kind = head[8:12]
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and kind in (b"WAVE", b"AVI "):
        return _RIFF
    if head[:4] == b"RIFX" and kind == b"WAVE":
        return _RIFX
    if head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return _AIFF
    if head[:4] == b"FORM" and kind in (b"8SVX", b"16SV"):
        return _SVX
    if head[:4] == b"riff" and head[24:28] == b"wave":
        return _W64
    return _CAF if head[:4] == b"caff" else None


def _chunks(window: Window, layout: _Layout, start: int) -> Iterator[_Chunk]:
    position, header = start + layout.first, layout.name + struct.calcsize(layout.size)
    for _ in range(_MAX_CHUNKS):
        head = window.at(position, header)
        if len(head) < header:
            return
        (size,) = struct.unpack_from(layout.size, head, layout.name)
        size -= header * layout.counts_header
        yield _Chunk(head[: layout.name], position + header, size)
        if size < 0:
            return
        position += header + size + -(size + header * layout.counts_header) % layout.align


def _described(extent: Extent, name: bytes, body: bytes, order: str) -> Extent:
    """Return `extent`, with the format of the samples added if the chunk `name` describes it."""
    if name == b"fmt " and len(body) >= 14:
        tag, block = struct.unpack_from(f"{order}H10xH", body)
        if tag in _SAMPLE_TAGS or tag in _BLOCK_TAGS:
            unit = "samples" if tag in _SAMPLE_TAGS else "blocks"
            return replace(extent, block=max(1, block), unit=unit, tag=tag)
        return replace(extent, tag=tag)
    if name == b"COMM" and len(body) >= 8:
        channels, bits = struct.unpack_from(">H4xH", body)
        if len(body) < 22 or body[18:22] in (b"NONE", b"sowt", b"twos", b"in24", b"in32"):
            return replace(extent, block=max(1, channels * -(-bits // 8)), unit="samples")
    if name == b"desc" and len(body) >= 24:
        block, frames = struct.unpack_from(">II", body, 16)
        return replace(extent, block=max(1, block), unit="samples" if frames == 1 else "bytes")
    return extent


def _chunk_extent(window: Window, start: int) -> Extent | None:
    head = window.at(start, 40)
    layout = _layout(head)
    if layout is None or head[8:12] == b"AVI ":
        return None
    sound, found, wide, wide_at = Extent(0, None, bits=64 if "I" not in layout.size else 32), False, None, 0
    for chunk in _chunks(window, layout, start):
        name, size = chunk.name[:4], chunk.size
        if name == layout.data and not found:
            found, field = True, (chunk.start - 4, layout.size, layout.header)
            if wide is not None and size == 0xFFFFFFFF:
                size, field = wide, (wide_at, "<Q", 0)
                sound = replace(sound, bits=64)
            promised = size - layout.header if size >= layout.header else None
            sound = replace(sound, start=chunk.start + layout.header, promised=promised)
            sound = sound if layout.counts_header else replace(sound, size_field=field)
            if size <= 0 and not _ends_whole(window, layout, chunk):
                return replace(sound, promised=None)
        elif name == layout.data and size > layout.header:
            sound = replace(sound, several=True)
        elif name == b"ds64":
            wide_at = chunk.start + 8
            wide = int.from_bytes(window.at(wide_at, 8), "little")
        else:
            sound = _described(sound, name, window.at(chunk.start, max(0, min(40, size))), layout.size[0])
    return sound if found else None


def _ends_whole(window: Window, layout: _Layout, empty: _Chunk) -> bool:
    """Return whether only whole chunks follow an empty one."""
    rest = layout._replace(first=empty.start - (layout.name + struct.calcsize(layout.size)))
    last = empty
    for last in _chunks(window, rest, 0):
        if not last.name[:4].isascii() or not last.name[:4].strip().isalnum():
            return False
    return 0 <= window.end - last.start - last.size <= layout.align


def _au_extent(window: Window, start: int) -> Extent | None:
    head = window.at(start, 24)
    order = {b".snd": ">", b"dns.": "<"}.get(head[:4])
    if order is None or len(head) < 24:
        return None
    offset, size, encoding, _, channels = struct.unpack_from(f"{order}5I", head, 4)
    width = _AU_BYTES.get(encoding)
    stated = None if size == 0xFFFFFFFF or size == 0 else size
    block, unit = (max(1, channels * width), "samples") if width else (1, "bytes")
    return Extent(start + offset, stated, block, unit)


def _nist_extent(window: Window, start: int) -> Extent | None:
    if window.at(start, 7) != b"NIST_1A":
        return None
    head = window.at(start, 1024)
    fields = {name: int(value) for name, value in _NIST_FIELD.findall(head)}
    size = head[8:16].strip()
    count, channels = fields.get(b"sample_count"), fields.get(b"channel_count", 1)
    if count is None or not size.isdigit():
        return None
    width = 1 if b"ulaw" in head or b"alaw" in head else fields.get(b"sample_n_bytes", 2)
    block = max(1, channels * width)
    return Extent(start + int(size), count * block, block, "samples", bits=64)


def _voc_extent(window: Window, start: int) -> Extent | None:
    """Return the first sound block of a Creative Voice file, the only one that libsndfile reads."""
    head = window.at(start, 22)
    if head[:19] != b"Creative Voice File" or len(head) < 22:
        return None
    position, found = start + int.from_bytes(head[20:22], "little"), None
    for _ in range(_MAX_CHUNKS):
        block = window.at(position, 4)
        if len(block) < 4 or block[0] == 0:
            break
        size = int.from_bytes(block[1:], "little")
        if position + 4 + size > window.end:
            return Extent(position + 4, size, bits=64)
        if block[0] in (1, 2, 3, 9):
            found = Extent(position + 4, size, bits=64) if found is None else replace(found, several=True)
        position += 4 + size
    return found


def _counted_extent(window: Window, start: int) -> Extent | None:
    """Return the sound of a format whose header states the number of samples at a fixed position."""
    head = window.at(start, 128)
    if head[:4] == b"2BIT" and len(head) >= 128:
        block = (2 if head[12:14] != b"\0\0" else 1) * -(-int.from_bytes(head[14:16], "big") // 8)
        return Extent(start + 128, int.from_bytes(head[26:30], "big") * max(1, block), max(1, block), "samples", 64)
    if head[:2] == b"\x01\x04" and len(head) >= 42 and head[21] < 2:
        block = 2 * (1 + head[21])
        return Extent(start + 42, int.from_bytes(head[30:34], "little") * block, block, "samples", 64)
    if head[:15] == b"ALawSoundFile**" and len(head) >= 32:
        return Extent(start + 32, int.from_bytes(head[18:22], "big"), 1, "samples", 64)
    if head[:2] == b"\xf0\x7e" and len(head) >= 21 and head[3] == 1:
        words = head[10] | head[11] << 7 | head[12] << 14
        per_packet = 60 if head[6] <= 14 else 40 if head[6] <= 21 else 30
        return Extent(start + 21, -(-words // per_packet) * 127, 127, "blocks", 64)
    return None


def _matlab_extent(window: Window, start: int) -> Extent | None:
    """Return the last matrix of a MATLAB 4 or 5 file, which holds the sound."""
    head = window.at(start, 128)
    if head[:6] == b"MATLAB" and head[126:128] in (b"IM", b"MI"):
        order, position, found = "<" if head[126:128] == b"IM" else ">", start + 128, None
        while len(tag := window.at(position, 8)) == 8:
            kind, size = struct.unpack(f"{order}2I", tag)
            found = Extent(position + 8, size, bits=64)
            # The elements of a matrix, kind 14, follow its tag; small elements are inside the tag.
            position += 8 if kind == 14 or kind >> 16 else 8 + size + -size % 8
        return found
    for order, opening in (("<", b"\0\0\0\0\1\0\0\0\1\0\0\0"), (">", b"\0\0\3\xe8\0\0\0\1\0\0\0\1")):
        if head[:12] == opening:
            position, found = start, None
            while len(fields := window.at(position, 20)) == 20:
                kind, rows, columns, _, name = struct.unpack(f"{order}5I", fields)
                width = _MATLAB4_BYTES[min(5, kind % 100 // 10)]
                found = Extent(position + 20 + name, rows * columns * width, max(1, rows * width), "samples", 64)
                position = found.start + rows * columns * width
            return found
    return None


_FORMATS: tuple[Callable[[Window, int], Extent | None], ...] = (
    _chunk_extent, _au_extent, _nist_extent, _voc_extent, _counted_extent, _matlab_extent,
)  # fmt: skip


def sound_extent(window: Window, start: int) -> Extent | None:
    """Return the sound of a file that begins at `start`; None if its format does not state it."""
    return next((found for read in _FORMATS if (found := read(window, start)) is not None), None)


def is_placeholder(extent: Extent, held: int) -> bool:
    """Return whether a stated length is a placeholder, as written by programs that write into a pipe.

    A placeholder is near the largest number of 31, 32 or 64 bits, or a multiple of 10^8. The `held` bytes that follow
    must be whole blocks, as they are if the program was not killed.
    """
    promised = extent.promised or 0
    if promised <= held:
        return False
    if held % extent.block and (held % 2 or (held - 1) % extent.block):
        return False
    if extent.bits == 64:
        return promised >= _LARGEST_64
    margin = 0x10000 + extent.block
    near = any(-margin <= promised - limit <= 0x1000 for limit in (2**31, 2**32))
    rounded = promised >= 2**31 - 2**24 and promised % 2**24 == 0
    return near or rounded or (promised >= 10**9 and promised % 10**8 == 0)
