"""Lloyd's algorithm, one pass over the vectors at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, label_distances, nearest_centroid, prepare_centroids
from sctok.kmeans_tools.passes.bounds import Bounds
from sctok.kmeans_tools.passes.cluster_sums import Totals
from sctok.kmeans_tools.passes.code_cache import CodeCache
from sctok.kmeans_tools.passes.faiss_backend import FaissAssigner
from sctok.kmeans_tools.passes.moved_centroids import Movers
from sctok.kmeans_tools.passes.repair import repair_empty, repair_starved
from sctok.kmeans_tools.seeding.place_random import place_uniforms
from sctok.kmeans_tools.sources.vectors import Block, Vectors, Weights
from sctok.runtime.distributed import ALONE, Group

from .config import KMeansConfig
from .minibatch import STARVED, grown_share, noise_level

_BATCH, _REPAIR = 1, 2  # keep the random numbers of different purposes apart
_PIECES = 1 << 16  # of neighbouring vectors, which belong to a batch together so that they are read together
_LARGEST_PIECE = 512
_PROBED_ROWS = 512

Assigner = Callable[[Tensor, Tensor, bool], Assignment]
Draw = Callable[[Sequence[int]], tuple[Vectors, Weights | None]]


@dataclass(frozen=True)
class Population:
    """All vectors of a fit: how many, their weight in all, how to draw some at random by a seed, and who reads them.

    codes: what all codebooks of the fit keep of them.
    """

    rows: int
    mass: float
    draw: Draw
    codes: CodeCache
    group: Group = ALONE


@dataclass
class ClusterState:
    """One codebook in the making, complete between two passes.

    centroids: (k, D) float32. share: of the vectors, those that take part in passes. bounds: what is remembered of
    every vector, None for nothing. spread: that of the bounds, with their age and origin, from the checkpoint of
    several ranks, which keeps nothing of single vectors; with it the inertia of later passes has the same bits.
    history: inertia of each pass, scaled to all vectors. assigned: vectors that each pass compared with the centroids,
    in part where it was with a part of them. steady: passes with this share. read: passes over all vectors that those
    so far amount to. converged: the tolerance was reached. settled: only the final pass is left.
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
        """Passes done."""
        return len(self.history)

    def settle(self, config: KMeansConfig, repaired: bool, rows: int) -> bool:
        """Decide after a pass whether another one is worth it; return whether it will see more vectors."""
        self.steady += 1
        self.read += self.share
        batches = config.algorithm == "minibatch"
        whole = not batches or self.share == 1
        noise = noise_level(self.k, self.share * rows) if batches else 0.0
        fall = np.inf
        if self.steady > 1:
            before, now = self.history[-2:]
            fall = (before - now) / before if before > 0 else 0.0
        # A batch of fewer distinct vectors than clusters is repaired in every pass, and has to grow all the same.
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


def make_assigner(centroids: Tensor, config: KMeansConfig, codes: CodeCache, *, final: bool) -> Assigner:
    """Return the function that assigns points (n, D) at places (n,) to centroids (k, D), with runner-ups if asked."""
    if config.backend == "faiss" and not (final and config.precision == "exact"):
        faiss = FaissAssigner(centroids)
        return lambda points, places, runner_up: faiss(points)
    # The final pass has a frame of its own: that of the others depends on where a fit began or resumed.
    prepare = prepare_centroids if final else codes.prepare
    prepared = prepare(centroids, precision=config.precision)

    def assign(points: Tensor, places: Tensor, runner_up: bool) -> Assignment:
        coded = codes.coded(points, places, prepared)
        return nearest_centroid(points, prepared, runner_up=runner_up, coded=coded)

    return assign


def in_batch(places: npt.NDArray[np.int64], share: float, rows: int, seed: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which places (n,) int64 belong to a random share of so many rows; a larger share holds every smaller."""
    if share >= 1:
        return np.ones(len(places), np.bool_)
    piece = max(1, min(_LARGEST_PIECE, rows // _PIECES))
    found: npt.NDArray[np.bool_] = place_uniforms(places // piece, seed) < share
    return found


class _Comparer:
    """Assigns the vectors of a pass, those by their bounds that need it, and counts the work.

    assigned: vectors compared with the centroids; those compared with a part of them count in part.
    """

    def __init__(
        self, state: ClusterState, config: KMeansConfig, codes: CodeCache, *, grown: bool, final: bool
    ) -> None:
        self._nearest = make_assigner(state.centroids, config, codes, final=final)
        self.bounds = bounds = state.bounds
        self.skips = bounds is not None and bounds.start_pass(grown)
        self.assigned = 0
        self._centroids = state.centroids
        self._movers: Movers | None = None
        if bounds is not None and self.skips and bounds.screens and len(bounds.last.movers):
            self._movers = Movers(state.centroids, bounds.last.movers)

    def assign(self, points: Tensor, places: Tensor, runner_up: bool) -> Assignment:
        """Compare points (n, D) at places (n,) with all centroids."""
        self.assigned += len(points)
        return self._nearest(points, places, runner_up)

    def probe(self, points: Tensor, places: Tensor) -> Assignment:
        """Return the two nearest centroids of a few of the points, beside the work that counts."""
        return self._nearest(points[:_PROBED_ROWS], places[:_PROBED_ROWS], True)

    def undecided(self, points: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        """Return which of some rows (m,) of points (n, D) at places (n,) must be compared with all centroids, int64."""
        bounds, movers = self.bounds, self._movers
        assert bounds is not None
        rows = rows[bounds.survivors(places[rows])]
        if not len(rows) or not bounds.screens:
            return rows
        self.assigned += 0 if movers is None else -(-len(rows) * len(movers) // len(self._centroids))
        return bounds.screen(points, places, rows, self._centroids, movers)


class LloydPass:
    """One iteration: assign every vector that may have a new centroid, then move each centroid to its mean."""

    def __init__(self, state: ClusterState, config: KMeansConfig, population: Population) -> None:
        self.state = state
        self._config, self._population = config, population
        self._comparer = comparer = _Comparer(state, config, population.codes, grown=state.steady == 0, final=False)
        self._bounds, self._skips = comparer.bounds, comparer.skips
        self._tight, self._probed = self._bounds is not None and self._bounds.tight, self._skips
        k, dim = state.centroids.shape
        self.totals = Totals(k, dim, state.centroids.device) if self._bounds is None else self._bounds.totals

    @property
    def fraction(self) -> float:
        """Share of all vectors that this pass needs to see, about."""
        if self._skips and self._bounds is not None:
            start, stop = self._population.group.span(self._population.rows)
            return float(self._bounds.survivors()[start:stop].sum()) / max(1, stop - start)
        return self.state.share

    @property
    def scattered(self) -> bool:
        """Whether the vectors that it needs lie here and there, not in pieces."""
        return self._skips

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the vectors at places (n,) this pass needs to see, bool."""
        chosen = self._in_batch(places)
        if self._skips and self._bounds is not None:
            index = torch.from_numpy(places).to(self.state.centroids.device)
            chosen &= self._bounds.survivors(index).cpu().numpy()
        return chosen

    def _in_batch(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        seed = (self._config.seed, self.state.k, _BATCH)
        return in_batch(places, self.state.share, self._population.rows, seed)

    def add(self, points: Tensor, block: Block) -> None:
        """Take in one block: points (n, D) float32 on the device, and the same on the host."""
        places, weights = torch.from_numpy(block.places).to(points.device), block.weights
        if self._skips or self.state.share < 1:
            rows = torch.arange(len(points), device=points.device)
            if self.state.share < 1:
                rows = rows[torch.from_numpy(self._in_batch(block.places)).to(points.device)]
            if self._skips:
                rows = self._comparer.undecided(points, places, rows)
            places, points = places[rows], points[rows]
            weights = None if weights is None else weights[rows.cpu().numpy()]
        if not len(points):
            return
        bounds = self._bounds
        # Runners-up cost some time: they are for bounds that will hold, and for the few vectors that are left.
        pays = self._tight or (self._skips and 2 * len(points) <= len(block.places))
        found = self._comparer.assign(points, places, pays)
        if bounds is None:
            self.totals.add(points, found, weights)
            return
        if not self._probed:
            bounds.measure_gap(self._comparer.probe(points, places))
            self._probed = True
        bounds.update(points, places, found, weights)

    def finish(self) -> None:
        """Move the centroids and record the inertia that the old ones had."""
        totals, state, bounds = self.totals.over(self._population.group), self.state, self._bounds
        before = state.centroids
        inertia = totals.inertia if bounds is None else bounds.inertia(before, totals, self._skips)
        mass = float(totals.weights.sum())
        state.assigned.append(sum(self._population.group.gather(self._comparer.assigned)))
        state.history.append(inertia * (self._population.mass / mass if mass and state.share < 1 else 1.0))
        after = before.clone()
        used = (totals.counts > 0).nonzero()[:, 0]
        after[used] = totals.means(used)
        repaired = self._repair(after, (totals.counts == 0).nonzero()[:, 0], starved=False)
        if state.settle(self._config, repaired, self._population.rows):
            few = totals.weights.to(torch.float64) < STARVED * mass / state.k
            self._repair(after, (few & (totals.counts > 0)).nonzero()[:, 0], starved=True)
        if bounds is not None:
            bounds.centroids_moved(before, after)
        state.centroids = after

    def _repair(self, centroids: Tensor, clusters: Tensor, *, starved: bool) -> bool:
        """Repair empty or starved clusters in place; return whether any was."""
        if not len(clusters):
            return False
        seed = (self._config.seed, self.state.k, _REPAIR, self.state.passes, int(starved))
        sample, weights = self._population.draw(seed)
        repair = repair_starved if starved else repair_empty
        return len(repair(centroids, clusters, sample, weights, np.random.default_rng([*seed, 0]))) > 0


class FinalPass:
    """Assign every vector to the centroids that stay: the totals and labels are those of the result.

    labels: (rows,) int32 if they are wanted. kept: vectors that keep their label by their bounds; of them only the
    distance to their centroid is computed.
    """

    fraction, scattered = 1.0, False

    def __init__(self, state: ClusterState, config: KMeansConfig, population: Population, labels: bool) -> None:
        self.state = state
        self._comparer = comparer = _Comparer(state, config, population.codes, grown=state.share < 1, final=True)
        self._bounds = comparer.bounds
        k, dim = state.centroids.shape
        self.totals = Totals(k, dim, state.centroids.device) if self._bounds is None else self._bounds.totals
        self.labels = np.empty(population.rows, np.int32) if labels else None
        self.kept = 0
        self._group = population.group

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return that all vectors are needed."""
        return np.ones(len(places), np.bool_)

    def add(self, points: Tensor, block: Block) -> None:
        """Take in one block: points (n, D) float32 on the device."""
        places = torch.from_numpy(block.places).to(points.device)
        found = self._labels_of(points, places)
        if self.labels is not None:
            self.labels[block.places] = found.labels.cpu().numpy()
        if self._bounds is None:
            self.totals.add(points, found, block.weights)
        else:
            self._bounds.update(points, places, found, block.weights)

    def _labels_of(self, points: Tensor, places: Tensor) -> Assignment:
        if not self._comparer.skips or self._bounds is None:
            return self._comparer.assign(points, places, False)
        rows = self._comparer.undecided(points, places, torch.arange(len(points), device=points.device))
        self.kept += len(points) - len(rows)
        labels = self._bounds.labels[places].to(torch.int64)
        again = self._comparer.assign(points[rows], places[rows], False)
        labels[rows] = again.labels
        return Assignment(labels, label_distances(points, self.state.centroids, labels), again.rescored)

    def finish(self) -> None:
        """Record the inertia; the totals, labels and counts of what was assigned are then those of all ranks."""
        self.totals = self.totals.over(self._group)
        self.kept = sum(self._group.gather(self.kept))
        if self.labels is not None:
            start, stop = self._group.span(len(self.labels))
            self.labels = np.concatenate(self._group.gather(self.labels[start:stop]))
        self.state.assigned.append(sum(self._group.gather(self._comparer.assigned)))
        self.state.history.append(self.totals.inertia)
