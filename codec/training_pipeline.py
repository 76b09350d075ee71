"""A codec's training from a collection of audio to a codec folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sctok.features.checkpoints import EncoderWeights
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.files import hash_arrays
from sctok.kmeans_tools.distributed import ALONE, Group

from .artefact import CodecParts, describe_codec, save_codec
from .crops import Collection, CropSampler, Skipped
from .part_files import arrays_of, module_hash
from .samplers import SamplerConfig
from .training import CodecTraining, CodecTrainingConfig, Frozen
from .training_config import RunConfig, TrainingPlan
from .training_run import Schedule, TrainingRun
from .training_samples import Heard, Listening
from .training_state import mismatches
from .vae import AutoencoderKL


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
            arrays = {name: value.numpy() for name, value in _trained_tensors(self.initial).items()}
            found["initial"] = hash_arrays(arrays)
        return found


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
        self._check(parts)
        crops = CropSampler(collection.train, plan.crops, skipped, plan.run.readers)
        held_out = collection.validation(plan.crops, plan.run.validation_windows)
        frozen = Frozen(parts.encoder.build(), parts.codebooks, parts.vae)
        self.task = CodecTraining(config, frozen, crops, held_out, device, group)
        settings = {**config.to_json(), "crops": asdict(plan.crops), "parts": parts.hashes(), "ranks": group.world}
        self.run = TrainingRun(self.task, folder, settings, group)
        if parts.initial:
            self.task.schedule = parts.initial.schedule
            if self.run.step == 0:
                begin_with(self.task, parts.initial)

    def _check(self, parts: TrainingParts) -> None:
        for book in parts.codebooks:
            if book.metadata.token_rate != self.plan.token_rate:
                raise ValueError(
                    f"the codebook of {book.k} centroids is for {book.metadata.token_rate} tokens per second, "
                    f"the codec for {self.plan.token_rate}"
                )
            if book.metadata.encoder_hash != parts.encoder.hash:
                raise ValueError(
                    f"the codebook of {book.k} centroids was made with the encoder {book.metadata.encoder} "
                    f"({book.metadata.encoder_hash}), not with {parts.encoder.name} ({parts.encoder.hash}); "
                    "cluster features of that encoder that were extracted with --padding keep"
                )

    def train(self, progress: Callable[[dict[str, Any]], None], heard: Heard | None = None) -> int:
        """Train to the last step, as `TrainingRun.run`; `heard` is that of `Listening`."""
        run = self.plan.run
        if run.listen_every:
            self.task.listen = listening(self.task, self.parts.vocoder, run, heard)
        return self.run.run(Schedule(self.config.steps, run.validate_every, run.checkpoint_seconds), progress)

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
    """Give what a training trains, and the averages of it, the weights of a codec, and the latent's scale.

    Raises ValueError where its condition has another order or its VAE other latents, or naming every tensor that does
    not fit.
    """
    if codec.info.order != task.config.order:
        raise ValueError(
            f"the condition of {codec.info.name} has the {codec.info.order} order, not {task.config.order}"
        )
    for part in ("encoder", "quant_conv"):
        ours, theirs = (arrays_of(getattr(vae, part)) for vae in (task.vae, codec.vae))
        if hash_arrays(ours) != hash_arrays(theirs):
            raise ValueError(
                f"the latents of the VAE are not those that {codec.info.name} knows: take a VAE whose decoder alone "
                "was trained on (sctok pretrain vae --decoder-of)"
            )
    given = _trained_tensors(codec)
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (task.model.state_dict(), given)]
    if problems := mismatches(*shapes):
        raise ValueError(f"the codec {codec.info.name} does not fit the configuration: {'; '.join(problems)}")
    for model in (task.model, task.average):
        model.load_state_dict(given)


def _trained_tensors(codec: CodecParts) -> dict[str, Tensor]:
    modules = {"acoustic": codec.acoustic, "unet": codec.unet} | ({"grid": codec.grid} if codec.grid else {})
    tensors = {f"{name}.{key}": value for name, each in modules.items() for key, value in each.state_dict().items()}
    return tensors | {"scale_factor": torch.tensor(codec.scale_factor)}


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
    return CodecParts(
        encoder=parts.encoder,
        codebooks=tuple(parts.codebooks),
        acoustic=average.acoustic,
        unet=average.unet,
        grid=average.grid,
        schedule=task.schedule,
        scale_factor=float(average.scale_factor),
        vae=parts.vae.cpu(),
        vocoder=parts.vocoder.cpu(),
        info=info,
    )
