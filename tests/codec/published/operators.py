"""Plain PyTorch implementation of the published encoders, as a reference on any CPU."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, EPS, CONTEXTUAL = 12, 1e-6, (9, 10, 11)


def features(tensors: Mapping[str, Tensor], mel: Tensor) -> Tensor:
    """Return AudioMAE's contextual embedding (1, 512, 768) of a filterbank (1, 1024, 128)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], EPS)

    def attention(name: str, x: Tensor) -> Tensor:
        rows = linear(f"{name}.qkv", x).reshape(1, x.shape[1], 3, HEADS, x.shape[2] // HEADS).permute(2, 0, 3, 1, 4)
        scores = (rows[0] * rows.shape[-1] ** -0.5) @ rows[1].transpose(-2, -1)
        return linear(f"{name}.proj", (scores.softmax(dim=-1) @ rows[2]).transpose(1, 2).reshape(x.shape))

    position = tensors["pos_embed"]
    patches = F.conv2d(mel[:, None], tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=16)
    x = torch.cat([tensors["cls_token"] + position[:, :1], patches.flatten(2).transpose(1, 2) + position[:, 1:]], dim=1)
    kept = []
    for block in range(12):
        x = x + attention(f"blocks.{block}.attn", norm(f"blocks.{block}.norm1", x))
        hidden = F.gelu(linear(f"blocks.{block}.mlp.fc1", norm(f"blocks.{block}.norm2", x)))
        x = x + linear(f"blocks.{block}.mlp.fc2", hidden)
        if block in CONTEXTUAL:
            kept.append(norm("norm", x))
    return torch.stack(kept).mean(dim=0)[:, 1:]


class Acoustic(nn.Module):
    """The acoustic encoder at 100 tokens per second, with the published names of tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        with torch.device("meta"):
            self.encoder = nn.LSTM(1536, 1536, 4, batch_first=True, bidirectional=True)
            self.encoder_output_linear = nn.Linear(3072, 768, bias=False)
        self.codes = tensors["quantizer._codebook.embed"]
        mine = {name: tensor for name, tensor in tensors.items() if not name.startswith("quantizer")}
        self.load_state_dict(mine, assign=True)

    def forward(self, embedded: Tensor, centroids: Tensor, padded: Tensor) -> Tensor:
        """Return the vectors to quantize (1, 512, 768), of features, centroids (1, 512, 768) and padded (1, 512)."""
        return self.encoder_output_linear(self.encoder(self.inputs(embedded, centroids, padded))[0])

    def inputs(self, embedded: Tensor, centroids: Tensor, padded: Tensor) -> Tensor:
        """Return the input of the LSTM, (1, 512, 1536)."""
        return torch.cat([embedded, centroids], dim=-1).masked_fill(padded[..., None], -1.0)

    def tokens(self, vectors: Tensor) -> Tensor:
        """Return the codes (1, 512) with the smallest float32 distance."""
        return torch.cdist(vectors, self.codes).argmin(dim=-1)
