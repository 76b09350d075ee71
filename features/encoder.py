"""AudioMAE: a vision transformer over filterbank patches (Huang et al., 2022), as SemantiCodec uses it."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sctok.audio.windows import MEL_BINS, PATCH_ROWS, PATCH_SIZE, WINDOW_FRAMES, WINDOW_PATCHES

PATCH_VALUES = PATCH_SIZE * PATCH_SIZE
CONTEXT_BLOCKS = 3  # the contextual embedding averages the outputs of this many last blocks
NORM_EPS = 1e-6


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an AudioMAE encoder. The defaults describe the published ViT-B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.depth < CONTEXT_BLOCKS:
            raise ValueError(f"depth {self.depth} is below the {CONTEXT_BLOCKS} blocks of the contextual embedding")

    def to_json(self) -> dict[str, int]:
        """Return the sizes as a JSON object."""
        return asdict(self)


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection.

    fused: whether one kernel computes it. Published codecs use separate steps, which round differently.
    """

    fused = True

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two linear layers with an exact GELU; the hidden layer is four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """A 16 × 16 convolution with stride 16, computed as one product over flattened patches.

    convolved: whether `AudioMAE` runs the convolution operator on CPUs, as published codecs do. The two operators
    differ in the last bit on some CPUs. The convolution takes 2 ms longer per window with AVX-512 and 10 ms with AVX2
    at the published sizes (one thread of an AMD EPYC); the whole encoder takes at least 0.4 s.
    """

    convolved = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH_SIZE, PATCH_SIZE)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (B, N, 256) to (B, N, width)."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def convolve(self, mel: Tensor) -> Tensor:
        """Map filterbanks (B, 16·c, 128) to (B, 8·c, width)."""
        embedded: Tensor = self.proj(mel[:, None])
        return embedded.flatten(2).mT


def split_patches(mel: Tensor) -> Tensor:
    """Cut filterbanks (B, 16·c, 128) into patches (B, 8·c, 256), time-major: patch t·8 + f, value 16·frame + bin."""
    batch, columns = mel.shape[0], mel.shape[1] // PATCH_SIZE
    grid = mel.reshape(batch, columns, PATCH_SIZE, PATCH_ROWS, PATCH_SIZE)
    return grid.transpose(2, 3).reshape(batch, columns * PATCH_ROWS, PATCH_VALUES)


class AudioMAE(nn.Module):
    """The encoder of AudioMAE; parameter names are those of the published checkpoints."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + WINDOW_PATCHES, config.width))
        self.patch_embed = PatchEmbedding(config.width)
        self.blocks = nn.ModuleList(EncoderBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def embed_patches(self, patches: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embed patches, add position embeddings, and prepend the class token.

        Args:
            patches: (B, 512, 256), or only the first ones.
            keep: int64 (B, N), the indices of the patches to keep, in order; None keeps all.

        Returns:
            (B, 1 + N, width).
        """
        positions = self.pos_embed[:, 1 : 1 + patches.shape[1]].expand(patches.shape[0], -1, -1)
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, PATCH_VALUES))
            positions = positions.gather(1, keep[..., None].expand(-1, -1, self.config.width))
        return self._with_class_token(self.patch_embed(patches) + positions)

    def embed(self, mel: Tensor) -> Tensor:
        """Embed filterbanks (B, 16·c, 128) and prepend the class token: (B, 1 + 8·c, width)."""
        if not (self.patch_embed.convolved and mel.device.type == "cpu"):
            return self.embed_patches(split_patches(mel))
        embedded = self.patch_embed.convolve(mel)
        return self._with_class_token(embedded + self.pos_embed[:, 1 : 1 + embedded.shape[1]])

    def _with_class_token(self, embedded: Tensor) -> Tensor:
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(embedded), -1, -1)
        return torch.cat([first, embedded], dim=1)

    def forward(self, mel: Tensor) -> Tensor:
        """Return the contextual embedding of filterbanks: the mean of the normed outputs of the last three blocks.

        Args:
            mel: (B, 1024, 128), normalised; or (B, 16·c, 128), only the first c columns.

        Returns:
            (B, 512, width), or (B, 8·c, width), without the class token, time-major, eight frequency rows per column.

        Raises:
            ValueError: `mel` has another shape.
        """
        frames = mel.shape[1] if mel.ndim == 3 and mel.shape[2] == MEL_BINS else 0
        if frames % PATCH_SIZE or not 0 < frames <= WINDOW_FRAMES:
            raise ValueError(
                f"expected filterbanks of shape (batch, {WINDOW_FRAMES}, {MEL_BINS}), got {tuple(mel.shape)}"
            )
        x = self.embed(mel)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= self.config.depth - CONTEXT_BLOCKS:
                total = total + self.norm(x)
        return total[:, 1:] / CONTEXT_BLOCKS
