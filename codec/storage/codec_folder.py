"""A codec on disk: one folder of safetensors files, each of which says what it is, and `codec.json` over them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from sctok import __version__
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH, Order
from sctok.codec.models.grid import GridCondition
from sctok.codec.models.tunet import TUNet
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.noise_schedule import Schedule
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

__all__ = [
    "BUNDLED_CODECS",
    "INFO_FILE",
    "KINDS",
    "VOCODERS",
    "CodecInfo",
    "CodecParts",
    "TokenParts",
    "describe_codec",
    "load_codebooks",
    "load_codec",
    "load_token_parts",
    "load_vae",
    "load_vocoder",
    "read_part",
    "save_codec",
    "save_part",
]

CODEC_FORMAT, CODEC_VERSION = "sctok-codec", 1
INFO_FILE = "codec.json"
ENCODER_FILE = "encoder.safetensors"
DECODER_FILES = ("decoder.safetensors", "vae.safetensors", "vocoder.safetensors")
BUNDLED_CODECS = ("mini",)


@dataclass(frozen=True)
class CodecInfo:
    """What a codec is: its rate, the hash of all but the codebook that decides its tokens, the order of its condition.

    provenance: JSON values about where it came from. Without a hash it is of a codec that was never saved.
    """

    name: str
    token_rate: int
    stack_factor: int
    token_hash: str = ""
    order: Order = "published"
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TokenParts:
    """What of a codec makes tokens; modules lie on the CPU in evaluation mode."""

    encoder: EncoderWeights
    codebooks: Sequence[Codebook]
    acoustic: AcousticEncoder
    info: CodecInfo


@dataclass(frozen=True, eq=False)
class CodecParts:
    """Everything that a codec consists of; modules lie on the CPU in evaluation mode.

    Raises ValueError, saying everything, where parts do not fit each other.
    """

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

    def __post_init__(self) -> None:
        problems = list(_misfits(self))
        if problems:
            raise ValueError(f"the parts of the codec {self.info.name} do not fit each other: {'; '.join(problems)}")


def _misfits(parts: CodecParts) -> Iterator[str]:
    features, width = parts.acoustic.config.feature_width, parts.encoder.config.width * parts.info.stack_factor
    context = features + parts.acoustic.config.quantizer.dim + PE_WIDTH
    unet, grid = parts.unet.config, parts.grid.config if parts.grid else None
    for what, found, needed in (
        ("acoustic encoder's features", features, width),
        ("T-UNet's context", unet.context_width, context),
        ("grid's context", grid.context_width if grid else context, context),
        ("T-UNet's latent", unet.latent_channels, parts.vae.config.latent_channels),
        ("T-UNet's extra channels", unet.extra_channels, grid.channels if grid else 0),
    ):
        if found != needed:
            yield f"the {what} has width {found}, not {needed}"
    if not 0 < parts.scale_factor < float("inf"):
        yield f"the scale factor is {parts.scale_factor}"


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
    return _describe(name, encoder, codebooks, acoustic.config, _decisive(acoustic), order, provenance or {})


def _describe(
    name: str,
    encoder: EncoderWeights,
    codebooks: Sequence[Codebook],
    config: AcousticConfig,
    arrays: Mapping[str, Array],
    order: Order,
    provenance: Mapping[str, Any],
) -> CodecInfo:
    """Do what `describe_codec` does, with the float32 arrays of an acoustic encoder that decide about tokens."""
    known = encoder.hash
    stacks = {book.metadata.stack_factor for book in codebooks}
    if len(stacks) != 1:
        raise ValueError(f"a codec needs codebooks of one token rate, not of stack factors {sorted(stacks)}")
    for book in codebooks:
        check_codebook(book, encoder.name, known)
        if book.centroids.shape[1] != config.feature_width:
            raise ValueError(
                f"centroids of width {book.centroids.shape[1]} do not fit an acoustic encoder of features of "
                f"width {config.feature_width}"
            )
    stack = stacks.pop()
    token_hash = hash_json({"encoder": known, "acoustic": hash_arrays(arrays), "stack_factor": stack})
    return CodecInfo(name, token_rate(stack), stack, token_hash, order, provenance)


def save_codec(
    folder: Path, parts: CodecParts, dtype: type[np.floating[Any]] = np.float32, *, overwrite: bool = False
) -> CodecInfo:
    """Write a codec to a folder, which is there when all of it is written and not before; return its description.

    Args:
        folder: its name need not be that of the codec.
        parts: what to write; tensors are taken one by one.
        dtype: of the weights; float16 halves the size. The codec that is read back is the rounded one, whose hash is
            stored. Encoders keep their values.
        overwrite: replace a codec that is there.

    Raises:
        ValueError: the folder is there, or parts do not fit each other. DiskFullError.
    """
    if os.path.lexists(folder) and not (overwrite and (folder / INFO_FILE).is_file()):
        what = " and is no codec" if overwrite else ""
        raise ValueError(f"{folder} is there already{what}: choose another name, or remove it")
    with whole_folder(folder) as temporary:
        return _write(temporary, parts, dtype)


def _write(folder: Path, parts: CodecParts, dtype: type[np.floating[Any]]) -> CodecInfo:
    acoustic = _decisive(parts.acoustic)
    save_part(folder / "acoustic.safetensors", "acoustic", acoustic, parts.acoustic.config, dtype)
    save_decoder(folder / "decoder.safetensors", parts, dtype)
    save_part(folder / "vae.safetensors", "vae", arrays_of(parts.vae), parts.vae.config, dtype)
    kind = next(kind for kind in VOCODERS if isinstance(parts.vocoder, KINDS[kind][1]))
    vocoder: Any = parts.vocoder
    save_part(folder / "vocoder.safetensors", kind, arrays_of(vocoder), vocoder.config, dtype)
    encoder: str = parts.encoder.name
    if encoder not in BUNDLED or load_weights(encoder).hash != parts.encoder.hash:  # a file of that name is another one
        save_weights(folder / ENCODER_FILE, parts.encoder.build(), parts.encoder.metadata, np.float32)
        encoder = ENCODER_FILE
    for book in parts.codebooks:
        save_codebook(folder / _book_file(book), book)
    rounded = Cast(Cast(acoustic, dtype), np.float32)
    old = parts.info
    info = _describe(
        old.name, parts.encoder, parts.codebooks, parts.acoustic.config, rounded, old.order, old.provenance
    )
    described = _to_json(info, encoder, parts)
    described["decoder_hashes"] = {name: hash_file(folder / name) for name in DECODER_FILES}
    write_json(folder / INFO_FILE, described)
    return info


def load_codec(name_or_path: str | Path = "mini") -> CodecParts:
    """Load a codec: `mini` (bundled), or the folder of one.

    Raises:
        ValueError: there is none, or a part is missing, damaged, of another codec, or has tensors missing, unknown or
            misshapen, all of which are named.
    """
    with _opened(name_or_path) as (folder, stored):
        made = _load_token_parts(folder, stored)
        _check_decoder(folder, stored)
        unet, grid, schedule, scale = read_decoder(folder / "decoder.safetensors")
        vae, vocoder = load_vae(folder / "vae.safetensors"), load_vocoder(folder / "vocoder.safetensors")
        return CodecParts(
            made.encoder, made.codebooks, made.acoustic, unet, grid, schedule, scale, vae, vocoder, made.info
        )


def load_token_parts(name_or_path: str | Path = "mini") -> TokenParts:
    """Load what of a codec makes tokens, without its decoder. Raises as `load_codec`."""
    with _opened(name_or_path) as (folder, stored):
        return _load_token_parts(folder, stored)


def load_codebooks(name_or_path: str | Path = "mini") -> tuple[Codebook, ...]:
    """Load the semantic codebooks of a codec alone. Raises as `load_codec`."""
    with _opened(name_or_path) as (folder, stored):
        return tuple(load_codebook(folder / name) for name in stored["codebooks"])


@contextmanager
def _opened(name_or_path: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder of a codec and its description; what is missing there is named."""
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
            raise damaged(folder / INFO_FILE, "codebooks or condition_order is none")
        if stored.get("encoder") not in (ENCODER_FILE, *BUNDLED):
            raise damaged(folder / INFO_FILE, f"its encoder is neither {ENCODER_FILE} nor {' or '.join(BUNDLED)}")
        if not all(is_file_name(name) for name in stored["codebooks"]):
            raise damaged(folder / INFO_FILE, "its codebooks are not files of this folder")
        try:
            yield folder, stored
        except FileNotFoundError as error:
            missing = f"{error.filename} is missing; make or import it again"
            raise ValueError(f"{folder} is no whole codec: {missing}") from None
        except KeyError as error:
            raise damaged(folder / INFO_FILE, f"{error} is missing") from None


def _load_token_parts(folder: Path, stored: Mapping[str, Any]) -> TokenParts:
    named = stored["encoder"]
    encoder = load_weights(folder / named if named == ENCODER_FILE else named)
    books = tuple(load_codebook(folder / name) for name in stored["codebooks"])
    acoustic, _ = read_part(folder / "acoustic.safetensors", ("acoustic",))
    assert isinstance(acoustic, AcousticEncoder)
    info = describe_codec(stored["name"], encoder, books, acoustic, stored["condition_order"], stored["provenance"])
    if info.token_hash != stored["token_hash"]:
        raise FormatError(
            f"{folder} holds parts of another codec ({info.token_hash}) than its {INFO_FILE} says "
            f"({stored['token_hash']}); make or import it again"
        )
    return TokenParts(encoder, books, acoustic, info)


def _check_decoder(folder: Path, stored: Mapping[str, Any]) -> None:
    for name in DECODER_FILES:
        if hash_file(folder / name) != stored["decoder_hashes"][name]:
            raise FormatError(
                f"{folder / name} is not the file that {INFO_FILE} knows: it is damaged, or of another codec; make or "
                "import the codec again"
            )


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


def save_decoder(path: Path, parts: CodecParts, dtype: type[np.floating[Any]] = np.float32) -> None:
    """Write T-UNet, grid, schedule and scale of a codec to one file, atomically. The schedule stays float32."""
    modules = {"unet": parts.unet, "grid": parts.grid}
    present = {name: module for name, module in modules.items() if module is not None}
    tensors = {
        f"{name}.{key}": value.astype(dtype)
        for name, module in present.items()
        for key, value in arrays_of(module).items()
    }
    tensors |= {f"schedule.{key}": value.numpy() for key, value in parts.schedule.buffers().items()}
    tensors["scale_factor"] = np.array([parts.scale_factor], np.float32)
    configs = {name: asdict(module.config) for name, module in present.items()}
    about = {"kind": "decoder", "configs": configs, "sctok_version": __version__}
    save_tensors(path, tensors, format_name=PART_FORMAT, version=PART_VERSION, metadata=about)


def read_decoder(path: Path) -> tuple[TUNet, GridCondition | None, Schedule, float]:
    """Return what `save_decoder` wrote. Raises as `read_part`."""
    arrays, metadata = map_tensors(path, format_name=PART_FORMAT, version=PART_VERSION)
    if metadata.get("kind") != "decoder":
        raise FormatError(f"{path} is a part of the kind {metadata.get('kind')!r}, not a decoder")
    configs = metadata.get("configs")
    if not isinstance(configs, dict) or not {"unet"} <= set(configs) <= {"unet", "grid"}:
        raise damaged(path, f"its configs are {configs!r}")
    modules = {kind: build(path, kind, config, _below(arrays, f"{kind}.")) for kind, config in configs.items()}
    unet, grid = modules["unet"], modules.get("grid")
    assert isinstance(unet, TUNet)
    assert grid is None or isinstance(grid, GridCondition)
    buffers = {key: torch.from_numpy(value) for key, value in _below(arrays, "schedule.").items()}
    try:
        return unet, grid, Schedule.from_buffers(buffers), float(arrays["scale_factor"][0])
    except (KeyError, IndexError, ValueError) as error:
        raise damaged(path, f"{error} in its schedule or scale factor") from None


def _decisive(acoustic: AcousticEncoder) -> dict[str, Array]:
    return {key: value for key, value in arrays_of(acoustic).items() if key not in TRAINING_ONLY}


def _below(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
