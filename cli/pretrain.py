"""`sctok pretrain`: train the parts that extraction and the codec stand on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from collections.abc import Callable

    import torch

    from sctok.runtime.distributed import Group
    from sctok.training.clips import Clip, Collection
    from sctok.training.parts import PartRun

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
    from sctok.features.checkpoints import load_weights
    from sctok.runtime.devices import resolve_device, resolve_precision, tune_for_training
    from sctok.runtime.distributed import join_group
    from sctok.training.encoder import PRETRAINING, EncoderTrainingConfig
    from sctok.training.filterbanks import build_filterbank_cache
    from sctok.training.parts import encoder_run

    chosen = resolve_device(device)
    first = load_weights(initial) if initial else None
    config = EncoderTrainingConfig(
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
    with join_group() as group:
        chosen = group.local_device(chosen)
        tune_for_training(chosen)
        with Progress("filterbanks", unit="s of audio") as bar:
            cache = build_filterbank_cache(
                audio,
                folder / "filterbanks",
                workers=workers,
                device=chosen,
                skipped=tell_skipped(bar.message),
                progress=lambda key, seconds: bar.update(seconds, key),
                group=group,
            )
        run = encoder_run(config, cache, folder, chosen, first, group)
        if group.leads:
            groups = len({clip.group for clip in cache.clips})
            say(f"training on {len(cache.clips)} clips, {cache.hours:.2f} h, {groups} groups, from step {run.run.step}")
        _train_and_save("encoder", run, folder / f"encoder-{name}.safetensors", "--encoder", as_json)


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
    from sctok.training.parts import vae_run
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

    def make(collection: "Collection[Clip]", folder: Path, device: "torch.device", group: "Group") -> "PartRun":
        return vae_run(config, collection, folder, device, tell_skipped(), initial, group)

    _train_part("vae", make, audio, name, device, root, as_json)


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
    from sctok.training.parts import vocoder_run
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

    def make(collection: "Collection[Clip]", folder: Path, device: "torch.device", group: "Group") -> "PartRun":
        return vocoder_run(config, collection, folder, device, tell_skipped(), first, through, group)

    _train_part("vocoder", make, audio, name, device, root, as_json)


def _train_part(
    kind: str,
    make: "Callable[[Collection[Clip], Path, torch.device, Group], PartRun]",
    audio: list[str],
    name: str,
    device: str,
    root: Path,
    as_json: bool,
) -> None:
    """Train a part, which `make` prepares from the listed audio, and write it."""
    from sctok.runtime.devices import resolve_device, tune_for_training
    from sctok.runtime.distributed import join_group
    from sctok.training.clips import open_collection

    folder = root / "pretrain" / checked_name(name, "--name")
    with join_group() as group:
        chosen = group.local_device(resolve_device(device))
        tune_for_training(chosen)
        with Progress("listing", unit="s of audio") as bar:
            collection = open_collection(audio, folder, tell_skipped(bar.message), bar.update, group)
        part = make(collection, folder, chosen, group)
        if group.leads:
            say(f"training on {len(collection.train)} clips, {collection.hours:.2f} h, from step {part.run.step}")
        _train_and_save(kind, part, folder / f"{kind}.safetensors", f"sctok train --{kind}", as_json)


def _train_and_save(kind: str, part: "PartRun", path: Path, option: str, as_json: bool) -> None:
    """Train a part to its last step and write it. option: the one that takes the file."""
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
