"""Checkpoints of a fit: one safetensors file per codebook, replaced after every pass."""

from pathlib import Path

import numpy as np
import torch

from sctok.formats.files import remove_stale_temporaries
from sctok.formats.tensors import read_tensors, save_tensors

from .lloyd import ClusterState

CHECKPOINT_FORMAT = "sctok-kmeans-checkpoint"
CHECKPOINT_VERSION = 1


def checkpoint_path(folder: Path, name: str, k: int, config_hash: str) -> Path:
    """Return `<folder>/<name>-<k>-<config hash>.safetensors`."""
    return folder / f"{name}-{k}-{config_hash}.safetensors"


def save_state(path: Path, state: ClusterState) -> None:
    """Write a state atomically, bit for bit. Raises DiskFullError."""
    tensors = {"centroids": state.centroids.cpu().numpy(), "history": np.array(state.history, np.float64)}
    if state.counts is not None:
        tensors["counts"] = state.counts.cpu().numpy()
    save_tensors(
        path,
        tensors,
        format_name=CHECKPOINT_FORMAT,
        version=CHECKPOINT_VERSION,
        metadata={"converged": state.converged, "settled": state.settled},
    )


def load_state(path: Path, device: torch.device) -> ClusterState | None:
    """Read a state, or return None where there is none. Raises FormatError naming a damaged file."""
    remove_stale_temporaries(path.parent)
    if not path.exists():
        return None
    arrays, metadata = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items() if name != "history"}
    return ClusterState(
        centroids=tensors["centroids"],
        counts=tensors.get("counts"),
        history=[float(value) for value in arrays["history"]],
        converged=bool(metadata["converged"]),
        settled=bool(metadata["settled"]),
    )
