"""`sctok pretrain`: train the parts that extraction and the codec stand on."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import DeviceOption, JsonOption, PrecisionOption, Progress, RootOption, SeedOption, emit, say

pretrain = typer.Typer(help="Train an encoder from audio alone.", no_args_is_help=True)


@pretrain.callback()
def _group() -> None:
    """Train an encoder from audio alone."""


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
    from sctok.features.mel_cache import build_mel_cache
    from sctok.features.pretraining import PretrainConfig, Pretrainer
    from sctok.kernels.devices import resolve_device, resolve_precision

    chosen = resolve_device(device)
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
        precision=resolve_precision(precision, chosen),
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
