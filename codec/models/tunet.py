"""The T-UNet of SemantiCodec: a convolutional U-Net whose blocks attend to the tokens of a window."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIME_BASE = 10000.0  # longest period of the sinusoidal time embedding
NORM_GROUPS = 32
RES_NORM_EPS = 1e-5
TRANSFORMER_NORM_EPS = 1e-6
NARROW = 2  # maps up to this width are convolved on CPUs by one matrix product, which is faster

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TUNetConfig:
    """Sizes of a T-UNet; the defaults are those of the published decoder at 100 tokens per second.

    extra_channels: channels that are concatenated with the latent at the input. attention_levels: resolutions with
    transformers; 0 is that of the latent. context_width: width of the tokens that are attended to (1728, 3264 and 6336
    in the published decoders).
    """

    latent_channels: int = 8
    extra_channels: int = 0
    model_channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 3, 5)
    res_blocks: int = 2
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_width: int = 32
    context_width: int = 1728

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # lists, when read from JSON
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        positive = (self.latent_channels, self.model_channels, self.res_blocks, self.head_width, self.context_width)
        if min(positive) < 1 or self.extra_channels < 0 or not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"sizes of a T-UNet must be positive: {self}")
        if self.model_channels % 2:
            raise ValueError(f"model_channels {self.model_channels} is odd: the time embedding needs an even number")
        for level in self.attention_levels:
            if not 0 <= level < len(self.multipliers):
                raise ValueError(f"attention level {level} is not one of the {len(self.multipliers)} levels")
        for level in {*self.attention_levels, len(self.multipliers) - 1}:
            if self.channels(level) % self.head_width:
                raise ValueError(f"{self.channels(level)} channels are not a multiple of head_width {self.head_width}")

    def channels(self, level: int) -> int:
        """Return the number of channels at a level."""
        return self.model_channels * self.multipliers[level]


@dataclass(frozen=True, eq=False)
class PreparedContext:
    """Keys and values of every cross-attention for one batch of contexts, each (B, heads, L, head width)."""

    pairs: tuple[KeysValues, ...]

    @property
    def batch(self) -> int:
        """Number of contexts."""
        return len(self.pairs[0][0])

    def expand(self, batch: int) -> "PreparedContext":
        """Repeat a context of batch 1 `batch` times, without copying."""
        return PreparedContext(tuple((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in self.pairs))

    def join(self, other: "PreparedContext") -> "PreparedContext":
        """Concatenate two batches of contexts."""
        pairs = zip(self.pairs, other.pairs, strict=True)
        return PreparedContext(tuple((torch.cat((k, k2)), torch.cat((v, v2))) for (k, v), (k2, v2) in pairs))


def time_embedding(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps (B,) as cosines, then sines, at width / 2 frequencies from 1 down to 1/10000: (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(TIME_BASE) * torch.arange(half, device=timestep.device) / half)
    angles = timestep[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def repeat_to_batch(value: Tensor, like: Tensor) -> Tensor:
    """Repeat `value` (b, …) to the batch of `like`, a multiple of b."""
    return value if len(value) == len(like) else value.repeat(len(like) // len(value), *[1] * (value.ndim - 1))


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a group norm with the greatest common divisor of 32 and the channels as its number of groups."""
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=eps)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the parameters of a layer to zero, so that a new block returns its input unchanged."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Conv3x3(nn.Conv2d):
    """A 3 × 3 convolution that keeps the size of its map, optimized for channels-last memory."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        height, width = x.shape[2:]
        if width > NARROW or x.device.type != "cpu":
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        taps = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(torch.cat(taps, dim=-1), weight, self.bias).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two norm-SiLU-convolution steps with the time embedding added between them, and a skip connection."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(inputs, RES_NORM_EPS), nn.SiLU(inplace=True), Conv3x3(inputs, outputs)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, outputs))
        last = zeroed(Conv3x3(outputs, outputs))
        self.out_layers = nn.Sequential(group_norm(outputs, RES_NORM_EPS), nn.SiLU(inplace=True), nn.Identity(), last)
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map x (B, inputs, H, W) and time (B, time width) to (B, outputs, H, W)."""
        hidden = self.in_layers(x)
        hidden += self.emb_layers(repeat_to_batch(time, x))[:, :, None, None]
        return self.out_layers(hidden).add_(self.skip_connection(x))


class TokenAttention(nn.Module):
    """Multi-head attention of (B, N, width) to itself or to the result of `keys_values`."""

    def __init__(self, width: int, context_width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def heads(self, x: Tensor) -> Tensor:
        """Reshape (B, N, width) to (B, heads, N, head width)."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return the keys and values of a context (B, L, context width), each (B, heads, L, head width)."""
        return self.heads(self.to_k(context)), self.heads(self.to_v(context))

    def forward(self, x: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        keys, values = self.keys_values(x) if keys_values is None else keys_values
        mixed = F.scaled_dot_product_attention(self.heads(self.to_q(x)), keys, values)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first half through an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, hidden)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A feed-forward network with a gated hidden layer of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, a second attention (to the context if there is one) and a feed-forward network, all pre-norm."""

    def __init__(self, width: int, context_width: int | None, head_width: int) -> None:
        super().__init__()
        self.attn1 = TokenAttention(width, width, head_width)
        self.ff = FeedForward(width)
        self.attn2 = TokenAttention(width, context_width or width, head_width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, keys_values: KeysValues | None) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        x = self.attn1(self.norm1(x)).add_(x)
        if keys_values is not None:
            x = repeat_to_batch(x, keys_values[0])  # from here on, latents with different contexts differ
        x = self.attn2(self.norm2(x), keys_values).add_(x)
        return self.ff(self.norm3(x)).add_(x)


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a feature map. Without `context_width` it attends only to itself."""

    def __init__(self, width: int, context_width: int | None, head_width: int) -> None:
        super().__init__()
        self.is_cross = context_width is not None
        self.norm = group_norm(width, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context_width, head_width)])
        self.proj_out = zeroed(nn.Conv2d(width, width, 1))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return the keys and values of a context (B, L, context width), each (B, heads, L, head width)."""
        block = self.transformer_blocks[0]
        assert isinstance(block, TransformerBlock)
        return block.attn2.keys_values(context)

    def forward(self, x: Tensor, keys_values: KeysValues | None) -> Tensor:
        """Map (B, width, H, W) to (B, width, H, W)."""
        rows = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # no copy if the map is stored channels last
        rows = F.linear(rows, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.transformer_blocks:
            rows = block(rows, keys_values)
        rows = F.linear(rows, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return rows.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2).add_(repeat_to_batch(x, rows))


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.ModuleList):
    """Layers applied one after the other. A ModuleList, so that tensors have their published names."""

    def forward(self, x: Tensor, time: Tensor, pairs: Iterator[KeysValues]) -> Tensor:
        """Map (B, C, H, W) to the output of the last layer. Each cross-attention takes the next item of `pairs`."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, time)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, next(pairs) if layer.is_cross else None)
            else:
                x = layer(x)
        return x


def store_channels_last(module: nn.Module, *_: object) -> None:
    """Store the weights of convolutions channels last, so that no call has to convert them."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class TUNet(nn.Module):
    """The denoiser: predicts v of a noisy latent, conditioned on tokens by cross-attention (paper, section III-D).

    Tensors have the names that follow `model.diffusion_model.` in a published checkpoint.
    """

    def __init__(self, config: TUNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        inputs = config.latent_channels + config.extra_channels
        self.input_blocks = nn.ModuleList([Stage([Conv3x3(inputs, width)])])
        skips = [width]
        for level in range(len(config.multipliers)):
            for _ in range(config.res_blocks):
                self.input_blocks.append(self._stage(level, skips[-1]))
                skips.append(config.channels(level))
            if level + 1 < len(config.multipliers):
                self.input_blocks.append(Stage([Downsample(skips[-1])]))
                skips.append(skips[-1])
        middle = skips[-1]
        residuals = [ResBlock(middle, middle, 4 * width) for _ in range(2)]
        self.middle_block = Stage([residuals[0], *self._transformers(middle), residuals[1]])
        self.output_blocks = nn.ModuleList()
        channels = middle
        for level in reversed(range(len(config.multipliers))):
            for block in range(config.res_blocks + 1):
                stage = self._stage(level, channels + skips.pop())
                channels = config.channels(level)
                if level and block == config.res_blocks:
                    stage.append(Upsample(channels))
                self.output_blocks.append(stage)
        last = zeroed(Conv3x3(channels, config.latent_channels))
        self.out = nn.Sequential(group_norm(channels, RES_NORM_EPS), nn.SiLU(inplace=True), last)
        store_channels_last(self)
        self.register_load_state_dict_post_hook(store_channels_last)  # type: ignore[no-untyped-call]

    def _stage(self, level: int, inputs: int) -> Stage:
        outputs = self.config.channels(level)
        stage = Stage([ResBlock(inputs, outputs, 4 * self.config.model_channels)])
        if level in self.config.attention_levels:
            stage.extend(self._transformers(outputs))
        return stage

    def _transformers(self, width: int) -> list[SpatialTransformer]:
        widths = (None, self.config.context_width)
        return [SpatialTransformer(width, context_width, self.config.head_width) for context_width in widths]

    def prepare(self, context: Tensor) -> PreparedContext:
        """Compute the keys and values of a context (B, L, context width), to be used in any number of calls."""
        if context.ndim != 3 or context.shape[-1] != self.config.context_width:
            raise ValueError(f"a context must be (B, L, {self.config.context_width}), not {tuple(context.shape)}")
        crossing = [layer for layer in self.modules() if isinstance(layer, SpatialTransformer) and layer.is_cross]
        return PreparedContext(tuple(layer.keys_values(context) for layer in crossing))

    def forward(
        self, latent: Tensor, timestep: Tensor, context: Tensor | PreparedContext, extra: Tensor | None = None
    ) -> Tensor:
        """Predict v.

        Args:
            latent: noisy latents, float32 (b, latent channels, H, W).
            timestep: int64 (b,), in 0…999.
            context: (B, L, context width), or the result of `prepare`. B is a multiple of b: the latents are repeated,
                and everything that does not depend on the context is computed once.
            extra: (b, extra channels, H, W) if the configuration has extra channels.

        Returns:
            v, (B, latent channels, H, W).
        """
        prepared = context if isinstance(context, PreparedContext) else self.prepare(context)
        self._check(latent, extra, prepared.batch)
        pairs = iter(prepared.pairs)
        time = self.time_embed(time_embedding(timestep, self.config.model_channels))
        x = latent if extra is None else torch.cat((latent, extra), dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, time, pairs)
            skips.append(x)
        x = self.middle_block(x, time, pairs)
        for stage in self.output_blocks:
            x = stage(torch.cat((x, repeat_to_batch(skips.pop(), x)), dim=1), time, pairs)
        return self.out(x).contiguous()

    def _check(self, latent: Tensor, extra: Tensor | None, contexts: int) -> None:
        divisor = 2 ** (len(self.config.multipliers) - 1)
        if latent.shape[1] != self.config.latent_channels or latent.shape[2] % divisor or latent.shape[3] % divisor:
            raise ValueError(
                f"a latent must be (B, {self.config.latent_channels}, H, W) with H and W multiples of {divisor}, "
                f"not {tuple(latent.shape)}"
            )
        if (0 if extra is None else extra.shape[1]) != self.config.extra_channels:
            raise ValueError(f"the T-UNet needs {self.config.extra_channels} extra channels")
        if contexts % len(latent):
            raise ValueError(f"the number of contexts, {contexts}, is not a multiple of the {len(latent)} latents")
