"""The HiFi-GAN vocoder of AudioLDM 2 (Kong et al., 2020), in the published layout."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sctok.audio.mel import DECODER_BINS

SLOPE = 0.1
LAST_SLOPE = 0.01  # the published code uses PyTorch's default before the last convolution


@dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of the vocoder; the defaults are those of the published checkpoint.

    initial: number of channels before the first upsampling; each upsampling halves it. rates, kernels: strides and
    kernel sizes of the upsampling convolutions. res_kernels: kernel sizes of the residual blocks, whose outputs are
    averaged. dilations: dilations of the convolutions in each residual block.
    """

    initial: int = 1024
    rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    kernels: tuple[int, ...] = (16, 16, 8, 4, 4)
    res_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)

    def __post_init__(self) -> None:
        for name in ("rates", "kernels", "res_kernels", "dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, when read from JSON
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} {getattr(self, name)} of the vocoder must be positive")
        if len(self.rates) != len(self.kernels) or any(k < r for k, r in zip(self.kernels, self.rates, strict=True)):
            raise ValueError(
                f"each rate of the vocoder needs a kernel at least as large: rates {self.rates}, kernels {self.kernels}"
            )
        if self.initial < 1 or self.initial % 2 ** len(self.rates):
            raise ValueError(f"initial {self.initial} of the vocoder cannot be halved {len(self.rates)} times")
        if any(size % 2 == 0 for size in self.res_kernels):
            raise ValueError(f"res_kernels {self.res_kernels} of the vocoder must be odd")


class HifiGan(nn.Module):
    """Upsampling convolutions, each followed by residual blocks with several receptive fields."""

    def __init__(self, config: HifiGanConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_pre = nn.Conv1d(DECODER_BINS, config.initial, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        width = config.initial
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2))
            width //= 2
            self.resblocks.extend(_ResBlock(width, size, config.dilations) for size in config.res_kernels)
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        """Map log-mels (B, T, 64) to waveforms (B, n) at 16 kHz.

        With the published sizes n is 160 T + 32, because the first rate is odd and its kernel even.
        """
        # Maps of height 1 in channels-last memory: CPUs convolve them 1.4 times as fast.
        x = mel.mT[:, :, None].contiguous(memory_format=torch.channels_last)
        x = _convolve(self.conv_pre, x)
        blocks = len(self.config.res_kernels)
        for index, up in enumerate(self.ups):
            x = _upsample(up, F.leaky_relu(x, SLOPE))
            first, *others = self.resblocks[index * blocks : (index + 1) * blocks]
            total = first(x)
            for block in others:
                total.add_(block(x))
            x = total.div_(blocks)
        return torch.tanh(_convolve(self.conv_post, F.leaky_relu(x, LAST_SLOPE)))[:, 0, 0]


class _ResBlock(nn.Module):
    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            return nn.Conv1d(width, width, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            inner = F.leaky_relu_(_convolve(first, F.leaky_relu(x, SLOPE)), SLOPE)
            x = _convolve(second, inner).add_(x)
        return x


def _convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a Conv1d to x (B, C, 1, T)."""
    assert isinstance(layer, nn.Conv1d)
    padding, dilation = (0, int(layer.padding[0])), (1, layer.dilation[0])
    return F.conv2d(x, layer.weight[:, :, None], layer.bias, padding=padding, dilation=dilation)


def _upsample(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a ConvTranspose1d to x (B, C, 1, T)."""
    assert isinstance(layer, nn.ConvTranspose1d)
    stride, padding = (1, layer.stride[0]), (0, int(layer.padding[0]))
    return F.conv_transpose2d(x, layer.weight[:, :, None], layer.bias, stride, padding)
