"""`sctok encode`: audio to `.sct` files of semantic and acoustic tokens."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import (
    CodebookOption,
    CodecOption,
    FileReporter,
    KeepOption,
    chosen_codebook,
    decoding_workers,
    load_codec,
)
from sctok.cli.shared.common import DEFAULT_ROOT, DeviceOption, JsonOption, PrecisionOption, RootOption, StartsOver
from sctok.cli.shared.runs import AudioArgument, ChannelOption, WorkersOption


def encode(
    audio: AudioArgument,
    codec: CodecOption = "mini",
    codebook: CodebookOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A .sct file for a single input, a .tar for one token shard, or a folder.",
            show_default="beside the audio",
        ),
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    channel: ChannelOption = None,
    skip_existing: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the tokens of audio to .sct files, one for each file under its path in the input, or to one token shard.

    Files that are there already are replaced unless --skip-existing is given, which keeps those that are whole and of
    the same codec and codebook: so an interrupted command goes on. Files that cannot be read are named with the
    reason, the rest goes on, and the exit code is 1.
    """
    from sctok.audio.windows import window_count
    from sctok.codec.files import Reading, encode_files, encode_to_shard
    from sctok.codec.listing import SHARD_SUFFIX, audio_lengths, list_audio_jobs
    from sctok.formats.sct import SCT_SUFFIX

    jobs = list_audio_jobs(audio, out, SCT_SUFFIX)
    loaded = load_codec(codec, root, device, precision, parts=["encoder"])
    processes = decoding_workers(workers, len(jobs), loaded.device.type == "cuda")
    reading = Reading(chosen_codebook(loaded, codebook), channel, processes)
    reporter = FileReporter("encode", audio_lengths(jobs), window_count)
    if out is not None and out.suffix == SHARD_SUFFIX:
        try:
            reporter.take(encode_to_shard(loaded, jobs, reading, out, reporter.windows))
        except StartsOver:
            raise StartsOver(
                f"nothing is kept of {out}, which is written at once; sctok tokenize --codec {codec} goes on where it "
                "stopped"
            ) from None
    else:
        reporter.take(encode_files(loaded, jobs, reading, skip_existing=skip_existing, progress=reporter.windows))
    reporter.show(loaded, as_json)
