"""`sctok reconstruct`: audio to tokens and back, to hear what a codec keeps."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import (
    CodecOptions,
    DecodingOptions,
    FileReporter,
    FormatOption,
    KeepOption,
    ReadingOptions,
    audio_suffix,
)
from sctok.cli.shared.command import command
from sctok.cli.shared.options import JsonOption


@command("sctok reconstruct speech.wav through-mini.wav", "sctok reconstruct clips/ sound/ --sampler dpm++")
def reconstruct(
    audio: Annotated[str, typer.Argument(help="An audio file, or a folder, manifest or tar shard of audio files.")],
    out: Annotated[Path, typer.Argument(help="A .wav or .flac file, or a folder.")],
    codec: CodecOptions,
    reading: ReadingOptions,
    decoding: DecodingOptions,
    audio_format: FormatOption = "wav",
    skip_existing: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode AUDIO and decode its tokens to OUT: 16-bit audio at 16 kHz, as long as the original.

    Existing files are replaced; with --skip-existing, existing audio is kept. Files that cannot be read are reported,
    the remaining ones are reconstructed, and the exit code is 1.
    """
    config = decoding.sampler_config()

    from sctok.codec.files import reconstruct_files
    from sctok.codec.listing import audio_lengths, list_audio_jobs
    from sctok.codec.overlap import decode_window_count

    jobs = list_audio_jobs([audio], out, audio_suffix(out, audio_format))
    loaded = codec.load("encoder", "decoder", batch_windows=decoding.batch_size)
    chosen = reading.for_codec(loaded, len(jobs))
    reporter = FileReporter("reconstruct", audio_lengths(jobs), decode_window_count)
    reporter.take(reconstruct_files(loaded, jobs, chosen, config, keep=skip_existing, progress=reporter.windows))
    reporter.show(loaded, as_json)
