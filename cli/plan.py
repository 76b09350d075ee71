"""`sctok plan`: how long tokenizing a corpus would take on other machines, and what would limit it."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    PRECISIONS,
    AudioArgument,
    EncoderOption,
    JsonOption,
    RootOption,
    one_of,
)
from sctok.cli.shared.terminal import emit, say, table

if TYPE_CHECKING:
    from sctok.audio.inputs.sources import AudioItem
    from sctok.corpus.estimates.estimate import Costs, Estimate, Fleet, Survey
    from sctok.features.encoder import EncoderConfig

HERE = "here"
CORES_PER_GPU = 16
READ_MB = 500


@dataclass(frozen=True)
class WorkOptions:
    """What is computed for each window of audio."""

    panel: ClassVar[str] = "Work"
    encoder: EncoderOption = "mini"
    centroids: Annotated[int, typer.Option("--codebook", help="Number of centroids of the codebook.", min=1)] = 4096
    token_rate: Annotated[
        str, typer.Option(help="Tokens per second: 100, 50 or 25.", callback=one_of("100", "50", "25"))
    ] = "100"
    precision: Annotated[
        str,
        typer.Option(
            help="Arithmetic of the encoder: fp32, bf16 or fp16.",
            callback=one_of(*PRECISIONS),
            show_default="bf16; fp32 on a CPU",
        ),
    ] = "auto"

    @property
    def stack(self) -> int:
        """Patch embeddings in one token."""
        from sctok.formats.stacking import stack_factor

        return stack_factor(int(self.token_rate))


@dataclass(frozen=True)
class MachineOptions:
    """The machines that would do the work."""

    panel: ClassVar[str] = "Machines"
    device: Annotated[str, typer.Option(help="Device to plan for: h100, a100, l4 …; here measures this machine.")] = (
        HERE
    )
    count: Annotated[int, typer.Option(help="Number of devices, or of machines like this one.", min=1)] = 1
    cores: Annotated[
        int | None,
        typer.Option(
            help="CPU cores for each device.", show_default=f"{CORES_PER_GPU}; those of this machine for here", min=1
        ),
    ] = None
    read_mb: Annotated[
        float, typer.Option(help="Reading speed of the storage for each device, in MB per second.", min=0.001)
    ] = READ_MB
    write_mb: Annotated[
        float | None,
        typer.Option(
            help="Writing speed of the storage for all devices together, in MB per second.",
            show_default="measured on this machine",
            min=0.001,
        ),
    ] = None

    @property
    def name(self) -> str:
        """Name of the device in lower case."""
        return self.device.lower()

    @property
    def cores_each(self) -> int:
        """CPU cores for each device."""
        return self.cores or (len(os.sched_getaffinity(0)) if self.name == HERE else CORES_PER_GPU)


@command(
    "sctok plan s3://bucket/speech.jsonl --device h100 --count 8",
    "sctok plan dataset/ --codebook 32768 --token-rate 50",
)
def plan(
    audio: AudioArgument,
    work: WorkOptions,
    machines: MachineOptions,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Predict the hours and the disk space that sctok tokenize needs for AUDIO, and what would limit it.

    Durations come from the headers of at most 1000 files. Decoding audio and feeding a device are measured on this
    machine for some seconds. The encoder and the search are computed from their operations and the device's data
    sheet; with --device here they are measured, too.
    """
    from sctok.audio.inputs.sources import list_audio
    from sctok.corpus.estimates.estimate import estimate, survey_inputs

    survey, items = survey_inputs(list_audio(audio), stack=work.stack, centroids=work.centroids)
    costs, fleet, notes = _model(items, work, machines, root)
    result = estimate(survey, costs, fleet)
    facts: dict[str, Any] = {
        "device": machines.name,
        "count": machines.count,
        "encoder": work.encoder,
        **asdict(survey),
        **asdict(result),
        "costs": asdict(costs),
        "fleet": asdict(fleet),
        "assumptions": notes,
    }
    emit(facts, as_json, lambda: _text(survey, result, f"{machines.count} × {machines.name}"))
    for note in notes if not as_json else ():
        say(f"- {note}")


def _model(
    items: "list[AudioItem]", work: WorkOptions, machines: MachineOptions, root: Path
) -> "tuple[Costs, Fleet, list[str]]":
    """Return the costs of a window and of a second of audio, the machines, and the assumptions."""
    from sctok.corpus.estimates.calibration import decode_cost, feed_cost, write_rate
    from sctok.corpus.estimates.estimate import Costs, Fleet

    on_device, shared, notes = _device_costs(items, work, machines.name)
    decode, feed = decode_cost(items), feed_cost(items)
    disk = next(each for each in (root, *root.absolute().parents) if each.is_dir())
    written = write_rate(disk) if machines.write_mb is None else machines.write_mb * 1e6
    cores, read = machines.cores_each, machines.read_mb * 1e6
    fleet = Fleet(machines.count, cores * machines.count, read * machines.count, written, shared)
    notes += [
        f"a core decodes {1 / max(decode, 1e-9):,.0f} s of this audio per second, measured here; {cores} cores per "
        "device",
        f"a process feeds a device {1 / max(feed, 1e-9):,.0f} windows per second, measured here",
        f"storage reads {read / 1e6:,.0f} MB/s for each device and writes {written / 1e6:,.0f} MB/s in total, "
        + ("measured here" if machines.write_mb is None else "as given"),
        "semantic tokens only; shards are evenly spread; nothing else uses the devices and cores",
    ]
    return Costs(on_device, decode, feed), fleet, notes


def _device_costs(items: "list[AudioItem]", work: WorkOptions, device: str) -> tuple[dict[str, float], bool, list[str]]:
    """Return seconds per window by stage, whether the device is this machine's cores, and the assumptions."""
    if device == HERE:
        from sctok.corpus.estimates.calibration import device_costs
        from sctok.features.extractor import ENCODER, FeatureExtractor
        from sctok.runtime.devices import resolve_device, resolve_precision

        where = resolve_device("auto")
        precision = resolve_precision(work.precision, where, [ENCODER])
        extractor = FeatureExtractor(_weights(work.encoder), where, precision)
        found = device_costs(extractor, items, stack=work.stack, centroids=work.centroids)
        return found, where.type == "cpu", [f"encoder and search measured here, on {where}, {extractor.precision}"]

    from sctok.corpus.estimates.estimate import encoder_flops, table_costs
    from sctok.corpus.estimates.hardware import SEARCH_OVERHEAD, SEARCH_SHARE, encoder_share, find_hardware

    hardware, chosen = find_hardware(device), "bf16" if work.precision == "auto" else work.precision
    config = _config(work.encoder)
    peak = hardware.fp32 if chosen == "fp32" else hardware.half
    share = encoder_share(chosen, config.width)
    notes = [
        f"encoder: {encoder_flops(config) / 1e9:,.1f} GFLOP per window at {share:.0%} of {peak:,g} "
        f"TFLOP/s ({hardware.name}, {chosen})",
        f"search: {work.centroids:,} centroids at {SEARCH_SHARE:.0%} of {hardware.half:,g} TFLOP/s, and "
        f"{1e6 * SEARCH_OVERHEAD:.0f} µs per window",
    ]
    return table_costs(hardware, config, chosen, work.stack, work.centroids), False, notes


def _config(encoder: str) -> "EncoderConfig":
    from sctok.features.checkpoints import HUB_MODELS, load_weights
    from sctok.features.encoder import EncoderConfig

    return EncoderConfig() if encoder in HUB_MODELS else load_weights(encoder).config


def _weights(encoder: str) -> Any:
    """Return weights to measure with; for an encoder on the hub, random ones of its size, which take the same time."""
    from sctok.features.checkpoints import HUB_MODELS, EncoderWeights, load_weights
    from sctok.features.encoder import AudioMAE, EncoderConfig

    if encoder not in HUB_MODELS:
        return load_weights(encoder)
    return EncoderWeights(encoder, EncoderConfig(), dict(AudioMAE(EncoderConfig()).state_dict()), {})


def _text(survey: "Survey", result: "Estimate", devices: str) -> str:
    spread = f" ± {2 * survey.deviation / 3600:,.2g}" if survey.deviation else ""
    lines = [
        f"{survey.files:,} files, {survey.seconds / 3600:,.4g}{spread} hours of audio, {survey.windows:,.0f} windows, "
        f"{survey.input_bytes / 1e9:,.3g} GB"
        + (f" (from the headers of {survey.surveyed:,})" if survey.surveyed < survey.files else ""),
        f"{devices}: {_hours(result.hours)}, {result.times_real_time:,.0f}× real time; "
        f"{survey.output_bytes / 1e9:,.3g} GB of tokens",
        "",
        table(("part", "on its own"), [(name, _hours(hours)) for name, hours in result.parts.items()]),
        "",
        f"bottleneck: {result.bottleneck}; to speed it up: {result.remedy}",
    ]
    if survey.unreadable:
        lines.append(f"{survey.unreadable:,} of the surveyed inputs cannot be read, or are listed twice")
    return "\n".join(lines)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:,.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:,.2g} seconds"
