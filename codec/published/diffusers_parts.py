"""Loads the VAE and the vocoder of AudioLDM 2, as `AudioLDM2Pipeline.save_pretrained` stores them."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sctok.audio.mel import DECODER_BINS
from sctok.audio.windows import FRAME_SHIFT, SAMPLE_RATE
from sctok.codec.models.hifigan import SLOPE, HifiGan, HifiGanConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.features.checkpoints import load_pickle
from sctok.formats.files import is_repository, read_json
from sctok.formats.tensors import check_header

from .files import fetch_file, first_line

Config = TypeVar("Config")

CONFIG_FILE = "config.json"
VOCODER_FILES = ("model.safetensors", "pytorch_model.bin")
VAE_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# Settings of diffusers' AutoencoderKL: the default, and the only value that our module supports.
_VAE_SETTINGS: Mapping[str, tuple[Any, Any]] = {
    "_class_name": ("AutoencoderKL", "AutoencoderKL"),
    "in_channels": (3, 1),
    "out_channels": (3, 1),
    "act_fn": ("silu", "silu"),
    "shift_factor": (None, None),
    "latents_mean": (None, None),
    "latents_std": (None, None),
    "use_quant_conv": (True, True),
    "use_post_quant_conv": (True, True),
    "mid_block_add_attention": (True, True),
}
# The same for transformers' SpeechT5HifiGan.
_VOCODER_SETTINGS: Mapping[str, tuple[Any, Any]] = {
    "architectures": (["SpeechT5HifiGan"], ["SpeechT5HifiGan"]),
    "model_in_dim": (80, DECODER_BINS),
    "sampling_rate": (16_000, SAMPLE_RATE),
    "leaky_relu_slope": (0.1, SLOPE),
}
# Sizes of SpeechT5HifiGan and their defaults.
_VOCODER_SIZES: Mapping[str, Any] = {
    "upsample_initial_channel": 512,
    "upsample_rates": [4, 4, 4, 4],
    "upsample_kernel_sizes": [8, 8, 8, 8],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}
# Old and new names in PyTorch of the magnitude and the direction of a normalized weight.
_WEIGHT_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
# Parts of our names, and their names in diffusers.
_VAE_NAMES = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    (".norm_out.", ".conv_norm_out."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".block.", ".resnets."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
)
# Names in older files, and in new ones.
_OLD_ATTENTION = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def load_diffusers_vae(source: str | Path) -> tuple[AutoencoderKL, float]:
    """Load the VAE of a diffusers pipeline.

    Args:
        source: folder of the pipeline, its subfolder `vae`, or a repository `owner/name` of the Hugging Face hub such
            as `cvssp/audioldm2`.

    Returns:
        The VAE in evaluation mode, float32 on the CPU, and the factor by which its latents are multiplied.

    Raises:
        ValueError: files are missing or unreadable, our module does not support the settings, or tensors are missing,
            unknown or misshapen. The message lists all of them.
    """
    folder = _part_folder(source, "vae", VAE_FILES)
    config, scale = _vae_config(folder / CONFIG_FILE)
    with torch.device("meta"):
        model = AutoencoderKL(config)
    names = {name: _vae_name(name, len(config.multipliers)) for name in model.state_dict()}
    tensors = _read_tensors(folder, VAE_FILES)
    _fill(model, names, {_renamed(name, _OLD_ATTENTION): value for name, value in tensors.items()}, folder)
    return model, scale


def load_diffusers_vocoder(source: str | Path) -> HifiGan:
    """Load the vocoder of a diffusers pipeline, a SpeechT5HifiGan of transformers for 64 mel bins at 16 kHz.

    Args:
        source: folder of the pipeline, its subfolder `vocoder`, or a hub repository, as in `load_diffusers_vae`.

    Returns:
        The vocoder in evaluation mode, float32 on the CPU, with weight norms folded into the weights.

    Raises:
        ValueError: as in `load_diffusers_vae`.
    """
    folder = _part_folder(source, "vocoder", VOCODER_FILES)
    path = folder / CONFIG_FILE
    settings = _read_settings(path)
    config = _vocoder_config(path, settings)
    with torch.device("meta"):
        model = HifiGan(config)
    tensors = _fold_weight_norms(_read_tensors(folder, VOCODER_FILES))
    mean, scale = tensors.pop("mean", torch.zeros(1)), tensors.pop("scale", torch.ones(1))
    if settings.get("normalize_before", True) and (mean.any() or (scale != 1).any()):
        _refuse(path, ["normalize_before true (must be false, unless the mean is 0 and the scale is 1)"])
    _fill(model, {name: name.replace("ups.", "upsampler.") for name in model.state_dict()}, tensors, folder)
    return model


def _vocoder_config(path: Path, settings: Mapping[str, Any]) -> HifiGanConfig:
    problems = _unsupported(settings, _VOCODER_SETTINGS)
    sizes = {name: settings.get(name, default) for name, default in _VOCODER_SIZES.items()}
    initial, rates, kernels, res_kernels, dilations = sizes.values()
    if not _is_size(initial):
        problems.append(f"upsample_initial_channel {initial!r} (must be a positive integer)")
    for name in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes"):
        if not _are_sizes(sizes[name]):
            problems.append(f"{name} {sizes[name]!r} (must be a list of positive integers)")
    if _are_sizes(rates) and math.prod(rates) != FRAME_SHIFT:
        problems.append(f"upsample_rates {rates!r} (their product must be {FRAME_SHIFT})")
    if not isinstance(dilations, list) or not dilations or any(row != dilations[0] for row in dilations):
        problems.append(f"resblock_dilation_sizes {dilations!r} (must be equal for all kernels)")
    elif not _are_sizes(dilations[0]) or (_are_sizes(res_kernels) and len(dilations) != len(res_kernels)):
        problems.append(f"resblock_dilation_sizes {dilations!r} (must be positive integers, one row for each kernel)")
    _refuse(path, problems)
    return _build_config(path, HifiGanConfig, initial, rates, kernels, res_kernels, dilations[0])


def _fold_weight_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace magnitudes and directions by weights (Salimans and Kingma, 2016)."""
    folded = dict(tensors)
    for magnitude, direction in _WEIGHT_NORMS:
        for layer in [name.removesuffix(magnitude) for name in tensors if name.endswith(f".{magnitude}")]:
            if f"{layer}{direction}" in folded:
                sizes, vectors = folded.pop(f"{layer}{magnitude}"), folded.pop(f"{layer}{direction}")
                norms = vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.ndim - 1))
                folded[f"{layer}weight"] = vectors * (sizes / norms)
    return folded


def _vae_config(path: Path) -> tuple[VAEConfig, float]:
    settings = _read_settings(path)
    problems = _unsupported(settings, _VAE_SETTINGS)
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if any(each != kind for each in settings.get(name, [kind])):
            problems.append(f"{name} {settings[name]!r} (must be {kind})")
    sizes = {
        "layers_per_block": settings.get("layers_per_block", 1),
        "latent_channels": settings.get("latent_channels", 4),
    }
    problems += [
        f"{name} {value!r} (must be a positive integer)" for name, value in sizes.items() if not _is_size(value)
    ]
    scale: Any = settings.get("scaling_factor")
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        problems.append(f"scaling_factor {scale!r} (must be a positive number)")
    widths: Any = settings.get("block_out_channels")
    if not _are_sizes(widths) or any(width % widths[0] for width in widths):
        problems.append(f"block_out_channels {widths!r} (must be multiples of the first value)")
    _refuse(path, problems)
    multipliers = tuple(width // widths[0] for width in widths)
    config = _build_config(path, VAEConfig, widths[0], multipliers, sizes["layers_per_block"], sizes["latent_channels"])
    _refuse(path, _unsupported(settings, {"norm_num_groups": (32, config.groups)}))
    return config, float(scale)


def _vae_name(name: str, levels: int) -> str:
    """Return the diffusers name of one of our tensors. diffusers counts the decoder's levels from the latent."""
    parts = name.split(".")
    if parts[1] == "down":
        parts[1] = "down_blocks"
    elif parts[1] == "up":
        parts[1:3] = "up_blocks", str(levels - 1 - int(parts[2]))
    return _renamed(".".join(parts), _VAE_NAMES)


def _renamed(name: str, replacements: Sequence[tuple[str, str]]) -> str:
    for old, new in replacements:
        name = name.replace(old, new)
    return name


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} contains a {type(settings).__name__}, not the settings of a model")
    return settings


def _unsupported(settings: Mapping[str, Any], allowed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [
        f"{name} {settings.get(name, default)!r} (must be {needed!r})"
        for name, (default, needed) in allowed.items()
        if settings.get(name, default) != needed
    ]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(map(_is_size, value))


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{path} has settings that sctok does not support: {'; '.join(problems)}")


def _build_config(path: Path, kind: Callable[..., Config], *sizes: Any) -> Config:
    """Build a configuration from sizes. Errors name the file."""
    try:
        return kind(*sizes)
    except ValueError as error:
        raise ValueError(f"{path} has settings that sctok does not support: {error}") from error


def _read_tensors(folder: Path, filenames: Sequence[str]) -> dict[str, Tensor]:
    """Read the tensors of the first existing file as float32, without running code in it."""
    path = next(folder / name for name in filenames if (folder / name).is_file())
    try:
        if path.suffix == ".safetensors":
            check_header(path)
            loaded = load_file(path)
        else:
            loaded = load_pickle(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} has no tensors that load without running code ({first_line(error)})") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} is not a dictionary of tensors")
    return {name: value.float() for name, value in loaded.items()}


def _fill(model: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load tensors into a model on the meta device. `names` maps our names to those of the tensors."""
    state, problems = {}, []
    for ours, target in model.state_dict().items():
        theirs = names[ours]
        # diffusers has linear layers for the projections of attention, sctok has 1 × 1 convolutions.
        shape = target.shape[:2] if ".attentions." in theirs else target.shape
        if theirs not in tensors:
            problems.append(f"{theirs} is missing")
        elif tensors[theirs].shape != shape:
            problems.append(f"{theirs} has shape {tuple(tensors[theirs].shape)} instead of {tuple(shape)}")
        else:
            state[ours] = tensors[theirs].reshape(target.shape)
    problems += [f"{name} is unknown" for name in sorted(set(tensors) - set(names.values()))]
    if problems:
        raise ValueError(f"{folder} does not fit its {CONFIG_FILE}: {'; '.join(problems)}")
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)


def _part_folder(source: str | Path, part: str, filenames: Sequence[str]) -> Path:
    """Return the folder of a part of a pipeline. Download it from the hub if the source is not a folder."""
    path = Path(source)
    if path.exists():
        folders = [path / part, path]
    elif is_repository(source):
        folders = [_fetch(str(source), part, filenames)]
    else:
        raise ValueError(f"{source} is neither a folder nor a hub repository owner/name")
    for folder in folders:
        if (folder / CONFIG_FILE).is_file():
            if any((folder / name).is_file() for name in filenames):
                return folder
            raise ValueError(f"{folder} has a {CONFIG_FILE}, but none of {', '.join(filenames)}")
    raise ValueError(f"{source} has no {part}/{CONFIG_FILE}: it is not a diffusers pipeline with this part")


def _fetch(repository: str, part: str, filenames: Sequence[str]) -> Path:
    """Return the local folder of a part in a hub repository, with its settings and the first available file."""
    fetch_file(repository, f"{part}/{CONFIG_FILE}")
    errors = []
    for filename in filenames:
        try:
            return fetch_file(repository, f"{part}/{filename}").parent
        except ValueError as error:
            errors.append(error)
    raise errors[0]
