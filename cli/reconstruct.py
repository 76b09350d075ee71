"""`sctok reconstruct`: audio to tokens and back, to hear what a codec keeps."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import (
    BatchWindowsOption,
    CodebookOption,
    CodecOption,
    EtaOption,
    FileReporter,
    FormatOption,
    GuidanceFormOption,
    GuidanceOption,
    KeepOption,
    SamplerOption,
    StepsOption,
    audio_suffix,
    chosen_codebook,
    decoding_workers,
    load_codec,
    sampler_config,
)
from sctok.cli.shared.common import DEFAULT_ROOT, DeviceOption, JsonOption, PrecisionOption, RootOption, SeedOption
from sctok.cli.shared.runs import ChannelOption, WorkersOption


def reconstruct(
    audio: Annotated[str, typer.Argument(help="An audio file, or a folder, manifest or tar shard of such.")],
    out: Annotated[Path, typer.Argument(help="A .wav or .flac file, or a folder.")],
    codec: CodecOption = "mini",
    codebook: CodebookOption = None,
    audio_format: FormatOption = "wav",
    sampler: SamplerOption = "ddim",
    steps: StepsOption = None,
    guidance: GuidanceOption = 2.0,
    guidance_form: GuidanceFormOption = "published",
    eta: EtaOption = 1.0,
    seed: SeedOption = 0,
    root: RootOption = DEFAULT_ROOT,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_size: BatchWindowsOption = None,
    workers: WorkersOption = None,
    channel: ChannelOption = None,
    skip_existing: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode audio and decode its tokens at once: what it sounds like through the codec, 16 kHz and just as long.

    Files that are there already are replaced unless --skip-existing is given, which keeps any audio. Files that cannot
    be read are named with the reason, the rest goes on, and the exit code is 1.
    """
    config = sampler_config(sampler, steps, guidance, guidance_form, eta, seed)

    from sctok.codec.files import Reading, reconstruct_files
    from sctok.codec.listing import audio_lengths, list_audio_jobs
    from sctok.codec.overlap import decode_window_count

    jobs = list_audio_jobs([audio], out, audio_suffix(out, audio_format))
    loaded = load_codec(codec, root, device, precision, batch_size, parts=["encoder", "decoder"])
    processes = decoding_workers(workers, len(jobs), loaded.device.type == "cuda")
    reading = Reading(chosen_codebook(loaded, codebook), channel, processes)
    reporter = FileReporter("reconstruct", audio_lengths(jobs), decode_window_count)
    reporter.take(
        reconstruct_files(loaded, jobs, reading, config, skip_existing=skip_existing, progress=reporter.windows)
    )
    reporter.show(loaded, as_json)
