"""Random numbers that belong to places, not to the order of drawing: blocks of any size give the same ones."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def place_uniforms(places: npt.NDArray[np.int64], seed: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return a number in (0, 1), float64, for each place (n,) int64: a hash (SplitMix64) of the place and the seed."""
    start = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        mixed = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    uniforms: npt.NDArray[np.float64] = ((mixed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return uniforms
