"""`sctok plan`: how long the tokens of a corpus would take on other machines, and what they would wait for."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, RootOption, emit, one_of, say, table
from sctok.cli.shared.runs import AudioArgument, EncoderOption

if TYPE_CHECKING:
    from sctok.audio.inputs.sources import AudioItem
    from sctok.corpus.estimates.estimate import Costs, Estimate, Fleet, Survey
    from sctok.features.encoder import EncoderConfig

HERE = "here"
CORES_BESIDE_GPU = 16
READ_MB = 500


def plan(
    audio: AudioArgument,
    device: Annotated[
        str, typer.Option("--device", help="h100, a100, l4 …, or here for that of this machine, which is measured.")
    ] = HERE,
    count: Annotated[int, typer.Option("--count", help="How many devices, or machines like this one.", min=1)] = 1,
    encoder: EncoderOption = "mini",
    centroids: Annotated[int, typer.Option("--codebook", help="Size of the codebook.", min=1)] = 4096,
    token_rate: Annotated[
        str, typer.Option("--token-rate", help="100, 50 or 25.", callback=one_of("100", "50", "25"))
    ] = "100",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp32, bf16 or fp16.",
            callback=one_of("auto", "fp32", "bf16", "fp16"),
            show_default="bf16, on a CPU fp32",
        ),
    ] = "auto",
    cores: Annotated[
        int | None,
        typer.Option(
            "--cores", help="CPU cores for each device.", show_default=f"{CORES_BESIDE_GPU}, or those here", min=1
        ),
    ] = None,
    read_mb: Annotated[
        float, typer.Option("--read-mb", help="Megabytes a second that storage reads, for each device.", min=0.001)
    ] = READ_MB,
    write_mb: Annotated[
        float | None,
        typer.Option(
            "--write-mb", help="Megabytes a second that it writes, in all.", show_default="measured here", min=0.001
        ),
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Predict the hours and the disk that sctok tokenize needs for AUDIO, and what it would wait for.

    Lengths come from the headers of at most 1000 files. Decoding and feeding a device are measured on this machine for
    some seconds; encoder and search come from their operations and the peaks of data sheets, or are measured too.
    """
    from sctok.audio.inputs.sources import list_audio
    from sctok.corpus.estimates.estimate import estimate, survey_inputs
    from sctok.formats.stacking import stack_factor

    stack = stack_factor(int(token_rate))
    survey, items = survey_inputs(list_audio(audio), stack=stack, centroids=centroids)
    costs, fleet, notes = _model(
        items, device.lower(), count, encoder, stack, centroids, precision, cores, read_mb * 1e6, write_mb, root
    )
    result = estimate(survey, costs, fleet)
    facts: dict[str, Any] = {
        "device": device.lower(),
        "count": count,
        "encoder": encoder,
        **asdict(survey),
        **asdict(result),
        "costs": asdict(costs),
        "fleet": asdict(fleet),
        "assumptions": notes,
    }
    emit(facts, as_json, lambda: _text(survey, result, f"{count} × {device.lower()}"))
    for note in notes if not as_json else ():
        say(f"- {note}")


def _model(
    items: "list[AudioItem]",
    device: str,
    count: int,
    encoder: str,
    stack: int,
    centroids: int,
    precision: str,
    cores: int | None,
    read_rate: float,
    write_mb: float | None,
    root: Path,
) -> "tuple[Costs, Fleet, list[str]]":
    """Return what a window and a second of audio cost, what is to do the work, and what was taken for granted."""
    from sctok.corpus.estimates.calibration import decode_cost, feed_cost, write_rate
    from sctok.corpus.estimates.estimate import Costs, Fleet

    on_device, shared, notes = _device_costs(items, device, encoder, stack, centroids, precision)
    decode, feed = decode_cost(items), feed_cost(items)
    written = (
        write_rate(next(each for each in (root, *root.absolute().parents) if each.is_dir()))
        if write_mb is None
        else write_mb * 1e6
    )
    each = cores or (len(os.sched_getaffinity(0)) if device == HERE else CORES_BESIDE_GPU)
    fleet = Fleet(count, each * count, read_rate * count, written, shared)
    notes += [
        f"a core decodes {1 / max(decode, 1e-9):,.0f} s of this audio in a second, measured here; {each} cores each",
        f"a process feeds a device {1 / max(feed, 1e-9):,.0f} windows a second, measured here",
        f"storage reads {read_rate / 1e6:,.0f} MB/s for each device and writes {written / 1e6:,.0f} MB/s in all, "
        + ("measured here" if write_mb is None else "as given"),
        "semantic tokens alone; shards are evenly spread; other work shares neither devices nor cores",
    ]
    return Costs(on_device, decode, feed), fleet, notes


def _device_costs(
    items: "list[AudioItem]", device: str, encoder: str, stack: int, centroids: int, precision: str
) -> tuple[dict[str, float], bool, list[str]]:
    """Return seconds of a window by stage, whether the device is the cores of the machine, and what they rest on."""
    if device == HERE:
        from sctok.corpus.estimates.calibration import device_costs
        from sctok.features.extractor import ENCODER, FeatureExtractor
        from sctok.runtime.devices import resolve_device, resolve_precision

        where = resolve_device("auto")
        extractor = FeatureExtractor(_weights(encoder), where, resolve_precision(precision, where, [ENCODER]))
        found = device_costs(extractor, items, stack=stack, centroids=centroids)
        return found, where.type == "cpu", [f"encoder and search measured here, on {where}, {extractor.precision}"]

    from sctok.corpus.estimates.estimate import encoder_flops, table_costs
    from sctok.corpus.estimates.hardware import SEARCH_OVERHEAD, SEARCH_SHARE, encoder_share, find_hardware

    hardware, chosen = find_hardware(device), "bf16" if precision == "auto" else precision
    config = _config(encoder)
    peak = hardware.fp32 if chosen == "fp32" else hardware.half
    share = encoder_share(chosen, config.width)
    notes = [
        f"encoder: {encoder_flops(config) / 1e9:,.1f} GFLOP a window at {share:.0%} of {peak:,g} "
        f"TFLOP/s ({hardware.name}, {chosen})",
        f"search: {centroids:,} centroids at {SEARCH_SHARE:.0%} of {hardware.half:,g} TFLOP/s, and "
        f"{1e6 * SEARCH_OVERHEAD:.0f} µs a window",
    ]
    return table_costs(hardware, config, chosen, stack, centroids), False, notes


def _config(encoder: str) -> "EncoderConfig":
    from sctok.features.checkpoints import HUB_MODELS, load_weights
    from sctok.features.encoder import EncoderConfig

    return EncoderConfig() if encoder in HUB_MODELS else load_weights(encoder).config


def _weights(encoder: str) -> Any:
    """Return weights to measure with: of one on the hub, random ones of its size, which take the same time."""
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
        table(("part", "alone"), [(name, _hours(hours)) for name, hours in result.parts.items()]),
        "",
        f"bottleneck: {result.bottleneck}; what speeds it up: {result.remedy}",
    ]
    if survey.unreadable:
        lines.append(f"{survey.unreadable:,} inputs that were looked at cannot be read, or are named twice")
    return "\n".join(lines)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:,.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:,.2g} seconds"
