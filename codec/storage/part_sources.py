"""Loads a VAE or a vocoder from its own file, a codec, a published checkpoint or a diffusers pipeline."""

from pathlib import Path

from torch import nn

from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.published.checkpoints import load_published_vae, load_published_vocoder
from sctok.codec.published.diffusers_parts import load_diffusers_vae, load_diffusers_vocoder

from .codec_folder import BUNDLED_CODECS, INFO_FILE, load_codec
from .parts import load_vae, load_vocoder

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def open_vae(source: str, codecs: Path | None = None) -> AutoencoderKL:
    """Load a VAE on the CPU, float32 in evaluation mode.

    Args:
        source: `mini`, the folder of a codec or its name in the folder `codecs`, a `vae.safetensors` of sctok, a
            published `decoder.ckpt`, or a diffusers pipeline or its part, as a folder or a name on the hub.
        codecs: folder in which codecs are found by name.

    Raises:
        ValueError: the source does not exist, is damaged, or is not a VAE.
    """
    path, codec = Path(source), find_codec(source, codecs)
    if codec is not None:
        return load_codec(codec).decoder.vae
    if not path.is_file():
        return load_diffusers_vae(source)[0]
    return load_published_vae(path) if path.suffix in PICKLES else load_vae(path)


def open_vocoder(source: str, codecs: Path | None = None) -> nn.Module:
    """Load a vocoder on the CPU, float32 in evaluation mode. See `open_vae`."""
    path, codec = Path(source), find_codec(source, codecs)
    if codec is not None:
        return load_codec(codec).decoder.vocoder
    if not path.is_file():
        return load_diffusers_vocoder(source)
    return load_published_vocoder(path) if path.suffix in PICKLES else load_vocoder(path)


def find_codec(source: str, codecs: Path | None) -> Path | str | None:
    """Return the argument of `load_codec` if a source is a codec. The user's codecs hide bundled ones."""
    if codecs and (codecs / source / INFO_FILE).is_file():
        return codecs / source
    return source if source in BUNDLED_CODECS or (Path(source) / INFO_FILE).is_file() else None
