"""Input of the estimators: conversion to sources, and all checks of data and weights."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.certify import as_real, check_real
from sctok.kmeans_tools.float64.frames import Wide, rows_per_block, safe_exponent
from sctok.kmeans_tools.sources.iterables import IterableSource
from sctok.kmeans_tools.sources.vectors import (
    Array,
    Data,
    ShardSource,
    VectorSource,
    as_array,
    check_unmasked,
    check_weights,
    source_weights,
)


def as_source(X: Any) -> VectorSource | None:
    """Return X as a source of vectors, or None if X is an array or something that NumPy converts to one.

    Sources are VectorSources, paths of feature shards (read unstacked), lists of matrices, other iterables that are
    not array-like, and functions that return iterables.
    """
    if callable(getattr(X, "blocks", None)) and callable(getattr(X, "take", None)):
        return X
    items = [X] if isinstance(X, str | os.PathLike) else X
    if isinstance(items, list | tuple):
        if items and all(isinstance(item, str | os.PathLike) for item in items):
            return ShardSource(items, 1)
        blocks = bool(items) and all(isinstance(item, np.ndarray | Tensor) and item.ndim == 2 for item in items)
    else:
        array = any(hasattr(X, name) for name in ("shape", "__array__", "__array_interface__", "__dataframe__"))
        blocks = not array and (callable(X) or isinstance(X, Iterable))
    return IterableSource(X, "X", beyond_float32=True) if blocks else None


def check_tensor(X: Tensor) -> None:
    """Raise ValueError unless X is a matrix of real numbers with at least one row and column."""
    check_real(X, "X")
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must be a matrix of real numbers with rows and columns, not {X.dtype} {tuple(X.shape)}")


def check_kind(X: Any) -> None:
    """Raise ValueError if an array-like holds text, dates, durations or masked values.

    NumPy would convert these to numbers. Other values that are not numbers fail in the conversion.
    """
    if isinstance(X, np.ma.MaskedArray):
        check_unmasked(X)
    columns = [X.iloc[:, i] for i in range(X.shape[1])] if hasattr(X, "iloc") and X.ndim == 2 else [X]
    for column in columns:
        kind = getattr(getattr(column, "dtype", None), "kind", None)
        values = np.asarray(column) if kind == "O" or isinstance(column, list | tuple) else None
        kind = kind if values is None else values.dtype.kind
        text = values is not None and kind == "O" and any(isinstance(v, str | bytes) for v in values.flat)
        if text or kind in ("S", "U", "T", "M", "m"):
            raise ValueError("X holds text or dates, not numbers; convert it first")


def check_finite_rows(rows: Array | Tensor) -> None:
    """Raise ValueError naming the first row of (n, D) that holds NaN or infinity."""
    if isinstance(rows, Tensor) and not rows.is_floating_point():
        return
    step = rows_per_block(rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        bad = ~(as_array(torch.isfinite(as_real(part))) if isinstance(part, Tensor) else np.isfinite(part)).all(axis=1)
        if bad.any():
            raise ValueError(f"X: row {start + int(bad.argmax())} holds NaN or infinity; remove it and try again")


def read_weights(sample_weight: Any, data: Data) -> Wide | None:
    """Return the weights (n,) float64 from sample_weight or from a source, or None if all rows weigh 1.

    Raises:
        ValueError: the weights do not fit data (n, D), or are negative, not finite or all zero; or sample_weight was
            passed together with a source.
    """
    if not isinstance(data, np.ndarray | Tensor):
        if sample_weight is not None:
            raise ValueError("sample_weight needs an array or a tensor; a source has its own weights")
        own = source_weights(data)
        if own is not None and safe_exponent(float(own.max())):
            raise ValueError(f"{data.name}: the largest weight is {own.max():g}; scale the weights to about 1")
        return own
    if sample_weight is None:
        return None
    given = as_array(sample_weight)
    text = given.dtype.kind == "O" and any(isinstance(value, str | bytes | complex) for value in given.flat)
    if text or given.dtype.kind not in "fiubO":
        raise ValueError(f"sample_weight of {given.dtype} does not hold real numbers")
    weights = check_weights(given.astype(np.float64), len(data), "sample_weight")
    with np.errstate(over="ignore"):
        if not np.isfinite(weights.sum()):
            raise ValueError("sample_weight is too large to be summed; scale the weights down")
    return weights
