"""The noise schedule of latent diffusion: how much signal is left at each of the steps, and v-prediction."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COSINE_OFFSET = 8e-3  # of Nichol and Dhariwal (2021)
MAX_BETA = 0.999  # clip that leaves a little signal at the last step
LINEAR_BETAS = (0.0015, 0.0195)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Share of the signal's power left at each step: `alphas_cumprod` float32 (steps,), falling from almost 1."""

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if alphas.ndim != 1 or len(alphas) < 2 or alphas.dtype != torch.float32:
            raise ValueError(f"alphas_cumprod is float32 (steps,), not {alphas.dtype} {tuple(alphas.shape)}")
        if not (alphas.isfinite().all() and (alphas >= 0).all() and (alphas <= 1).all() and (alphas.diff() < 0).all()):
            raise ValueError("alphas_cumprod must fall from step to step and stay between 0 and 1")

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @classmethod
    def cosine(cls, steps: int = 1000, zero_terminal: bool = True) -> "NoiseSchedule":
        """Return the cosine schedule (paper, section III-D); with `zero_terminal` the last step is noise alone."""
        time = (np.arange(steps + 1, dtype=np.float64) / steps + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2
        power = np.cos(time) ** 2
        betas = 1 - power[1:] / power[:-1]
        return cls._from_betas(np.append(betas[:-1], 1.0) if zero_terminal else np.minimum(betas, MAX_BETA))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = LINEAR_BETAS[0], end: float = LINEAR_BETAS[1]) -> "NoiseSchedule":
        """Return the schedule whose betas' square roots grow linearly, the default of latent diffusion."""
        return cls._from_betas(np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2)

    @classmethod
    def _from_betas(cls, betas: NDArray[np.float64]) -> "NoiseSchedule":
        return cls(torch.from_numpy(np.cumprod(1 - betas).astype(np.float32)))

    @classmethod
    def from_buffers(cls, buffers: Mapping[str, Tensor]) -> "NoiseSchedule":
        """Read the schedule that a checkpoint was trained with; raises KeyError without `alphas_cumprod`."""
        return cls(buffers["alphas_cumprod"].detach().float().cpu())

    def buffers(self) -> dict[str, Tensor]:
        """Return what `from_buffers` reads."""
        return {"alphas_cumprod": self.alphas_cumprod}

    def weights(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights √ᾱ of the signal and √(1-ᾱ) of the noise at steps (B,), shaped to multiply `like`."""
        alphas = self.alphas_cumprod.to(timestep.device)[timestep].double()
        shape = (-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype).view(shape), (1 - alphas).sqrt().to(like.dtype).view(shape)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return √ᾱ·latent + √(1-ᾱ)·noise at steps (B,) int64, for a latent (B, …)."""
        signal, spread = self.weights(timestep, latent)
        return signal * latent + spread * noise

    def velocity(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return the training target v = √ᾱ·noise - √(1-ᾱ)·latent (Salimans and Ho, 2022)."""
        signal, spread = self.weights(timestep, latent)
        return signal * noise - spread * latent

    def split(self, noisy: Tensor, velocity: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent and the noise that a noisy latent consists of, by its v."""
        signal, spread = self.weights(timestep, noisy)
        return signal * noisy - spread * velocity, signal * velocity + spread * noisy
