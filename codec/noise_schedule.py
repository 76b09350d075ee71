"""The noise schedule of latent diffusion, and the target of v-prediction."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COSINE_OFFSET = 8e-3  # Nichol and Dhariwal (2021)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The share ᾱ of the signal's power at each step, float32 (steps,), decreasing from almost 1."""

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if alphas.ndim != 1 or len(alphas) < 2 or alphas.dtype != torch.float32:
            raise ValueError(f"alphas_cumprod must be float32 (steps,), not {alphas.dtype} {tuple(alphas.shape)}")
        if not (alphas.isfinite().all() and (alphas >= 0).all() and (alphas <= 1).all() and (alphas.diff() < 0).all()):
            raise ValueError("alphas_cumprod must decrease at every step and lie between 0 and 1")

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @classmethod
    def cosine(cls, steps: int = 1000) -> "NoiseSchedule":
        """Return the cosine schedule (paper, section III-D). Its last step contains only noise."""
        time = (np.arange(steps + 1, dtype=np.float64) / steps + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2
        power = np.cos(time) ** 2
        betas = np.append(1 - power[1:-1] / power[:-2], 1.0)
        return cls(torch.from_numpy(np.cumprod(1 - betas).astype(np.float32)))

    @classmethod
    def from_buffers(cls, buffers: Mapping[str, Tensor]) -> "NoiseSchedule":
        """Return the schedule in the buffers of a checkpoint. Raises KeyError if `alphas_cumprod` is missing."""
        return cls(buffers["alphas_cumprod"].detach().float().cpu())

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers that `from_buffers` reads."""
        return {"alphas_cumprod": self.alphas_cumprod}

    def weights(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights √ᾱ of the signal and √(1-ᾱ) of the noise at steps (B,), broadcastable to `like`."""
        alphas = self.alphas_cumprod.to(timestep.device)[timestep].double()
        shape = (-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype).view(shape), (1 - alphas).sqrt().to(like.dtype).view(shape)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return √ᾱ·latent + √(1-ᾱ)·noise at steps (B,) int64, for a latent (B, …)."""
        signal, spread = self.weights(timestep, latent)
        return signal * latent + spread * noise

    def velocity(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return the target of v-prediction, v = √ᾱ·noise - √(1-ᾱ)·latent (Salimans and Ho, 2022)."""
        signal, spread = self.weights(timestep, latent)
        return signal * noise - spread * latent
