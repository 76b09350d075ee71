"""`sctok train`: train a codec on a collection of audio."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sctok.cli.shared.codebooks import wanted_codebook
from sctok.cli.shared.codecs import codec_name
from sctok.cli.shared.command import command
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    AudioArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    RootOption,
    not_empty,
    split_list,
)
from sctok.cli.shared.steps import StepProgress, exit_if_stopped, tell_skipped
from sctok.cli.shared.terminal import Progress, emit, say

if TYPE_CHECKING:
    import torch

    from sctok.features.checkpoints import EncoderWeights
    from sctok.formats.codebooks import Codebook
    from sctok.runtime.distributed import Group
    from sctok.training.config import TrainingPlan
    from sctok.training.log import TensorBoard
    from sctok.training.loop import StepReport
    from sctok.training.pipeline import CodecRun, TrainingParts

PART_SOURCES = "a codec, a file (vae.safetensors, vocoder.safetensors, a published decoder.ckpt) or a diffusers folder"


@dataclass(frozen=True)
class PartOptions:
    """The frozen parts that the codec is trained on."""

    panel: ClassVar[str] = "Parts of the codec"
    encoder: Annotated[
        str | None,
        typer.Option(
            help="AudioMAE encoder: mini, base, or a file of weights.",
            show_default="as in the configuration",
            callback=not_empty,
        ),
    ] = None
    codebooks: Annotated[
        list[str] | None,
        typer.Option(
            help="Semantic codebooks, repeated or separated by commas: sizes of merged ones in ROOT/codebooks, "
            "bundled names such as merged-4096-r50, or files."
        ),
    ] = None
    vae: Annotated[str | None, typer.Option(help=f"Source of the VAE: {PART_SOURCES}.", callback=not_empty)] = None
    vocoder: Annotated[str | None, typer.Option(help=f"Source of the vocoder: {PART_SOURCES}.", callback=not_empty)] = (
        None
    )
    initial: Annotated[
        str | None,
        typer.Option(help="Codec to start from; parts that are not given are taken from it.", callback=not_empty),
    ] = None

    def given(self) -> dict[str, Any]:
        """Return the parts that are given, by name."""
        books = split_list(self.codebooks) or None
        parts = {"encoder": self.encoder, "codebooks": books, "vae": self.vae, "vocoder": self.vocoder}
        return {name: source for name, source in parts.items() if source is not None}


@dataclass(frozen=True)
class SettingOptions:
    """Settings that replace those of the configuration."""

    panel: ClassVar[str] = "Training (default: as in the configuration)"
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps; a larger number continues a finished run.", min=1)
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Windows in a batch of one process.", min=1)] = None
    accumulate: Annotated[int | None, typer.Option(help="Batches whose gradients are summed for a step.", min=1)] = None
    precision: PrecisionOption = "auto"
    seed: Annotated[int | None, typer.Option(help="Seed of all random choices.", min=0)] = None

    def given(self) -> dict[str, Any]:
        """Return the settings that are given, by name."""
        settings = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "precision": None if self.precision == "auto" else self.precision,
            "seed": self.seed,
        }
        return {name: value for name, value in settings.items() if value is not None}


@command(
    "sctok train speech/ music/ sounds/ --config mini --name my-codec",
    "sctok train speech/ --config paper-50 --codebooks 4096,8192 --vae decoder.ckpt --vocoder decoder.ckpt",
)
def train(
    audio: AudioArgument,
    config: Annotated[str, typer.Option(help="Configuration: mini, paper-25, paper-50, paper-100, or a TOML file.")],
    parts: PartOptions,
    settings: SettingOptions,
    name: Annotated[
        str | None, typer.Option(help="Name of the run and of the codec.", show_default="my-CONFIG")
    ] = None,
    device: DeviceOption = "auto",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Train a codec on AUDIO, each input being one domain, into ROOT/codecs/NAME; the run is in ROOT/train/NAME.

    Run the same command again to resume after an interruption. To train on several GPUs, start it with torchrun:
    torchrun --nproc-per-node 2 -m sctok.cli.app train …
    """
    plan = _read_plan(config, settings, parts)
    name = codec_name(name or f"my-{Path(config).stem}")

    from sctok.runtime.devices import resolve_device, tune_for_training
    from sctok.runtime.distributed import join_group

    folder, target = root / "train" / name, root / "codecs" / name
    with join_group() as group:
        chosen = group.local_device(resolve_device(device))
        tune_for_training(chosen)
        run = _open_run(audio, plan, parts, folder, root / "codecs", chosen, group)
        if target.exists() and not run.run.step:
            raise ValueError(f"{target} exists and was not made by this training; choose another --name")
        exit_if_stopped(_train(run, name, folder), run.run.step, group.leads)
        if group.leads:
            _save(run, target, name, as_json)


def _read_plan(config: str, settings: SettingOptions, parts: PartOptions) -> "TrainingPlan":
    from sctok.training.config import read_plan

    try:
        plan = read_plan(config, settings.given(), parts.given())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from None
    if parts.initial and parts.encoder:
        raise typer.BadParameter("--initial has its own encoder; omit this option", param_hint="--encoder")
    lacking = [f"--{option}" for option in ("codebooks", "vae", "vocoder") if not getattr(plan.parts, option)]
    if lacking and not parts.initial:
        raise typer.BadParameter(
            f"{config} names no {' and no '.join(part.removeprefix('--') for part in lacking)}: give "
            f"{' and '.join(lacking)} (a codec such as mini, or a file), or --initial CODEC, which has all parts"
        )
    return plan


def _open_run(
    audio: list[str],
    plan: "TrainingPlan",
    parts: PartOptions,
    folder: Path,
    codecs: Path,
    device: "torch.device",
    group: "Group",
) -> "CodecRun":
    """Return the training in `folder`, new or resumed, with its parts loaded and its audio listed."""
    from sctok.runtime.devices import resolve_precision
    from sctok.training.clips import open_collection
    from sctok.training.codec import CODEC_TRAINING
    from sctok.training.pipeline import CodecRun

    loaded = _load_parts(plan, codecs, parts)
    precision = resolve_precision(plan.settings.get("precision", "auto"), device, [CODEC_TRAINING])
    completed = plan.complete(loaded.encoder.config.width, loaded.vae.config, precision)
    loaded.check(completed)
    with Progress("listing", unit="s of audio") as bar:
        collection = open_collection(audio, folder, tell_skipped(bar.message), bar.update, group)
    return CodecRun(plan, completed, loaded, collection, folder, device, group, tell_skipped())


def _load_parts(plan: "TrainingPlan", codecs: Path, options: PartOptions) -> "TrainingParts":
    """Return the parts of a plan; with --initial, the parts of that codec unless others are given."""
    from sctok.codec.storage.codec_folder import load_codec
    from sctok.codec.storage.part_sources import find_codec, open_vae, open_vocoder
    from sctok.features.checkpoints import load_weights
    from sctok.training.pipeline import TrainingParts

    def books(encoder: "str | EncoderWeights") -> "list[Codebook]":
        return [_codebook(str(each), plan, encoder, codecs.parent / "codebooks") for each in plan.parts.codebooks]

    if options.initial is None:
        chosen = books(plan.parts.encoder)
        vae, vocoder = open_vae(plan.parts.vae, codecs), open_vocoder(plan.parts.vocoder, codecs)
        _tell_bundled(plan, codecs)
        return TrainingParts(load_weights(plan.parts.encoder), chosen, vae, vocoder)
    first, given = load_codec(find_codec(options.initial, codecs) or options.initial), options.given()
    return TrainingParts(
        first.tokens.encoder,
        books(first.tokens.encoder) if "codebooks" in given else first.tokens.codebooks,
        open_vae(plan.parts.vae, codecs) if "vae" in given else first.decoder.vae,
        open_vocoder(plan.parts.vocoder, codecs) if "vocoder" in given else first.decoder.vocoder,
        first,
    )


def _codebook(wanted: str, plan: "TrainingPlan", encoder: "str | EncoderWeights", folder: Path) -> "Codebook":
    """Return a codebook of --codebooks; the token rate of a file is checked with the other parts."""
    by_rate = wanted.isdecimal() or wanted.endswith(".npy")
    return wanted_codebook(folder, wanted, plan.token_rate if by_rate else None, encoder)


def _tell_bundled(plan: "TrainingPlan", codecs: Path) -> None:
    """Report which parts come from a bundled codec."""
    from sctok.codec.storage.codec_folder import BUNDLED_CODECS
    from sctok.codec.storage.part_sources import find_codec

    sources = {"VAE": plan.parts.vae, "vocoder": plan.parts.vocoder}
    for name in BUNDLED_CODECS:
        if parts := [part for part, source in sources.items() if find_codec(source, codecs) == source == name]:
            say(f"using the {' and '.join(parts)} of the bundled codec {name}")


def _train(run: "CodecRun", name: str, folder: Path) -> int:
    if not run.run.group.leads:
        return run.train()
    done, steps = run.run.step, run.config.steps
    hours, where = run.collection.hours, f"{run.task.device.type}, {run.config.precision}"
    say(f"training on {len(run.collection.train)} clips, {hours:.2f} h ({where}), from step {done} to {steps}")
    board = _tensorboard(folder / "tensorboard", done)
    with StepProgress(f"train {name}", done, steps, "reconstruction") as show:

        def progress(report: "StepReport") -> None:
            show(report)
            if board:
                board.add_report(report)

        stopped = run.train(progress, board.add_decoded if board else None)
    if board:
        board.close()
    return stopped


def _tensorboard(folder: Path, step: int) -> "TensorBoard | None":
    from sctok.training.log import TensorBoard

    try:
        return TensorBoard(folder, step)
    except ImportError as error:
        say(f"{error}; training continues without it")
        return None


def _save(run: "CodecRun", folder: Path, name: str, as_json: bool) -> None:
    from sctok.training.loop import read_curve

    run.save(folder, name)
    curve = run.run.folder / "loss.csv"
    last = {key: float(value) for row in read_curve(curve)[-1:] for key, value in row.items() if value}
    facts = {"codec": str(folder), "token_rate": run.config.token_rate, "loss_curve": str(curve), **last}
    facts["step"] = run.run.step
    emit(facts, as_json, f"codec      {folder}\nloss curve {curve}\nuse it with --codec {name}")
