"""Sources of vectors: feature shards on disk, read block by block, or an array in memory."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sctok.formats.feature_shards import FeatureShard
from sctok.formats.files import hash_arrays, hash_json
from sctok.kernels.certify import check_real
from sctok.runtime.read_ahead import read_ahead

Array = npt.NDArray[Any]
Vectors = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]

_PIECE_ROWS = 512  # neighbouring rows that `take` reads from a shard together
_OPEN_SHARDS = 16


class TooFewVectorsError(ValueError):
    """Raised if k exceeds the number of (distinct) vectors. most: the largest k that is possible."""

    def __init__(self, k: int, most: int, vectors: str) -> None:
        super().__init__(f"k = {k} exceeds the {most} {vectors}; choose k <= {most} or add audio")
        self.most = most


@dataclass(frozen=True)
class Block:
    """Vectors of a source: rows float32 (n, D) and their places (n,) int64, which are their indices in the source.

    Only `wide_blocks` yields rows of float64. weights: (n,) float64 >= 0, or None if all vectors weigh 1. The rows can
    share memory with the caller's array: do not modify them.
    """

    places: npt.NDArray[np.int64]
    rows: npt.NDArray[Any]
    weights: Weights | None = None


class VectorSource(Protocol):
    """Vectors (rows, dim) to cluster. Sources of different content have different fingerprints."""

    @property
    def dim(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def name(self) -> str:
        """Name of the source in error messages."""

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        """Yield the vectors of `span` (start, stop), by default all, in order and at most block_rows at a time."""

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """Return the vectors (n, D) at ascending places (n,); memory holds only these and one block."""


class WideSource(VectorSource, Protocol):
    """A source that can also yield float64: `blocks` rounds its vectors to float32, `wide_blocks` does not."""

    @property
    def wide(self) -> bool:
        """Whether the source holds float64 or integers."""

    def wide_blocks(self, block_rows: int) -> Iterator[Block]:
        """Yield all vectors once and in order as float64, at most block_rows at a time."""


Data = Array | torch.Tensor | VectorSource


def source_weights(source: VectorSource) -> Weights | None:
    """Return the weights (rows,) of the vectors of a source, or None if all vectors weigh 1."""
    return getattr(source, "weights", None)


def take_blocks(blocks: Iterator[Block], places: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy the vectors at ascending places (n,) from the ordered blocks of a source to `out` (n, D), and return it."""
    for block in blocks:
        first, last = np.searchsorted(places, (block.places[0], block.places[-1] + 1))
        out[first:last] = block.rows[places[first:last] - block.places[0]]
    return out


def sample_places(rows: int, count: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
    """Draw min(count, rows) places from [0, rows) without replacement and return them, ascending int64."""
    if count >= rows:
        return np.arange(rows, dtype=np.int64)
    generator = np.random.default_rng(list(seed))
    return np.sort(generator.choice(rows, count, replace=False, shuffle=False)).astype(np.int64)


def sample_weighted(source: VectorSource, count: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
    """Draw at most `count` places of a source without replacement and return them, ascending; none has weight 0."""
    weights = source_weights(source)
    if weights is None:
        return sample_places(source.rows, count, seed)
    positive = np.flatnonzero(weights)
    return positive[sample_places(len(positive), count, seed)]


def plan_blocks(rows: int, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of each block of `span`, by default (0, rows). Raises ValueError if block_rows < 1."""
    if block_rows < 1:
        raise ValueError(f"block_rows {block_rows} is not positive")
    first, last = span or (0, rows)
    for start in range(first, last, block_rows):
        yield start, min(last, start + block_rows)


class ArraySource:
    """Vectors of an array (rows, D) in memory, of any real dtype and memory layout, converted block by block.

    array: a NumPy array, a torch tensor (copied to the host, bfloat16 to float32), or anything that NumPy converts.
    weights: (rows,) numbers >= 0, not all 0; by default all vectors weigh 1.
    grain: 1, because `take` reads only the vectors asked for.

    Raises:
        ValueError: the array is not a matrix of numbers with at least one row and column, or holds values that are
            NaN or infinite in float32; the weights have another length, or are negative, not finite or all zero.
    """

    grain = 1

    def __init__(
        self, array: npt.ArrayLike | torch.Tensor, name: str = "array", weights: npt.ArrayLike | None = None
    ) -> None:
        self._array = as_array(array)
        self.name = name
        if self._array.ndim != 2 or 0 in self._array.shape or self._array.dtype.kind not in "fiub":
            raise ValueError(
                f"{name}: vectors must be numbers of shape (rows, D) with rows, D >= 1, not {self._array.dtype} "
                f"{self._array.shape}"
            )
        self.rows, self.dim = (int(size) for size in self._array.shape)
        self.weights = None if weights is None else check_weights(as_array(weights), self.rows, name)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all values and weights, computed on first use."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return hash_arrays({"vectors": self._array, **weights})

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        for start, stop in plan_blocks(self.rows, block_rows, span):
            places = np.arange(start, stop, dtype=np.int64)
            weights = None if self.weights is None else self.weights[start:stop]
            yield Block(places, self._vectors(slice(start, stop), places), weights)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        contiguous = len(places) > 0 and int(places[-1]) - int(places[0]) == len(places) - 1
        return self._vectors(slice(int(places[0]), int(places[-1]) + 1) if contiguous else places, places)

    @property
    def wide(self) -> bool:
        """Whether the array holds float64 or integers, which float32 may round."""
        return is_wide(self._array.dtype)

    def wide_blocks(self, block_rows: int) -> Iterator[Block]:
        """Yield all vectors in order as float64, at most block_rows at a time."""
        for start, stop in plan_blocks(self.rows, block_rows):
            places = np.arange(start, stop, dtype=np.int64)
            rows = np.ascontiguousarray(self._array[start:stop], np.float64)
            check_finite(rows, places, self.name, "row")
            yield Block(places, rows, None if self.weights is None else self.weights[start:stop])

    def _vectors(self, wanted: slice | npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> Vectors:
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(self._array[wanted], np.float32)
        rows = rows if rows.flags.writeable else rows.copy()
        check_finite(rows, places, self.name, "row")
        return rows


def is_wide(dtype: np.dtype[Any]) -> bool:
    """Return whether numbers of this dtype are clustered in float64: float64, longer floats and integers."""
    return dtype.kind in "iub" or dtype.itemsize > 4


def as_array(values: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    """Return numbers as a NumPy array; a torch tensor on the host is not copied.

    Raises:
        ValueError: a tensor that is not dense and real, or a masked array with masked values.
    """
    if isinstance(values, np.ma.MaskedArray):
        check_unmasked(values)
    if isinstance(values, torch.Tensor):
        check_real(values)
        host = values.detach().cpu()
        short = host.is_floating_point() and host.dtype not in (torch.float16, torch.float32, torch.float64)
        return (host.float() if short else host).numpy()
    return np.asarray(values)


def check_unmasked(array: np.ma.MaskedArray[Any, Any]) -> None:
    """Raise ValueError if any value of an array is masked: NumPy would use the value under the mask."""
    if np.ma.getmaskarray(array).any():
        raise ValueError("the array has masked values; fill or remove them first")


def check_weights(weights: npt.NDArray[Any], rows: int, name: str) -> Weights:
    """Return weights (rows,) as float64. Raises ValueError if they do not fit, or are negative, NaN or all zero."""
    if weights.shape != (rows,) or weights.dtype.kind not in "fiub":
        raise ValueError(f"{name}: weights of {weights.dtype} {weights.shape} are not {rows} numbers")
    wide = weights.astype(np.float64)
    bad = ~(np.isfinite(wide) & (wide >= 0))
    if bad.any():
        raise ValueError(f"{name}: the weight of row {int(bad.argmax())} is {wide[bad.argmax()]}, not a number >= 0")
    if not wide.any():
        raise ValueError(f"{name}: all weights are zero")
    return wide


class ShardSource:
    """Stacked vectors of feature shards, read on demand.

    paths: at least one shard, all from one encoder. stack: 1, 2 or 4 patches per vector, joined only inside a clip.
    grain: number of neighbouring vectors that `take` reads together.

    Raises:
        ValueError: there is no path, or two shards have different encoders or widths; the error names both.
        FormatError: a file is not a complete feature shard.
    """

    grain = _PIECE_ROWS

    def __init__(self, paths: Sequence[str | os.PathLike[str]], stack: int) -> None:
        self.paths = [Path(path) for path in paths]
        self.stack = stack
        if not self.paths:
            raise ValueError("no feature shards to read; run `sctok extract` first")
        self._hashes: list[str] = []
        lengths: list[int] = []
        for path in self.paths:
            with FeatureShard(path) as shard:
                if not self._hashes:
                    self.width, self.encoder_hash = shard.width, shard.encoder_hash
                    self.encoder = str(shard.provenance.get("encoder", ""))
                    self._filterbank = shard.provenance.get("filterbank")
                self._check_same(path, shard)
                self._hashes.append(shard.content_hash)
                lengths.append(shard.stacked_rows(stack))
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.dim, self.rows = self.width * stack, int(self._starts[-1])
        self.fingerprint = hash_json([stack, self.encoder, self.encoder_hash, self._filterbank, self._hashes])
        self.name = str(self.paths[0].parent)

    def _check_same(self, path: Path, shard: FeatureShard) -> None:
        first = self.paths[0]
        if shard.encoder_hash != self.encoder_hash:
            other = shard.provenance.get("encoder", "")
            raise ValueError(
                f"{path} holds features of encoder {other} ({shard.encoder_hash}), {first} of "
                f"{self.encoder} ({self.encoder_hash}); keep features of one encoder and one --padding per folder"
            )
        if shard.provenance.get("filterbank") != self._filterbank:
            raise ValueError(f"{path} and {first} were made with different filterbank settings; keep them apart")
        if shard.width != self.width:
            raise ValueError(f"{path} holds features of width {shard.width}, {first} of width {self.width}")

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        """See VectorSource. A thread reads the next block while the caller uses the current one."""
        return read_ahead(self._blocks(plan_blocks(self.rows, block_rows, span)))

    def _blocks(self, plan: Iterator[tuple[int, int]]) -> Iterator[Block]:
        with _OpenShards() as reader:
            for start, stop in plan:
                yield Block(np.arange(start, stop, dtype=np.int64), self._read(reader, start, stop))

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        result = np.empty((len(places), self.dim), np.float32)
        with _OpenShards() as reader:
            firsts = np.flatnonzero(np.diff(places // _PIECE_ROWS, prepend=-1))
            for first, last in pairwise([*firsts.tolist(), len(places)]):
                wanted = places[first:last]
                piece = self._read(reader, int(wanted[0]), int(wanted[-1]) + 1)
                result[first:last] = piece[wanted - wanted[0]]
        return result

    def _read(self, reader: "_OpenShards", start: int, stop: int) -> Vectors:
        parts = []
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first, last = start - int(self._starts[index]), min(stop, int(self._starts[index + 1]))
            if start < last:
                shard = reader.open(self.paths[index])
                if shard.content_hash != self._hashes[index]:
                    raise ValueError(f"{self.paths[index]} changed while it was read; run the same command again")
                rows = shard.read(first, last - int(self._starts[index]), self.stack)
                check_finite(rows, np.arange(first, first + len(rows)), str(self.paths[index]), "vector")
                parts.append(rows)
                start = last
            index += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _OpenShards:
    """Keeps the most recently used shards open."""

    def __init__(self) -> None:
        self._shards: dict[Path, FeatureShard] = {}

    def open(self, path: Path) -> FeatureShard:
        shard = self._shards.pop(path, None) or FeatureShard(path)
        self._shards[path] = shard
        if len(self._shards) > _OPEN_SHARDS:
            self._shards.pop(next(iter(self._shards))).close()
        return shard

    def __enter__(self) -> "_OpenShards":
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards.values():
            shard.close()


def check_finite(rows: Array, places: npt.NDArray[np.int64], name: str, unit: str) -> None:
    """Raise ValueError naming the place of the first row of (n, D) that holds NaN or infinity."""
    # torch sums on many threads but warns about read-only rows; the sum of finite values can overflow.
    fast = rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable
    if fast and math.isfinite(float(torch.from_numpy(rows).sum())):
        return
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        place = int(places[int(np.flatnonzero(~finite)[0])])
        raise ValueError(f"{name}: {unit} {place} holds NaN or infinity; remove it and start again")
