"""`sctok extract`: write AudioMAE features of audio to HDF5 shards."""

from functools import partial
from typing import Annotated

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    AudioArgument,
    ChannelOption,
    EncoderOption,
    FileSelection,
    HoursOption,
    JsonOption,
    OutOption,
    PaddingOption,
    PatchesOption,
    PrecisionOption,
    RootOption,
    RunOptions,
    SeedOption,
    ShardOption,
    checked_name,
)
from sctok.cli.shared.runs import RunReporter, show_results


@command(
    "sctok extract ~/LibriSpeech --domain speech",
    "sctok extract music/ --domain music --max-hours 200 --device all",
)
def extract(
    audio: AudioArgument,
    domain: Annotated[str, typer.Option(help="Name of the kind of audio: speech, music, general or any other.")],
    files: FileSelection,
    run: RunOptions,
    encoder: EncoderOption = "mini",
    precision: PrecisionOption = "auto",
    padding: PaddingOption = "keep",
    channel: ChannelOption = None,
    tokens_per_clip: PatchesOption = None,
    max_hours: HoursOption = None,
    seed: SeedOption = 0,
    files_per_shard: ShardOption = 256,
    root: RootOption = DEFAULT_ROOT,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Extract the AudioMAE features of AUDIO into HDF5 shards under ROOT/features/DOMAIN, for sctok cluster.

    Run the same command again to resume after an interruption or to add new files. Several commands may share one
    folder. Files that cannot be read are listed in failed.jsonl. If files changed or vanished since they were read,
    the command stops; --refresh updates their shards.
    """
    checked_name(domain, "--domain")

    from sctok.corpus.extraction import ExtractionConfig, extract_features
    from sctok.features.extractor import load_encoder

    config = ExtractionConfig(domain, channel, tokens_per_clip, max_hours, seed, files_per_shard)
    execution, chosen = run.execution(precision)
    make_extractor = partial(load_encoder, encoder, precision=chosen, padding=padding)
    folder = out or root / "features" / domain
    with RunReporter(f"extract {domain}") as reporter:
        result = extract_features(audio, folder, make_extractor, config, execution, reporter, files.selection())
    show_results([result], reporter, as_json)
