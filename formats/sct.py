"""`.sct`: the semantic and acoustic tokens of one audio file, bit-packed.

A file is 48 bytes of header, the payload and 8 bytes of checksum, integers little-endian:

    8  magic                  4  rows of the semantic codebook    4  n, tokens of one stream
    2  format version         4  rows of the acoustic codebook    8  codebook hash
    2  tokens per second      8  samples at 16 kHz                8  codec hash

The payload is n pairs, each ceil(log2 rows) bits (at least 1) of the semantic and then of the acoustic token, highest
bit first and without gaps; zeros fill the last byte. With 8,192 acoustic rows a pair takes ceil(log2 N_s) + 13 bits. At
4,096 semantic rows this is 156.25, 78.125 or 39.0625 bytes per second of audio at 100, 50 or 25 tokens per second, plus
56 bytes per file. The checksum is the beginning of the SHA-256 of everything before it. All versions of the format keep
the positions of magic, version and checksum.
"""

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sctok.formats.untrusted.bounds import LIMIT_VARIABLE, max_input_bytes

from .files import HASH_CHARACTERS, atomic_path, check_format, damaged, foreign, hash_bytes
from .stacking import stack_factor

SCT_FORMAT = "sctok-sct"
SCT_VERSION = 1
SCT_SUFFIX = ".sct"
SCT_MAGIC = b"\x89SCT\r\n\x1a\n"  # as in PNG, a transfer as text would change it

_HEADER = struct.Struct("<8sHHIIQI8s8s")
_VERSION = slice(8, 10)
_CHECKSUM_BYTES = HASH_CHARACTERS // 2
_OVERHEAD_BYTES = _HEADER.size + _CHECKSUM_BYTES
_BLOCK_PAIRS = 1 << 16  # a multiple of 8, so that blocks end with whole bytes
_PAIR_BYTES = 16  # of two tokens in memory
MAX_ROWS = (1 << 32) - 1

TokenPairs = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CodecTokens:
    """The tokens of one audio file.

    tokens: int64 (n, 2), semantic and acoustic. samples: length of the audio at 16 kHz. token_rate: 100, 50 or 25 per
    second, both streams together. codebook_sizes: rows of the semantic and the acoustic codebook. codebook_hash: of
    the semantic codebook. codec_hash: of everything else that determines the tokens.

    Raises ValueError for values out of range or tokens outside their codebooks.
    """

    tokens: TokenPairs
    samples: int
    token_rate: int
    codebook_sizes: tuple[int, int]
    codebook_hash: str
    codec_hash: str

    def __post_init__(self) -> None:
        stack_factor(self.token_rate)
        if not 0 <= self.samples < 1 << 64:
            raise ValueError(f"samples must be between 0 and {(1 << 64) - 1}, not {self.samples}")
        if len(self.codebook_sizes) != 2 or not all(1 <= size <= MAX_ROWS for size in self.codebook_sizes):
            raise ValueError(f"codebook sizes must be two numbers between 1 and {MAX_ROWS}, not {self.codebook_sizes}")
        for name, text in (("codebook hash", self.codebook_hash), ("codec hash", self.codec_hash)):
            if not re.fullmatch(rf"[0-9a-f]{{{HASH_CHARACTERS}}}", text):
                raise ValueError(f"{name} must be {HASH_CHARACTERS} hexadecimal digits, not {text!r}")
        object.__setattr__(self, "tokens", _checked_pairs(self.tokens, self.codebook_sizes))

    @property
    def bits_per_pair(self) -> int:
        """Bits of a semantic and an acoustic token together."""
        return sum(map(_bits, self.codebook_sizes))

    @property
    def bitrate(self) -> float:
        """Bits of tokens per second of audio: token_rate / 2 · (log2 N_s + 13) for the sizes of the paper."""
        return self.token_rate / 2 * self.bits_per_pair


def _checked_pairs(tokens: npt.ArrayLike, sizes: tuple[int, int]) -> TokenPairs:
    pairs = np.asarray(tokens)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers (n, 2), semantic and acoustic, not {pairs.dtype} {pairs.shape}")
    if len(pairs) > MAX_ROWS:
        raise ValueError(f"{len(pairs)} tokens are more than the {MAX_ROWS} of a file")
    for stream, (name, size) in enumerate(zip(("semantic", "acoustic"), sizes, strict=True)):
        outside = (pairs[:, stream] < 0) | (pairs[:, stream] >= size)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(f"{name} token {row} is {pairs[row, stream]}, outside its codebook of {size} rows")
    return pairs.astype(np.int64)


def _bits(size: int) -> int:
    """Return ceil(log2 size), at least 1: otherwise a header could promise more pairs than the file has bits."""
    return max(1, (size - 1).bit_length())


def sct_bytes(pairs: int, codebook_sizes: tuple[int, int]) -> int:
    """Return the exact size of a `.sct` file with `pairs` pairs of tokens, in bytes."""
    return _OVERHEAD_BYTES + _payload_bytes(pairs, sum(map(_bits, codebook_sizes)))


def _payload_bytes(pairs: int, bits: int) -> int:
    return -(-pairs * bits // 8)


def write_sct(path: str | os.PathLike[str], content: CodecTokens) -> int:
    """Write a `.sct` file, atomically, and return its size in bytes; equal content gives equal bytes.

    Raises DiskFullError.
    """
    header = _HEADER.pack(
        SCT_MAGIC,
        SCT_VERSION,
        content.token_rate,
        *content.codebook_sizes,
        content.samples,
        len(content.tokens),
        bytes.fromhex(content.codebook_hash),
        bytes.fromhex(content.codec_hash),
    )
    data = header + _pack(content.tokens, content.codebook_sizes)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data + _checksum(data))
    return len(data) + _CHECKSUM_BYTES


def read_sct(path: str | os.PathLike[str]) -> CodecTokens:
    """Read and check a `.sct` file.

    Raises FileNotFoundError; FormatError if the file has another format or version, or any bit was changed, added or
    lost.
    """
    if Path(path).is_fifo():  # opening a pipe would wait for its writer
        raise foreign(path, SCT_FORMAT)
    with Path(path).open("rb") as file:
        data = file.read(len(SCT_MAGIC))
        if data != SCT_MAGIC:
            raise foreign(path, SCT_FORMAT)
        if (size := os.fstat(file.fileno()).st_size) > max_input_bytes():
            raise damaged(path, f"its {size:,} bytes are more than {LIMIT_VARIABLE} allows")
        data += file.read()
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(data) < _OVERHEAD_BYTES or checksum != _checksum(body):
        raise damaged(path, "its checksum does not match its content")
    version = int.from_bytes(body[_VERSION], "little")
    check_format(path, {"format": SCT_FORMAT, "format_version": version}, SCT_FORMAT, SCT_VERSION)
    _, _, rate, semantic, acoustic, samples, pairs, *hashes = _HEADER.unpack_from(body)
    sizes = (semantic, acoustic)
    try:
        tokens = _unpack(body[_HEADER.size :], pairs, sizes)
        return CodecTokens(tokens, samples, rate, sizes, hashes[0].hex(), hashes[1].hex())
    except ValueError as error:
        raise damaged(path, error) from None


def _checksum(data: bytes) -> bytes:
    return bytes.fromhex(hash_bytes(data))


def _pack(tokens: TokenPairs, sizes: tuple[int, int]) -> bytes:
    acoustic_bits, width = _bits(sizes[1]), sum(map(_bits, sizes))
    words = tokens[:, 0].astype(np.uint64) << np.uint64(acoustic_bits) | tokens[:, 1].astype(np.uint64)
    packed = []
    for start in range(0, len(words), _BLOCK_PAIRS):
        octets = words[start : start + _BLOCK_PAIRS, None].astype(">u8").view(np.uint8)
        packed.append(np.packbits(np.unpackbits(octets, axis=1)[:, 64 - width :]).tobytes())
    return b"".join(packed)


def _unpack(payload: bytes, pairs: int, sizes: tuple[int, int]) -> TokenPairs:
    acoustic_bits, width = _bits(sizes[1]), sum(map(_bits, sizes))
    if len(payload) != _payload_bytes(pairs, width):
        raise ValueError(f"{len(payload)} bytes do not hold {pairs} pairs of {width} bits")
    if pairs * _PAIR_BYTES > max_input_bytes():
        raise ValueError(f"{pairs:,} pairs of tokens unpack to more than {LIMIT_VARIABLE} allows")
    words = np.zeros(pairs, np.uint64)
    for start in range(0, pairs, _BLOCK_PAIRS):
        count = min(_BLOCK_PAIRS, pairs - start)
        octets = np.frombuffer(payload, np.uint8, _payload_bytes(count, width), start * width // 8)
        bits = np.zeros((count, 64), np.uint8)
        bits[:, 64 - width :] = np.unpackbits(octets, count=count * width).reshape(count, width)
        words[start : start + count] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    acoustic = words & np.uint64((1 << acoustic_bits) - 1)
    return np.stack([words >> np.uint64(acoustic_bits), acoustic], axis=1).astype(np.int64)
