"""The part of `sctok cluster --from-audio` that encodes a sample of the audio first."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sctok.cli.shared.options import (
    PRECISIONS,
    ChannelOption,
    EncoderOption,
    EncodingOptions,
    FileSelection,
    HoursOption,
    PaddingOption,
    PatchesOption,
    checked_name,
    one_of,
)
from sctok.cli.shared.runs import RunReporter
from sctok.cli.shared.terminal import say

from .cluster_report import ClusterProgress

if TYPE_CHECKING:
    from sctok.corpus.from_audio import AudioResult
    from sctok.kmeans_tools.domains import DomainPlan


@dataclass(frozen=True)
class SampleOptions:
    """Whether a sample of audio is encoded first, and how."""

    panel: ClassVar[str] = "Encoding of --from-audio"
    from_audio: Annotated[
        bool,
        typer.Option(
            "--from-audio",
            help="Encode a random sample of AUDIO first; its features are deleted when the codebooks are finished.",
        ),
    ] = False
    encoder: EncoderOption = "mini"
    encoder_precision: Annotated[
        str, typer.Option(help="Arithmetic of the encoder: auto, fp32, bf16 or fp16.", callback=one_of(*PRECISIONS))
    ] = "auto"
    max_hours: HoursOption = None
    tokens_per_clip: PatchesOption = None
    channel: ChannelOption = None
    padding: PaddingOption = "keep"


def check_inputs(audio: list[str], domains: list[str], features: Path | None) -> str:
    """Return the domain of the audio; options that contradict `--from-audio` are wrong usage."""
    from sctok.formats.codebooks import MERGED_DOMAIN

    if not audio:
        raise typer.BadParameter("needs audio: folders, files, manifests or tar shards", param_hint="--from-audio")
    if features is not None:
        raise typer.BadParameter("contradicts --from-audio, which keeps no features", param_hint="--features")
    if len(domains) != 1:
        raise typer.BadParameter("name one domain, the domain of the audio", param_hint="--domain")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
        raise typer.BadParameter(
            "does not run under torchrun; use --device all or --engine ray", param_hint="--from-audio"
        )
    if domains[0] == MERGED_DOMAIN:
        raise typer.BadParameter(f"{MERGED_DOMAIN!r} is reserved for merged codebooks", param_hint="--domain")
    return checked_name(domains[0], "--domain")


def cluster_from_audio(
    audio: list[str],
    domain: str,
    plan: "DomainPlan",
    sample: SampleOptions,
    files: FileSelection,
    run: EncodingOptions,
) -> "AudioResult":
    """Encode a sample of audio, train the codebooks of a domain on it as `plan` says, and show the progress."""
    from sctok.corpus.extraction import ExtractionConfig
    from sctok.corpus.from_audio import cluster_audio
    from sctok.features.extractor import load_encoder

    seed = plan.config.seed
    config = ExtractionConfig(domain, sample.channel, sample.tokens_per_clip, sample.max_hours, seed)
    execution, precision = run.execution(sample.encoder_precision)
    kmeans = replace(plan.config, device=execution.devices[0])
    with RunReporter(f"encode {domain}") as reporter:
        result = cluster_audio(
            audio,
            config,
            replace(plan, config=kmeans),
            partial(load_encoder, sample.encoder, precision=precision, padding=sample.padding),
            lambda name, source: ClusterProgress(name, source, kmeans),
            execution,
            reporter,
            files.selection(),
        )
    if result.sample is not None and (failed := result.sample.summary.failed):
        ledger = plan.folder / f"{domain}.failed.jsonl"
        say(f"warning: {failed} inputs failed; {ledger} lists the reasons; correct them and add --retry-failed")
    return result
