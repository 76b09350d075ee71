"""The VAE and the vocoder of a training: files of their own, codecs, published checkpoints, diffusers folders."""

from pathlib import Path

from torch import nn

from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.published.checkpoints import load_published_vae, load_published_vocoder
from sctok.codec.published.diffusers_parts import load_diffusers_vae, load_diffusers_vocoder

from .codec_folder import BUNDLED_CODECS, INFO_FILE, load_codec
from .parts import load_vae, load_vocoder

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def open_vae(source: str, codecs: Path | None = None) -> AutoencoderKL:
    """Return a VAE on the CPU, float32 in evaluation mode.

    Args:
        source: `mini`, a codec's folder or its name in the folder `codecs`, a `vae.safetensors` of sctok, a published
            `decoder.ckpt`, or the folder or hub name of a diffusers pipeline or of its part.
        codecs: where codecs are looked up by name.

    Raises:
        ValueError: there is none, or it is damaged or no VAE; the message says what.
    """
    place = find_codec(source, codecs)
    if place is not None:
        return load_codec(place).decoder.vae
    path = Path(source)
    if not path.is_file():
        return load_diffusers_vae(source)[0]
    if path.suffix in PICKLES:
        return load_published_vae(path)
    return load_vae(path)


def open_vocoder(source: str, codecs: Path | None = None) -> nn.Module:
    """Return a vocoder on the CPU, float32 in evaluation mode; arguments and errors are those of `open_vae`."""
    place = find_codec(source, codecs)
    if place is not None:
        return load_codec(place).decoder.vocoder
    path = Path(source)
    if not path.is_file():
        return load_diffusers_vocoder(source)
    if path.suffix in PICKLES:
        return load_published_vocoder(path)
    return load_vocoder(path)


def find_codec(source: str, codecs: Path | None) -> Path | str | None:
    """Return what `load_codec` takes where a source is a codec: one of the user's own comes before a bundled one."""
    for folder in [codecs / source] if codecs else []:
        if (folder / INFO_FILE).is_file():
            return folder
    return source if source in BUNDLED_CODECS or (Path(source) / INFO_FILE).is_file() else None
