"""Reads the published SemantiCodec checkpoints as parts of a codec."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sctok.codec.codec_parts import CodecInfo, CodecParts, DecoderParts, TokenParts
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.noise_schedule import NoiseSchedule
from sctok.features.checkpoints import EncoderWeights, read_checkpoint
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.formats.codebooks import Codebook, load_npy
from sctok.formats.stacking import TOKEN_RATES, stack_factor
from sctok.formats.tensors import mismatches

from .files import PublishedFiles, codebooks_of_rate

ENCODER_NAME = "audiomae"
LICENCE = "AudioMAE and AudioLDM 2, whose weights these are in part: CC-BY-NC 4.0"

# Prefixes of the modules, and names of tensors that are not needed: the decoder from the pretraining of AudioMAE, other
# conditions of the training, and buffers that follow from alphas_cumprod.
_TRAINING_ENCODER = "cond_stage_models.0."
_AUDIOMAE, _UNET = "audiomae.model.", "model.diffusion_model."
_FIRST_STAGE, _VOCODER = "first_stage_model.", "first_stage_model.vocoder."
_AVERAGE, _WRAPPER = "model_ema.", "model."  # names of averages lack the wrapper and all dots
_UNUSED_ENCODER = ("audiomae.model.mask_token", "audiomae.model.decoder_", "pos_embed.pe")
_UNUSED_DECODER = ("logvar", "betas", "alphas_cumprod_prev", "sqrt_", "log_one_minus_", "posterior_")
_FOREIGN = ("clap", "loss", "cond_stage")  # in the names of further tensors in training checkpoints
_SCHEDULE, _SCALE = "alphas_cumprod", "scale_factor"
_INITTED, _HEAD = "quantizer._codebook.initted", "encoder_output_linear.weight"

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """Sizes of a published codec."""

    encoder: EncoderConfig
    acoustic: AcousticConfig
    unet: TUNetConfig
    vae: VAEConfig
    vocoder: HifiGanConfig


def _published_layout(rate: int) -> Layout:
    acoustic = AcousticConfig.published(rate)
    unet = TUNetConfig(context_width=2 * acoustic.feature_width + PE_WIDTH)
    return Layout(EncoderConfig(), acoustic, unet, VAEConfig(), HifiGanConfig())


LAYOUTS = {rate: _published_layout(rate) for rate in TOKEN_RATES.values()}


def read_published(
    files: PublishedFiles, name: str | None = None, *, rate: int | None = None, average: bool = False
) -> CodecParts:
    """Read a published codec.

    On CPUs, features are computed with the published operators. If the published code runs on the same CPU with
    attention in separate steps, its features and the input of its acoustic codebook are bit-identical. Tokens then
    differ only at near ties, where the published float32 distances do not select the exact nearest code.

    Args:
        files: result of `find_published`. Tensors are mapped into memory and read when they are used.
        name: name of the codec; by default `semanticodec-<rate>`.
        rate: expected token rate; by default the rate of the checkpoints.
        average: take the exponential moving average of the weights of the T-UNet. The published code loads but does
            not use it.

    Raises:
        ValueError: a file cannot be read without running code in it, the rates differ, a codebook does not fit, or
            tensors are missing, unknown or misshapen. The message lists all tensors that do not fit.
    """
    encoder, decoder = _encoder_tensors(files.encoder), _decoder_tensors(files.decoder)
    rate = _token_rate(files.encoder, encoder, rate)
    layout, problems = LAYOUTS[rate], list[str]()
    weights = _build(lambda: AudioMAE(layout.encoder), encoder, _AUDIOMAE, problems)
    acoustic = _build(lambda: AcousticEncoder(layout.acoustic), encoder, "", problems)
    modules = _decoder_modules(decoder, layout, average, problems)
    problems += [f"{name} is unknown" for name in decoder if name not in (_SCHEDULE, _SCALE)]
    schedule, scale = _schedule(decoder, problems)
    if problems:
        raise ValueError(f"{files.source} does not fit the published layout: {'; '.join(problems)}")
    features = EncoderWeights(ENCODER_NAME, layout.encoder, weights.state_dict(), {"published_steps": True})
    provenance = {"imported_from": files.source, "averaged_weights": average, "licence": LICENCE}
    info = CodecInfo(name or f"semanticodec-{rate}", rate, stack_factor(rate), provenance=provenance)
    return CodecParts(
        TokenParts(features, _codebooks(files, rate, features), acoustic, info),
        DecoderParts(grid=None, schedule=schedule, scale_factor=scale, **modules),
    )


def load_published_vae(path: Path) -> AutoencoderKL:
    """Load the VAE of a published `decoder.ckpt`, mapped into memory. Raises ValueError like `read_published`."""
    return _decoder_part(path, lambda: AutoencoderKL(VAEConfig()), _FIRST_STAGE)


def load_published_vocoder(path: Path) -> HifiGan:
    """Load the vocoder of a published `decoder.ckpt`, mapped into memory. Raises ValueError like `read_published`."""
    return _decoder_part(path, lambda: HifiGan(HifiGanConfig()), _VOCODER)


def _decoder_part(path: Path, make: Callable[[], Module], prefix: str) -> Module:
    tensors, problems = _decoder_tensors(path), list[str]()
    vocoder = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_VOCODER)}
    module = _build(make, vocoder if prefix == _VOCODER else tensors, prefix, problems)
    if problems:
        raise ValueError(f"{path} does not fit the published layout: {'; '.join(problems)}")
    return module


def _decoder_modules(decoder: dict[str, Tensor], layout: Layout, average: bool, problems: list[str]) -> dict[str, Any]:
    """Build the modules of the decoder, and remove their tensors from `decoder`."""
    averages = {name: decoder.pop(name) for name in list(decoder) if name.startswith(_AVERAGE)}
    if average:
        for name in [name for name in decoder if name.startswith(_UNET)]:
            del decoder[name]
            averaged = _AVERAGE + name.removeprefix(_WRAPPER).replace(".", "")
            if averaged in averages:
                decoder[name] = averages[averaged]
    return {
        # The vocoder is part of the first stage, so that it has to be removed first.
        "vocoder": _build(lambda: HifiGan(layout.vocoder), decoder, _VOCODER, problems),
        "vae": _build(lambda: AutoencoderKL(layout.vae), decoder, _FIRST_STAGE, problems),
        "unet": _build(lambda: TUNet(layout.unet), decoder, _UNET, problems),
    }


def _schedule(decoder: Mapping[str, Tensor], problems: list[str]) -> tuple[Any, float]:
    """Return the schedule and the scale of the latents. Append a phrase to `problems` for each that is invalid."""
    problems += [f"{name} is missing" for name in (_SCHEDULE, _SCALE) if name not in decoder]
    schedule, scale = None, decoder.get(_SCALE, torch.ones(()))
    if _SCHEDULE in decoder:
        try:
            schedule = NoiseSchedule.from_buffers(decoder)
        except (ValueError, RuntimeError) as error:
            problems.append(str(error))
    if scale.numel() != 1 or _fault(scale):
        problems.append(f"{_SCALE} is not a finite number")
        return schedule, 1.0
    return schedule, float(scale)


def _encoder_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an encoder from its own checkpoint or from a checkpoint of the training."""
    tensors = read_checkpoint(path)
    if any(name.startswith(_TRAINING_ENCODER) for name in tensors):
        names = (name for name in tensors if name.startswith(_TRAINING_ENCODER))
        tensors = {name.removeprefix(_TRAINING_ENCODER): tensors[name] for name in names}
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED_ENCODER)}
    if _INITTED in used and used[_INITTED].numel() == 1:  # older versions store a vector of one value
        used[_INITTED] = used[_INITTED].reshape(())
    return used


def _decoder_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a decoder from its own checkpoint or from a checkpoint of the training."""
    return {
        name: tensor
        for name, tensor in read_checkpoint(path).items()
        if not name.startswith(_UNUSED_DECODER) and not any(part in name for part in _FOREIGN)
    }


def _token_rate(path: Path, encoder: Mapping[str, Tensor], expected: int | None) -> int:
    """Return the token rate that the width of the acoustic encoder implies, or the expected one if that is unknown.

    Raises ValueError if the rate is not the expected one, or if both are unknown.
    """
    tensor = encoder.get(_HEAD)
    width = len(tensor) if tensor is not None and tensor.ndim else 0
    found = next((rate for rate, layout in LAYOUTS.items() if layout.acoustic.feature_width == width), expected)
    if found is None:
        raise ValueError(f"{path} has no token rate: {_HEAD} is {'missing' if tensor is None else 'misshapen'}")
    if expected not in (None, found):
        raise ValueError(f"{path} has {found} tokens per second, not {expected}")
    return found


def _build(make: Callable[[], Module], tensors: dict[str, Tensor], prefix: str, problems: list[str]) -> Module:
    """Build a frozen module in evaluation mode from the tensors with a prefix, and remove them from `tensors`.

    If tensors do not fit, append a phrase for each to `problems`, and return the module without values.
    """
    with torch.device("meta"):
        module = make()
    mine = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    expected = module.state_dict()
    wrong = mismatches({n: tuple(t.shape) for n, t in expected.items()}, {n: tuple(t.shape) for n, t in mine.items()})
    wrong = wrong or [f"{name} {fault}" for name in expected if (fault := _fault(mine[name]))]
    problems += [prefix + each for each in wrong]
    if not wrong:
        module.load_state_dict({name: mine[name].to(tensor.dtype) for name, tensor in expected.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _fault(tensor: Tensor) -> str | None:
    """Return the reason why a tensor cannot be a weight, or None."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        kind = "without values" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
        return f"is not a plain array of numbers ({kind})"
    return None if tensor.isfinite().all() else "is not finite"


def _codebooks(files: PublishedFiles, rate: int, encoder: EncoderWeights) -> tuple[Codebook, ...]:
    paths, stack = codebooks_of_rate(files.codebooks, rate), stack_factor(rate)
    if not paths:
        raise ValueError(f"no codebook has {rate} tokens per second: {', '.join(map(str, files.codebooks))}")
    books = [load_npy(path, stack_factor=stack, encoder=encoder.name, encoder_hash=encoder.hash) for path in paths]
    for path, book in zip(paths, books, strict=True):
        if book.width != encoder.config.width:
            raise ValueError(
                f"{path} has vectors of {book.centroids.shape[1]} values, but a codec with {rate} tokens per second "
                f"needs {encoder.config.width * stack}"
            )
    books.sort(key=lambda book: book.k)
    if len({book.k for book in books}) < len(books):
        sizes = ", ".join(str(book.k) for book in books)
        raise ValueError(
            f"{paths[0].parent} has codebooks of {sizes} rows, but a codec has one per size; give one with --codebooks"
        )
    return tuple(books)
