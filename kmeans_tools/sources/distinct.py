"""Distinct vectors of data that contain repetitions."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .vectors import Block, Weights

_COMPARED_COLUMNS = 8
_MIXER = np.uint64(0x9E3779B97F4A7C15)
_BITS = {4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Distinct:
    """Distinct vectors (m, D) in order of first appearance, and the total weight (m,) of each in the data."""

    vectors: npt.NDArray[Any]
    masses: Weights


def find_distinct(blocks: Iterable[Block], limit: int) -> Distinct:
    """Read all blocks and return the first `limit` distinct vectors of positive weight, in the dtype of the rows."""
    known: dict[bytes, int] = {}
    vectors: list[npt.NDArray[Any]] = []
    masses: list[float] = []
    for block in blocks:
        places, added = distinct_rows(block.rows, block.weights)
        for place, mass in zip(places.tolist(), added.tolist(), strict=True):
            key = _key(block.rows[place])
            if mass > 0 and key not in known and len(known) < limit:
                known[key] = len(known)
                vectors.append(block.rows[place].copy())
                masses.append(0.0)
            if key in known:
                masses[known[key]] += mass
    return Distinct(np.array(vectors), np.array(masses, np.float64))


def distinct_rows(
    vectors: npt.NDArray[Any], weights: Weights | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the place of the first of each set of equal vectors (n, D), ascending, and the sum of their weights.

    vectors: float32 or float64. Silence and padding make features repeat; seeding uses each distinct vector once, with
    the total weight.
    """
    first = np.arange(len(vectors), dtype=np.int64)
    seen: dict[bytes, int] = {}
    for place in _possible_repeats(vectors).tolist():
        first[place] = seen.setdefault(_key(vectors[place]), place)
    masses = np.bincount(first, weights, minlength=len(vectors)).astype(np.float64)
    places = np.flatnonzero(first == np.arange(len(vectors)))
    return places, masses[places]


def _key(vector: npt.NDArray[Any]) -> bytes:
    # Adding zero turns -0.0 into 0.0: they compare equal but have different bytes.
    return hashlib.blake2b((vector + vector.dtype.type(0)).tobytes(), digest_size=16).digest()


def _possible_repeats(vectors: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the ascending places of all vectors of (n, D) that agree with another vector in a few columns."""
    columns = np.unique(np.linspace(0, vectors.shape[1] - 1, _COMPARED_COLUMNS).astype(np.int64))
    keys = np.zeros(len(vectors), np.uint64)
    for column in columns:
        keys = keys * _MIXER + (vectors[:, column] + vectors.dtype.type(0)).view(_BITS[vectors.itemsize])
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)
