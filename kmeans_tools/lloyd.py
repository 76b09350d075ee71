"""Lloyd's algorithm: the state of a codebook, and the passes over the vectors that update it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, label_distances, nearest_centroid, prepare_centroids
from sctok.kmeans_tools.passes.bounds import Bounds
from sctok.kmeans_tools.passes.cluster_sums import ClusterSums
from sctok.kmeans_tools.passes.code_cache import CodeCache
from sctok.kmeans_tools.passes.faiss_backend import FaissAssigner
from sctok.kmeans_tools.passes.moved_centroids import MovedCentroids
from sctok.kmeans_tools.passes.repair import repair_empty, repair_starved
from sctok.kmeans_tools.seeding.first_centroids import draw_sample, sample_size
from sctok.kmeans_tools.sources.vectors import Block, VectorSource, Weights
from sctok.runtime.distributed import Group

from .config import KMeansConfig
from .minibatch import STARVED, grown_share, in_batch, noise_level

_BATCH, _REPAIR = 1, 2  # seeds that keep the random numbers of different purposes independent
_PROBED_ROWS = 512

Assigner = Callable[[Tensor, Tensor, bool], Assignment]


@dataclass(frozen=True)
class Population:
    """All vectors of a fit.

    mass: their total weight. code_cache: the 8-bit codes that all codebooks of the fit share. group: the ranks that
    read the vectors.
    """

    source: VectorSource
    mass: float
    code_cache: CodeCache
    group: Group


@dataclass
class ClusterState:
    """The state of a codebook between two passes.

    centroids: (k, D) float32. share: share of the vectors that take part in passes. bounds: distance bounds of every
    vector, or None if they are not used. spread: the spread, age and origin of the bounds, from a checkpoint that does
    not contain the bounds themselves; with them the inertia of later passes has the same bits.
    history: inertia of each pass, scaled to all vectors. assigned: number of vectors that each pass compared with the
    centroids; a comparison with some of the centroids counts in part. steady: number of passes with the current share.
    read: number of passes over all vectors that the passes so far add up to. converged: the tolerance was reached.
    settled: only the final pass remains.
    """

    centroids: Tensor
    share: float = 1.0
    bounds: Bounds | None = None
    spread: tuple[float, int, Tensor] | None = None
    history: list[float] = field(default_factory=list)
    assigned: list[int] = field(default_factory=list)
    steady: int = 0
    read: float = 0.0
    converged: bool = False
    settled: bool = False

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def passes(self) -> int:
        """Number of passes so far."""
        return len(self.history)

    def settle(self, config: KMeansConfig, repaired: bool, rows: int) -> bool:
        """Decide after a pass whether another one is needed; return whether the next one uses more vectors."""
        self.steady += 1
        self.read += self.share
        batches = config.algorithm == "minibatch"
        whole = not batches or self.share == 1
        noise = noise_level(self.k, self.share * rows) if batches else 0.0
        fall = np.inf
        if self.steady > 1:
            before, now = self.history[-2:]
            fall = (before - now) / before if before > 0 else 0.0
        # A batch with fewer distinct vectors than clusters is repaired in every pass, but must grow nevertheless.
        self.converged = not repaired and fall <= config.tolerance and (whole or noise <= config.tolerance)
        grows = not whole and not self.converged and fall <= noise
        if grows:
            self.share, self.steady = grown_share(self.share), 0
        if batches:
            spent = self.read + self.share > config.most_iterations * (1 + 1e-9)
        else:
            spent = self.passes >= config.most_iterations
        self.settled = self.converged or spent or (whole and self.history[-1] == 0)
        return grows and not self.settled


def make_assigner(centroids: Tensor, config: KMeansConfig, code_cache: CodeCache, *, final: bool) -> Assigner:
    """Return a function that assigns points (n, D) at places (n,) to centroids (k, D), optionally with runner-ups."""
    if config.backend == "faiss" and not (final and config.precision == "exact"):
        faiss = FaissAssigner(centroids)
        return lambda points, places, runner_up: faiss(points)
    # The final pass has its own frame: that of the cache depends on the pass at which the fit started or resumed.
    prepare = prepare_centroids if final else code_cache.prepare
    prepared = prepare(centroids, precision=config.precision)

    def assign(points: Tensor, places: Tensor, runner_up: bool) -> Assignment:
        coded = code_cache.coded(points, places, prepared)
        return nearest_centroid(points, prepared, runner_up=runner_up, coded=coded)

    return assign


class _Pass:
    """A pass over the vectors: assigns those that their bounds do not decide, and counts the comparisons.

    cluster_sums: sums of the vectors of each cluster. assigned: number of vectors compared with the centroids; a
    comparison with some of the centroids counts in part.
    """

    def __init__(
        self, state: ClusterState, config: KMeansConfig, population: Population, *, grown: bool, final: bool
    ) -> None:
        self.state, self._config, self._population = state, config, population
        self._nearest = make_assigner(state.centroids, config, population.code_cache, final=final)
        self._bounds = bounds = state.bounds
        k, dim = state.centroids.shape
        self.cluster_sums = ClusterSums(k, dim, state.centroids.device) if bounds is None else bounds.cluster_sums
        self._skips = bounds is not None and bounds.start_pass(grown)
        self.assigned = 0
        self._movers: MovedCentroids | None = None
        if bounds is not None and self._skips and bounds.screens and len(bounds.last.movers):
            self._movers = MovedCentroids(state.centroids, bounds.last.movers)

    def _assign(self, points: Tensor, places: Tensor, runner_up: bool) -> Assignment:
        """Compare points (n, D) at places (n,) with all centroids."""
        self.assigned += len(points)
        return self._nearest(points, places, runner_up)

    def _undecided(self, points: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        """Return the rows among rows (m,) of points (n, D) at places (n,) that must be compared with all centroids."""
        bounds, movers, centroids = self._bounds, self._movers, self.state.centroids
        assert bounds is not None
        rows = rows[bounds.survivors(places[rows])]
        if not len(rows) or not bounds.screens:
            return rows
        self.assigned += 0 if movers is None else -(-len(rows) * len(movers) // len(centroids))
        return bounds.screen(points, places, rows, centroids, movers)

    def _record(self, points: Tensor, places: Tensor, found: Assignment, weights: Weights | None) -> None:
        """Add newly assigned points (n, D) at places (n,) to the cluster sums, and update their bounds."""
        if self._bounds is None:
            self.cluster_sums.add(points, found, weights)
        else:
            self._bounds.update(points, places, found, weights)


class LloydPass(_Pass):
    """One iteration: assign every vector whose nearest centroid may have changed, then move the centroids to means."""

    def __init__(self, state: ClusterState, config: KMeansConfig, population: Population) -> None:
        super().__init__(state, config, population, grown=state.steady == 0, final=False)
        self._tight = self._bounds is not None and self._bounds.tight
        self._probed = self._bounds is None or self._skips

    @property
    def fraction(self) -> float:
        """Approximate share of all vectors that this pass needs."""
        if self._skips and self._bounds is not None:
            start, stop = self._population.group.span(self._population.source.rows)
            return float(self._bounds.survivors()[start:stop].sum()) / max(1, stop - start)
        return self.state.share

    @property
    def scattered(self) -> bool:
        """Whether the needed vectors are scattered, rather than in contiguous runs."""
        return self._skips

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return a bool mask (n,) of the vectors at places (n,) that this pass needs."""
        chosen = self._in_batch(places)
        if self._skips and self._bounds is not None:
            index = torch.from_numpy(places).to(self.state.centroids.device)
            chosen &= self._bounds.survivors(index).cpu().numpy()
        return chosen

    def _in_batch(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        seed = (self._config.seed, self.state.k, _BATCH)
        return in_batch(places, self.state.share, self._population.source.rows, seed)

    def add(self, points: Tensor, block: Block) -> None:
        """Process one block; points: its vectors (n, D) float32 on the device."""
        places, weights = torch.from_numpy(block.places).to(points.device), block.weights
        if self._skips or self.state.share < 1:
            rows = torch.arange(len(points), device=points.device)
            if self.state.share < 1:
                rows = rows[torch.from_numpy(self._in_batch(block.places)).to(points.device)]
            if self._skips:
                rows = self._undecided(points, places, rows)
            places, points = places[rows], points[rows]
            weights = None if weights is None else weights[rows.cpu().numpy()]
        if not len(points):
            return
        # Runner-ups take time: ask for them only if the bounds will hold, or if few vectors remain.
        runner_up = self._tight or (self._skips and 2 * len(points) <= len(block.places))
        found = self._assign(points, places, runner_up)
        if not self._probed and self._bounds is not None:
            self._bounds.measure_gap(self._nearest(points[:_PROBED_ROWS], places[:_PROBED_ROWS], True))
            self._probed = True
        self._record(points, places, found, weights)

    def finish(self) -> None:
        """Move the centroids, and record the inertia of the previous ones."""
        state, bounds, group = self.state, self._bounds, self._population.group
        cluster_sums = self.cluster_sums.over(group)
        before = state.centroids
        inertia = cluster_sums.inertia if bounds is None else bounds.inertia(before, cluster_sums, self._skips)
        mass = float(cluster_sums.weights.sum())
        state.assigned.append(sum(group.gather(self.assigned)))
        state.history.append(inertia * (self._population.mass / mass if mass and state.share < 1 else 1.0))
        after = before.clone()
        used = (cluster_sums.counts > 0).nonzero()[:, 0]
        after[used] = cluster_sums.means(used)
        repaired = self._repair(after, (cluster_sums.counts == 0).nonzero()[:, 0], starved=False)
        if state.settle(self._config, repaired, self._population.source.rows):
            few = cluster_sums.weights.to(torch.float64) < STARVED * mass / state.k
            self._repair(after, (few & (cluster_sums.counts > 0)).nonzero()[:, 0], starved=True)
        if bounds is not None:
            bounds.centroids_moved(before, after)
        state.centroids = after

    def _repair(self, centroids: Tensor, clusters: Tensor, *, starved: bool) -> bool:
        """Repair empty or starved clusters in place; return whether a centroid was moved."""
        if not len(clusters):
            return False
        seed = (self._config.seed, self.state.k, _REPAIR, self.state.passes, int(starved))
        source = self._population.source
        count = sample_size(self.state.k, source.dim, source.rows, "kmeans++", self._config.memory)
        sample, weights = draw_sample(source, count, seed)
        repair = repair_starved if starved else repair_empty
        return len(repair(centroids, clusters, sample, weights, np.random.default_rng([*seed, 0]))) > 0


class FinalPass(_Pass):
    """Assign every vector to the final centroids; the cluster sums and labels are those of the result.

    labels: (rows,) int32, if requested. kept: number of vectors that kept their label by bounds; only the distance to
    their centroid is computed.
    """

    fraction, scattered = 1.0, False

    def __init__(self, state: ClusterState, config: KMeansConfig, population: Population, labels: bool) -> None:
        super().__init__(state, config, population, grown=state.share < 1, final=True)
        self.labels = np.empty(population.source.rows, np.int32) if labels else None
        self.kept = 0

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return a mask (n,) of True: all vectors are needed."""
        return np.ones(len(places), np.bool_)

    def add(self, points: Tensor, block: Block) -> None:
        """Process one block; points: its vectors (n, D) float32 on the device."""
        places = torch.from_numpy(block.places).to(points.device)
        found = self._labels_of(points, places)
        if self.labels is not None:
            self.labels[block.places] = found.labels.cpu().numpy()
        self._record(points, places, found, block.weights)

    def _labels_of(self, points: Tensor, places: Tensor) -> Assignment:
        if not self._skips or self._bounds is None:
            return self._assign(points, places, False)
        rows = self._undecided(points, places, torch.arange(len(points), device=points.device))
        self.kept += len(points) - len(rows)
        labels = self._bounds.labels[places].to(torch.int64)
        again = self._assign(points[rows], places[rows], False)
        labels[rows] = again.labels
        return Assignment(labels, label_distances(points, self.state.centroids, labels), again.rescored)

    def finish(self) -> None:
        """Record the inertia, and replace the sums, labels and counts of this rank by those of all ranks."""
        group = self._population.group
        self.cluster_sums = self.cluster_sums.over(group)
        self.kept = sum(group.gather(self.kept))
        if self.labels is not None:
            start, stop = group.span(len(self.labels))
            self.labels = np.concatenate(group.gather(self.labels[start:stop]))
        self.state.assigned.append(sum(group.gather(self.assigned)))
        self.state.history.append(self.cluster_sums.inertia)
