"""Fit one or several k-means codebooks to the same vectors, sharing every pass over them."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    source_weights,
)
from sctok.kmeans_tools.sources.reading import needed_blocks
from sctok.kmeans_tools.sources.shared_source import SharedSource, shared
from sctok.kmeans_tools.sources.vectors import TooFewVectorsError, Vectors, VectorSource, Weights
from sctok.runtime.devices import resolve_device
from sctok.runtime.distributed import ALONE, Group

from .checkpoints import checkpoint_path, load_state, save_state
from .config import GIVEN, FitResult, KMeansConfig
from .lloyd import ClusterState, FinalPass, LloydPass, Population
from .minibatch import first_share
from .quality import codebook_certificate

ALGORITHM_VERSION = 3  # part of the configuration hash: raise it when results change

Progress = Callable[[dict[str, Any]], None]
Save = Callable[[FitResult], None]
Draft = Callable[[int, Vectors], None]
_Pass = LloydPass | FinalPass


def config_hash(source: VectorSource, k: int, config: KMeansConfig, initial: Vectors | None = None) -> str:
    """Return the hash of all that decides the codebook of one k: settings, data and given centroids."""
    resolved = config.resolved(source.rows, source.dim, k)
    given = _seeding_sample(source, k, resolved) if initial is None else hash_arrays({"initial": initial})
    return hash_json([ALGORITHM_VERSION, k, resolved.identity(), source.fingerprint, given])


def _seeding_sample(source: VectorSource, k: int, config: KMeansConfig) -> int:
    """Return how many vectors to seed from, which a small memory can change."""
    if config.backend == SUPERKMEANS:
        return superkmeans_sample_size(k, source.dim, source.rows, config.max_points_per_centroid, config.memory)
    return sample_size(k, source.dim, source.rows, config.seeding, config.memory)


def fit_codebooks(
    source: VectorSource,
    ks: Sequence[int],
    config: KMeansConfig,
    *,
    initial: Mapping[int, Vectors] | None = None,
    checkpoint_dir: Path | None = None,
    name: str = "kmeans",
    save: Save | None = None,
    progress: Progress | None = None,
    draft: Draft | None = None,
    return_labels: bool = False,
    group: Group = ALONE,
) -> dict[int, FitResult]:
    """Fit a codebook of each size in `ks`; the result of one does not depend on the others.

    One block of vectors is in memory at a time, beside the centroids and their sums. Every codebook ends with a pass
    over all vectors that counts them for the centroids that are returned.

    Args:
        source: vectors (rows, D) float32, finite.
        ks: sizes, each at most the number of (distinct) vectors; repeated ones count once.
        config: see KMeansConfig.
        initial: for seeding "given": first centroids (k, D) for each k.
        checkpoint_dir: where to keep `<name>-<k>-<config hash>.safetensors` after every pass, removed once the result
            is saved. The same call after an interruption goes on there and gives the same bits on the same device.
        save: called with each result as soon as it is there.
        return_labels: keep the label of every vector in the result, 4 bytes each.
        progress: called with {"event": "start" | "rows" | "pass" | "done", …}.
        draft: called with k and centroids (k, D) that hierarchical seeding has before it is done, for who cannot wait.
        group: the ranks that share the work, all of which call this with the same arguments and return the same. Each
            reads its own part; `save` and `progress` are called on each, checkpoints are those of rank 0.

    Returns:
        FitResult by k, in the order of `ks`.

    Raises:
        ValueError: k below 1, above the number of vectors or of distinct ones; a vector with NaN or infinity; given
            centroids that do not fit. ImportError: no FAISS for its backends. ConnectionError: a rank has stopped.
    """
    sizes = list(dict.fromkeys(int(k) for k in ks))
    given = dict(initial or {})
    _validate(source, sizes, config, given)
    return _Fit(source, config, given, checkpoint_dir, name, save, progress, draft, return_labels, group).run(sizes)


def _validate(source: VectorSource, ks: list[int], config: KMeansConfig, given: dict[int, Vectors]) -> None:
    if not ks:
        raise ValueError("no k given")
    weights = source_weights(source)
    rows = source.rows if weights is None else np.count_nonzero(weights)
    for k in ks:
        if k < 1:
            raise ValueError(f"k = {k} is not positive")
        if k > rows:
            raise TooFewVectorsError(
                f"k = {k} exceeds the {rows} vectors of {source.name}; lower k or add audio", int(rows)
            )
        if (config.seeding == GIVEN) != (k in given):
            raise ValueError(f"seeding {config.seeding!r} and first centroids for k = {k} do not go together")
        if k in given and (given[k].shape != (k, source.dim) or not np.isfinite(given[k]).all()):
            raise ValueError(
                f"first centroids of shape {given[k].shape} are not {k} finite vectors of width {source.dim}"
            )
    if config.backend == SUPERKMEANS and (weights is not None or given):
        raise ValueError(f"{SUPERKMEANS} takes neither weights nor first centroids; use another backend")
    if config.backend in ("faiss", SUPERKMEANS):
        require_faiss(superkmeans=config.backend == SUPERKMEANS)


class _Fit:
    """The loop over passes, for the codebooks that still need one."""

    def __init__(
        self,
        source: VectorSource,
        config: KMeansConfig,
        given: dict[int, Vectors],
        checkpoint_dir: Path | None,
        name: str,
        save: Save | None,
        progress: Progress | None,
        draft: Draft | None,
        return_labels: bool,
        group: Group,
    ) -> None:
        self.source, self.config, self.given, self.group = shared(source, group), config, given, group
        self.folder, self.name, self.save = checkpoint_dir, name, save
        self.draft, self.return_labels = draft, return_labels
        self.progress: Progress = progress or (lambda event: None)
        self.device = group.local_device(resolve_device(config.device))
        weights = source_weights(source)
        self.mass = float(source.rows) if weights is None else float(weights.sum())
        self.codes = CodeCache(source.rows, config.memory)
        self.hashes: dict[int, str] = {}
        self.seconds: dict[int, float] = {}

    def run(self, ks: list[int]) -> dict[int, FitResult]:
        if self.folder is not None or self.save is not None:
            self.hashes = {k: config_hash(self.source, k, self.config, self.given.get(k)) for k in ks}
        states = {k: self._start(k) for k in ks}
        results: dict[int, FitResult] = {}
        while states:
            for k, result in self._one_round(states).items():
                results[k] = result
                del states[k]
                if self.save is not None:
                    self.save(result)
                    self._remove_checkpoint(k)
        for k in ks:
            self._remove_checkpoint(k)
        return {k: results[k] for k in ks}

    def _start(self, k: int) -> ClusterState:
        started = time.monotonic()
        path = self._checkpoint(k)
        state = self._load(path) if path else None
        resumed = state is not None
        if state is None:
            state = self._first_state(k)
            if path:
                self._save(path, state)
        self.seconds[k] = time.monotonic() - started
        self.progress({"event": "start", "k": k, "resumed": resumed, "passes": state.passes, "rows": self.source.rows})
        return state

    def _load(self, path: Path) -> ClusterState | None:
        if self.group.world == 1:
            state = load_state(path, self.device)
            return self._with_bounds(state) if state is not None and state.bounds is None else state
        state = self.group.broadcast(load_state(path, torch.device("cpu")) if self.group.leads else None)
        if state is None:
            return None
        state.centroids = state.centroids.to(self.device)
        state.spread = state.spread and (*state.spread[:2], state.spread[2].to(self.device))
        return self._with_bounds(state)

    def _save(self, path: Path, state: ClusterState) -> None:
        # What a rank remembers of its vectors stays with it: it saves time, and does not change the result.
        if self.group.leads:
            save_state(path, state, vectors=self.group.world == 1)

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
        return self._with_bounds(state)

    def _with_bounds(self, state: ClusterState) -> ClusterState:
        """Give a state bounds that know nothing yet, where they are of use."""
        config, rows = self._resolved(state.k), self.source.rows
        exact = config.precision == "exact" and config.backend not in ("faiss", SUPERKMEANS)
        state.bounds = Bounds.empty(rows, state.centroids) if exact and bounds_fit(rows, config.memory) else None
        if state.bounds is not None and state.spread is not None:
            state.bounds.spread, state.bounds.age, state.bounds.origin = state.spread
        return state

    def _superkmeans(self, k: int, config: KMeansConfig) -> ClusterState:
        """Let SuperKMeans do all iterations on a sample; only the final pass is left."""
        sample = self.source.sample(_seeding_sample(self.source, k, config), (config.seed, k, SAMPLE))
        check_distinct(sample, k)
        found = train_superkmeans(sample, k, config.most_iterations, config.seed) if self.group.leads else None
        found = self.group.broadcast(found)
        assert found is not None
        scale = self.source.rows / len(sample)
        history = [inertia * scale for inertia in found.history]
        centroids = torch.from_numpy(found.centroids).to(self.device)
        return ClusterState(centroids, history=history, assigned=[len(sample)] * len(history), settled=True)

    def _seed(self, k: int, config: KMeansConfig) -> Vectors:
        if k in self.given:
            return np.array(self.given[k], np.float32)
        count = _seeding_sample(self.source, k, config)
        sample, weights = draw_sample(self.source, count, (config.seed, k, SAMPLE))
        draft = None if self.draft is None else partial(self.draft, k)

        def seed(vectors: Vectors, masses: Weights | None) -> Vectors:
            generator = np.random.default_rng([config.seed, k, CHOICE])
            return seed_centroids(vectors, k, config.seeding, generator, self.device, masses, draft)

        try:
            return seed(sample, weights)
        except TooFewVectorsError:
            if len(sample) == self.source.rows:
                raise
        whole = self.source.own.source if isinstance(self.source, SharedSource) else self.source
        return seed(*gather_distinct(whole, k, count, self.config.ordered_rows(self.source.dim)))

    def _one_round(self, states: dict[int, ClusterState]) -> dict[int, FitResult]:
        """Give every codebook one more pass, all in one reading of the vectors."""
        started = time.monotonic()
        passes = [self._next_pass(state) for state in states.values()]
        self._read(passes)
        results = {}
        for one_pass in passes:
            k = one_pass.state.k
            one_pass.finish()
            self.seconds[k] += time.monotonic() - started
            self._report(one_pass)
            if isinstance(one_pass, FinalPass):
                results[k] = self._result(one_pass)
            elif path := self._checkpoint(k):
                self._save(path, one_pass.state)
        return results

    def _next_pass(self, state: ClusterState) -> _Pass:
        config = self._resolved(state.k)
        count = sample_size(state.k, self.source.dim, self.source.rows, "kmeans++", config.memory)
        population = Population(
            self.source.rows, self.mass, partial(draw_sample, self.source, count), self.codes, self.group
        )
        if state.settled:
            return FinalPass(state, config, population, self.return_labels)
        return LloydPass(state, config, population)

    def _read(self, passes: list[_Pass]) -> None:
        for block in needed_blocks(self.source, passes, self.config.ordered_rows(self.source.dim)):
            points = torch.from_numpy(block.rows).to(self.device)
            for one_pass in passes:
                one_pass.add(points, block)
            self.progress(
                {"event": "rows", "rows": len(block.rows) * self.group.world, "ks": [p.state.k for p in passes]}
            )

    def _report(self, one_pass: _Pass) -> None:
        state = one_pass.state
        self.progress(
            {
                "event": "done" if isinstance(one_pass, FinalPass) else "pass",
                "k": state.k,
                "pass": state.passes,
                "inertia": state.history[-1],
                "mean_distance": state.history[-1] / self.mass,
            }
        )

    def _result(self, final: FinalPass) -> FitResult:
        state, totals = final.state, final.totals
        rows = self.source.rows
        quality = codebook_certificate(state.centroids, totals.weights, totals.sums, totals.inertia)
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
            counts=totals.weights.cpu().numpy(),
            inertia=totals.inertia,
            inertia_history=tuple(state.history),
            iterations=state.passes - 1,
            converged=state.converged,
            n_vectors=rows,
            certificate=quality,
            config_hash=self.hashes.get(state.k, ""),
            seconds=self.seconds[state.k],
            labels=final.labels,
            assigned=tuple(state.assigned),
            rescored=totals.rescored,
            kept=final.kept,
        )

    def _checkpoint(self, k: int) -> Path | None:
        return self.folder and checkpoint_path(self.folder, self.name, k, self.hashes[k])

    def _remove_checkpoint(self, k: int) -> None:
        if self.group.leads and (path := self._checkpoint(k)):
            path.unlink(missing_ok=True)
