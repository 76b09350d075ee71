"""The published SemantiCodec checkpoints as parts of a codec of ours."""

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

# Where the modules are, and what is not needed: the decoder that AudioMAE was pretrained with, other conditions of the
# training, and buffers that follow from alphas_cumprod.
_TRAINING_ENCODER = "cond_stage_models.0."
_AUDIOMAE, _UNET = "audiomae.model.", "model.diffusion_model."
_FIRST_STAGE, _VOCODER = "first_stage_model.", "first_stage_model.vocoder."
_AVERAGE, _WRAPPER = "model_ema.", "model."  # averages are named as below the wrapper, without dots
_UNUSED_ENCODER = ("audiomae.model.mask_token", "audiomae.model.decoder_", "pos_embed.pe")
_UNUSED_DECODER = ("logvar", "betas", "alphas_cumprod_prev", "sqrt_", "log_one_minus_", "posterior_")
_FOREIGN = ("clap", "loss", "cond_stage")  # in the names of what training checkpoints hold beside the decoder
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

    @classmethod
    def of(cls, rate: int) -> "Layout":
        """Return the sizes of the published codec of a token rate."""
        acoustic = AcousticConfig.published(rate)
        unet = TUNetConfig(context_width=2 * acoustic.feature_width + PE_WIDTH)
        return cls(EncoderConfig(), acoustic, unet, VAEConfig(), HifiGanConfig())


LAYOUTS = {rate: Layout.of(rate) for rate in TOKEN_RATES.values()}


def read_published(
    files: PublishedFiles,
    name: str | None = None,
    *,
    rate: int | None = None,
    average: bool = False,
    layouts: Mapping[int, Layout] | None = None,
) -> CodecParts:
    """Read a published codec.

    Args:
        files: from `find_published`. Tensors stay there, mapped into memory, until they are used.
        name: of the codec; `semanticodec-<rate>` where None.
        rate: the token rate that is expected; it shows in the checkpoints.
        average: take the exponential moving average of the T-UNet's weights, which the published code loads and does
            not use.
        layouts: sizes by token rate, `LAYOUTS` where None.

    Returns:
        Its parts. CPUs compute features with the published operators, attention in separate steps: features and
        what the acoustic codebook quantizes are equal to the bit to those of the published code on the same CPU, run
        with attention in separate steps. Tokens then differ only at near ties, where the nearest code of the published
        float32 distances is not the exactly nearest one.

    Raises:
        ValueError: a file cannot be read without running code in it; the rates differ; tensors are missing, unknown or
            misshapen, all of which are listed; a codebook does not fit.
    """
    layouts = layouts or LAYOUTS
    encoder, decoder = _encoder_tensors(files.encoder), _decoder_tensors(files.decoder)
    rate = _token_rate(files.encoder, encoder, rate, layouts)
    layout, problems = layouts[rate], list[str]()
    weights = _filled(lambda: AudioMAE(layout.encoder), encoder, _AUDIOMAE, problems)
    acoustic = _filled(lambda: AcousticEncoder(layout.acoustic), encoder, "", problems)
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
    """Return the VAE of a published `decoder.ckpt`, mapped into memory. Raises ValueError as `read_published`."""
    return _decoder_part(path, lambda: AutoencoderKL(VAEConfig()), _FIRST_STAGE)


def load_published_vocoder(path: Path) -> HifiGan:
    """Return the vocoder of a published `decoder.ckpt`, mapped into memory. Raises ValueError as `read_published`."""
    return _decoder_part(path, lambda: HifiGan(HifiGanConfig()), _VOCODER)


def _decoder_part(path: Path, make: Callable[[], Module], prefix: str) -> Module:
    tensors, problems = _decoder_tensors(path), list[str]()
    vocoder = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_VOCODER)}
    module = _filled(make, vocoder if prefix == _VOCODER else tensors, prefix, problems)
    if problems:
        raise ValueError(f"{path} does not fit the published layout: {'; '.join(problems)}")
    return module


def _decoder_modules(decoder: dict[str, Tensor], layout: Layout, average: bool, problems: list[str]) -> dict[str, Any]:
    """Return the modules of the decoder, whose tensors are taken out of `decoder`."""
    averages = {name: decoder.pop(name) for name in list(decoder) if name.startswith(_AVERAGE)}
    if average:
        for name in [name for name in decoder if name.startswith(_UNET)]:
            del decoder[name]
            averaged = _AVERAGE + name.removeprefix(_WRAPPER).replace(".", "")
            if averaged in averages:
                decoder[name] = averages[averaged]
    return {
        # The vocoder lies inside the first stage and comes out first.
        "vocoder": _filled(lambda: HifiGan(layout.vocoder), decoder, _VOCODER, problems),
        "vae": _filled(lambda: AutoencoderKL(layout.vae), decoder, _FIRST_STAGE, problems),
        "unet": _filled(lambda: TUNet(layout.unet), decoder, _UNET, problems),
    }


def _schedule(decoder: Mapping[str, Tensor], problems: list[str]) -> tuple[Any, float]:
    """Return the schedule and the scale of the latents; where they are none, `problems` gets a phrase for each."""
    problems += [f"{name} is missing" for name in (_SCHEDULE, _SCALE) if name not in decoder]
    schedule, scale = None, decoder.get(_SCALE, torch.ones(()))
    if _SCHEDULE in decoder:
        try:
            schedule = NoiseSchedule.from_buffers(decoder)
        except (ValueError, RuntimeError) as error:
            problems.append(str(error))
    if scale.numel() != 1 or _fault(scale):
        problems.append(f"{_SCALE} is no finite number")
        return schedule, 1.0
    return schedule, float(scale)


def _encoder_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an encoder, whether they are alone or in a checkpoint of the training."""
    tensors = read_checkpoint(path)
    if any(name.startswith(_TRAINING_ENCODER) for name in tensors):
        inside = (name for name in tensors if name.startswith(_TRAINING_ENCODER))
        tensors = {name.removeprefix(_TRAINING_ENCODER): tensors[name] for name in inside}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED_ENCODER)}
    if (
        _INITTED in kept and kept[_INITTED].numel() == 1
    ):  # a vector of one value, or a number, by the version that wrote it
        kept[_INITTED] = kept[_INITTED].reshape(())
    return kept


def _decoder_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a decoder, whether they are alone or in a checkpoint of the training."""
    return {
        name: tensor
        for name, tensor in read_checkpoint(path).items()
        if not name.startswith(_UNUSED_DECODER) and not any(part in name for part in _FOREIGN)
    }


def _token_rate(path: Path, encoder: Mapping[str, Tensor], expected: int | None, layouts: Mapping[int, Layout]) -> int:
    """Return the token rate whose features the acoustic encoder is as wide as; what is expected where that is missing.

    Raises ValueError for another than the expected, and where nothing tells.
    """
    tensor = encoder.get(_HEAD)
    width = len(tensor) if tensor is not None and tensor.ndim else 0
    found = next((rate for rate, layout in layouts.items() if layout.acoustic.feature_width == width), expected)
    if found is None:
        raise ValueError(f"{path} tells no token rate: {_HEAD} is {'missing' if tensor is None else 'misshapen'}")
    if expected not in (None, found):
        raise ValueError(f"{path} is of {found} tokens per second, not {expected}")
    return found


def _filled(make: Callable[[], Module], tensors: dict[str, Tensor], prefix: str, problems: list[str]) -> Module:
    """Return a module, frozen and in evaluation mode, with the tensors below a prefix, taken out of `tensors`.

    Where they do not fit, `problems` gets a phrase for each and the module stays empty.
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
    """Return why a tensor cannot be a weight, or None."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        kind = "without values" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
        return f"is no plain array of numbers ({kind})"
    return None if tensor.isfinite().all() else "is not finite"


def _codebooks(files: PublishedFiles, rate: int, encoder: EncoderWeights) -> tuple[Codebook, ...]:
    paths, known, stack = codebooks_of_rate(files.codebooks, rate), encoder.hash, stack_factor(rate)
    if not paths:
        raise ValueError(
            f"none of the codebooks is of {rate} tokens per second: {', '.join(map(str, files.codebooks))}"
        )
    books = [load_npy(path, stack_factor=stack, encoder=encoder.name, encoder_hash=known) for path in paths]
    for path, book in zip(paths, books, strict=True):
        if book.width != encoder.config.width:
            raise ValueError(
                f"{path} has vectors of {book.centroids.shape[1]} values, codecs of {rate} tokens per second need "
                f"{encoder.config.width * stack}"
            )
    books.sort(key=lambda book: book.k)
    if len({book.k for book in books}) < len(books):
        sizes = ", ".join(str(book.k) for book in books)
        raise ValueError(
            f"codebooks of {sizes} rows in {paths[0].parent}: a codec has one of each size; give one with --codebooks"
        )
    return tuple(books)
