"""Adding up the points of each cluster on CPUs, one thread for some of the clusters, so that none waits for another."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.runtime.compiled import compiled


@compiled()
def add_rows(
    points: Any, labels: npt.NDArray[np.int64], sums: npt.NDArray[np.float64], thread: int, threads: int
) -> None:
    """Add points (n, D) in their order to sums (k, D) of the clusters whose number leaves the remainder `thread`."""
    for i in range(len(labels)):
        label = labels[i]
        if label % threads == thread:
            for j in range(points.shape[1]):
                sums[label, j] += np.float64(points[i, j])
