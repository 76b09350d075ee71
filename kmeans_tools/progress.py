"""Events that a fit reports while it runs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class FitStarted:
    """A codebook of k centroids over `rows` vectors has been seeded, or resumed from a checkpoint.

    passes: number of passes that the checkpoint contains, 0 after seeding.
    """

    k: int
    rows: int
    passes: int
    resumed: bool


@dataclass(frozen=True)
class RowsRead:
    """All codebooks of the fit have processed the next `rows` vectors of the current pass."""

    rows: int


@dataclass(frozen=True)
class PassFinished:
    """A pass over the vectors of one codebook has ended.

    number: passes so far, from 1. inertia: the inertia of the centroids that the pass started with, scaled to all
    vectors. is_final: whether this pass only assigned the vectors to the final centroids.
    """

    k: int
    number: int
    inertia: float
    is_final: bool


FitEvent = FitStarted | RowsRead | PassFinished
FitProgress = Callable[[FitEvent], None]
