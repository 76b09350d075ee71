"""Windows of tokens to waveforms on one device, several windows at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.windows import WINDOW_FRAMES, WINDOW_SAMPLES
from sctok.codec.models.condition import build_condition, unconditional
from sctok.codec.models.grid import GridCondition, GridConfig
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.formats.codebooks import Codebook
from sctok.formats.sct import TokenPairs
from sctok.runtime.devices import DTYPES, Use
from sctok.runtime.low_precision import Step, filled, forward_step

from .codec_parts import CodecParts
from .overlap import NO_TOKEN
from .samplers import Condition, SamplerConfig, sample, window_generators

DECODER = Use("the decoder", "sctok.codec.decoding:decoder_steps")

# Sizes of the modules with which low precision is tested.
_PROBE_FRAMES, PROBE_TOKENS, PROBE_CONTEXT = 128, 128, 256
_PROBE_VAE = VAEConfig(32, (1, 2), 1, 8, patch=4)
PROBE_GRID = GridConfig(PROBE_CONTEXT, 4, _PROBE_VAE.latent_shape(1024), 16, 4, 1)


@dataclass(frozen=True, eq=False)
class TokenWindow:
    """A window to decode.

    pairs: semantic and acoustic tokens, int64 (512 / stack factor, 2), padded with -1. codebook: codebook of the
    semantic tokens. number: index of the window in its file, which determines its noise.
    """

    pairs: TokenPairs
    codebook: Codebook
    number: int


class WindowDecoder:
    """The decoder of a codec on one device."""

    def __init__(self, parts: CodecParts, device: torch.device, precision: str) -> None:
        self._parts, self._device, self._precision = parts.decoder, device, precision
        self._quantizer, self._order = parts.tokens.acoustic.quantizer, parts.info.order
        decoder = parts.decoder
        for module in (self._quantizer, decoder.unet, decoder.grid, decoder.vae, decoder.vocoder):
            if module is not None:
                module.to(device).eval().requires_grad_(False)
        self._latent_shape = decoder.vae.config.latent_shape(WINDOW_FRAMES)

    @torch.inference_mode()
    def decode(
        self,
        windows: Sequence[TokenWindow],
        sampler: SamplerConfig,
        progress: Callable[[int], object] | None = None,
    ) -> NDArray[np.float32]:
        """Decode windows to waveforms, float32 (B, 163,840 or more).

        The noise of a window depends only on its number and the seed. Other windows of the batch can change its
        waveform only by rounding. `progress` is described in `sample`.
        """
        generators = window_generators(sampler.seed, [window.number for window in windows])
        with torch.autocast(
            self._device.type, DTYPES[self._precision], enabled=DTYPES[self._precision] != torch.float32
        ):
            latents = sample(
                self._parts.unet,
                self._parts.schedule,
                sampler,
                self._condition(windows),
                shape=(len(windows), *self._latent_shape),
                generators=generators,
                progress=progress,
            )
            # On a CPU one window at a time: the feature maps of several windows exceed the cache.
            parts = latents.split(1 if self._device.type == "cpu" else len(latents))
            return torch.cat([self._render(part) for part in parts]).float().cpu().numpy()

    def _condition(self, windows: Sequence[TokenWindow]) -> Condition:
        pairs = torch.from_numpy(np.stack([window.pairs for window in windows])).to(self._device)
        padded = pairs[..., 0] == NO_TOKEN
        acoustic = self._quantizer.decode(pairs[..., 1].masked_fill(padded, 0))
        # Padding gets the first centroid.
        centroids = [window.codebook.centroids[window.pairs[:, 0].clip(min=0)] for window in windows]
        semantic = torch.from_numpy(np.stack(centroids)).to(self._device)
        context = build_condition(acoustic, semantic, padded, order=self._order)
        empty = unconditional(context.shape[1], acoustic.shape[-1] + semantic.shape[-1]).to(self._device)
        if self._parts.grid is None:
            return Condition(context, empty)
        return Condition(context, empty, self._parts.grid(context), self._parts.grid(empty))

    def _render(self, latents: Tensor) -> Tensor:
        """Convert latents (B, z, H, W) to waveforms (B, n)."""
        mel = self._parts.vae.decode(latents / self._parts.scale_factor)[:, 0]
        waves: Tensor = self._parts.vocoder(mel)
        assert waves.shape[1] >= WINDOW_SAMPLES
        return waves


def decoder_steps() -> list[Step]:
    """Return small computations of every kind that decoding uses, to test low precision on a CPU."""
    unet, grid = filled(probe_unet()).eval(), filled(GridCondition(PROBE_GRID)).eval()
    vae, mel = filled(AutoencoderKL(_PROBE_VAE)).eval(), torch.randn(1, _PROBE_FRAMES, 64)
    hifigan = filled(HifiGan(HifiGanConfig(32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4), (3,), (1,)))).eval()
    return [
        forward_step("T-UNet", unet, *probe_unet_inputs()),
        forward_step("grid", grid, torch.randn(1, PROBE_TOKENS, PROBE_CONTEXT)),
        forward_step("VAE", vae.decode, torch.randn(1, *_PROBE_VAE.latent_shape(_PROBE_FRAMES))),
        forward_step("HiFi-GAN vocoder", hifigan, mel),
        forward_step("iSTFT vocoder", filled(IstftVocoder(VocoderConfig(64, 1, 2))).eval(), mel),
    ]


def probe_unet() -> TUNet:
    """Return a small T-UNet."""
    return TUNet(TUNetConfig(8, 0, 32, (1, 2), 1, (1,), 32, PROBE_CONTEXT))


def probe_unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return a latent, a timestep and a context for the small T-UNet."""
    return torch.randn(1, 8, 64, 16), torch.tensor([500]), torch.randn(1, PROBE_TOKENS, PROBE_CONTEXT)
