"""`KMeans` and `MiniBatchKMeans` with scikit-learn's conventions, on the engine of `sctok cluster`."""

import warnings
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sctok.kmeans_tools.float64.distances import distances, evaluate, point_blocks, predict_blocks, warn_of_overflow
from sctok.kmeans_tools.float64.frames import Wide, safe_exponent
from sctok.kmeans_tools.float64.problem import Problem, pose_problem
from sctok.kmeans_tools.sources.vectors import Array, TooFewVectorsError, VectorSource, as_array
from sctok.runtime.devices import resolve_device

from .config import GIVEN, KMeansConfig
from .estimator_data import as_source, check_finite_rows, check_kind, check_tensor, read_weights
from .minibatch import RunningMeans
from .progress import FitEvent, PassFinished
from .runs import KMeansRun, Runner

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("install sctok[sklearn] to use KMeans and MiniBatchKMeans") from error

_SEEDINGS = {"auto": "auto", "hierarchical": "hierarchical", "k-means++": "kmeans++", "random": "random"}


class _BaseKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Base class of both estimators; the subclasses set the parameters as attributes."""

    n_clusters: int
    init: Any
    n_init: str | int
    max_iter: int
    tol: float
    verbose: int
    random_state: Any
    device: str
    precision: str
    _many_runs: int

    def _engine_options(self) -> dict[str, Any]:
        """Return the fields of KMeansConfig that are specific to the subclass."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Compute the centers.

        Args:
            X: array-like or tensor (n, D); the path of a feature shard or a list of paths, read unstacked; a
                VectorSource such as ShardSource(paths, stack); an iterable of blocks (n_i, D) that can be iterated
                repeatedly, or a function that returns one.
            y: ignored.
            sample_weight: (n,) >= 0, for arrays and tensors. A row of weight 2 counts twice, a row of weight 0 is
                ignored.

        Raises:
            ValueError: a row, which is named, holds NaN or infinity; n_clusters exceeds n; a parameter or a weight is
                out of range.
        """
        data = self._read(_on_host(X), reset=True)
        weights = read_weights(sample_weight, data)
        self._check_parameters()
        problem = pose_problem(data, weights)
        best = self._cluster(problem, data, weights)
        self.cluster_centers_ = best.centers
        self._n_features_out = len(best.centers)
        self.n_iter_ = max(1, best.iterations)
        if best.labels is not None:
            self.labels_, self.inertia_ = best.labels, warn_of_overflow(best.inertia)
        else:
            self._evaluate(data, weights)
        self.counts_ = np.bincount(self.labels_, weights, self.n_clusters).astype(np.float64)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit and return the labels (n,), equal to predict(X)."""
        labels = self.fit(X, sample_weight=sample_weight).labels_
        return torch.from_numpy(labels).to(X.device, torch.int64) if isinstance(X, Tensor) else labels

    def predict(self, X: Any) -> Any:
        """Return the nearest center of each vector (n,): the float64 argmin, the lowest index on ties.

        X is anything that `fit` accepts. The labels are an int32 array, or an int64 tensor on the device of X if X is a
        tensor.
        """
        check_is_fitted(self)
        labels = torch.cat(list(predict_blocks(self._read(X), self._centers())))
        return labels.to(X.device) if isinstance(X, Tensor) else labels.cpu().numpy().astype(np.int32)

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distances (n, n_clusters) to all centers.

        X is anything that `fit` accepts. The distances are computed in float64 and returned as float64 for float64 and
        integers, as float32 for float32, bfloat16 and float16; an overflow emits a RuntimeWarning. The result is a
        tensor on the device of X if X is a tensor, else an array.
        """
        check_is_fitted(self)
        centers = self._centers()
        blocks = [distances(points, centers) for points in point_blocks(self._read(X), centers)]
        return torch.cat(blocks).to(X.device) if isinstance(X, Tensor) else torch.cat(blocks).cpu().numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the negative inertia: minus the weighted sum of squared distances of X to the nearest centers."""
        check_is_fitted(self)
        data = self._read(X)
        return -warn_of_overflow(evaluate(data, read_weights(sample_weight, data), self._centers()).inertia)

    def __sklearn_tags__(self) -> Any:
        """Declare that float32 and float64 are preserved."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _evaluate(self, data: Any, weights: Wide | None) -> None:
        """Set labels_ and inertia_ for data (n, D) and the current centers."""
        found = evaluate(data, weights, self._centers())
        self.labels_, self.inertia_ = found.labels, warn_of_overflow(found.inertia)

    def _cluster(self, problem: Problem, data: Array | VectorSource, weights: Wide | None) -> KMeansRun:
        """Run k-means from each seed and return the best run."""
        k = int(self.n_clusters)
        rows = len(data) if isinstance(data, np.ndarray) else data.rows
        if rows < k:
            raise ValueError(f"n_samples={rows} should be >= n_clusters={k}")
        random = check_random_state(self.random_state)
        seeds = random.randint(2**31 - 1, size=self._runs()).tolist()
        starts = ((seed, self._given_centers(data, random)) for seed in seeds)
        runner = Runner(problem, k, self._config(), data, weights, _print_pass if self.verbose else None)
        try:
            return runner.best(starts)
        except TooFewVectorsError:
            return KMeansRun(_repeat_first(problem.all_distinct(k), k), 0.0, 0)

    def _config(self) -> KMeansConfig:
        return KMeansConfig(
            device=self.device,
            precision=self.precision,
            seeding=_SEEDINGS[self.init] if isinstance(self.init, str) else GIVEN,
            iterations=int(self.max_iter),
            tol=float(self.tol),
            **self._engine_options(),
        )

    def _given_centers(self, data: Array | VectorSource, random: Any) -> Wide | None:
        """Return the first centers (k, D) that `init` contains or returns, or None if it names a seeding."""
        if isinstance(self.init, str):
            return None
        centers = self.init
        if callable(centers):
            if not isinstance(data, np.ndarray):
                raise ValueError("a function as init needs X to be an array or a tensor; pass the centers instead")
            centers = centers(data, self.n_clusters, random_state=random)
        wide: Wide = check_array(as_array(centers), dtype=np.float64, input_name="init")
        if wide.shape != (self.n_clusters, self.n_features_in_):
            raise ValueError(f"init of shape {wide.shape} is not {self.n_clusters} centers of {self.n_features_in_}")
        return wide

    def _centers(self) -> Tensor:
        return torch.from_numpy(self.cluster_centers_.copy()).to(resolve_device(self.device))

    def _read(self, X: Any, *, reset: bool = False) -> Any:
        """Convert X to an array (n, D) float32 or float64, a tensor or a source; check its values and its width."""
        source = X if isinstance(X, Tensor) else as_source(X)
        if source is None:
            check_kind(X)
            half = getattr(X, "dtype", None) == np.float16
            dtypes = np.float32 if half else [np.float64, np.float32]
            array = validate_data(self, X, reset=reset, dtype=dtypes, ensure_all_finite=False)
            check_finite_rows(array)
            return array
        if isinstance(source, Tensor):
            check_tensor(source)
            check_finite_rows(source)
        width = source.shape[1] if isinstance(source, Tensor) else source.dim
        if reset:
            self.n_features_in_ = width
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif width != self.n_features_in_:
            name = type(self).__name__
            raise ValueError(f"X has {width} features, but {name} is expecting {self.n_features_in_} features as input")
        return source

    def _check_parameters(self) -> None:
        for name in ("n_clusters", "max_iter", "n_init", "batch_size"):
            value = getattr(self, name, 1)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if (not whole or value < 1) and (name, value) != ("n_init", "auto"):
                raise ValueError(f"{name} {value!r} is not a positive integer")
        if not isinstance(self.tol, Real):
            raise ValueError(f"tol {self.tol!r} is not a number")
        if isinstance(self.init, str) and self.init not in _SEEDINGS:
            raise ValueError(f"init {self.init!r} is not one of {', '.join(_SEEDINGS)}, centers or a function")
        self._config()
        resolve_device(self.device)

    def _runs(self) -> int:
        """Return the number of runs of which the best is kept."""
        if not isinstance(self.init, str) and not callable(self.init):
            return 1
        if self.n_init != "auto":
            return int(self.n_init)
        return self._many_runs if callable(self.init) or self.init == "random" else 1


class KMeans(_BaseKMeans):
    """k-means clustering.

    Args:
        n_clusters: number of clusters k.
        init: seeding method "auto" (chosen by n and k), "hierarchical", "k-means++" (greedy, on a sample) or "random";
            the first centers (k, D); or a function of (X, n_clusters, random_state=...) that returns them.
        n_init: number of runs from different seeds, of which the best is kept. "auto" is 10 for "random" and functions,
            else 1. Given centers are run once.
        max_iter: maximum number of updates of the centers.
        tol: stop if the inertia falls by less than this share.
        verbose: print the inertia of each pass.
        random_state: seed, RandomState or None. The same seed gives the same centers on the same device.
        algorithm: "auto", "lloyd" or "minibatch", see KMeansConfig.
        device: "auto" (CUDA if available), "cpu", "cuda" or "cuda:N".
        precision: precision of the iterations, "exact" or "fp32". Labels and inertia are always exact.

    Attributes:
        cluster_centers_: (k, D), float64 if X is float64 or integer, else float32.
        labels_: (n,) int32, equal to predict(X).
        inertia_: weighted sum of squared distances to the nearest centers; an overflow emits a RuntimeWarning.
        counts_: (k,) float64, weight of each cluster.
        n_iter_: number of iterations of the best run.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Float64 and integer data are clustered with float64 accuracy: small data by a Lloyd's algorithm in float64, other
    data by the float32 engine if it resolves every cluster, which is checked with the float64 vectors. So an offset, a
    far row or clusters of very different scale cost no digits. In float64 the iterations also require the tolerance of
    scikit-learn, and centers of empty clusters move to the farthest vectors. Swaps then lower the inertia further if
    there were empty clusters, or if clusters are too small for the usual expanded form of distances.

    If X has fewer than k distinct rows, these are the centers, the first of them is repeated, and a ConvergenceWarning
    is emitted. Sparse matrices are not supported.
    """

    _many_runs = 10

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "auto",
        n_init: str | int = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        algorithm: str = "auto",
        device: str = "auto",
        precision: str = "exact",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.algorithm = algorithm
        self.device = device
        self.precision = precision

    def _engine_options(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm}


class MiniBatchKMeans(_BaseKMeans):
    """k-means clustering with mini-batches, of complete data (`fit`) or of a stream (`partial_fit`).

    Args:
        max_iter: maximum number of passes over the data that the batches of `fit` add up to.
        batch_size: number of vectors in the first batch of `fit`, or 16 per cluster if that is more. The batches grow:
            each contains the previous one, up to all vectors. Small float64 or integer data are one batch.
            `partial_fit` uses the batches that it is given.
        The other parameters are those of `KMeans`; n_init "auto" is 3 for "random" and functions.

    The attributes are those of `KMeans` and, after `partial_fit`, n_steps_, the number of batches. After `partial_fit`,
    labels_ and inertia_ are those of the last batch.
    """

    _many_runs = 3

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "auto",
        max_iter: int = 100,
        batch_size: int = 1024,
        verbose: int = 0,
        random_state: Any = None,
        tol: float = 1e-4,
        n_init: str | int = "auto",
        device: str = "auto",
        precision: str = "exact",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.verbose = verbose
        self.random_state = random_state
        self.tol = tol
        self.n_init = n_init
        self.device = device
        self.precision = precision

    def _engine_options(self) -> dict[str, Any]:
        return {"algorithm": "minibatch", "block_rows": int(self.batch_size)}

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Update each center to the mean of all vectors assigned to it so far, including those of this batch.

        c <- c + b / (n + b) (mean - c) for b vectors after n. The first batch seeds the centers: it needs at least
        n_clusters rows, and is clustered unless `init` provides the centers. After `fit` the updates start from its
        centers and the weights of its clusters.

        Args:
            X: array-like or tensor (n, D).
            y: ignored.
            sample_weight: (n,) >= 0.

        Raises:
            ValueError: as for `fit`; or the width of X differs from that of the first batch.
        """
        first = not hasattr(self, "cluster_centers_")
        data = self._read(_on_host(X), reset=first)
        if not isinstance(data, np.ndarray):
            raise ValueError("partial_fit needs an array or a tensor; use fit for shards and iterables")
        weights = read_weights(sample_weight, data)
        self._check_parameters()
        if first:
            given = self._given_centers(data, check_random_state(self.random_state))
            seeds = self._cluster(pose_problem(data, weights), data, weights).centers if given is None else given
            self.cluster_centers_, self._n_features_out = seeds.astype(data.dtype), len(seeds)
            self.counts_, self.n_steps_ = np.zeros(len(seeds)), 0
        self._step(data, weights)
        self.n_steps_ = getattr(self, "n_steps_", 0) + 1
        self._evaluate(data, weights)
        return self

    def _step(self, data: Array, weights: Wide | None) -> None:
        """Add one batch (n, D) with its weights (n,) to the means, which are kept in float64 between batches."""
        means = getattr(self, "_means", self.cluster_centers_)
        if not np.array_equal(means.astype(self.cluster_centers_.dtype), self.cluster_centers_):
            means = self.cluster_centers_
        device = resolve_device(self.device)
        exponent = safe_exponent(max(float(np.abs(data).max()), float(np.abs(means).max())))
        points, centers = (torch.tensor(np.ldexp(values, -exponent)).to(device) for values in (data, means))
        running = RunningMeans(centers.to(torch.float64), torch.tensor(self.counts_).to(device))
        running.add(points, weights)
        self._means = np.ldexp(running.centroids.cpu().numpy(), exponent)
        self.counts_ = running.mass.cpu().numpy()
        self.cluster_centers_ = self._means.astype(self.cluster_centers_.dtype)


def _on_host(X: Any) -> Any:
    """Convert a tensor to an array; return anything else unchanged."""
    if not isinstance(X, Tensor):
        return X
    check_tensor(X)
    return as_array(X)


def _repeat_first(distinct: Array, k: int) -> Array:
    """Return k centers from fewer distinct vectors by repeating the first one; emit a warning."""
    message = f"X has {len(distinct)} distinct rows, fewer than n_clusters={k}: the first center is repeated"
    warnings.warn(message, ConvergenceWarning, stacklevel=5)
    return np.concatenate([distinct, np.repeat(distinct[:1], k - len(distinct), axis=0)])


def _print_pass(event: FitEvent) -> None:
    if isinstance(event, PassFinished):
        print(f"pass {event.number}: inertia {event.inertia:.6g}")
