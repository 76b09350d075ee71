"""The part of `sctok cluster --from-audio` that encodes a sample of the audio first."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import one_of, say
from sctok.cli.shared.runs import RunReporter, checked_name, prepare, select

from .cluster_report import ClusterProgress

if TYPE_CHECKING:
    from sctok.corpus.from_audio import AudioResult
    from sctok.kmeans_tools.domains import DomainPlan

EncoderPrecisionOption = Annotated[
    str,
    typer.Option(
        "--encoder-precision",
        help="auto, fp32, bf16 or fp16: of the encoder.",
        callback=one_of("auto", "fp32", "bf16", "fp16"),
    ),
]


def check_inputs(audio: list[str], domains: list[str], features: Any) -> str:
    """Return the one domain that audio is of; anything that does not go with `--from-audio` is wrong usage."""
    from sctok.formats.codebooks import MERGED_DOMAIN

    if not audio:
        raise typer.BadParameter("needs audio: folders, files, manifests or tar shards", param_hint="--from-audio")
    if features is not None:
        raise typer.BadParameter("does not go with --from-audio, which keeps no features", param_hint="--features")
    if len(domains) != 1:
        raise typer.BadParameter("name one domain, that of the audio", param_hint="--domain")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
        raise typer.BadParameter("takes --device all or --engine ray instead of torchrun", param_hint="--from-audio")
    if domains[0] == MERGED_DOMAIN:
        raise typer.BadParameter(f"{MERGED_DOMAIN!r} is kept for merged codebooks", param_hint="--domain")
    return checked_name(domains[0], "--domain")


def cluster_from_audio(audio: list[str], domain: str, plan: "DomainPlan", options: dict[str, Any]) -> "AudioResult":
    """Train the codebooks of a domain as `plan` says, and show how it goes. options: those of `sctok cluster`."""
    from sctok.corpus.extraction import ExtractionConfig
    from sctok.corpus.from_audio import cluster_audio

    channel, tokens, hours, seed = (options[name] for name in ("channel", "tokens_per_clip", "max_hours", "seed"))
    config = ExtractionConfig(domain, channel, tokens, hours, seed)
    selection = select(*(options[name] for name in ("include", "exclude", "min_seconds", "max_seconds")))
    how = {name: options[name] for name in ("retry_failed", "engine", "address")}
    named = (options[name] for name in ("encoder", "device", "encoder_precision", "batch_size", "workers", "padding"))
    make_extractor, execution = prepare(*named, rank=0, world_size=1, **how)
    kmeans = replace(plan.config, device=execution.devices[0])
    with RunReporter(f"encode {domain}") as reporter:
        result = cluster_audio(
            audio,
            config,
            replace(plan, config=kmeans),
            make_extractor,
            lambda name, source: ClusterProgress(name, source, kmeans),
            execution,
            reporter,
            selection,
        )
    if result.sample is not None and (failed := result.sample.summary.failed):
        ledger = plan.folder / f"{domain}.failed.jsonl"
        say(f"warning: {failed} inputs failed; the reasons are in {ledger}; mend them and add --retry-failed")
    return result
