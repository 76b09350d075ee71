"""How fast is each stage of the codec, and how does quality depend on the number of steps?

    python benchmarks/codec.py [CODEC | --stand-in 100] [--windows 8] [--decode ddim:50] [--json F] [--markdown F]
    python benchmarks/codec.py [CODEC] --quality CLIPS [--plots DIR] [--json F] [--markdown F]

CODEC is a name or a folder (default: `mini`). --stand-in is a codec of the published sizes with random weights. Every
stage is timed by itself on windows of the bundled clips, after one warm-up call; the times are medians. Whole calls of
`Codec` are timed too: reading and encoding a file, and decoding its tokens.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts.codec_quality import QualityRuns, measure_quality
from parts.codec_report import need_matplotlib, quality_report, save_quality_plots, speed_report
from parts.codec_stages import Stage, decode_stages, encode_stages, largest_codebook, workload
from parts.codec_standin import stand_in
from parts.kmeans_report import describe_machine
from parts.kmeans_systems import set_threads
from parts.markdown import write_between_markers

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.windows import WINDOW_PATCHES
from sctok.codec.codec import Codec
from sctok.codec.codec_parts import CodecParts
from sctok.codec.decoding import DECODER
from sctok.codec.models.acoustic import AcousticConfig
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNetConfig
from sctok.codec.models.vae import VAEConfig
from sctok.codec.overlap import decode_window_count
from sctok.codec.samplers import SamplerConfig, visited_steps
from sctok.codec.storage.codec_folder import load_codec
from sctok.features.encoder import EncoderConfig
from sctok.features.extractor import ENCODER
from sctok.formats.sct import CodecTokens
from sctok.runtime.devices import DTYPES, resolve_device, resolve_precision

PATIENCE = 60.0  # seconds; a measurement that has taken longer is not repeated
DECODES = ("ddim:50", "dpm++:10")


def note(text: str) -> None:
    """Print to stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def median_seconds(call: Callable[[], object], repeats: int, device: torch.device, warm_up: bool = True) -> float:
    """Return the median wall time of `repeats` calls, or of fewer if they take long."""
    times: list[float] = []
    for turn in range(repeats + warm_up):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn or not warm_up:
            times.append(time.perf_counter() - started)
        if times and sum(times) > PATIENCE:
            break
    return statistics.median(times)


def measure_stages(stages: Iterable[Stage], windows: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Return the time of each stage per window, as JSON values."""
    found = {}
    for stage in stages:
        note(stage.name)
        seconds = median_seconds(stage.call, repeats, device) / windows
        found[stage.name] = {"half": stage.half, "seconds": seconds, "gflop": stage.gflop}
    return found


def measure_speed(parts: CodecParts, codec: Codec, args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds per window of all stages and of whole calls, as JSON values."""
    device, precision, dtype = codec.device, codec.precision, DTYPES[codec.precision]
    at_once, length = min(codec.batch_windows, args.windows), WINDOW_PATCHES // parts.info.stack_factor
    autocast = partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
    measure = partial(measure_stages, windows=args.windows, repeats=args.repeats, device=device)
    with workload(args.windows) as (item, audio), torch.inference_mode():
        with autocast():
            stages = measure(encode_stages(parts, item, audio, device))
        note("encode, whole call")
        tokens = codec.encode_blocks(stream_audio(item.path))
        whole = median_seconds(
            lambda: codec.encode_blocks(stream_audio(item.path)), args.repeats, device, warm_up=False
        )
        pairs = torch.from_numpy(tokens.tokens[: args.windows * length]).view(args.windows, length, 2)
        with autocast():
            stages |= measure(decode_stages(parts, pairs.to(device), at_once))
    return {
        "windows": args.windows,
        "at_once": at_once,
        "device": str(device),
        "precision": precision,
        "stages": stages,
        "encode": {"stages": _sum(stages, "encode"), "whole": whole / args.windows},
        "decode": [measure_decode(parts, codec, tokens, each, stages, args.repeats) for each in args.decode],
    }


def measure_decode(
    parts: CodecParts,
    codec: Codec,
    tokens: CodecTokens,
    sampler: SamplerConfig,
    stages: dict[str, Any],
    repeats: int,
) -> dict[str, Any]:
    """Return the decoding time per window: the sum of its stages, and of a whole call."""
    note(f"decode, whole call: {sampler.name}, {sampler.steps} steps")
    seconds = median_seconds(lambda: codec.decode(tokens, sampler), repeats, codec.device, warm_up=False)
    visited = len(visited_steps(sampler, len(parts.decoder.schedule)))
    summed = _sum(stages, "decode") + visited * _sum(stages, "step")
    windows = decode_window_count(tokens.samples)
    return asdict(sampler) | {"stages": summed, "whole": seconds / windows, "windows": windows}


def _sum(stages: dict[str, Any], half: str) -> float:
    return sum(each["seconds"] for each in stages.values() if each["half"] == half)


def describe_codec(parts: CodecParts) -> dict[str, Any]:
    """Return the name and the sizes of a codec as JSON values."""
    decoder = parts.decoder
    modules = {"acoustic encoder": parts.tokens.acoustic, "T-UNet": decoder.unet}
    modules |= {"VAE": decoder.vae, "vocoder": decoder.vocoder}
    counts = {"AudioMAE": sum(value.numel() for value in parts.tokens.encoder.tensors.values())}
    counts |= {name: sum(value.numel() for value in each.parameters()) for name, each in modules.items()}
    info = parts.info
    return {
        "name": info.name,
        "token_rate": info.token_rate,
        "codebook": largest_codebook(parts).k,
        "parameters": counts,
        "published_sizes": has_published_sizes(parts),
    }


def has_published_sizes(parts: CodecParts) -> bool:
    """Return whether the published figures are for modules of the same sizes."""
    decoder = parts.decoder
    unet = TUNetConfig(context_width=decoder.unet.config.context_width)
    return (
        (parts.tokens.encoder.config, decoder.unet.config, decoder.vae.config) == (EncoderConfig(), unet, VAEConfig())
        and parts.tokens.acoustic.config.layers == AcousticConfig.published(parts.info.token_rate).layers
        and isinstance(decoder.vocoder, HifiGan)
        and decoder.vocoder.config == HifiGanConfig()
    )


def sampler_option(text: str) -> SamplerConfig:
    """Parse a sampler such as ddim:50, unipc:10:3 or ddim:20:2:0: name, steps, guidance and eta."""
    name: Any
    name, *numbers = text.split(":")
    given = zip(("steps", "guidance", "eta"), (int, float, float), numbers, strict=False)
    try:
        return SamplerConfig(name=name, **{key: kind(number) for key, kind, number in given})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def numbers_option(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return a parser for lists of numbers such as 2,5,10."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("codec", nargs="?", default="mini", help="name or folder (default: mini)")
    parser.add_argument("--stand-in", type=int, choices=(25, 50, 100), help="published sizes, random weights")
    parser.add_argument("--codebook-rows", type=int, default=4096, help="rows of the codebook of the stand-in")
    parser.add_argument("--small", action="store_true", help="use a small stand-in, to try the script")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=8, help="number of windows of 10.24 s to encode and decode")
    parser.add_argument("--batch", type=int, help="windows in one batch of the T-UNet (default: the codec's)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decode", type=sampler_option, nargs="+", default=list(map(sampler_option, DECODES)))
    parser.add_argument(
        "--quality", type=Path, metavar="CLIPS", help="measure distances of the clips in this folder instead"
    )
    parser.add_argument(
        "--clips", type=int, default=QualityRuns.clips, help="number of clips, evenly spread over the folder"
    )
    parser.add_argument("--steps", type=numbers_option(int), default=QualityRuns.steps)
    parser.add_argument("--guidance", type=numbers_option(float), default=QualityRuns.guidance)
    parser.add_argument(
        "--at", type=sampler_option, default=sampler_option("ddim:50:2:1"), help="sampler settings that are not varied"
    )
    parser.add_argument("--plots", type=Path, help="folder for the figures of --quality; needs matplotlib")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--markdown", type=Path, help="file to write the tables to, between <!-- results --> lines if it has them"
    )
    args = parser.parse_args()
    if args.plots:
        need_matplotlib()
    return args


def main() -> None:
    """Measure, print the tables and write the requested files."""
    args = parse_arguments()
    set_threads(args.threads)
    parts = stand_in(args.stand_in, args.codebook_rows, args.small) if args.stand_in else load_codec(args.codec)
    device = resolve_device(args.device)
    codec = Codec(parts, device, resolve_precision(args.precision, device, [ENCODER, DECODER]), args.batch)
    if args.quality:
        runs = QualityRuns(args.steps, args.guidance, args.at, args.clips)
        results = measure_quality(parts, codec, args.quality, runs)
    else:
        results = measure_speed(parts, codec, args)
    results |= {"codec": describe_codec(parts), "machine": describe_machine({}, args.threads)}
    report = quality_report(results) if args.quality else speed_report(results)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        write_between_markers(args.markdown, report)
    if args.plots:
        save_quality_plots(results, args.plots)


if __name__ == "__main__":
    main()
