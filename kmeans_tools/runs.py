"""Runs of k-means from several seeds or first centers, each in float32 or float64 as the data require."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sctok.kernels.assign import nearest_centroid
from sctok.kernels.reference import squared_distances
from sctok.kmeans_tools.float64.distances import Evaluation, evaluate
from sctok.kmeans_tools.float64.frames import RESOLVED, Float32Frame, Wide
from sctok.kmeans_tools.float64.problem import Problem
from sctok.kmeans_tools.float64.seeding import run_wide
from sctok.kmeans_tools.sources.vectors import Array, TooFewVectorsError, VectorSource, sample_places, take_blocks
from sctok.runtime.devices import resolve_device

from .config import GIVEN, FitContext, FitResult, KMeansConfig
from .fit import fit_codebooks
from .progress import FitProgress

_SMALL_STEPS = 1 / 16  # factor of the tolerance for float64 data from given centers, which move in small steps
_SAMPLE_ROWS, _BLOCK_ROWS = 1024, 16_384
_HOPELESS = 0.5  # start in float64 if float32 blurs more than this share of a sample

Start = tuple[int, Wide | None]


@dataclass(frozen=True, eq=False)
class KMeansRun:
    """The result of one run: centers (k, D) in the space and dtype of the data, and an inertia to compare runs.

    labels: (n,) int32, or None if the labels and the inertia are not those of all the data.
    """

    centers: Array
    inertia: float
    iterations: int
    labels: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, eq=False)
class Runner:
    """Fits k centers to a problem that `pose_problem` made of data (n, D) with weights (n,).

    config: settings; each run replaces the seed.
    """

    problem: Problem
    k: int
    config: KMeansConfig
    data: Array | VectorSource
    weights: Wide | None
    progress: FitProgress | None

    def best(self, starts: Iterable[Start]) -> KMeansRun:
        """Run once from each seed or given centers (k, D), and return the run with the lowest inertia.

        Raises:
            TooFewVectorsError: the data have fewer than k distinct vectors.
        """
        known = self.problem.distinct
        narrow = self.problem.wide is None or not (self._small or self._hopeless())
        runs: list[KMeansRun] = []
        for seed, given in starts:
            if known is not None and len(known) < self.k:
                raise TooFewVectorsError(self.k, len(known), "distinct vectors")
            found = self._run_narrow(seed, given) if narrow else None
            narrow = found is not None
            runs.append(found or self._run_wide(seed, given))
        return min(runs, key=lambda run: run.inertia)

    def _hopeless(self) -> bool:
        """Return whether float32 cannot separate the vectors of a small sample from their neighbours."""
        wide, frame = self.problem.wide, self.problem.frame
        assert wide is not None
        assert frame is not None
        places = sample_places(wide.rows, _SAMPLE_ROWS, [0])
        vectors = take_blocks(wide.source.wide_blocks(_BLOCK_ROWS), places, np.empty((len(places), wide.source.dim)))
        points = torch.from_numpy(np.unique(np.ldexp(vectors, -frame.exponent), axis=0))
        if len(points) < 2:
            return False
        other = nearest_centroid(points, points, runner_up=True).second_labels
        assert other is not None
        gaps = squared_distances(points, points[other]).numpy()
        losses = frame.square_losses(np.ldexp(points.numpy(), frame.exponent))
        return bool((losses > RESOLVED**2 * gaps).mean() > _HOPELESS)

    @property
    def _small(self) -> bool:
        return self.problem.is_small(self.k, given=self.config.seeding == GIVEN)

    def _run_narrow(self, seed: int, given: Wide | None) -> KMeansRun | None:
        """Run the float32 engine; return None if float32 does not resolve the data."""
        frame = self.problem.frame
        if frame is None:
            result = self._fit(seed, given)
            whole = self.problem.whole and self.config.precision == "exact"
            return KMeansRun(result.centroids, result.inertia, result.iterations, result.labels if whole else None)
        if given is not None and not frame.holds(given):
            return None
        try:
            result = self._fit(seed, given)
        except TooFewVectorsError:  # vectors that differ in float64 can be equal in float32
            return None
        centers = frame.outside(result.centroids)
        found = self._evaluate(centers, frame)
        return KMeansRun(centers, found.inertia, result.iterations, found.labels) if found.resolved else None

    def _fit(self, seed: int, given: Wide | None) -> FitResult:
        problem, k, config = self.problem, self.k, replace(self.config, seed=seed)
        if given is not None and problem.wide is not None:
            config = replace(config, tol=config.tolerance * _SMALL_STEPS)
        initial = {} if given is None else {k: problem.inside(given)}
        context = FitContext(initial=initial, return_labels=True, progress=self.progress)
        return fit_codebooks(problem.source, [k], config, context)[k]

    def _run_wide(self, seed: int, given: Wide | None) -> KMeansRun:
        assert self.problem.wide is not None
        found = run_wide(self.problem.wide, self.k, replace(self.config, seed=seed), given, self.progress)
        centers = self.problem.wide.outside(found.centers)
        if self._small:
            return KMeansRun(centers, found.inertia, found.iterations)
        measured = self._evaluate(centers, None)  # comparable with the inertia of float32 runs
        return KMeansRun(centers, measured.inertia, found.iterations, measured.labels)

    def _evaluate(self, centers: Wide, frame: Float32Frame | None) -> Evaluation:
        device = resolve_device(self.config.device)
        return evaluate(self.data, self.weights, torch.from_numpy(centers).to(device), frame)
