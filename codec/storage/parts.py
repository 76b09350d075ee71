"""The file of a part of a codec, with its kind, its sizes and its tensors."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctok import __version__
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.grid import GridCondition, GridConfig
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.formats.files import FormatError, damaged, hash_arrays
from sctok.formats.tensors import map_tensors, mismatches, save_tensors

Array = NDArray[Any]

PART_FORMAT, PART_VERSION = "sctok-codec-part", 1
# Averages that only training needs. Loading a codec sets them from the codes.
CODES = "quantizer._codebook."
TRAINING_ONLY = (f"{CODES}initted", f"{CODES}cluster_size", f"{CODES}embed_avg")

# Kinds of parts in metadata, with the classes of their sizes and modules.
KINDS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "acoustic": (AcousticConfig, AcousticEncoder),
    "unet": (TUNetConfig, TUNet),
    "grid": (GridConfig, GridCondition),
    "vae": (VAEConfig, AutoencoderKL),
    "istft": (VocoderConfig, IstftVocoder),
    "hifigan": (HifiGanConfig, HifiGan),
}
VOCODERS = ("istft", "hifigan")


def save_part(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, Array],
    config: Any,
    dtype: type[np.floating[Any]] = np.float32,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors and the sizes of a part to a file, atomically. `kind` is a key of `KINDS`."""
    metadata = {**(metadata or {}), "kind": kind, "config": asdict(config), "sctok_version": __version__}
    save_tensors(path, Cast(arrays, dtype), format_name=PART_FORMAT, version=PART_VERSION, metadata=metadata)


def read_part(path: Path, kinds: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Load a part as a module, float32 in evaluation mode, with the metadata of its file.

    Tensors that are stored as float32 are mapped into memory and read when they are used.

    Raises:
        FileNotFoundError: the file does not exist.
        FormatError: the kind is not in `kinds`, the version is unknown, or tensors are missing, unknown or misshapen.
    """
    arrays, metadata = map_tensors(path, format_name=PART_FORMAT, version=PART_VERSION)
    if metadata.get("kind") not in kinds:
        raise FormatError(f"{path} is a part of kind {metadata.get('kind')!r}, not {' or '.join(kinds)}")
    return build(path, metadata["kind"], metadata["config"], arrays), metadata


def load_vae(path: Path) -> AutoencoderKL:
    """Load a VAE that sctok wrote. Raises like `read_part`."""
    vae, _ = read_part(path, ("vae",))
    assert isinstance(vae, AutoencoderKL)
    return vae


def load_vocoder(path: Path) -> nn.Module:
    """Load a vocoder that sctok wrote, iSTFT or HiFi-GAN. Raises like `read_part`."""
    return read_part(path, VOCODERS)[0]


def build(path: Path, kind: str, sizes: Any, arrays: Mapping[str, Array]) -> nn.Module:
    """Build a module of a kind from its tensors. Raises FormatError with all tensors that do not fit."""
    config_class, module_class = KINDS[kind]
    try:
        with torch.device("meta"):
            module = module_class(config_class(**sizes))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise damaged(path, f"the sizes of the {kind} are invalid: {error}") from None
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    if kind == "acoustic" and f"{CODES}embed" in tensors:
        tensors |= _training_state(tensors[f"{CODES}embed"])
    if problems := mismatches(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise FormatError(f"{path} has tensors that do not fit its sizes: {'; '.join(problems)}")
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def _training_state(codes: Tensor) -> dict[str, Tensor]:
    """Return the averages for which every code (1, k, D) has been used once per step."""
    return {
        f"{CODES}initted": torch.tensor(True),
        f"{CODES}cluster_size": torch.ones(codes.shape[:2]),
        f"{CODES}embed_avg": codes.clone(),
    }


class Cast(Mapping[str, Array]):
    """A mapping that converts floating-point arrays to another type on access."""

    def __init__(self, arrays: Mapping[str, Array], dtype: type[np.floating[Any]]) -> None:
        self._arrays, self._dtype = arrays, dtype

    def __getitem__(self, name: str) -> Array:
        array = self._arrays[name]
        return array.astype(self._dtype, copy=False) if array.dtype.kind == "f" else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def arrays_of(module: nn.Module) -> dict[str, Array]:
    """Return the tensors of a module by name. On a CPU, they share its memory."""
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}


def module_hash(module: nn.Module) -> str:
    """Return the hash of a module's tensors."""
    return hash_arrays(arrays_of(module))
