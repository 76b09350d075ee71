"""`sctok pretrain`: train the parts that extraction and the codec are built from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sctok.cli.shared.command import command, mount
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    AudioArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    RootOption,
    SeedOption,
    checked_name,
    not_empty,
)
from sctok.cli.shared.steps import StepProgress, exit_if_stopped, tell_skipped
from sctok.cli.shared.terminal import Progress, emit, say

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sctok.features.checkpoints import EncoderWeights
    from sctok.runtime.distributed import Group
    from sctok.training.clips import Clip, Collection
    from sctok.training.encoder import EncoderTrainingConfig
    from sctok.training.parts import PartRun

pretrain = typer.Typer(help="Train an encoder, a VAE or a vocoder from unlabelled audio.", no_args_is_help=True)


@pretrain.callback()
def _group() -> None:
    """Train an encoder, a VAE or a vocoder from unlabelled audio."""


@dataclass(frozen=True)
class PlaceOptions:
    """Where a part is trained and saved."""

    device: DeviceOption = "auto"
    root: RootOption = DEFAULT_ROOT
    as_json: JsonOption = False


@dataclass(frozen=True)
class EncoderTrainingOptions:
    """The encoder and its training."""

    panel: ClassVar[str] = "Model and training"
    steps: Annotated[int, typer.Option(help="Optimizer steps; a larger number continues a finished run.")] = 6000
    batch_size: Annotated[int, typer.Option(help="Windows of 10.24 s in a step.")] = 16
    width: Annotated[int, typer.Option(help="Width of the encoder.")] = 192
    depth: Annotated[int, typer.Option(help="Number of transformer blocks of the encoder.")] = 12
    heads: Annotated[int, typer.Option(help="Number of attention heads of the encoder.")] = 3
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 8e-4
    mask_ratio: Annotated[float, typer.Option(help="Share of the patches that is hidden from the encoder.")] = 0.8
    balance: Annotated[
        float,
        typer.Option(
            help="Exponent of a group's hours in its sampling weight: 0 draws groups evenly, 1 by their hours."
        ),
    ] = 0.5
    initial: Annotated[
        str | None, typer.Option(help="Encoder of the same sizes to start from: a name or a file, as for --encoder.")
    ] = None
    decoder_steps: Annotated[int, typer.Option(help="Steps at the start that train the decoder only.", min=0)] = 0
    workers: Annotated[int, typer.Option(help="Processes that decode audio.")] = 2
    precision: PrecisionOption = "auto"
    seed: SeedOption = 0

    def config(self, precision: str, first: "EncoderWeights | None") -> "EncoderTrainingConfig":
        """Return the configuration for the library. precision: resolved. first: weights of --initial."""
        from sctok.training.encoder import EncoderTrainingConfig

        return EncoderTrainingConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            mask_ratio=self.mask_ratio,
            balance=self.balance,
            precision=precision,
            seed=self.seed,
            initial=first.hash if first else None,
            decoder_steps=self.decoder_steps,
        )


@command("sctok pretrain encoder speech/ music/ sounds/ --name mini --steps 6000")
def encoder(
    audio: Annotated[
        list[str],
        typer.Argument(metavar="AUDIO...", help="Folders, files, manifests or tar shards; each one is a group."),
    ],
    training: EncoderTrainingOptions,
    place: PlaceOptions,
    name: Annotated[str, typer.Option(help="Name of the run and of the encoder.")] = "mini",
) -> None:
    """Train an AudioMAE encoder by masked autoencoding into ROOT/pretrain/NAME, for --encoder.

    Run the same command again to resume, or with more --steps to continue.
    """
    from sctok.features.checkpoints import load_weights
    from sctok.runtime.devices import resolve_device, resolve_precision, tune_for_training
    from sctok.runtime.distributed import join_group
    from sctok.training.encoder import PRETRAINING
    from sctok.training.filterbanks import build_filterbank_cache
    from sctok.training.parts import encoder_run

    first = load_weights(training.initial) if training.initial else None
    folder = place.root / "pretrain" / name
    with join_group() as group:
        chosen = group.local_device(resolve_device(place.device))
        tune_for_training(chosen)
        config = training.config(resolve_precision(training.precision, chosen, [PRETRAINING]), first)
        with Progress("filterbanks", unit="s of audio") as bar:
            cache = build_filterbank_cache(
                audio,
                folder / "filterbanks",
                workers=training.workers,
                device=chosen,
                skipped=tell_skipped(bar.message),
                progress=lambda key, seconds: bar.update(seconds, key),
                group=group,
            )
        run = encoder_run(config, cache, folder, chosen, first, group)
        if group.leads:
            say(f"training on {len(cache.clips)} clips, {cache.hours:.2f} h, from step {run.run.step}")
        _train_and_save("encoder", run, folder / f"encoder-{name}.safetensors", "--encoder", place.as_json)


@dataclass(frozen=True)
class VAETrainingOptions:
    """The VAE and its training."""

    panel: ClassVar[str] = "Model and training"
    steps: Annotated[int, typer.Option(help="Optimizer steps; a larger number continues a finished run.", min=1)] = 1100
    batch_size: Annotated[int, typer.Option(help="Clips of 10.24 s in a step.", min=1)] = 4
    channels: Annotated[int, typer.Option(help="Channels of the first layer, a multiple of 4.", min=4)] = 32
    latent_channels: Annotated[int, typer.Option(help="Channels of the latent.", min=1)] = 16
    patch: Annotated[
        int, typer.Option(help="Side of the square of the spectrogram that each latent position covers.", min=1)
    ] = 2
    kl_weight: Annotated[float, typer.Option(help="Weight of the KL divergence.", min=0)] = 0.01
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.", min=0)] = 1e-3
    decay_share: Annotated[
        float,
        typer.Option(help="Share of the steps, at the end, over which the learning rate falls to 0.", min=0, max=1),
    ] = 0.3
    decoder_of: Annotated[
        str | None,
        typer.Option(
            help="Train only the decoder of this VAE, given as for sctok train --vae; codecs that use its latents "
            "stay valid."
        ),
    ] = None
    seed: SeedOption = 0


@command("sctok pretrain vae speech/ music/ sounds/ --name vae")
def vae(
    audio: AudioArgument,
    training: VAETrainingOptions,
    place: PlaceOptions,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "vae",
) -> None:
    """Train a small VAE of log-mel spectrograms into ROOT/pretrain/NAME/vae.safetensors, for sctok train --vae.

    Run the same command again to resume, or with more --steps to continue.
    """
    from sctok.codec.models.vae import VAEConfig
    from sctok.codec.storage.part_sources import open_vae
    from sctok.codec.storage.parts import module_hash
    from sctok.training.parts import vae_run
    from sctok.training.vae import VAETrainingConfig

    initial = open_vae(training.decoder_of, place.root / "codecs") if training.decoder_of else None
    model = VAEConfig(
        channels=training.channels, res_blocks=1, latent_channels=training.latent_channels, patch=training.patch
    )
    config = VAETrainingConfig(
        initial.config if initial else model,
        training.batch_size,
        training.steps,
        training.learning_rate,
        decay_share=training.decay_share,
        kl_weight=training.kl_weight,
        seed=training.seed,
        decoder_of=module_hash(initial) if initial else None,
    )

    def make(collection: "Collection[Clip]", folder: Path, device: "torch.device", group: "Group") -> "PartRun":
        return vae_run(config, collection, folder, device, tell_skipped(), initial, group)

    _train_part("vae", make, audio, name, place)


@dataclass(frozen=True)
class VocoderTrainingOptions:
    """The vocoder and its training."""

    panel: ClassVar[str] = "Model and training"
    steps: Annotated[int, typer.Option(help="Optimizer steps; a larger number continues a finished run.", min=1)] = 3400
    batch_size: Annotated[int, typer.Option(help="Clips of 1.28 s in a step.", min=1)] = 8
    width: Annotated[int, typer.Option(help="Channels of the blocks.", min=1)] = 256
    blocks: Annotated[int, typer.Option(help="Number of ConvNeXt blocks.", min=1)] = 6
    adversarial_after: Annotated[
        int, typer.Option(help="Steps with only spectral distances, before discriminators are used.", min=0)
    ] = 2500
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.", min=0)] = 5e-4
    initial: Annotated[
        str | None,
        typer.Option(
            help="Small vocoder to start from, given as for sctok train --vocoder; its sizes replace --width and "
            "--blocks.",
            callback=not_empty,
        ),
    ] = None
    vae: Annotated[
        str | None,
        typer.Option(
            help="VAE, given as for sctok train --vae: half of the training spectrograms pass through it.",
            callback=not_empty,
        ),
    ] = None
    seed: SeedOption = 0


@command("sctok pretrain vocoder speech/ music/ sounds/ --name vocoder --vae mini")
def vocoder(
    audio: AudioArgument,
    training: VocoderTrainingOptions,
    place: PlaceOptions,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "vocoder",
) -> None:
    """Train a small iSTFT vocoder into ROOT/pretrain/NAME/vocoder.safetensors, for sctok train --vocoder.

    Run the same command again to resume, or with more --steps to continue.
    """
    from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
    from sctok.codec.storage.part_sources import open_vae, open_vocoder
    from sctok.codec.storage.parts import module_hash
    from sctok.training.parts import vocoder_run
    from sctok.training.vocoder import VocoderTrainingConfig

    codecs = place.root / "codecs"
    first = open_vocoder(training.initial, codecs) if training.initial else None
    if first is not None and not isinstance(first, IstftVocoder):
        raise typer.BadParameter(
            f"{training.initial} is not a small iSTFT vocoder, the only kind that can be trained",
            param_hint="--initial",
        )
    through = open_vae(training.vae, codecs) if training.vae else None
    config = VocoderTrainingConfig(
        first.config if first else VocoderConfig(training.width, training.blocks),
        training.batch_size,
        training.steps,
        training.learning_rate,
        adversarial_after=training.adversarial_after,
        seed=training.seed,
        initial=module_hash(first) if first else None,
        through=module_hash(through) if through else None,
    )

    def make(collection: "Collection[Clip]", folder: Path, device: "torch.device", group: "Group") -> "PartRun":
        return vocoder_run(config, collection, folder, device, tell_skipped(), first, through, group)

    _train_part("vocoder", make, audio, name, place)


def _train_part(
    kind: str,
    make: "Callable[[Collection[Clip], Path, torch.device, Group], PartRun]",
    audio: list[str],
    name: str,
    place: PlaceOptions,
) -> None:
    """Train a part and write it. make: prepares its training on the listed audio."""
    from sctok.runtime.devices import resolve_device, tune_for_training
    from sctok.runtime.distributed import join_group
    from sctok.training.clips import open_collection

    folder = place.root / "pretrain" / checked_name(name, "--name")
    with join_group() as group:
        chosen = group.local_device(resolve_device(place.device))
        tune_for_training(chosen)
        with Progress("listing", unit="s of audio") as bar:
            collection = open_collection(audio, folder, tell_skipped(bar.message), bar.update, group)
        part = make(collection, folder, chosen, group)
        if group.leads:
            say(f"training on {len(collection.train)} clips, {collection.hours:.2f} h, from step {part.run.step}")
        _train_and_save(kind, part, folder / f"{kind}.safetensors", f"sctok train --{kind}", place.as_json)


def _train_and_save(kind: str, part: "PartRun", path: Path, option: str, as_json: bool) -> None:
    """Train a part to its last step and write it. option: the option that takes the file."""
    run = part.run
    if run.group.leads:
        with StepProgress(f"pretrain {kind}", run.step, part.length.steps, part.task.main_loss) as show:
            stopped = part.train(show)
    else:
        stopped = part.train()
    exit_if_stopped(stopped, run.step, run.group.leads)
    if run.group.leads:
        part.save(path)
        curve = run.folder / "loss.csv"
        result = {kind: str(path), "steps": run.step, "hours": run.seconds / 3600, "loss_curve": str(curve)}
        emit(result, as_json, f"{kind:10} {path}\nloss curve {curve}\nuse it with {option} {path}")


for each in (encoder, vae, vocoder):
    mount(pretrain, each)
