"""Windows of tokens to waveforms on one device, several at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.windows import WINDOW_FRAMES, WINDOW_SAMPLES
from sctok.codec.models.condition import build_condition, unconditional
from sctok.formats.codebooks import Codebook
from sctok.formats.sct import TokenPairs
from sctok.runtime.devices import DTYPES, Use

from .codec_parts import CodecParts
from .overlap import NO_TOKEN
from .samplers import Condition, SamplerConfig, sample, window_generators

DECODER = Use("the decoder", "sctok.codec.capabilities:decoder_steps")


@dataclass(frozen=True, eq=False)
class TokenWindow:
    """One window to decode.

    pairs: int64 (512 / stack factor, 2), semantic and acoustic, -1 where there is no token. codebook: that of the
    semantic tokens. number: of the window in its file, which decides about its noise.
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
        """Return the waveforms float32 (B, 163,840 or more) of windows; `progress` is that of `sample`.

        Noise depends on the sampler's seed and a window's number alone, so what a window becomes depends on the
        others only as far as sums are rounded in another order.
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
            # One at a time on a CPU, where maps of several windows leave the cache.
            parts = latents.split(1 if self._device.type == "cpu" else len(latents))
            return torch.cat([self._render(part) for part in parts]).float().cpu().numpy()

    def _condition(self, windows: Sequence[TokenWindow]) -> Condition:
        pairs = torch.from_numpy(np.stack([window.pairs for window in windows])).to(self._device)
        padded = pairs[..., 0] == NO_TOKEN
        acoustic = self._quantizer.decode(pairs[..., 1].masked_fill(padded, 0))
        semantic = torch.from_numpy(np.stack([_centroids(window) for window in windows])).to(self._device)
        context = build_condition(acoustic, semantic, padded, order=self._order)
        nothing = unconditional(context.shape[1], acoustic.shape[-1] + semantic.shape[-1]).to(self._device)
        if self._parts.grid is None:
            return Condition(context, nothing)
        return Condition(context, nothing, self._parts.grid(context), self._parts.grid(nothing))

    def _render(self, latents: Tensor) -> Tensor:
        """Return waveforms (B, n) of latents (B, z, H, W)."""
        mel = self._parts.vae.decode(latents / self._parts.scale_factor)[:, 0]
        waves: Tensor = self._parts.vocoder(mel)
        assert waves.shape[1] >= WINDOW_SAMPLES
        return waves


def _centroids(window: TokenWindow) -> NDArray[np.float32]:
    """Return the centroids (L, F) of a window's semantic tokens, the first one where there is no token."""
    return window.codebook.centroids[window.pairs[:, 0].clip(min=0)]
