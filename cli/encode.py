"""`sctok encode`: audio to `.sct` files of semantic and acoustic tokens."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import CodecOptions, FileReporter, KeepOption, ReadingOptions
from sctok.cli.shared.command import command
from sctok.cli.shared.options import AudioArgument, JsonOption
from sctok.cli.shared.terminal import StartsOver


@command("sctok encode speech.wav", "sctok encode clips/ --out tokens/ --codebook 1024")
def encode(
    audio: AudioArgument,
    codec: CodecOptions,
    reading: ReadingOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .sct file for a single input, a .tar for one token shard, or a folder.",
            show_default="next to each audio file",
        ),
    ] = None,
    skip_existing: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode AUDIO with a codec and write its tokens, one .sct file for each audio file, or one token shard.

    Existing files are replaced. To resume an interrupted command, add --skip-existing. Files that cannot be read are
    reported, the remaining ones are encoded, and the exit code is 1.
    """
    from sctok.audio.windows import window_count
    from sctok.codec.files import encode_files, encode_to_shard
    from sctok.codec.listing import SHARD_SUFFIX, audio_lengths, list_audio_jobs
    from sctok.formats.sct import SCT_SUFFIX

    jobs = list_audio_jobs(audio, out, SCT_SUFFIX)
    loaded = codec.load("encoder")
    chosen = reading.for_codec(loaded, len(jobs))
    reporter = FileReporter("encode", audio_lengths(jobs), window_count)
    if out is not None and out.suffix == SHARD_SUFFIX:
        try:
            reporter.take(encode_to_shard(loaded, jobs, chosen, out, reporter.windows))
        except StartsOver:
            raise StartsOver(
                f"{out} is written in one piece, so no part of it is kept; sctok tokenize --codec {codec.codec} can "
                "be resumed"
            ) from None
    else:
        reporter.take(encode_files(loaded, jobs, chosen, skip_existing=skip_existing, progress=reporter.windows))
    reporter.show(loaded, as_json)
