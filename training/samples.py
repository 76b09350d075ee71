"""How a codec in training sounds: a few held-out windows decoded with the averaged weights, and their distance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sctok.audio.spectral_distances import mel_distance
from sctok.codec.models.condition import PE_WIDTH, unconditional
from sctok.codec.samplers import Condition, SamplerConfig, sample

from .codec import CodecTraining

Heard = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Listening:
    """What `CodecTraining.listen` calls: DAC's mel distance of the first held-out windows, every so many steps.

    heard: gets the step and both waveforms, float32 (windows, 163,840) on the CPU: decoded and original.
    """

    training: CodecTraining
    vocoder: nn.Module
    every: int
    windows: int
    sampler: SamplerConfig
    heard: Heard = lambda step, decoded, original: None

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Return the distance after a step, and nothing between the steps at which windows are decoded."""
        if step % self.every and step != self.training.config.steps:
            return {}
        original = torch.from_numpy(self.training.held_out[: self.windows])
        decoded = self._decode().float().cpu()[:, : original.shape[1]]
        self.heard(step, decoded, original)
        return {"mel_distance": float(mel_distance(decoded, original).mean())}

    def _decode(self) -> Tensor:
        task = self.training
        model = task.average.eval()
        batch = task.prepare(task.held_out[: self.windows], (-1, 0), 0.0)
        context, _ = model.condition(batch, dropped=False)
        nothing = unconditional(context.shape[1], context.shape[2] - PE_WIDTH).to(context.device)
        extras = (None, None) if model.grid is None else (model.grid(context), model.grid(nothing))
        condition = Condition(context, nothing, *extras)
        latent = sample(model.unet, task.schedule, self.sampler, condition, shape=batch.latent.shape)
        # One at a time: maps of several windows leave the cache of a CPU.
        mels = [task.vae.decode(each / model.scale_factor)[:, 0] for each in latent.split(1)]
        waves: Tensor = self.vocoder.to(task.device)(torch.cat(mels))
        return waves
