"""Load AudioMAE weights from sctok's own files, from public checkpoint layouts and from the Hugging Face hub."""

import argparse
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from mmap import ACCESS_READ
from mmap import mmap as mmap_file
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sctok import __version__
from sctok.formats.files import check_format, is_repository
from sctok.formats.tensors import encoder_hash, read_header, save_tensors

from .encoder import Attention, AudioMAE, EncoderConfig

FORMAT = "sctok-encoder"
FORMAT_VERSION = 1
FORMAT_KEYS = ("format", "format_version", "config", "sctok_version")
HEAD_WIDTH = 64  # of every published AudioMAE; sctok's own files store it
PROBE_KEY = "cls_token"  # its prefix in a checkpoint is the prefix of all tensors of the encoder
_MAKES_BYTES = b"bytearray"  # allocates as many bytes as a pickled number says; PyTorch's unpickler allows it
_DEEPEST_TENSOR = 2  # levels: a state dict inside a checkpoint
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class HubModel:
    """A checkpoint on the Hugging Face hub."""

    repository: str
    licence: str


HUB_MODELS = {"base": HubModel("gaunernst/vit_base_patch16_1024_128.audiomae_as2m", "CC-BY-NC-4.0")}
BUNDLED = ("mini",)


@dataclass(frozen=True)
class EncoderWeights:
    """The float32 tensors of an encoder under the published names, its sizes, and its provenance."""

    name: str
    config: EncoderConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of names, shapes and float32 values, 16 hex digits; the same in every checkpoint layout."""
        return encoder_hash({name: tensor.numpy() for name, tensor in self.tensors.items()})

    @property
    def published_steps(self) -> bool:
        """Whether CPUs compute features with the operators of the published codec, to get the same rounding.

        These are the filterbank of `published_filterbank`, the patch embedding as a convolution, and attention in
        separate steps. GPUs always embed patches with a linear product.
        """
        return bool(self.metadata.get("published_steps"))

    def build(self) -> AudioMAE:
        """Return the encoder in evaluation mode on the CPU."""
        model = AudioMAE(self.config)
        model.load_state_dict(self.tensors)
        model.patch_embed.convolved = self.published_steps
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused = not self.published_steps
        return model.eval().requires_grad_(False)


def load_weights(name_or_path: str | Path) -> EncoderWeights:
    """Load an encoder by name or path.

    Args:
        name_or_path: `mini` (bundled), `base` (AudioMAE ViT-B/16 from the hub), a hub repository `owner/name`, or a
            file: sctok's own safetensors, the AudioMAE release `pretrained.pth`, the timm-style file of the hub, or
            SemantiCodec's `encoder.ckpt`.

    Raises:
        ValueError: the name is unknown, the hub cannot be reached, or the file has no AudioMAE encoder.
    """
    name = str(name_or_path)
    if name in BUNDLED:
        with as_file(files("sctok.weights") / f"encoder-{name}.safetensors") as path:
            return _read_weights(path, name)
    path = Path(name)
    if path.is_file():
        return _read_weights(path, path.stem)
    if name in HUB_MODELS:
        return _read_weights(_fetch(HUB_MODELS[name].repository), name)
    if is_repository(name):
        return _read_weights(_fetch(name), name)
    known = ", ".join((*BUNDLED, *HUB_MODELS))
    raise ValueError(f"unknown encoder {name!r}; give one of {known}, a file, or a hub repository owner/name")


def save_weights(
    path: Path, model: AudioMAE, metadata: Mapping[str, Any], dtype: type[np.floating[Any]] = np.float16
) -> None:
    """Write an encoder atomically as safetensors of type `dtype`, with its sizes and provenance."""
    tensors = {name: tensor.detach().cpu().numpy().astype(dtype) for name, tensor in model.state_dict().items()}
    ours = {"config": model.config.to_json(), "sctok_version": __version__}
    header = {**ours, **{name: value for name, value in metadata.items() if name not in FORMAT_KEYS}}
    save_tensors(path, tensors, format_name=FORMAT, version=FORMAT_VERSION, metadata=header)


def _read_weights(path: Path, name: str) -> EncoderWeights:
    tensors, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (read_checkpoint(path), {})
    prefix = _encoder_prefix(tensors, path)
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if "norm.weight" not in tensors:  # timm names the last norm fc_norm in models that average over patches
        tensors = {key.replace("fc_norm.", "norm."): value for key, value in tensors.items()}
    config = _infer_config(tensors, metadata)
    with torch.device("meta"):
        expected = AudioMAE(config).state_dict()
    problems = [f"{key} is missing" for key in expected if key not in tensors]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    problems += [f"{key} is not a dense array of numbers" for key, value in tensors.items() if not is_plain(value)]
    if problems:
        raise ValueError(f"{path} is not an AudioMAE encoder: {'; '.join(problems)}")
    return EncoderWeights(name, config, {key: tensors[key].float().contiguous() for key in expected}, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    metadata, _ = read_header(path)
    ours = "format" in metadata and "config" in metadata
    if ours:
        check_format(path, metadata, FORMAT, FORMAT_VERSION)
    try:
        return load_file(path), metadata if ours else {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); download or export it again") from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch checkpoint, or of its `model` or `state_dict` if it has one.

    No code in the file is run: it may contain only tensors, containers and a Namespace. If the format allows it, the
    tensors are memory-mapped and read when they are used.

    Raises:
        ValueError: the file contains anything else or is not a checkpoint. OSError.
    """
    loaded = load_pickle(path, mmap=_is_zip(path))
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} contains a {type(loaded).__name__}, not a dictionary of tensors")
    return {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}


def load_pickle(path: Path, *, mmap: bool = False) -> Any:
    """Load a PyTorch file without running code in it or unpacking anything larger than the file.

    mmap: leave tensors in the file until they are used.
    Raises ValueError naming `path` if the file needs more than tensors, containers and a Namespace. OSError.
    """
    try:
        _check_pickle(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # PyTorch warns about pickles that it then refuses
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            _check_tensors(loaded, path.stat().st_size)
    except Exception as error:  # damaged pickles can raise any exception
        raise ValueError(f"{path} is not a checkpoint that loads without running code ({_refusal(error)})") from error
    return loaded


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_pickle(path: Path) -> None:
    """Raise ValueError for a pickle that allocates bytes by number, and for an archive with compressed parts."""
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("parts of its archive are compressed, but PyTorch never compresses tensors")
            found = any(_MAKES_BYTES in archive.read(e) for e in entries if e.filename.endswith("data.pkl"))
    else:
        with path.open("rb") as file, mmap_file(file.fileno(), 0, access=ACCESS_READ) as content:
            found = content.find(_MAKES_BYTES) >= 0
    if found:
        raise ValueError(f"it needs {_MAKES_BYTES.decode()}")


def _check_tensors(loaded: Any, size: int) -> None:
    """Raise ValueError for a tensor larger than the file, whose strides repeat stored values."""
    for tensor in _tensors(loaded, 0):
        if is_plain(tensor) and tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} repeats its stored values")


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense and on the CPU, rather than sparse or without values."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict) and depth < _DEEPEST_TENSOR:
        for part in value.values():
            yield from _tensors(part, depth + 1)


def _refusal(error: Exception) -> str:
    """Return why a checkpoint was refused, without PyTorch's advice to allow its code."""
    parts = [part.strip() for part in str(error).split("\n\n") if part.strip()]
    return parts[-2] if len(parts) > 2 and "weights_only" in parts[0] else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _encoder_prefix(tensors: Mapping[str, Tensor], path: Path) -> str:
    prefixes = [key.removesuffix(PROBE_KEY) for key in tensors if key == PROBE_KEY or key.endswith(f".{PROBE_KEY}")]
    if not prefixes:
        raise ValueError(f"{path} has no AudioMAE encoder: no tensor is named {PROBE_KEY}")
    return min(prefixes, key=len)


def _infer_config(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> EncoderConfig:
    if metadata:
        return EncoderConfig(**metadata["config"])
    width = tensors[PROBE_KEY].shape[-1]
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    return EncoderConfig(width, depth, max(1, width // HEAD_WIDTH))


def _fetch(repository: str) -> Path:
    """Return the local path of a hub repository's weights; download them if they are not cached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    reason = ""
    for filename in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, filename))
        except LocalEntryNotFoundError as error:
            reason = f"the hub cannot be reached and {filename} is not cached: {_first_line(error)}"
        except EntryNotFoundError:
            reason = f"the repository has neither {' nor '.join(HUB_FILES)}"
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = _first_line(error)
            break
    raise ValueError(
        f"cannot download {repository} from the Hugging Face hub ({reason}); "
        "download it on a machine with network access and give the file with --encoder PATH"
    )
