"""`sctok decode`: tokens to audio."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import (
    BatchWindowsOption,
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
    load_codec,
    sampler_config,
)
from sctok.cli.shared.common import DEFAULT_ROOT, DeviceOption, JsonOption, PrecisionOption, RootOption, SeedOption


def decode(
    tokens: Annotated[
        list[str], typer.Argument(metavar="TOKENS...", help=".sct files, token shards (.tar), or folders of them.")
    ],
    codec: CodecOption = "mini",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A .wav or .flac file for a single .sct, or a folder.",
            show_default="beside the .sct, as NAME.decoded.wav",
        ),
    ] = None,
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
    skip_existing: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the audio of tokens, 16 kHz and exactly as long as what was encoded, to WAV or FLAC files of 16 bits.

    Files that are there already are replaced unless --skip-existing is given, which keeps audio of the right length,
    whatever sampler it is from. Tokens that are damaged or of another codec are named with the reason, the rest goes
    on, and the exit code is 1.
    """
    config = sampler_config(sampler, steps, guidance, guidance_form, eta, seed)
    suffix = audio_suffix(out, audio_format)

    from sctok.codec.files import decode_files
    from sctok.codec.listing import list_token_jobs
    from sctok.codec.overlap import decode_window_count

    lengths = [job.tokens.samples for job in list_token_jobs(tokens, out, suffix) if not isinstance(job.tokens, str)]
    loaded = load_codec(codec, root, device, precision, batch_size, parts=["decoder"])
    reporter = FileReporter("decode", lengths, decode_window_count)
    jobs = list_token_jobs(tokens, out, suffix)
    reporter.take(decode_files(loaded, jobs, config, skip_existing=skip_existing, progress=reporter.windows))
    reporter.show(loaded, as_json)
