"""Fit one or several k-means codebooks to the same vectors, sharing every pass over them."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from sctok.formats.files import hash_arrays, hash_json
from sctok.kmeans_tools.passes.bounds import Bounds, bounds_fit
from sctok.kmeans_tools.passes.code_cache import CodeCache
from sctok.kmeans_tools.passes.faiss_backend import (
    SUPERKMEANS,
    require_faiss,
    superkmeans_sample_size,
    train_superkmeans,
)
from sctok.kmeans_tools.seeding.first_centroids import (
    CHOICE,
    SAMPLE,
    check_distinct,
    draw_sample,
    gather_distinct,
    sample_size,
    seed_centroids,
)
from sctok.kmeans_tools.sources.reading import SharedSource, needed_blocks, share_source
from sctok.kmeans_tools.sources.vectors import TooFewVectorsError, Vectors, VectorSource, Weights, source_weights
from sctok.runtime.devices import resolve_device

from .config import GIVEN, FitContext, FitResult, KMeansConfig
from .lloyd import ClusterState, FinalPass, LloydPass, Population
from .minibatch import first_share
from .progress import FitStarted, PassFinished, RowsRead
from .quality import codebook_certificate
from .resume import FitCheckpoints

ALGORITHM_VERSION = 3  # part of the configuration hash: increase it when results change

_Pass = LloydPass | FinalPass


def config_hash(source: VectorSource, k: int, config: KMeansConfig, initial: Vectors | None = None) -> str:
    """Return the hash of everything that determines the codebook of one k: settings, data and first centroids."""
    resolved = config.resolved(source.rows, source.dim, k)
    given = _seeding_sample(source, k, resolved) if initial is None else hash_arrays({"initial": initial})
    return hash_json([ALGORITHM_VERSION, k, resolved.identity(), source.fingerprint, given])


def _seeding_sample(source: VectorSource, k: int, config: KMeansConfig) -> int:
    """Return the number of vectors to seed from; a small memory reduces it."""
    if config.backend == SUPERKMEANS:
        return superkmeans_sample_size(k, source.dim, source.rows, config.max_points_per_centroid, config.memory)
    return sample_size(k, source.dim, source.rows, config.seeding, config.memory)


def fit_codebooks(
    source: VectorSource, ks: Sequence[int], config: KMeansConfig, context: FitContext | None = None
) -> dict[int, FitResult]:
    """Fit a codebook of each size in `ks`; the result of one does not depend on the others.

    Memory holds one block of vectors at a time, plus the centroids and their sums. Every fit ends with a pass over all
    vectors, which counts them for the centroids that are returned.

    Args:
        source: vectors (rows, D) float32, finite.
        ks: sizes, each at most the number of distinct vectors; repeated sizes are fitted once.
        config: see KMeansConfig.
        context: see FitContext: first centroids, checkpoints, progress, labels, and ranks.

    Returns:
        FitResult by k, in the order of `ks`.

    Raises:
        ValueError: k is below 1 or above the number of (distinct) vectors; a vector holds NaN or infinity; first
            centroids do not fit.
        ImportError: the backend needs FAISS, which is not installed.
        ConnectionError: a rank has stopped.
    """
    context = context or FitContext()
    sizes = list(dict.fromkeys(int(k) for k in ks))
    _validate(source, sizes, config, context)
    return _Fit(source, sizes, config, context).run()


def _validate(source: VectorSource, ks: list[int], config: KMeansConfig, context: FitContext) -> None:
    if not ks:
        raise ValueError("ks is empty; give at least one number of centroids")
    initial = context.initial
    weights = source_weights(source)
    rows = source.rows if weights is None else np.count_nonzero(weights)
    for k in ks:
        if k < 1:
            raise ValueError(f"k = {k} is not positive")
        if k > rows:
            raise TooFewVectorsError(k, int(rows), f"vectors of {source.name}")
        if config.seeding == GIVEN and k not in initial:
            raise ValueError(f"seeding {GIVEN!r} needs first centroids for k = {k}")
        if config.seeding != GIVEN and k in initial:
            raise ValueError(f"first centroids for k = {k} need seeding {GIVEN!r}, not {config.seeding!r}")
        if k in initial and (initial[k].shape != (k, source.dim) or not np.isfinite(initial[k]).all()):
            raise ValueError(
                f"first centroids of shape {initial[k].shape} are not {k} finite vectors of width {source.dim}"
            )
    if config.backend == SUPERKMEANS and (weights is not None or initial):
        raise ValueError(f"{SUPERKMEANS} supports neither weights nor first centroids; use another backend")
    if config.backend in ("faiss", SUPERKMEANS):
        require_faiss(superkmeans=config.backend == SUPERKMEANS)


class _Fit:
    """A fit of several codebooks: seeds or resumes each, then runs passes until all are complete."""

    def __init__(self, source: VectorSource, ks: list[int], config: KMeansConfig, context: FitContext) -> None:
        self.source, self.ks, self.config, self.context = share_source(source, context.group), ks, config, context
        self.group = context.group
        self.report = context.progress or (lambda event: None)
        self.device = self.group.local_device(resolve_device(config.device))
        weights = source_weights(source)
        mass = float(source.rows) if weights is None else float(weights.sum())
        self.population = Population(self.source, mass, CodeCache(source.rows, config.memory), self.group)
        self.seconds: dict[int, float] = {}
        self.hashes: dict[int, str] = {}
        if context.checkpoint_dir is not None or context.save is not None:
            self.hashes = {k: config_hash(source, k, config, context.initial.get(k)) for k in ks}
        self.checkpoints = FitCheckpoints(context, self.hashes, self.device)

    def run(self) -> dict[int, FitResult]:
        states = {k: self._start(k) for k in self.ks}
        results: dict[int, FitResult] = {}
        while states:
            for k, result in self._run_round(states).items():
                results[k] = result
                del states[k]
                if self.context.save is not None:
                    self.context.save(result)
                    self.checkpoints.remove(k)
        for k in self.ks:
            self.checkpoints.remove(k)
        return {k: results[k] for k in self.ks}

    def _start(self, k: int) -> ClusterState:
        started = time.monotonic()
        state = self.checkpoints.load(k)
        resumed = state is not None
        if state is None:
            state = self._first_state(k)
            self.checkpoints.save(state)
        elif state.bounds is None:
            self._add_bounds(state)
        self.seconds[k] = time.monotonic() - started
        self.report(FitStarted(k, self.source.rows, state.passes, resumed))
        return state

    def _resolved(self, k: int) -> KMeansConfig:
        return self.config.resolved(self.source.rows, self.source.dim, k)

    def _first_state(self, k: int) -> ClusterState:
        config, rows = self._resolved(k), self.source.rows
        if config.backend == SUPERKMEANS:
            return self._superkmeans(k, config)
        state = ClusterState(torch.from_numpy(self.group.broadcast(self._seed(k, config))).to(self.device))
        if config.algorithm == "minibatch":
            state.share = first_share(k, rows, config.block_rows)
        elif config.max_points_per_centroid:
            state.share = min(1.0, k * config.max_points_per_centroid / rows)
        self._add_bounds(state)
        return state

    def _add_bounds(self, state: ClusterState) -> None:
        """Give a state initial bounds, if bounds are of use and fit the memory."""
        config, rows = self._resolved(state.k), self.source.rows
        exact = config.precision == "exact" and config.backend not in ("faiss", SUPERKMEANS)
        state.bounds = Bounds.empty(rows, state.centroids) if exact and bounds_fit(rows, config.memory) else None
        if state.bounds is not None and state.spread is not None:
            state.bounds.spread, state.bounds.age, state.bounds.origin = state.spread

    def _superkmeans(self, k: int, config: KMeansConfig) -> ClusterState:
        """Run all iterations of SuperKMeans on a sample; only the final pass remains."""
        sample, _ = draw_sample(self.source, _seeding_sample(self.source, k, config), (config.seed, k, SAMPLE))
        check_distinct(sample, k)
        found = train_superkmeans(sample, k, config.most_iterations, config.seed) if self.group.leads else None
        found = self.group.broadcast(found)
        assert found is not None
        centroids, history = torch.from_numpy(found[0]).to(self.device), found[1]
        history = [inertia * (self.source.rows / len(sample)) for inertia in history]
        return ClusterState(centroids, history=history, assigned=[len(sample)] * len(history), settled=True)

    def _seed(self, k: int, config: KMeansConfig) -> Vectors:
        if k in self.context.initial:
            return np.array(self.context.initial[k], np.float32)
        count = _seeding_sample(self.source, k, config)
        sample, weights = draw_sample(self.source, count, (config.seed, k, SAMPLE))
        draft = None if self.context.draft is None else partial(self.context.draft, k)

        def seed(vectors: Vectors, masses: Weights | None) -> Vectors:
            generator = np.random.default_rng([config.seed, k, CHOICE])
            return seed_centroids(vectors, k, config.seeding, generator, self.device, masses, draft)

        try:
            return seed(sample, weights)
        except TooFewVectorsError:
            if len(sample) == self.source.rows:
                raise
        whole = self.source.whole if isinstance(self.source, SharedSource) else self.source
        blocks = whole.blocks(self.config.rows_per_block(self.source.dim))
        return seed(*gather_distinct(blocks, k, count, whole.name))

    def _run_round(self, states: dict[int, ClusterState]) -> dict[int, FitResult]:
        """Run one pass for every codebook while reading the vectors once; return the results that are complete."""
        started = time.monotonic()
        passes = [self._next_pass(state) for state in states.values()]
        self._read(passes)
        results = {}
        for one_pass in passes:
            k = one_pass.state.k
            one_pass.finish()
            self.seconds[k] += time.monotonic() - started
            state = one_pass.state
            self.report(PassFinished(k, state.passes, state.history[-1], isinstance(one_pass, FinalPass)))
            if isinstance(one_pass, FinalPass):
                results[k] = self._result(one_pass)
            else:
                self.checkpoints.save(one_pass.state)
        return results

    def _next_pass(self, state: ClusterState) -> _Pass:
        config = self._resolved(state.k)
        if state.settled:
            return FinalPass(state, config, self.population, self.context.return_labels)
        return LloydPass(state, config, self.population)

    def _read(self, passes: list[_Pass]) -> None:
        for block in needed_blocks(self.source, passes, self.config.rows_per_block(self.source.dim)):
            points = torch.from_numpy(block.rows).to(self.device)
            for one_pass in passes:
                one_pass.add(points, block)
            self.report(RowsRead(len(block.rows) * self.group.world))

    def _result(self, final: FinalPass) -> FitResult:
        state, sums = final.state, final.cluster_sums
        rows = self.source.rows
        quality = codebook_certificate(state.centroids, sums.weights, sums.sums, sums.inertia)
        exact = self.config.precision == "exact"
        quality |= {
            "assignment": "float64 argmin, lowest index" if exact else "float32 scores",
            "certified_rows": rows if exact else 0,
            "iterations": state.passes - 1,
            "converged": state.converged,
            "config_hash": self.hashes.get(state.k, ""),
        }
        return FitResult(
            centroids=state.centroids.cpu().numpy(),
            counts=sums.weights.cpu().numpy(),
            inertia=sums.inertia,
            inertia_history=tuple(state.history),
            iterations=state.passes - 1,
            converged=state.converged,
            n_vectors=rows,
            certificate=quality,
            config_hash=self.hashes.get(state.k, ""),
            seconds=self.seconds[state.k],
            labels=final.labels,
            assigned=tuple(state.assigned),
            rescored=sums.rescored,
            kept=final.kept,
        )
