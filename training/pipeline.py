"""The training of a codec, from a collection of audio to a codec folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sctok.audio.spectral_distances import mel_distance
from sctok.codec.codec_parts import CodecParts, DecoderParts, TokenParts
from sctok.codec.models.acoustic import AcousticConfig
from sctok.codec.models.condition import PE_WIDTH, unconditional
from sctok.codec.models.grid import GridConfig
from sctok.codec.models.tunet import TUNetConfig
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.samplers import Condition, SamplerConfig, sample
from sctok.codec.storage.codec_folder import describe_codec, save_codec
from sctok.codec.storage.parts import module_hash
from sctok.features.checkpoints import EncoderWeights
from sctok.features.tokenizer import check_codebook
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.files import hash_arrays
from sctok.runtime.distributed import ALONE, Group

from .clips import Clip, Collection, Skipped
from .codec import CodecTraining, CodecTrainingConfig, FrozenParts
from .config import RunConfig, TrainingPlan
from .crops import CropSampler, validation_crops
from .loop import Progress, TrainingLength, TrainingRun

OnDecoded = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class TrainingParts:
    """The frozen parts of a training, and the vocoder for its decoded windows.

    initial: the codec whose weights and noise schedule the training begins with, None for random weights.
    """

    encoder: EncoderWeights
    codebooks: Sequence[Codebook]
    vae: AutoencoderKL
    vocoder: nn.Module
    initial: CodecParts | None = None

    def hashes(self) -> dict[str, Any]:
        """Return the hashes of all parts that influence the training."""
        books = [codebook_hash(book) for book in self.codebooks]
        found = {"encoder": self.encoder.hash, "codebooks": books, "vae": module_hash(self.vae)}
        if self.initial:
            tensors = _trained_tensors(self.initial) | self.initial.decoder.schedule.buffers()
            found["initial"] = hash_arrays({name: value.numpy() for name, value in tensors.items()})
        return found

    def check(self, config: CodecTrainingConfig) -> None:
        """Raise ValueError if the codebooks or `initial` do not fit the configuration."""
        for book in self.codebooks:
            if book.metadata.token_rate != config.token_rate:
                raise ValueError(
                    f"the codebook of {book.k} centroids is for {book.metadata.token_rate} tokens per second, "
                    f"the codec for {config.token_rate}"
                )
            check_codebook(book, self.encoder.name, self.encoder.hash)
        if self.initial:
            self._check_initial(self.initial, config)

    def _check_initial(self, codec: CodecParts, config: CodecTrainingConfig) -> None:
        name, tokens, decoder = codec.info.name, codec.tokens, codec.decoder
        if tokens.encoder.hash != self.encoder.hash:
            raise ValueError(f"{name} was trained with the encoder {tokens.encoder.hash}, not with {self.encoder.hash}")
        ours = _sizes(config.acoustic, config.unet, config.grid) | {"order": config.order}
        theirs = _sizes(tokens.acoustic.config, decoder.unet.config, decoder.grid.config if decoder.grid else None)
        theirs["order"] = codec.info.order
        if differing := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
            told = ", ".join(f"{key} {theirs.get(key)} instead of {ours.get(key)}" for key in differing)
            raise ValueError(f"{name} has other settings than the configuration ({told}): train with its settings")
        for part in ("encoder", "quant_conv"):
            if module_hash(getattr(self.vae, part)) != module_hash(getattr(decoder.vae, part)):
                raise ValueError(
                    f"the VAE has other latents than the VAE of {name}: give one of which only the decoder was trained "
                    "further (sctok pretrain vae --decoder-of)"
                )


class CodecRun:
    """A training of a codec in one folder; it resumes from the folder's checkpoint."""

    def __init__(
        self,
        plan: TrainingPlan,
        config: CodecTrainingConfig,
        parts: TrainingParts,
        collection: Collection[Clip],
        folder: Path,
        device: torch.device,
        group: Group = ALONE,
        skipped: Skipped = lambda path, reason: None,
    ) -> None:
        """Prepare the training, or resume it. Raises ValueError if the checkpoint has other settings."""
        self.plan, self.config, self.parts, self.collection = plan, config, parts, collection
        parts.check(config)
        crops = CropSampler(collection.train, plan.crops, skipped, plan.run.readers)
        limit, otherwise = plan.run.validation_windows, collection.train
        held_out = validation_crops(collection.held_out, plan.crops, limit, otherwise)
        frozen = FrozenParts(parts.encoder.build(), parts.codebooks, parts.vae)
        self.task = CodecTraining(config, frozen, crops, held_out, device, group)
        settings = {**asdict(config), "crops": asdict(plan.crops), "parts": parts.hashes(), "ranks": group.world}
        self.run = TrainingRun(self.task, folder, settings, group)
        if parts.initial:
            self.task.schedule = parts.initial.decoder.schedule
            if self.run.step == 0:
                for model in (self.task.model, self.task.average):
                    model.load_state_dict(_trained_tensors(parts.initial))

    def train(self, progress: Progress = lambda report: None, on_decoded: OnDecoded | None = None) -> int:
        """Train up to the last step; see `TrainingRun.run` and, for `on_decoded`, `Listening`."""
        run = self.plan.run
        if run.listen_every:
            self.task.listen = Listening(self.task, self.parts.vocoder.eval().requires_grad_(False), run, on_decoded)
        return self.run.run(TrainingLength(self.config.steps, run.validate_every, run.checkpoint_seconds), progress)

    def save(self, folder: Path, name: str) -> CodecParts:
        """Write the codec of the averaged weights to a folder, and return it. Raises DiskFullError."""
        average = self.task.average.cpu().eval()
        encoder, books = self.parts.encoder, tuple(self.parts.codebooks)
        provenance = self.run.provenance(self.collection.hours)
        info = describe_codec(name, encoder, books, average.acoustic, self.config.order, provenance)
        scale, vae, vocoder = float(average.scale_factor), self.parts.vae.cpu(), self.parts.vocoder.cpu()
        codec = CodecParts(
            TokenParts(encoder, books, average.acoustic, info),
            DecoderParts(average.unet, average.grid, self.task.schedule, scale, vae, vocoder),
        )
        save_codec(folder, codec, overwrite=True)
        return codec


def _sizes(acoustic: AcousticConfig, unet: TUNetConfig, grid: GridConfig | None) -> dict[str, Any]:
    """Return the numbers that determine the shapes of the trained parts, named as in a configuration file."""
    found = {"hidden": acoustic.hidden_width, "acoustic_width": acoustic.quantizer.dim}
    found |= {name: getattr(acoustic, name) for name in ("feature_width", "layers", "codebook_size")}
    parts = {"acoustic": found, "unet": asdict(unet), "grid": asdict(grid) if grid else {}}
    return {f"[{part}] {name}": value for part, sizes in parts.items() for name, value in sizes.items()}


def _trained_tensors(codec: CodecParts) -> dict[str, Tensor]:
    decoder = codec.decoder
    modules = {"acoustic": codec.tokens.acoustic, "unet": decoder.unet} | (
        {"grid": decoder.grid} if decoder.grid else {}
    )
    tensors = {f"{name}.{key}": value for name, each in modules.items() for key, value in each.state_dict().items()}
    return tensors | {"scale_factor": torch.tensor(decoder.scale_factor)}


@dataclass(frozen=True, eq=False)
class Listening:
    """Decodes the first held-out windows at some validations and measures their DAC mel distance.

    on_decoded: gets the step, the decoded and the original waveforms, float32 (windows, 163,840) on the CPU.
    """

    training: CodecTraining
    vocoder: nn.Module
    run: RunConfig
    on_decoded: OnDecoded | None = None

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Return the mel distance at a step, or nothing if no windows are decoded at this step."""
        if step % (self.run.validate_every * self.run.listen_every) and step != self.training.config.steps:
            return {}
        original = torch.from_numpy(self.training.held_out[: self.run.listen_windows])
        decoded = self._decode().float().cpu()[:, : original.shape[1]]
        if self.on_decoded:
            self.on_decoded(step, decoded, original)
        return {"mel_distance": float(mel_distance(decoded, original).mean())}

    def _decode(self) -> Tensor:
        task = self.training
        model = task.average.eval()
        batch = task.prepare(task.held_out[: self.run.listen_windows], (-1, 0), 0.0)
        context, _ = model.condition(batch, dropped=False)
        nothing = unconditional(context.shape[1], context.shape[2] - PE_WIDTH).to(context.device)
        extras = (None, None) if model.grid is None else (model.grid(context), model.grid(nothing))
        condition = Condition(context, nothing, *extras)
        sampler = SamplerConfig("ddim", self.run.listen_steps, eta=0.0, guidance=self.run.listen_guidance)
        latent = sample(model.unet, task.schedule, sampler, condition, shape=batch.latent.shape)
        # One at a time: the feature maps of several windows exceed the cache of a CPU.
        mels = [task.vae.decode(each / model.scale_factor)[:, 0] for each in latent.split(1)]
        waves: Tensor = self.vocoder.to(task.device)(torch.cat(mels))
        return waves
