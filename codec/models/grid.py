"""The condition as a feature map in time and frequency. It lets a small T-UNet learn token positions within hours."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from sctok.formats.stacking import PATCHES_PER_COLUMN, TOKEN_RATES

NORM_GROUPS = 8


@dataclass(frozen=True)
class GridConfig:
    """Sizes of a grid condition. The published codecs have no grid condition.

    context_width: width of the T-UNet's context. stack_factor: number of patches in a token; 64 x 8 patches are a
    window. latent_shape: (channels, time, frequency) of the latent, whose grid the map has. features: number of
    channels that the T-UNet gets in addition to the estimate of the latent.
    """

    context_width: int
    stack_factor: int
    latent_shape: tuple[int, int, int]
    hidden: int = 128
    features: int = 32
    blocks: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))
        if self.stack_factor not in TOKEN_RATES:
            raise ValueError(f"stack factor {self.stack_factor} is not one of {', '.join(map(str, TOKEN_RATES))}")
        if min(self.context_width, self.hidden, self.features, self.blocks, *self.latent_shape) < 1:
            raise ValueError(f"sizes of a grid condition must be positive: {self}")
        if self.hidden % (2 * NORM_GROUPS):
            raise ValueError(f"hidden {self.hidden} of the grid condition is not a multiple of {2 * NORM_GROUPS}")
        if self.latent_shape[1] % self.columns or self.latent_shape[2] % self.rows:
            raise ValueError(f"the latent {self.latent_shape} is not a multiple of {self.columns} x {self.rows} tokens")

    @property
    def columns(self) -> int:
        """Number of tokens of a window in time."""
        return 64 // (2 if self.stack_factor == 4 else 1)

    @property
    def rows(self) -> int:
        """Number of tokens of a window in frequency."""
        return PATCHES_PER_COLUMN // min(self.stack_factor, 2)

    @property
    def channels(self) -> int:
        """Number of channels that the T-UNet gets in addition to the noisy latent."""
        return self.latent_shape[0] + self.features


class GridCondition(nn.Module):
    """A small convolutional decoder from tokens to the grid of the latent. The first channels estimate the latent."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Conv2d(config.context_width, config.hidden, 1)
        self.blocks = nn.ModuleList(_Block(config.hidden) for _ in range(config.blocks))
        up = self._up
        self.spread = nn.Conv2d(config.hidden, config.hidden // 2 * up[0] * up[1], 1)
        self.refine = _Block(config.hidden // 2)
        self.leave = nn.Conv2d(config.hidden // 2, config.channels, 3, padding=1)

    @property
    def _up(self) -> tuple[int, int]:
        return self.config.latent_shape[1] // self.config.columns, self.config.latent_shape[2] // self.config.rows

    def forward(self, context: Tensor) -> Tensor:
        """Map a context (B, L, context width), L = columns · rows, to the grid (B, z + features, H, W)."""
        config = self.config
        x = context.mT.reshape(len(context), -1, config.columns, config.rows)
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        x = self.spread(x).reshape(len(x), -1, *self._up, config.columns, config.rows)
        x = x.permute(0, 1, 4, 2, 5, 3).reshape(len(x), -1, *config.latent_shape[1:])
        return self.leave(F.silu(self.refine(x)))

    def estimate(self, grid: Tensor) -> Tensor:
        """Return the estimate of the latent (B, z, H, W) in a grid, trained to be its mean given the tokens."""
        return grid[:, : self.config.latent_shape[0]]


class _Block(nn.Module):
    """A residual block with kernels of 5 columns and 3 rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, (5, 3), padding=(2, 1))
        self.conv2 = nn.Conv2d(width, width, (5, 3), padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))
