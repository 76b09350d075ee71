"""`sctok pretrain`: train the parts that extraction and the codec stand on."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import (
    DEFAULT_ROOT,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    Progress,
    RootOption,
    SeedOption,
    emit,
    not_empty,
    say,
)
from sctok.cli.shared.runs import AudioArgument, checked_name
from sctok.cli.shared.steps import StepProgress, exit_if_stopped, tell_skipped

if TYPE_CHECKING:
    from torch import nn

    from sctok.codec.models.vae import AutoencoderKL
    from sctok.training.vae import VAETrainingConfig
    from sctok.training.vocoder import VocoderTrainingConfig

pretrain = typer.Typer(help="Train an encoder, a VAE or a vocoder from audio alone.", no_args_is_help=True)


@pretrain.callback()
def _group() -> None:
    """Train an encoder, a VAE or a vocoder from audio alone."""


@pretrain.command()
def encoder(
    audio: Annotated[list[str], typer.Argument(help="Folders, files, manifests or tar shards; each is one group.")],
    name: Annotated[str, typer.Option(help="Name of the run and of the encoder.")] = "mini",
    steps: Annotated[
        int, typer.Option(help="Optimiser steps; a finished run continues where more are asked for.")
    ] = 6000,
    batch_size: Annotated[int, typer.Option(help="Windows per step.")] = 16,
    width: Annotated[int, typer.Option(help="Width of the encoder.")] = 192,
    depth: Annotated[int, typer.Option(help="Transformer blocks of the encoder.")] = 12,
    heads: Annotated[int, typer.Option(help="Attention heads of the encoder.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 8e-4,
    mask_ratio: Annotated[float, typer.Option(help="Share of patches hidden from the encoder.")] = 0.8,
    balance: Annotated[
        float, typer.Option(help="A group is drawn by its hours to this power: 0 evenly, 1 by hours.")
    ] = 0.5,
    initial: Annotated[
        str | None, typer.Option(help="Encoder to start from, of the same sizes: a name or a file, as --encoder.")
    ] = None,
    decoder_steps: Annotated[int, typer.Option(help="First steps in which the decoder learns alone.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Decoding processes.")] = 2,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    root: RootOption = Path("sctok-data"),
    as_json: JsonOption = False,
) -> None:
    """Train an AudioMAE encoder by masked autoencoding; run it again to resume or to add steps."""
    from sctok.features.checkpoints import load_weights, save_weights
    from sctok.runtime.devices import resolve_device, resolve_precision, tune_for_training
    from sctok.training.encoder import PRETRAINING, PretrainConfig, Pretrainer
    from sctok.training.mel_cache import build_mel_cache

    chosen = resolve_device(device)
    tune_for_training(chosen)
    first = load_weights(initial) if initial else None
    config = PretrainConfig(
        width=width,
        depth=depth,
        heads=heads,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mask_ratio=mask_ratio,
        balance=balance,
        precision=resolve_precision(precision, chosen, [PRETRAINING]),
        seed=seed,
        initial=first.hash if first else None,
        decoder_steps=decoder_steps,
    )
    folder = root / "pretrain" / name
    with Progress("filterbanks", unit="s of audio") as bar:
        cache = build_mel_cache(
            audio,
            folder / "filterbanks",
            workers=workers,
            device=chosen,
            skipped=lambda path, reason: bar.message(f"skipped {path}: {reason}"),
            progress=lambda key, seconds: bar.update(seconds, key),
        )
    hours = cache.frames.shape[0] / 360_000
    say(f"training on {len(cache.clips)} clips, {hours:.2f} h, {len({clip.group for clip in cache.clips})} groups")
    trainer = Pretrainer(config, cache, folder, chosen, first)
    _train(trainer, config.steps)
    path = folder / f"encoder-{name}.safetensors"
    provenance = {
        "trained": asdict(config),
        "hours_of_audio": round(hours, 2),
        "hours_of_training": trainer.seconds / 3600,
    }
    save_weights(path, trainer.model.encoder, provenance)
    result = {
        "encoder": str(path),
        "steps": trainer.step,
        "hours": trainer.seconds / 3600,
        "loss_curve": str(folder / "loss.csv"),
    }
    emit(result, as_json, f"encoder   {path}\nloss curve {folder / 'loss.csv'}\nuse it with --encoder {path}")


def _train(trainer: Any, steps: int) -> None:
    started = time.monotonic()
    with Progress("pretrain", total=steps - trainer.step, unit="steps") as bar:

        def show(row: dict[str, Any]) -> None:
            bar.update(1, f"loss {row['train_loss']:.4f}")
            if "validation_loss" in row:
                minutes = (time.monotonic() - started) / 60
                bar.message(
                    f"step {row['step']}/{steps}: training loss {row['train_loss']:.4f}, validation loss "
                    f"{row['validation_loss']:.4f}, {row['windows_per_second']:.1f} windows/s, {minutes:.1f} min"
                )

        trainer.run(show)


@pretrain.command()
def vae(
    audio: AudioArgument,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "vae",
    steps: Annotated[
        int, typer.Option(help="Optimiser steps; a finished run goes on where more are asked for.", min=1)
    ] = 1100,
    batch_size: Annotated[int, typer.Option(help="Crops of 10.24 s in a step.", min=1)] = 4,
    channels: Annotated[int, typer.Option(help="Channels of the first layer, in fours.", min=4)] = 32,
    latent_channels: Annotated[int, typer.Option(help="Channels of the latent.", min=1)] = 16,
    patch: Annotated[int, typer.Option(help="Side of the squares of the spectrogram read at once.", min=1)] = 2,
    kl_weight: Annotated[float, typer.Option(help="Weight of the latent's divergence.", min=0)] = 0.01,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.", min=0)] = 1e-3,
    decay_share: Annotated[
        float, typer.Option(help="Share of the steps, the last, in which it falls to 0.", min=0, max=1)
    ] = 0.3,
    decoder_of: Annotated[
        str | None,
        typer.Option(help="VAE whose decoder alone is trained on, as train --vae: codecs of its latents stay valid."),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Train a small VAE of log-mel spectrograms into ROOT/pretrain/NAME/vae.safetensors, for sctok train --vae.

    Run it again to resume or to add steps.
    """
    from sctok.codec.models.vae import VAEConfig
    from sctok.codec.storage.part_sources import open_vae
    from sctok.codec.storage.parts import module_hash
    from sctok.training.vae import VAETrainingConfig

    initial = open_vae(decoder_of, root / "codecs") if decoder_of else None
    model = VAEConfig(channels=channels, res_blocks=1, latent_channels=latent_channels, patch=patch)
    config = VAETrainingConfig(
        initial.config if initial else model,
        batch_size,
        steps,
        learning_rate,
        decay_share=decay_share,
        kl_weight=kl_weight,
        seed=seed,
        decoder_of=module_hash(initial) if initial else None,
    )
    _train_part("vae", config, audio, name, device, root, as_json, initial)


@pretrain.command()
def vocoder(
    audio: AudioArgument,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "vocoder",
    steps: Annotated[
        int, typer.Option(help="Optimiser steps; a finished run goes on where more are asked for.", min=1)
    ] = 3400,
    batch_size: Annotated[int, typer.Option(help="Crops of 1.28 s in a step.", min=1)] = 8,
    width: Annotated[int, typer.Option(help="Channels of its blocks.", min=1)] = 256,
    blocks: Annotated[int, typer.Option(help="ConvNeXt blocks.", min=1)] = 6,
    adversarial_after: Annotated[
        int, typer.Option(help="Steps of spectral distances alone, before discriminators join in.", min=0)
    ] = 2500,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.", min=0)] = 5e-4,
    initial: Annotated[
        str | None,
        typer.Option(help="Small vocoder to begin with, as train --vocoder; its sizes are taken.", callback=not_empty),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            help="VAE that half of the spectrograms go through, as train --vae: those it will be fed.",
            callback=not_empty,
        ),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Train a small iSTFT vocoder into ROOT/pretrain/NAME/vocoder.safetensors, for sctok train --vocoder.

    Run it again to resume or to add steps.
    """
    from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
    from sctok.codec.storage.part_sources import open_vae, open_vocoder
    from sctok.codec.storage.parts import module_hash
    from sctok.training.vocoder import VocoderTrainingConfig

    first = open_vocoder(initial, root / "codecs") if initial else None
    if first is not None and not isinstance(first, IstftVocoder):
        raise typer.BadParameter(f"{initial} is not of the small kind that is trained here", param_hint="--initial")
    through = open_vae(vae, root / "codecs") if vae else None
    config = VocoderTrainingConfig(
        first.config if first else VocoderConfig(width, blocks),
        batch_size,
        steps,
        learning_rate,
        adversarial_after=adversarial_after,
        seed=seed,
        initial=module_hash(first) if first else None,
        through=module_hash(through) if through else None,
    )
    _train_part("vocoder", config, audio, name, device, root, as_json, first, through)


def _train_part(
    kind: str,
    config: "VAETrainingConfig | VocoderTrainingConfig",
    audio: list[str],
    name: str,
    device: str,
    root: Path,
    as_json: bool,
    initial: "nn.Module | None" = None,
    through: "AutoencoderKL | None" = None,
) -> None:
    from sctok.runtime.devices import resolve_device, tune_for_training
    from sctok.training.clips import open_collection
    from sctok.training.parts import PartRun

    folder = root / "pretrain" / checked_name(name, "--name")
    chosen = resolve_device(device)
    tune_for_training(chosen)
    with Progress("listing", unit="s of audio") as bar:
        collection = open_collection(audio, folder, tell_skipped(bar.message), bar.update)
    part = PartRun(config, collection, folder, chosen, tell_skipped(), initial, through)
    say(f"training on {len(collection.train)} clips, {collection.hours:.2f} h, from step {part.run.step}")
    loss = {"vae": "mel_error", "vocoder": "mel_distance"}[kind]
    with StepProgress(f"pretrain {kind}", part.run.step, config.steps, loss) as show:
        stopped = part.train(show)
    exit_if_stopped(stopped, part.run.step)
    path, curve = folder / f"{kind}.safetensors", folder / "loss.csv"
    part.save(path)
    result = {kind: str(path), "steps": part.run.step, "hours": part.run.seconds / 3600, "loss_curve": str(curve)}
    emit(result, as_json, f"{kind:10} {path}\nloss curve {curve}\nuse it with sctok train --{kind} {path}")
