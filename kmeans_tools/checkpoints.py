"""Checkpoints of a fit: one safetensors file per codebook, replaced after every pass."""

from pathlib import Path

import numpy as np
import torch

from sctok.formats.files import remove_stale_temporaries
from sctok.formats.tensors import read_tensors, save_tensors
from sctok.kmeans_tools.passes.bounds import Bounds
from sctok.kmeans_tools.passes.cluster_sums import Totals

from .lloyd import ClusterState

CHECKPOINT_FORMAT = "sctok-kmeans-checkpoint"
CHECKPOINT_VERSION = 2

_STATE = ("share", "steady", "read", "converged", "settled")
_BOUNDS = ("labels", "upper", "lower", "origin", "moves")
_NUMBERS = ("spread", "age", "gap", "ranked")


def checkpoint_path(folder: Path, name: str, k: int, config_hash: str) -> Path:
    """Return `<folder>/<name>-<k>-<config hash>.safetensors`."""
    return folder / f"{name}-{k}-{config_hash}.safetensors"


def save_state(path: Path, state: ClusterState, *, vectors: bool = True) -> None:
    """Write a state atomically, bit for bit: the centroids, and with `vectors` 12 bytes per vector.

    Raises DiskFullError.
    """
    tensors = {"centroids": state.centroids.cpu().numpy(), "history": np.array(state.history, np.float64)}
    tensors["assigned"] = np.array(state.assigned, np.int64)
    if (bounds := state.bounds) is not None:
        tensors["numbers"] = np.array([getattr(bounds, name) for name in _NUMBERS], np.float64)
        tensors["origin"] = bounds.origin.cpu().numpy()
    if bounds is not None and vectors:
        tensors |= {name: getattr(bounds, name).cpu().numpy() for name in _BOUNDS}
        for name in ("sums", "counts", "mass"):
            if (values := getattr(bounds.totals, name)) is not None:
                tensors[name] = values.cpu().numpy()
    save_tensors(
        path,
        tensors,
        format_name=CHECKPOINT_FORMAT,
        version=CHECKPOINT_VERSION,
        metadata={name: getattr(state, name) for name in _STATE},
    )


def load_state(path: Path, device: torch.device) -> ClusterState | None:
    """Read a state, or return None where there is none. Raises FormatError naming a damaged file."""
    remove_stale_temporaries(path.parent)
    if not path.exists():
        return None
    arrays, metadata = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    state = ClusterState(
        centroids=tensors["centroids"],
        history=[float(value) for value in arrays["history"]],
        assigned=[int(value) for value in arrays["assigned"]],
        share=float(metadata["share"]),
        steady=int(metadata["steady"]),
        read=float(metadata["read"]),
        converged=bool(metadata["converged"]),
        settled=bool(metadata["settled"]),
    )
    if "numbers" in tensors:
        spread, age, gap, ranked = arrays["numbers"].tolist()
        state.spread = spread, int(age), tensors["origin"]
    if "labels" in tensors:
        totals = Totals(len(tensors["sums"]), tensors["sums"].shape[1], device)
        totals.sums, totals.counts, totals.mass = tensors["sums"], tensors["counts"], tensors.get("mass")
        kept = {name: tensors[name] for name in _BOUNDS}
        state.bounds = Bounds(**kept, totals=totals, spread=spread, age=int(age), gap=gap, ranked=bool(ranked))
    return state
