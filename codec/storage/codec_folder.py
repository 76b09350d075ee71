"""A codec on disk: a folder with a safetensors file for each part, and `codec.json` with their description."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from sctok import __version__
from sctok.codec.codec_parts import CodecInfo, CodecParts, DecoderParts, TokenParts
from sctok.codec.models.acoustic import AcousticEncoder
from sctok.codec.models.condition import Order
from sctok.codec.models.grid import GridCondition
from sctok.codec.models.tunet import TUNet
from sctok.codec.noise_schedule import NoiseSchedule
from sctok.features.checkpoints import BUNDLED, EncoderWeights, load_weights, save_weights
from sctok.features.tokenizer import check_codebook
from sctok.formats.codebooks import Codebook, codebook_hash, load_codebook, save_codebook
from sctok.formats.files import (
    FormatError,
    check_format,
    damaged,
    hash_arrays,
    hash_file,
    hash_json,
    read_json,
    write_json,
)
from sctok.formats.folders import whole_folder
from sctok.formats.stacking import token_rate
from sctok.formats.tensors import map_tensors, save_tensors
from sctok.formats.untrusted.paths import is_file_name

from .parts import (
    KINDS,
    PART_FORMAT,
    PART_VERSION,
    TRAINING_ONLY,
    VOCODERS,
    Array,
    Cast,
    arrays_of,
    build,
    load_vae,
    load_vocoder,
    read_part,
    save_part,
)

CODEC_FORMAT, CODEC_VERSION = "sctok-codec", 1
INFO_FILE = "codec.json"
ENCODER_FILE = "encoder.safetensors"
DECODER_FILES = ("decoder.safetensors", "vae.safetensors", "vocoder.safetensors")
BUNDLED_CODECS = ("mini",)


def describe_codec(
    name: str,
    encoder: EncoderWeights,
    codebooks: Sequence[Codebook],
    acoustic: AcousticEncoder,
    order: Order = "published",
    provenance: Mapping[str, Any] | None = None,
    weights: Mapping[str, Array] | None = None,
) -> CodecInfo:
    """Return the description of a codec with these parts.

    weights: float32 arrays to hash in place of those of the acoustic encoder, if they are stored rounded.

    Raises:
        ValueError: the codebooks were made with another encoder, have different rates, or do not fit the acoustic
            encoder.
    """
    stacks = {book.metadata.stack_factor for book in codebooks}
    if len(stacks) != 1:
        raise ValueError(f"a codec needs codebooks of one token rate, not of stack factors {sorted(stacks)}")
    width = acoustic.config.feature_width
    for book in codebooks:
        check_codebook(book, encoder.name, encoder.hash)
        if book.centroids.shape[1] != width:
            raise ValueError(
                f"centroids of width {book.centroids.shape[1]} do not fit an acoustic encoder for features of "
                f"width {width}"
            )
    stack, arrays = stacks.pop(), _token_weights(acoustic) if weights is None else weights
    token_hash = hash_json({"encoder": encoder.hash, "acoustic": hash_arrays(arrays), "stack_factor": stack})
    return CodecInfo(name, token_rate(stack), stack, token_hash, order, provenance or {})


def save_codec(
    folder: Path, parts: CodecParts, dtype: type[np.floating[Any]] = np.float32, *, overwrite: bool = False
) -> CodecInfo:
    """Write a codec to a folder, which appears when it is complete, and return the description of the codec.

    Args:
        folder: folder to write; its name can differ from that of the codec.
        parts: parts of the codec. Tensors are read one by one.
        dtype: type of the weights, except those of the feature encoder; float16 halves the size. The description
            contains the hash of the rounded weights.
        overwrite: replace an existing codec.

    Raises:
        ValueError: the folder exists.
        DiskFullError: the disk is full; no folder is written.
    """
    if os.path.lexists(folder) and not (overwrite and (folder / INFO_FILE).is_file()):
        kind = ", and it is not a codec" if overwrite else ""
        raise ValueError(f"{folder} exists already{kind}: choose another name, or remove it")
    with whole_folder(folder) as temporary:
        return _write(temporary, parts, dtype)


def _write(folder: Path, parts: CodecParts, dtype: type[np.floating[Any]]) -> CodecInfo:
    tokens, decoder = parts.tokens, parts.decoder
    acoustic = _token_weights(tokens.acoustic)
    save_part(folder / "acoustic.safetensors", "acoustic", acoustic, tokens.acoustic.config, dtype)
    save_decoder(folder / "decoder.safetensors", decoder, dtype)
    save_part(folder / "vae.safetensors", "vae", arrays_of(decoder.vae), decoder.vae.config, dtype)
    kind = next(kind for kind in VOCODERS if isinstance(decoder.vocoder, KINDS[kind][1]))
    vocoder: Any = decoder.vocoder
    save_part(folder / "vocoder.safetensors", kind, arrays_of(vocoder), vocoder.config, dtype)
    encoder = tokens.encoder.name
    # An encoder with the name of a bundled one can be another one.
    if encoder not in BUNDLED or load_weights(encoder).hash != tokens.encoder.hash:
        save_weights(folder / ENCODER_FILE, tokens.encoder.build(), tokens.encoder.metadata, np.float32)
        encoder = ENCODER_FILE
    for book in tokens.codebooks:
        save_codebook(folder / _codebook_file(book), book)
    old, rounded = parts.info, Cast(Cast(acoustic, dtype), np.float32)
    info = describe_codec(
        old.name, tokens.encoder, tokens.codebooks, tokens.acoustic, old.order, old.provenance, rounded
    )
    described = _to_json(info, encoder, tokens)
    described["decoder_hashes"] = {name: hash_file(folder / name) for name in DECODER_FILES}
    write_json(folder / INFO_FILE, described)
    return info


def load_codec(name_or_path: str | Path = "mini") -> CodecParts:
    """Load a codec, given its folder or `mini`, the bundled codec.

    Raises:
        ValueError: the codec does not exist, or a part is missing, damaged, belongs to another codec, or has tensors
            that are missing, unknown or misshapen.
    """
    with _open_folder(name_or_path) as (folder, stored):
        tokens = _load_token_parts(folder, stored)
        _check_decoder(folder, stored)
        return CodecParts(tokens, load_decoder(folder))


def load_token_parts(name_or_path: str | Path = "mini") -> TokenParts:
    """Load the parts of a codec that make tokens, without its decoder. Raises like `load_codec`."""
    with _open_folder(name_or_path) as (folder, stored):
        return _load_token_parts(folder, stored)


def load_codebooks(name_or_path: str | Path = "mini") -> tuple[Codebook, ...]:
    """Load only the semantic codebooks of a codec. Raises like `load_codec`."""
    with _open_folder(name_or_path) as (folder, stored):
        return tuple(load_codebook(folder / name) for name in stored["codebooks"])


@contextmanager
def _open_folder(name_or_path: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder of a codec and its description. Convert errors about missing files and keys."""
    with ExitStack() as stack:
        if not isinstance(name_or_path, str | os.PathLike):
            raise ValueError(f"{name_or_path!r} is neither the name nor the folder of a codec")
        folder = Path(name_or_path)
        if str(name_or_path) in BUNDLED_CODECS:
            resource = files("sctok.weights") / f"codec-{name_or_path}"
            folder = stack.enter_context(as_file(resource))
        if not (folder / INFO_FILE).is_file():
            raise ValueError(
                f"{name_or_path} is neither a bundled codec ({', '.join(BUNDLED_CODECS)}) nor a folder with a "
                f"{INFO_FILE}: train one with sctok train, or import one with sctok import-checkpoint"
            )
        stored = read_json(folder / INFO_FILE)
        check_format(folder / INFO_FILE, stored, CODEC_FORMAT, CODEC_VERSION)
        if not isinstance(stored.get("codebooks"), dict) or stored.get("condition_order") not in get_args(Order):
            raise damaged(folder / INFO_FILE, "codebooks or condition_order is invalid")
        if stored.get("encoder") not in (ENCODER_FILE, *BUNDLED):
            raise damaged(folder / INFO_FILE, f"encoder is neither {ENCODER_FILE} nor {' or '.join(BUNDLED)}")
        if not all(is_file_name(name) for name in stored["codebooks"]):
            raise damaged(folder / INFO_FILE, "codebooks are not files in this folder")
        try:
            yield folder, stored
        except FileNotFoundError as error:
            raise ValueError(f"{folder}: {error.filename} is missing; make or import the codec again") from None
        except KeyError as error:
            raise damaged(folder / INFO_FILE, f"{error} is missing") from None


def _load_token_parts(folder: Path, stored: Mapping[str, Any]) -> TokenParts:
    name = stored["encoder"]
    encoder = load_weights(folder / name if name == ENCODER_FILE else name)
    books = tuple(load_codebook(folder / name) for name in stored["codebooks"])
    acoustic, _ = read_part(folder / "acoustic.safetensors", ("acoustic",))
    assert isinstance(acoustic, AcousticEncoder)
    info = describe_codec(stored["name"], encoder, books, acoustic, stored["condition_order"], stored["provenance"])
    if info.token_hash != stored["token_hash"]:
        raise FormatError(
            f"{folder} has parts of another codec ({info.token_hash}) than its {INFO_FILE} describes "
            f"({stored['token_hash']}); make or import the codec again"
        )
    return TokenParts(encoder, books, acoustic, info)


def _check_decoder(folder: Path, stored: Mapping[str, Any]) -> None:
    for name in DECODER_FILES:
        if hash_file(folder / name) != stored["decoder_hashes"][name]:
            raise FormatError(
                f"{folder / name} is not the file that {INFO_FILE} describes: it is damaged or belongs to another "
                "codec; make or import the codec again"
            )


def _to_json(info: CodecInfo, encoder: str, parts: TokenParts) -> dict[str, Any]:
    return {
        "format": CODEC_FORMAT,
        "format_version": CODEC_VERSION,
        "sctok_version": __version__,
        "name": info.name,
        "token_rate": info.token_rate,
        "stack_factor": info.stack_factor,
        "encoder": encoder,
        "encoder_hash": parts.encoder.hash,
        "codebooks": {_codebook_file(book): codebook_hash(book) for book in parts.codebooks},
        "token_hash": info.token_hash,
        "condition_order": info.order,
        "provenance": dict(info.provenance),
    }


def _codebook_file(book: Codebook) -> str:
    return f"codebook-{book.k}.safetensors"


def save_decoder(path: Path, decoder: DecoderParts, dtype: type[np.floating[Any]] = np.float32) -> None:
    """Write the T-UNet, grid, schedule and scale of a codec to one file, atomically. The schedule stays float32."""
    modules = {name: module for name, module in (("unet", decoder.unet), ("grid", decoder.grid)) if module is not None}
    tensors = {
        f"{name}.{key}": value.astype(dtype)
        for name, module in modules.items()
        for key, value in arrays_of(module).items()
    }
    tensors |= {f"schedule.{key}": value.numpy() for key, value in decoder.schedule.buffers().items()}
    tensors["scale_factor"] = np.array([decoder.scale_factor], np.float32)
    configs = {name: asdict(module.config) for name, module in modules.items()}
    metadata = {"kind": "decoder", "configs": configs, "sctok_version": __version__}
    save_tensors(path, tensors, format_name=PART_FORMAT, version=PART_VERSION, metadata=metadata)


def load_decoder(folder: Path) -> DecoderParts:
    """Load the decoder of a codec folder. Raises like `read_part`."""
    path = folder / "decoder.safetensors"
    arrays, metadata = map_tensors(path, format_name=PART_FORMAT, version=PART_VERSION)
    if metadata.get("kind") != "decoder":
        raise FormatError(f"{path} is a part of kind {metadata.get('kind')!r}, not a decoder")
    configs = metadata.get("configs")
    if not isinstance(configs, dict) or not {"unet"} <= set(configs) <= {"unet", "grid"}:
        raise damaged(path, f"configs are {configs!r}")
    modules = {kind: build(path, kind, config, _below(arrays, f"{kind}.")) for kind, config in configs.items()}
    unet, grid = modules["unet"], modules.get("grid")
    assert isinstance(unet, TUNet)
    assert grid is None or isinstance(grid, GridCondition)
    buffers = {key: torch.from_numpy(value) for key, value in _below(arrays, "schedule.").items()}
    try:
        schedule, scale = NoiseSchedule.from_buffers(buffers), float(arrays["scale_factor"][0])
    except (KeyError, IndexError, ValueError) as error:
        raise damaged(path, f"{error} in its schedule or scale factor") from None
    vae, vocoder = load_vae(folder / "vae.safetensors"), load_vocoder(folder / "vocoder.safetensors")
    return DecoderParts(unet, grid, schedule, scale, vae, vocoder)


def _token_weights(acoustic: AcousticEncoder) -> dict[str, Array]:
    return {key: value for key, value in arrays_of(acoustic).items() if key not in TRAINING_ONLY}


def _below(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
