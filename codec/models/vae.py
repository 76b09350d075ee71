"""The variational autoencoder of AudioLDM 2: log-mel spectrograms to latents and back, in the published layout."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sctok.audio.mel import DECODER_BINS

NORM_EPS = 1e-6
MAX_GROUPS = 32


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are those of the published checkpoint.

    patch: side of the squares of the spectrogram that become one pixel of the first layer. The published value is 1;
    larger values make a small model fast.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 8
    patch: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        for name in ("channels", "res_blocks", "latent_channels", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} of the VAE is not positive")
        if not self.multipliers or self.channels % 4:
            raise ValueError(
                f"a VAE needs multipliers and a multiple of 4 channels, not {self.multipliers} and {self.channels}"
            )
        if DECODER_BINS % self.factor:
            raise ValueError(f"{DECODER_BINS} mel bins are not divisible by the factor {self.factor} of the VAE")

    @property
    def factor(self) -> int:
        """Number of frames, and of mel bins, per position of the latent."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def groups(self) -> int:
        """Number of groups in the normalization layers: 32 as published, fewer in small models."""
        return min(MAX_GROUPS, self.channels // 4)

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """Return the shape (channels, time, frequency) of the latent of `frames` mel frames."""
        return self.latent_channels, frames // self.factor, DECODER_BINS // self.factor


class AutoencoderKL(nn.Module):
    """Encoder to a diagonal Gaussian and decoder (AudioLDM 2; SemantiCodec section III-C)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Encode log-mels (B, 1, T, 64) to a mean and a log variance, each (B, z, T / factor, 64 / factor)."""
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(mel, self.config.patch)))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latent: Tensor) -> Tensor:
        """Decode a latent (B, z, T / factor, 64 / factor) to a log-mel (B, 1, T, 64)."""
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(latent)), self.config.patch)


def sample_posterior(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Return mean + deviation · noise, all of the same shape."""
    return mean + torch.exp(0.5 * log_variance) * noise


class _ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, NORM_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, NORM_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Attention(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(attended.mT.reshape(x.shape))


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = _ResBlock(channels, channels, groups)
        self.attn_1 = _Attention(channels, groups)
        self.block_2 = _ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(_ResBlock(a, b, groups) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            for block in layer if isinstance(layer, nn.ModuleList) else (layer,):
                x = block(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(config.patch**2, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip([config.channels, *widths[:-1]], widths, strict=True)):
            self.down.append(_Level(inputs, outputs, config.res_blocks, config.groups))
            if level < len(widths) - 1:
                self.down[level].downsample = _Downsample(outputs)
        self.mid = _Middle(widths[-1], config.groups)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class _Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], config.groups)
        self.up = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            self.up.append(_Level(inputs, outputs, config.res_blocks + 1, config.groups))
            if level:
                self.up[level].upsample = _Upsample(outputs)
        self.norm_out = nn.GroupNorm(config.groups, widths[0], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
