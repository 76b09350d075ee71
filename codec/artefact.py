"""A codec on disk: one folder of safetensors files, each of which says what it is, and `codec.json` over them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sctok import __version__
from sctok.features.checkpoints import BUNDLED, EncoderWeights, load_weights, save_weights
from sctok.formats.codebooks import Codebook, codebook_hash, load_codebook, save_codebook
from sctok.formats.files import FormatError, check_format, damaged, hash_arrays, hash_json, read_json, write_json
from sctok.formats.stacking import token_rate
from sctok.formats.tensors import read_tensors, save_tensors

from .acoustic import AcousticConfig, AcousticEncoder
from .condition import Order
from .grid import GridCondition, GridConfig
from .schedule import Schedule
from .training_state import mismatches
from .tunet import TUNet, TUNetConfig
from .vae import AutoencoderKL, VAEConfig
from .vocoder import IstftVocoder, VocoderConfig

CODEC_FORMAT, CODEC_VERSION = "sctok-codec", 1
PART_FORMAT, PART_VERSION = "sctok-codec-part", 1
INFO_FILE = "codec.json"
ENCODER_FILE = "encoder.safetensors"
BUNDLED_CODECS = ("mini",)
# Averages that only training needs; they are made up from the codes when a codec is loaded.
_CODES = "quantizer._codebook."
_TRAINING_ONLY = (f"{_CODES}initted", f"{_CODES}cluster_size", f"{_CODES}embed_avg")


# What the metadata of a part calls its kind, and the class of its sizes and of its module.
KINDS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "acoustic": (AcousticConfig, AcousticEncoder),
    "unet": (TUNetConfig, TUNet),
    "grid": (GridConfig, GridCondition),
    "vae": (VAEConfig, AutoencoderKL),
    "istft": (VocoderConfig, IstftVocoder),
}
VOCODERS = ("istft",)


@dataclass(frozen=True)
class CodecInfo:
    """What a codec is: its rate, the hash of all but the codebook that decides its tokens, the order of its condition.

    provenance: JSON values about where it came from.
    """

    name: str
    token_rate: int
    stack_factor: int
    token_hash: str
    order: Order = "published"
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CodecParts:
    """Everything that a codec consists of; modules lie on the CPU in evaluation mode."""

    encoder: EncoderWeights
    codebooks: Sequence[Codebook]
    acoustic: AcousticEncoder
    unet: TUNet
    grid: GridCondition | None
    schedule: Schedule
    scale_factor: float
    vae: AutoencoderKL
    vocoder: nn.Module
    info: CodecInfo


def describe_codec(
    name: str,
    encoder: EncoderWeights,
    codebooks: Sequence[Codebook],
    acoustic: AcousticEncoder,
    order: Order = "published",
    provenance: Mapping[str, Any] | None = None,
) -> CodecInfo:
    """Return the description of a codec of these parts.

    Raises ValueError where the codebooks are of another encoder, of different rates, or do not fit the acoustic
    encoder.
    """
    stacks = {book.metadata.stack_factor for book in codebooks}
    if len(stacks) != 1:
        raise ValueError(f"a codec needs codebooks of one token rate, not of stack factors {sorted(stacks)}")
    for book in codebooks:
        if book.metadata.encoder_hash != encoder.hash:
            raise ValueError(
                f"the codebook of {book.k} centroids was made with the encoder {book.metadata.encoder} "
                f"({book.metadata.encoder_hash}), not with {encoder.name} ({encoder.hash})"
            )
        if book.centroids.shape[1] != acoustic.config.feature_width:
            raise ValueError(
                f"centroids of width {book.centroids.shape[1]} do not fit an acoustic encoder of features of "
                f"width {acoustic.config.feature_width}"
            )
    stack = stacks.pop()
    decisive = {key: value for key, value in _arrays(acoustic).items() if key not in _TRAINING_ONLY}
    token_hash = hash_json({"encoder": encoder.hash, "acoustic": hash_arrays(decisive), "stack_factor": stack})
    return CodecInfo(name, token_rate(stack), stack, token_hash, order, provenance or {})


def save_codec(folder: Path, parts: CodecParts, dtype: type[np.floating[Any]] = np.float32) -> None:
    """Write a codec to a folder, `codec.json` last: a folder without it is no codec.

    dtype: of the weights; float16 halves the size. The codec that is read back is the rounded one, whose hash is
    stored. Raises DiskFullError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)
    acoustic = {key: value for key, value in _arrays(parts.acoustic).items() if key not in _TRAINING_ONLY}
    save_part(folder / "acoustic.safetensors", "acoustic", acoustic, parts.acoustic.config, dtype)
    save_decoder(folder / "decoder.safetensors", parts, dtype)
    save_part(folder / "vae.safetensors", "vae", _arrays(parts.vae), parts.vae.config, dtype)
    kind = next(kind for kind in VOCODERS if isinstance(parts.vocoder, KINDS[kind][1]))
    vocoder: Any = parts.vocoder
    save_part(folder / "vocoder.safetensors", kind, _arrays(vocoder), vocoder.config, dtype)
    encoder: str = parts.encoder.name
    if encoder not in BUNDLED:
        save_weights(folder / ENCODER_FILE, parts.encoder.build(), parts.encoder.metadata, np.float32)
        encoder = ENCODER_FILE
    for book in parts.codebooks:
        save_codebook(folder / _book_file(book), book)
    rounded, _ = read_part(folder / "acoustic.safetensors", ("acoustic",))
    assert isinstance(rounded, AcousticEncoder)
    info = describe_codec(
        parts.info.name, parts.encoder, parts.codebooks, rounded, parts.info.order, parts.info.provenance
    )
    write_json(folder / INFO_FILE, _to_json(info, encoder, parts))


def load_codec(name_or_path: str | Path = "mini") -> CodecParts:
    """Load a codec: `mini` (bundled), or the folder of one.

    Raises:
        ValueError: there is none, or a part is missing, damaged, of another codec, or has tensors missing, unknown or
            misshapen, all of which are named.
    """
    with ExitStack() as stack:
        folder = Path(name_or_path)
        if str(name_or_path) in BUNDLED_CODECS:
            resource = files("sctok.weights") / f"codec-{name_or_path}"
            folder = stack.enter_context(as_file(resource))
        if not (folder / INFO_FILE).is_file():
            raise ValueError(
                f"{name_or_path} is neither a bundled codec ({', '.join(BUNDLED_CODECS)}) nor a folder with a "
                f"{INFO_FILE}: train one with sctok train, or import one with sctok import-checkpoint"
            )
        return _load_folder(folder)


def _load_folder(folder: Path) -> CodecParts:
    stored = read_json(folder / INFO_FILE)
    check_format(folder / INFO_FILE, stored, CODEC_FORMAT, CODEC_VERSION)
    try:
        named = stored["encoder"]
        encoder = load_weights(folder / named if named == ENCODER_FILE else named)
        books = [load_codebook(folder / name) for name in stored["codebooks"]]
        acoustic, _ = read_part(folder / "acoustic.safetensors", ("acoustic",))
        unet, grid, schedule, scale = read_decoder(folder / "decoder.safetensors")
        assert isinstance(acoustic, AcousticEncoder)
        info = describe_codec(stored["name"], encoder, books, acoustic, stored["condition_order"], stored["provenance"])
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no whole codec: {error.filename} is missing; make or import it again") from None
    except KeyError as error:
        raise damaged(folder / INFO_FILE, f"{error} is missing") from None
    if info.token_hash != stored["token_hash"]:
        raise FormatError(
            f"{folder} holds parts of another codec ({info.token_hash}) than its {INFO_FILE} says "
            f"({stored['token_hash']}); make or import it again"
        )
    vae, vocoder = load_vae(folder / "vae.safetensors"), load_vocoder(folder / "vocoder.safetensors")
    return CodecParts(encoder, tuple(books), acoustic, unet, grid, schedule, scale, vae, vocoder, info)


def _to_json(info: CodecInfo, encoder: str, parts: CodecParts) -> dict[str, Any]:
    return {
        "format": CODEC_FORMAT,
        "format_version": CODEC_VERSION,
        "sctok_version": __version__,
        "name": info.name,
        "token_rate": info.token_rate,
        "stack_factor": info.stack_factor,
        "encoder": encoder,
        "encoder_hash": parts.encoder.hash,
        "codebooks": {_book_file(book): codebook_hash(book) for book in parts.codebooks},
        "token_hash": info.token_hash,
        "condition_order": info.order,
        "provenance": dict(info.provenance),
    }


def _book_file(book: Codebook) -> str:
    return f"codebook-{book.k}.safetensors"


def save_part(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    config: Any,
    dtype: type[np.floating[Any]] = np.float32,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors of one part, a kind of `KINDS`, with its sizes, atomically. Raises DiskFullError."""
    tensors = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in arrays.items()}
    about = {**(metadata or {}), "kind": kind, "config": asdict(config), "sctok_version": __version__}
    save_tensors(path, tensors, format_name=PART_FORMAT, version=PART_VERSION, metadata=about)


def read_part(path: Path, kinds: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module of a part of one of `kinds`, float32 in evaluation mode, and the file's metadata.

    Raises FileNotFoundError; FormatError naming `path` for another kind or version, and every tensor that is missing,
    unknown or misshapen.
    """
    arrays, metadata = read_tensors(path, format_name=PART_FORMAT, version=PART_VERSION)
    if metadata.get("kind") not in kinds:
        raise FormatError(f"{path} is a part of the kind {metadata.get('kind')!r}, not {' or '.join(kinds)}")
    return _build(path, metadata["kind"], metadata["config"], arrays), metadata


def load_vae(path: Path) -> AutoencoderKL:
    """Return the VAE of a file that sctok wrote. Raises as `read_part`."""
    vae, _ = read_part(path, ("vae",))
    assert isinstance(vae, AutoencoderKL)
    return vae


def load_vocoder(path: Path) -> nn.Module:
    """Return the vocoder of a file that sctok wrote, iSTFT or HiFi-GAN. Raises as `read_part`."""
    return read_part(path, VOCODERS)[0]


def save_decoder(path: Path, parts: CodecParts, dtype: type[np.floating[Any]] = np.float32) -> None:
    """Write T-UNet, grid, schedule and scale of a codec to one file, atomically. The schedule stays float32."""
    modules = {"unet": parts.unet, "grid": parts.grid}
    present = {name: module for name, module in modules.items() if module is not None}
    tensors = {
        f"{name}.{key}": value.astype(dtype)
        for name, module in present.items()
        for key, value in _arrays(module).items()
    }
    tensors |= {f"schedule.{key}": value.numpy() for key, value in parts.schedule.buffers().items()}
    tensors["scale_factor"] = np.array([parts.scale_factor], np.float32)
    configs = {name: asdict(module.config) for name, module in present.items()}
    about = {"kind": "decoder", "configs": configs, "sctok_version": __version__}
    save_tensors(path, tensors, format_name=PART_FORMAT, version=PART_VERSION, metadata=about)


def read_decoder(path: Path) -> tuple[TUNet, GridCondition | None, Schedule, float]:
    """Return what `save_decoder` wrote. Raises as `read_part`."""
    arrays, metadata = read_tensors(path, format_name=PART_FORMAT, version=PART_VERSION)
    if metadata.get("kind") != "decoder":
        raise FormatError(f"{path} is a part of the kind {metadata.get('kind')!r}, not a decoder")
    modules = {
        kind: _build(path, kind, config, _below(arrays, f"{kind}.")) for kind, config in metadata["configs"].items()
    }
    unet, grid = modules["unet"], modules.get("grid")
    assert isinstance(unet, TUNet)
    assert grid is None or isinstance(grid, GridCondition)
    buffers = {key: torch.from_numpy(value) for key, value in _below(arrays, "schedule.").items()}
    try:
        return unet, grid, Schedule.from_buffers(buffers), float(arrays["scale_factor"][0])
    except KeyError as error:
        raise damaged(path, f"{error} is missing") from None


def _build(path: Path, kind: str, sizes: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> nn.Module:
    config_class, module_class = KINDS[kind]
    with torch.device("meta"):
        module = module_class(config_class(**sizes))
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    if kind == "acoustic" and f"{_CODES}embed" in tensors:
        tensors |= _training_state(tensors[f"{_CODES}embed"])
    if problems := mismatches(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise FormatError(f"{path} does not fit its own sizes: {'; '.join(problems)}")
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def _training_state(codes: Tensor) -> dict[str, Tensor]:
    """Return averages as if every code (1, k, D) had been used once a step."""
    return {
        f"{_CODES}initted": torch.tensor(True),
        f"{_CODES}cluster_size": torch.ones(codes.shape[:2]),
        f"{_CODES}embed_avg": codes.clone(),
    }


def _arrays(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}


def _below(arrays: Mapping[str, np.ndarray[Any, Any]], prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
