"""A codec's training from a collection of audio to a codec folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sctok.codec.codec_parts import CodecParts, DecoderParts, TokenParts, check_codebooks
from sctok.codec.models.acoustic import AcousticConfig
from sctok.codec.models.grid import GridConfig
from sctok.codec.models.tunet import TUNetConfig
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.samplers import SamplerConfig
from sctok.codec.storage.codec_folder import describe_codec, save_codec
from sctok.codec.storage.parts import module_hash
from sctok.features.checkpoints import EncoderWeights
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.files import hash_arrays
from sctok.runtime.distributed import ALONE, Group

from .clips import Collection, CropSampler, Skipped
from .codec import CodecTraining, CodecTrainingConfig, Frozen
from .config import RunConfig, TrainingPlan
from .loop import TrainingLength, TrainingRun
from .samples import Heard, Listening


@dataclass(frozen=True, eq=False)
class TrainingParts:
    """What a training does not change, and the vocoder that its results are heard through.

    initial: a codec whose weights and noise schedule the training begins with.
    """

    encoder: EncoderWeights
    codebooks: Sequence[Codebook]
    vae: AutoencoderKL
    vocoder: nn.Module
    initial: CodecParts | None = None

    def hashes(self) -> dict[str, Any]:
        """Return what identifies the parts that decide what is learned."""
        books = [codebook_hash(book) for book in self.codebooks]
        found = {"encoder": self.encoder.hash, "codebooks": books, "vae": module_hash(self.vae)}
        if self.initial:
            tensors = _trained_tensors(self.initial) | self.initial.decoder.schedule.buffers()
            found["initial"] = hash_arrays({name: value.numpy() for name, value in tensors.items()})
        return found

    def check(self, config: CodecTrainingConfig) -> None:
        """Raise ValueError where the codebooks do not fit, or `initial` is no beginning of such a training."""
        for book in self.codebooks:
            if book.metadata.token_rate != config.token_rate:
                raise ValueError(
                    f"the codebook of {book.k} centroids is for {book.metadata.token_rate} tokens per second, "
                    f"the codec for {config.token_rate}"
                )
        check_codebooks(self.encoder, self.codebooks)
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
            raise ValueError(f"the configuration is not that of {name}, which has {told}: train with its settings")
        for part in ("encoder", "quant_conv"):
            if module_hash(getattr(self.vae, part)) != module_hash(getattr(decoder.vae, part)):
                raise ValueError(
                    f"the latents of the VAE are not those that {name} knows: take a VAE whose decoder alone was "
                    "trained on (sctok pretrain vae --decoder-of)"
                )


class CodecRun:
    """One codec training in one folder, which goes on where it stopped."""

    def __init__(
        self,
        plan: TrainingPlan,
        config: CodecTrainingConfig,
        parts: TrainingParts,
        collection: Collection,
        folder: Path,
        device: torch.device,
        group: Group = ALONE,
        skipped: Skipped = lambda path, reason: None,
    ) -> None:
        """Set the training up, or continue from its checkpoint. Raises ValueError where that is of another training."""
        self.plan, self.config, self.parts, self.collection = plan, config, parts, collection
        parts.check(config)
        crops = CropSampler(collection.train, plan.crops, skipped, plan.run.readers)
        held_out = collection.validation(plan.crops, plan.run.validation_windows)
        frozen = Frozen(parts.encoder.build(), parts.codebooks, parts.vae)
        self.task = CodecTraining(config, frozen, crops, held_out, device, group)
        settings = {**config.to_json(), "crops": asdict(plan.crops), "parts": parts.hashes(), "ranks": group.world}
        self.run = TrainingRun(self.task, folder, settings, group)
        if parts.initial:
            self.task.schedule = parts.initial.decoder.schedule
            if self.run.step == 0:
                begin_with(self.task, parts.initial)

    def train(self, progress: Callable[[dict[str, Any]], None], heard: Heard | None = None) -> int:
        """Train to the last step, as `TrainingRun.run`; `heard` is that of `Listening`."""
        run = self.plan.run
        if run.listen_every:
            self.task.listen = listening(self.task, self.parts.vocoder, run, heard)
        return self.run.run(TrainingLength(self.config.steps, run.validate_every, run.checkpoint_seconds), progress)

    def save(self, folder: Path, name: str) -> CodecParts:
        """Write the codec of the averaged weights to a folder and return it. Raises DiskFullError."""
        provenance = {
            "trained": self.run.settings,
            "steps": self.run.step,
            "hours_of_audio": round(self.collection.hours, 2),
            "hours_of_training": round(self.run.seconds / 3600, 3),
        }
        parts = trained_codec(self.task, self.parts, name, provenance)
        save_codec(folder, parts, overwrite=True)
        return parts


def begin_with(task: CodecTraining, codec: CodecParts) -> None:
    """Give what a training trains, and its averages, the weights of a codec of its sizes, and the latent's scale."""
    for model in (task.model, task.average):
        model.load_state_dict(_trained_tensors(codec))


def _sizes(acoustic: AcousticConfig, unet: TUNetConfig, grid: GridConfig | None) -> dict[str, Any]:
    """Return the numbers that decide the shapes of what is trained, named as in a configuration file."""
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


def listening(task: CodecTraining, vocoder: nn.Module, run: RunConfig, heard: Heard | None = None) -> Listening:
    """Return what a training listens to itself with."""
    sampler = SamplerConfig("ddim", run.listen_steps, eta=0.0, guidance=run.listen_guidance)
    every = run.validate_every * run.listen_every
    vocoder = vocoder.eval().requires_grad_(False)
    return Listening(task, vocoder, every, run.listen_windows, sampler, heard or (lambda step, decoded, original: None))


def trained_codec(task: CodecTraining, parts: TrainingParts, name: str, provenance: dict[str, Any]) -> CodecParts:
    """Return the codec of a training's averaged weights, on the CPU in evaluation mode."""
    average = task.average.cpu().eval()
    info = describe_codec(name, parts.encoder, parts.codebooks, average.acoustic, task.config.order, provenance)
    scale = float(average.scale_factor)
    return CodecParts(
        TokenParts(parts.encoder, tuple(parts.codebooks), average.acoustic, info),
        DecoderParts(average.unet, average.grid, task.schedule, scale, parts.vae.cpu(), parts.vocoder.cpu()),
    )
