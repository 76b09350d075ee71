"""`sctok train`: a codec from a collection of audio."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.codebooks import wanted_codebook
from sctok.cli.shared.codecs import codec_name
from sctok.cli.shared.common import (
    DEFAULT_ROOT,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    Progress,
    RootOption,
    emit,
    not_empty,
    say,
)
from sctok.cli.shared.runs import AudioArgument
from sctok.cli.shared.steps import StepProgress, exit_if_stopped, tell_skipped

if TYPE_CHECKING:
    from sctok.features.checkpoints import EncoderWeights
    from sctok.formats.codebooks import Codebook
    from sctok.training.config import TrainingPlan
    from sctok.training.log import TensorBoard
    from sctok.training.pipeline import CodecRun, TrainingParts


def train(
    audio: AudioArgument,
    config: Annotated[
        str, typer.Option("--config", help="mini, paper-25, paper-50, paper-100, or a TOML file like those.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run and of the codec.", show_default="my-CONFIG")
    ] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="mini, base, or a file of AudioMAE weights.")] = None,
    codebooks: Annotated[
        list[str] | None,
        typer.Option(
            "--codebooks",
            help="Sizes of merged codebooks, bundled ones such as merged-4096-r50, or files; repeated or a,b.",
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option("--vae", help="A codec, a vae.safetensors, a published decoder.ckpt or a diffusers folder."),
    ] = None,
    vocoder: Annotated[
        str | None,
        typer.Option(
            "--vocoder", help="A codec, a vocoder.safetensors, a published decoder.ckpt or a diffusers folder."
        ),
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            "--initial", help="A codec to begin with: all parts that are not given are its own.", callback=not_empty
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Optimiser steps; a finished run goes on where more are asked for.", min=1),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Windows in a batch of one process.", min=1)
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", help="Batches whose gradients make a step.", min=1)
    ] = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", min=0)] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Train a codec on audio, each input one domain, into ROOT/codecs/NAME; the run is kept in ROOT/train/NAME.

    What is not given here is as in the configuration. Interrupted, it goes on where it stopped when the same command
    is run again. Under torchrun the processes share every step:
    torchrun --nproc-per-node 2 -m sctok.cli.app train …
    """
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "precision": None if precision == "auto" else precision,
        "seed": seed,
    }
    books = [part.strip() for part in ",".join(codebooks).split(",")] if codebooks else None
    parts = {"encoder": encoder, "codebooks": books, "vae": vae, "vocoder": vocoder}
    plan = _read_plan(config, settings, parts, initial)
    name = codec_name(name or f"my-{Path(config).stem}")

    from sctok.runtime.devices import resolve_device, resolve_precision, tune_for_training
    from sctok.runtime.distributed import join_group
    from sctok.training.clips import open_collection
    from sctok.training.codec import CODEC_TRAINING
    from sctok.training.pipeline import CodecRun

    folder = root / "train" / name
    with join_group() as group:
        chosen = group.local_device(resolve_device(device))
        tune_for_training(chosen)
        loaded = _load_parts(plan, root, initial, given={part for part, value in parts.items() if value})
        exact = resolve_precision(plan.settings.get("precision", "auto"), chosen, [CODEC_TRAINING])
        completed = plan.complete(loaded.encoder.config.width, loaded.vae.config, exact)
        loaded.check(completed)
        with Progress("listing", unit="s of audio") as bar:
            collection = open_collection(audio, folder, tell_skipped(bar.message), bar.update, group)
        run = CodecRun(plan, completed, loaded, collection, folder, chosen, group, tell_skipped())
        target = root / "codecs" / name
        if target.exists() and not run.run.step:
            raise ValueError(f"{target} is there already, and this training has not made it: choose another --name")
        exit_if_stopped(_train(run, name, folder), run.run.step, group.leads)
        if group.leads:
            _save(run, target, name, as_json)


def _read_plan(config: str, settings: dict[str, Any], parts: dict[str, Any], initial: str | None) -> "TrainingPlan":
    from sctok.training.config import read_plan

    given = [{key: value for key, value in each.items() if value is not None} for each in (settings, parts)]
    try:
        plan = read_plan(config, *given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from None
    if initial and parts["encoder"]:
        raise typer.BadParameter("--initial has its own encoder, leave this out", param_hint="--encoder")
    lacking = [f"--{option}" for option in ("codebooks", "vae", "vocoder") if not getattr(plan.parts, option)]
    if lacking and not initial:
        raise typer.BadParameter(
            f"{config} names no {' and no '.join(part.removeprefix('--') for part in lacking)}: give "
            f"{' and '.join(lacking)} (a codec such as mini, or a file), or --initial CODEC, which has all parts"
        )
    return plan


def _load_parts(plan: "TrainingPlan", root: Path, initial: str | None, given: set[str]) -> "TrainingParts":
    """Return the parts of a plan, or of the codec `initial` but for what is `given` on the command line."""
    from sctok.codec.storage.codec_folder import load_codec
    from sctok.codec.storage.part_sources import find_codec, open_vae, open_vocoder
    from sctok.features.checkpoints import load_weights
    from sctok.training.pipeline import TrainingParts

    codecs = root / "codecs"

    def books(encoder: "str | EncoderWeights") -> "list[Codebook]":
        return [_codebook(str(each), plan, encoder, root / "codebooks") for each in plan.parts.codebooks]

    if initial is None:
        chosen = books(plan.parts.encoder)
        vae, vocoder = open_vae(plan.parts.vae, codecs), open_vocoder(plan.parts.vocoder, codecs)
        _tell_bundled(plan, codecs)
        return TrainingParts(load_weights(plan.parts.encoder), chosen, vae, vocoder)
    first = load_codec(find_codec(initial, codecs) or initial)
    return TrainingParts(
        first.tokens.encoder,
        books(first.tokens.encoder) if "codebooks" in given else first.tokens.codebooks,
        open_vae(plan.parts.vae, codecs) if "vae" in given else first.decoder.vae,
        open_vocoder(plan.parts.vocoder, codecs) if "vocoder" in given else first.decoder.vocoder,
        first,
    )


def _codebook(wanted: str, plan: "TrainingPlan", encoder: "str | EncoderWeights", folder: Path) -> "Codebook":
    """Return the codebook that --codebooks means; the rate of a file is checked with the other parts."""
    by_rate = wanted.isdecimal() or wanted.endswith(".npy")
    return wanted_codebook(folder, wanted, plan.token_rate if by_rate else None, encoder)


def _tell_bundled(plan: "TrainingPlan", codecs: Path) -> None:
    """Say which parts are those of a bundled codec."""
    from sctok.codec.storage.codec_folder import BUNDLED_CODECS
    from sctok.codec.storage.part_sources import find_codec

    sources = {"VAE": plan.parts.vae, "vocoder": plan.parts.vocoder}
    for name in BUNDLED_CODECS:
        if parts := [part for part, source in sources.items() if find_codec(source, codecs) == source == name]:
            say(f"using the {' and '.join(parts)} of the bundled codec {name}")


def _train(run: "CodecRun", name: str, folder: Path) -> int:
    if not run.run.group.leads:
        return run.train(lambda row: None)
    done, steps = run.run.step, run.config.steps
    hours, where = run.collection.hours, f"{run.task.device.type}, {run.config.precision}"
    say(f"training on {len(run.collection.train)} clips, {hours:.2f} h ({where}), from step {done} to {steps}")
    board = _tensorboard(folder / "tensorboard", done)
    with StepProgress(f"train {name}", done, steps, "reconstruction") as show:

        def progress(row: dict[str, Any]) -> None:
            show(row)
            if board:
                board.row(row)

        stopped = run.train(progress, board.heard if board else None)
    if board:
        board.close()
    return stopped


def _tensorboard(folder: Path, step: int) -> "TensorBoard | None":
    from sctok.training.log import TensorBoard

    try:
        return TensorBoard(folder, step)
    except ImportError as error:
        say(f"{error}; training goes on without it")
        return None


def _save(run: "CodecRun", folder: Path, name: str, as_json: bool) -> None:
    from sctok.training.loop import read_curve

    run.save(folder, name)
    curve = run.run.folder / "loss.csv"
    last = {key: float(value) for row in read_curve(curve)[-1:] for key, value in row.items() if value}
    facts = {"codec": str(folder), "token_rate": run.config.token_rate, "loss_curve": str(curve), **last}
    facts["step"] = run.run.step
    emit(facts, as_json, f"codec      {folder}\nloss curve {curve}\nuse it with --codec {name}")
