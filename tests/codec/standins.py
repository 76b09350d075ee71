"""The published T-UNet with stand-in weights, and the condition of the published code in the goldens."""

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.codec.models.condition import PE_WIDTH, build_condition
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.noise_schedule import NoiseSchedule

PREFIX = "model.diffusion_model."
LATENT = (1, 8, 256, 16)


def published_unet(reference: ModuleType, rate: int) -> TUNet:
    """Return the T-UNet of a token rate. The published name of each tensor seeds its values."""
    with torch.device("meta"):
        model = TUNet(TUNetConfig(context_width=2 * 768 * (100 // rate) + PE_WIDTH))
    drawn = {name: reference.draw(PREFIX + name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in drawn.items()}, assign=True)
    return model.eval()


def published_schedule(reference: ModuleType) -> NoiseSchedule:
    """Return the schedule of the stand-in checkpoints."""
    buffers = reference.cosine_schedule()
    return NoiseSchedule.from_buffers({name: torch.as_tensor(v, dtype=torch.float32) for name, v in buffers.items()})


def golden_condition(reference: ModuleType, rate: int, golden: dict[str, NDArray[np.float32]]) -> Tensor:
    """Return the context of the first window of the golden signal."""
    stack = 100 // rate
    tokens = golden["tokens"][0, : 512 // stack]
    acoustic = reference.unit_rows(np.random.default_rng(7), (1, 8192, 768 * stack))[:, tokens[:, 1]]
    semantic = reference.codebook(rate)[None, tokens[:, 0]]
    return build_condition(torch.from_numpy(acoustic), torch.from_numpy(semantic))


def initial_noise() -> Tensor:
    """Return the initial noise of the goldens."""
    return torch.from_numpy(np.random.default_rng(11).standard_normal(LATENT).astype(np.float32))


def relative_error(found: Tensor, expected: NDArray[np.float32]) -> float:
    """Return the norm of the difference relative to the norm of the expected tensor."""
    target = torch.from_numpy(expected)
    return float((found - target).norm() / target.norm())
