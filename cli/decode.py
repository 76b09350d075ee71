"""`sctok decode`: tokens to audio."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import CodecOptions, DecodingOptions, FileReporter, FormatOption, KeepOption, audio_suffix
from sctok.cli.shared.command import command
from sctok.cli.shared.options import JsonOption


@command("sctok decode speech.sct", "sctok decode tokens/ --out sound/ --sampler dpm++ --steps 10")
def decode(
    tokens: Annotated[
        list[str], typer.Argument(metavar="TOKENS...", help=".sct files, token shards (.tar), or folders of them.")
    ],
    codec: CodecOptions,
    decoding: DecodingOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .wav or .flac file for a single .sct, or a folder.",
            show_default="NAME.decoded.wav next to each .sct",
        ),
    ] = None,
    audio_format: FormatOption = "wav",
    skip_existing: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode TOKENS to 16-bit audio files at 16 kHz, each exactly as long as the audio that was encoded.

    Existing files are replaced. With --skip-existing, audio of the right length is kept, even if another sampler made
    it.
    Tokens that are damaged or belong to another codec are reported, the remaining ones are decoded, and the exit code
    is 1.
    """
    config = decoding.sampler_config()
    suffix = audio_suffix(out, audio_format)

    from sctok.codec.files import decode_files
    from sctok.codec.listing import list_token_jobs
    from sctok.codec.overlap import decode_window_count

    lengths = [job.tokens.samples for job in list_token_jobs(tokens, out, suffix) if not isinstance(job.tokens, str)]
    loaded = codec.load("decoder", batch_windows=decoding.batch_size)
    reporter = FileReporter("decode", lengths, decode_window_count)
    jobs = list_token_jobs(tokens, out, suffix)
    reporter.take(decode_files(loaded, jobs, config, skip_existing=skip_existing, progress=reporter.windows))
    reporter.show(loaded, as_json)
