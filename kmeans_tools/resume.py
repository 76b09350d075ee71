"""Where an interrupted fit resumes: one checkpoint per codebook, replaced after every pass, removed at the end."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sctok.formats.files import remove_stale_temporaries
from sctok.formats.tensors import read_tensors, save_tensors
from sctok.kmeans_tools.passes.bounds import Bounds
from sctok.kmeans_tools.passes.cluster_sums import ClusterSums

from .config import FitContext
from .lloyd import ClusterState

CHECKPOINT_FOLDER = ".checkpoints"  # inside a folder of codebooks
CHECKPOINT_FORMAT = "sctok-kmeans-checkpoint"
CHECKPOINT_VERSION = 2

_STATE = {"share": float, "steady": int, "read": float, "converged": bool, "settled": bool}
_BOUNDS = ("labels", "upper", "lower", "origin", "moves")
_NUMBERS = ("spread", "age", "gap", "ranked")


def checkpoint_path(folder: Path, name: str, k: int, config_hash: str) -> Path:
    """Return `<folder>/<name>-<k>-<config hash>.safetensors`."""
    return folder / f"{name}-{k}-{config_hash}.safetensors"


class FitCheckpoints:
    """The checkpoints of the codebooks of one fit. Without a `checkpoint_dir` nothing is saved.

    Rank 0 reads and writes the files, and all ranks of a group resume from them. hashes: the configuration hash for
    each k; it is part of the file name, so that a fit with other settings or data does not resume from the checkpoint.
    """

    def __init__(self, context: FitContext, hashes: Mapping[int, str], device: torch.device) -> None:
        self._group, self._device = context.group, device
        folder, name = context.checkpoint_dir, context.name
        self._paths = {k: checkpoint_path(folder, name, k, value) for k, value in hashes.items()} if folder else {}

    def load(self, k: int) -> ClusterState | None:
        """Return the saved state of a codebook, or None. A state that several ranks resume has no bounds."""
        path = self._paths.get(k)
        if path is None:
            return None
        if self._group.world == 1:
            return load_state(path, self._device)
        state = load_state(path, torch.device("cpu")) if self._group.leads else None
        state = self._group.broadcast(state)
        if state is not None:
            state.bounds = None
            state.centroids = state.centroids.to(self._device)
            state.spread = state.spread and (*state.spread[:2], state.spread[2].to(self._device))
        return state

    def save(self, state: ClusterState) -> None:
        """Replace the checkpoint of a codebook by its current state."""
        # The bounds of several ranks are not saved: they only save time and do not change the result.
        if self._group.leads and (path := self._paths.get(state.k)):
            save_state(path, state, vectors=self._group.world == 1)

    def remove(self, k: int) -> None:
        """Remove the checkpoint of a codebook, if there is one."""
        if self._group.leads and (path := self._paths.get(k)):
            path.unlink(missing_ok=True)


def save_state(path: Path, state: ClusterState, *, vectors: bool) -> None:
    """Write a state atomically and without rounding: the centroids and, if `vectors`, 12 bytes per vector of bounds.

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
            if (values := getattr(bounds.cluster_sums, name)) is not None:
                tensors[name] = values.cpu().numpy()
    save_tensors(
        path,
        tensors,
        format_name=CHECKPOINT_FORMAT,
        version=CHECKPOINT_VERSION,
        metadata={name: getattr(state, name) for name in _STATE},
    )


def load_state(path: Path, device: torch.device) -> ClusterState | None:
    """Read a state, or return None if the file does not exist. Raises FormatError naming a damaged file."""
    remove_stale_temporaries(path.parent)
    if not path.exists():
        return None
    arrays, metadata = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    state = ClusterState(
        centroids=tensors["centroids"],
        history=arrays["history"].tolist(),
        assigned=arrays["assigned"].tolist(),
        **{name: kind(metadata[name]) for name, kind in _STATE.items()},
    )
    if "numbers" in tensors:
        spread, age, gap, ranked = arrays["numbers"].tolist()
        state.spread = spread, int(age), tensors["origin"]
    if "labels" in tensors:
        sums = ClusterSums(len(tensors["sums"]), tensors["sums"].shape[1], device)
        sums.sums, sums.counts, sums.mass = tensors["sums"], tensors["counts"], tensors.get("mass")
        saved = {name: tensors[name] for name in _BOUNDS}
        state.bounds = Bounds(**saved, cluster_sums=sums, spread=spread, age=int(age), gap=gap, ranked=bool(ranked))
    return state
