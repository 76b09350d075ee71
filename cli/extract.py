"""`sctok extract`: AudioMAE features of audio into HDF5 shards."""

from typing import Annotated, Any

import typer

from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, PrecisionOption, RootOption, SeedOption
from sctok.cli.shared.runs import (
    AddressOption,
    AudioArgument,
    BatchOption,
    ChannelOption,
    DevicesOption,
    EncoderOption,
    EngineOption,
    ExcludeOption,
    HoursOption,
    IncludeOption,
    MaxSecondsOption,
    MinSecondsOption,
    OutOption,
    PaddingOption,
    PatchesOption,
    ProfileOption,
    RankOption,
    RefreshOption,
    RetryOption,
    RunReporter,
    ShardOption,
    WorkersOption,
    WorldOption,
    checked_name,
    prepare,
    select,
    show_results,
)


def extract(
    audio: AudioArgument,
    domain: Annotated[str, typer.Option("--domain", help="What the audio is: speech, music, general or any name.")],
    encoder: EncoderOption = "mini",
    root: RootOption = DEFAULT_ROOT,
    out: OutOption = None,
    tokens_per_clip: PatchesOption = None,
    max_hours: HoursOption = None,
    device: DevicesOption = "auto",
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    precision: PrecisionOption = "auto",
    channel: ChannelOption = None,
    padding: PaddingOption = "keep",
    seed: SeedOption = 0,
    files_per_shard: ShardOption = 256,
    retry_failed: RetryOption = False,
    refresh: RefreshOption = False,
    rank: RankOption = 0,
    world_size: WorldOption = 1,
    profile: ProfileOption = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    min_seconds: MinSecondsOption = None,
    max_seconds: MaxSecondsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the AudioMAE features of audio to ROOT/features/DOMAIN, for `sctok cluster`.

    Interrupted, it goes on where it stopped when the same command is run again; new files go to new shards. Several
    commands may work on one folder at the same time. Files that cannot be read are listed in failed.jsonl. Files whose
    size or modification time changed since they were read, or that vanished, end the command; --refresh updates them.

    With --padding cut, files shorter than a window (10.24 s) are as fast per second as long ones. Features differ, and
    need codebooks of their own; sctok tokenize sees by a codebook which it is for.
    """
    checked_name(domain, "--domain")

    from sctok.corpus.extraction import ExtractionConfig, extract_features

    config = ExtractionConfig(domain, channel, tokens_per_clip, max_hours, seed, files_per_shard)
    selection = select(include, exclude, min_seconds, max_seconds)
    how: dict[str, Any] = {"retry_failed": retry_failed, "rank": rank, "world_size": world_size, "profile": profile}
    how |= {"engine": engine, "address": address, "refresh": refresh}
    make_extractor, execution = prepare(encoder, device, precision, batch_size, workers, padding, **how)
    with RunReporter(f"extract {domain}") as reporter:
        folder = out or root / "features" / domain
        result = extract_features(audio, folder, make_extractor, config, execution, reporter, selection)
    show_results([result], reporter, as_json)
