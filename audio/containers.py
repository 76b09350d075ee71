"""What the headers of audio files promise, where libsndfile does not say or says it wrong."""

import os
import struct
from typing import BinaryIO, NamedTuple

from .errors import AudioError

SOUNDFILE_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .voc".split()  # noqa: SIM905
)
FFMPEG_SUFFIXES = frozenset(
    ".m4a .m4b .mp4 .mov .3gp .aac .ac3 .eac3 .amr .ape .dts .mka .mkv .ra .spx .tak .tta .webm .wma .wv".split()  # noqa: SIM905
)
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES

# What programs that write to a pipe put where the data size belongs: ffmpeg, sox and arecord, rounded down to blocks.
_UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0x80000000)
_SAMPLE_BLOCK_TAGS = (1, 3, 6, 7, 0xFFFE)  # PCM, float, A-law, mu-law, extensible: one block is one sample
_MAX_CHUNKS = 256
_MP3_PROBE_BYTES = 4096  # longer than any MPEG audio frame


class _Layout(NamedTuple):
    order: str
    data: bytes
    header: int  # bytes of the data chunk before the first sample
    wide: bool  # sizes that do not fit 32 bits are in a ds64 chunk


def _chunk_layout(head: bytes) -> _Layout | None:
    if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _Layout(">" if head[:4] == b"RIFX" else "<", b"data", 0, head[:4] in (b"RF64", b"BW64"))
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _Layout(">", b"SSND", 8, False)
    return None


def _block_bytes(kind: bytes, body: bytes, order: str) -> tuple[int, str] | None:
    """Return the bytes of one block and what a block is called, from the chunk that describes the samples."""
    if kind == b"fmt " and len(body) >= 14:
        tag, block = struct.unpack_from(f"{order}H10xH", body)
        return max(1, block), "samples" if tag in _SAMPLE_BLOCK_TAGS else "blocks"
    if kind == b"COMM" and len(body) >= 8:
        channels, bits = struct.unpack_from(">H4xH", body)
        return max(1, channels * -(-bits // 8)), "samples"
    return None


def check_complete(file: BinaryIO, name: str) -> None:
    """Raise AudioError if a WAV, RF64 or AIFF header promises more audio than the file holds.

    libsndfile reads such a file to its end without a word. Files written through a pipe, whose header carries a
    placeholder, and all other formats pass.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    layout = _chunk_layout(file.read(12))
    if layout is None:
        return
    block, unit, wide_size = 1, "bytes", None
    for _ in range(_MAX_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            return
        kind, size = struct.unpack(f"{layout.order}4sI", chunk)
        if kind == layout.data:
            if layout.wide and size == 0xFFFFFFFF and wide_size is not None:
                size = wide_size
            elif any(0 <= unknown - size < block for unknown in _UNKNOWN_SIZES):
                return
            promised, held = ((count - layout.header) // block for count in (size, end - file.tell()))
            if promised > held:
                raise AudioError(
                    name, f"is truncated: header promises {promised} {unit}, file holds {max(0, held)}; fetch it again"
                )
            return
        body = file.read(min(size, 40))
        if kind == b"ds64" and len(body) >= 16:
            wide_size = struct.unpack_from("<Q", body, 8)[0]
        block, unit = _block_bytes(kind, body, layout.order) or (block, unit)
        file.seek(size - len(body) + (size & 1), os.SEEK_CUR)


def mp3_states_length(file: BinaryIO) -> bool:
    """Return whether a file, if it is MP3, carries its length (a Xing, Info or VBRI header in its first frame)."""
    file.seek(0)
    head = file.read(10)
    tag_bytes = 0
    if head[:3] == b"ID3" and len(head) == 10:
        tag_bytes = 10
        for shift, byte in zip((21, 14, 7, 0), head[6:10], strict=True):
            tag_bytes += (byte & 0x7F) << shift
    file.seek(tag_bytes)
    frame = file.read(_MP3_PROBE_BYTES)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
