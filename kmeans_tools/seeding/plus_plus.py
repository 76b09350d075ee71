"""Greedy k-means++ (Arthur and Vassilvitskii 2007) in few dimensions on the host, compiled."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.runtime.jit import compiled

Indices = npt.NDArray[np.int64]


@compiled()
def _distances(columns: Any, place: int, squares: Any) -> None:
    """Write the squared distances (n,) of all points, the columns of (d, n), to the one at a place."""
    squares[:] = 0
    for j in range(columns.shape[0]):
        row = columns[j]
        value = row[place]
        for i in range(len(row)):
            difference = row[i] - value
            squares[i] += difference * difference


@compiled()
def greedy_plus_plus(columns: Any, masses: Any, first: int, uniforms: Any) -> Indices:
    """Return the places (k,) of k different points: each next one the best of some draws.

    columns: float32 or float64 (d, n), C order, n >= k; squared distances have their dtype. masses: float64 (n,),
    positive. first: the place to begin with. uniforms: (k - 1, draws) in [0, 1); a draw is in proportion to mass times
    squared distance to those chosen, or the first point that is left where none has any distance.
    """
    count, draws = columns.shape[1], uniforms.shape[1]
    chosen = np.empty(len(uniforms) + 1, np.int64)
    chosen[0] = first
    kind = columns.dtype
    closest, trial, best = np.empty(count, kind), np.empty(count, kind), np.empty(count, kind)
    cumulated, free = np.empty(count), np.ones(count, np.bool_)
    _distances(columns, first, closest)
    for step in range(len(uniforms)):
        free[chosen[step]] = False
        total = 0.0
        for i in range(count):
            total += closest[i] * masses[i] if free[i] else 0.0
            cumulated[i] = total
        smallest, winner = np.inf, -1
        for draw in range(draws if total > 0 else 1):
            place = np.searchsorted(cumulated, uniforms[step, draw] * total, side="right")
            if not total > 0 or place >= count:
                place = np.argmax(free)
            _distances(columns, place, trial)
            inertia = 0.0
            for i in range(count):
                trial[i] = min(trial[i], closest[i])
                inertia += trial[i] * masses[i]
            if inertia < smallest:
                smallest, winner = inertia, place
                trial, best = best, trial
        closest, best = best, closest
        chosen[step + 1] = winner
    return chosen
