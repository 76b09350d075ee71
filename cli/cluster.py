"""`sctok cluster`: k-means codebooks from feature shards, or straight from audio."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sctok.cli.shared.common import (
    DEFAULT_ROOT,
    JsonOption,
    MemoryOption,
    RootOption,
    SeedOption,
    byte_count,
    emit,
    one_of,
    say,
)
from sctok.cli.shared.runs import (
    AddressOption,
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
    PaddingOption,
    PatchesOption,
    RetryOption,
    WorkersOption,
)

from .cluster_audio import EncoderPrecisionOption, check_inputs, cluster_from_audio
from .cluster_report import ClusterProgress, codebook_rows, codebook_table, domain_facts

if TYPE_CHECKING:
    from sctok.kmeans_tools.domains import DomainResult

DEFAULT_TOKEN_RATE = 100
LEAST_MEMORY = 1024
ALGORITHM_NAMES = ("auto", "lloyd", "minibatch")
BACKEND_NAMES = ("auto", "torch", "faiss", "faiss-superkmeans")
SEEDING_NAMES = ("auto", "hierarchical", "kmeans++", "random")
ALL_DOMAINS = "all"
PAPER_SIZES = "paper"


def cluster(
    domain: Annotated[
        list[str],
        typer.Option("--domain", help="Names of features and codebooks (repeated or speech,music), or all."),
    ],
    k: Annotated[
        list[str],
        typer.Option("--k", help="Centroids; several (repeated or 1024,2048) share each pass. paper: 1024 … 16384."),
    ],
    audio: Annotated[
        list[str] | None, typer.Argument(metavar="[AUDIO...]", help="With --from-audio: what sctok extract takes.")
    ] = None,
    from_audio: Annotated[
        bool,
        typer.Option(
            "--from-audio",
            help="Cluster a sample of AUDIO, whose features are kept only until the codebooks are there.",
        ),
    ] = False,
    root: RootOption = DEFAULT_ROOT,
    token_rate: Annotated[
        int | None, typer.Option("--token-rate", help="100, 50 or 25 tokens per second. Default: 100.")
    ] = None,
    stack: Annotated[
        int | None, typer.Option("--stack", help="Patches per vector, 1, 2 or 4, instead of --token-rate.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Folder of the shards of one domain. Default: features/DOMAIN under --root."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of codebooks. Default: codebooks under --root.")
    ] = None,
    algorithm: Annotated[
        str,
        typer.Option(
            "--algorithm",
            help="auto, lloyd, or minibatch (what auto takes for sets far larger than the memory).",
            callback=one_of(*ALGORITHM_NAMES),
        ),
    ] = "auto",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="auto (PyTorch), torch, faiss, or faiss-superkmeans (on a sample in memory).",
            callback=one_of(*BACKEND_NAMES),
        ),
    ] = "auto",
    device: DevicesOption = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="exact (the float64 nearest centroid) or fp32.", callback=one_of("exact", "fp32")
        ),
    ] = "exact",
    seeding: Annotated[
        str,
        typer.Option(
            "--seeding", help="auto, hierarchical, kmeans++, random, or a codebook or .npy file to start from."
        ),
    ] = "auto",
    iterations: Annotated[
        int | None,
        typer.Option("--iterations", help="Passes that move centroids, at most. Default: 25, minibatch 5.", min=1),
    ] = None,
    tol: Annotated[
        float | None,
        typer.Option(
            "--tol", help="Stop when the inertia falls by less than this share. Default: 1e-4, lloyd 1e-5.", min=0
        ),
    ] = None,
    max_points_per_centroid: Annotated[
        int | None, typer.Option("--max-points-per-centroid", help="Iterate on a part of the vectors.", min=1)
    ] = None,
    memory: MemoryOption = None,
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace codebooks made otherwise.")] = False,
    encoder: EncoderOption = "mini",
    encoder_precision: EncoderPrecisionOption = "auto",
    max_hours: HoursOption = None,
    tokens_per_clip: PatchesOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    channel: ChannelOption = None,
    padding: PaddingOption = "keep",
    engine: EngineOption = "local",
    address: AddressOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    min_seconds: MinSecondsOption = None,
    max_seconds: MaxSecondsOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the k-means codebooks of one domain or several on their feature shards, without loading them whole.

    Interrupted training goes on where it stopped when the same command is run again. Under torchrun the processes
    share the work.

    With --from-audio the audio is encoded first, files chosen by the seed: by default 1024 vectors for each centroid of
    the largest codebook, and no more than half of --memory. The options of sctok extract, from --encoder on, are for
    that.
    """
    options = dict(locals())
    sizes, factor = _parse_codebooks(k), parse_stack(token_rate, stack)
    domains = _parse_domains(domain, features)
    of_audio = check_inputs(audio or [], domains, features) if from_audio else ""
    if audio and not from_audio:
        raise typer.BadParameter("audio is clustered with --from-audio; without it, --domain names features")
    first = None if seeding in SEEDING_NAMES else _first_centroids(seeding, sizes)

    from sctok.kmeans_tools.config import GIVEN, KMeansConfig
    from sctok.kmeans_tools.domains import DomainPlan, find_domains, train_domains
    from sctok.runtime.distributed import join_group

    config = KMeansConfig(
        algorithm=algorithm,
        backend=backend,
        device=device,
        precision=precision,
        seeding=GIVEN if first else seeding,
        iterations=iterations,
        tol=tol,
        seed=seed,
        max_points_per_centroid=max_points_per_centroid,
        memory=_memory(memory),
    )
    plan = DomainPlan(factor, tuple(sizes), config, output or root / "codebooks", first, overwrite)
    if of_audio:
        results = [cluster_from_audio(audio or [], of_audio, plan, options).domain]
        _show(results, factor, as_json)
        raise typer.Exit(int(results[0].error is not None))
    names = domains or find_domains(root / "features")
    folders = {name: features or root / "features" / name for name in names}
    with join_group() as group:
        results = train_domains(folders, plan, lambda name, source: ClusterProgress(name, source, config), group)
        if group.leads:
            _show(results, factor, as_json)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _show(results: list["DomainResult"], factor: int, as_json: bool) -> None:
    if len(results) == 1 and results[0].error:
        raise results[0].error
    rows = [row for result in results for row in codebook_rows(result)]
    for row in rows:
        if not row["trained"]:
            say(f"{row['path']} is there already, made from the same features with the same settings")
    facts = [domain_facts(result) for result in results]
    alone = facts[0] if len(facts) == 1 else {}
    emit(
        {**alone, "token_rate": 100 // factor, "domains": facts, "codebooks": rows},
        as_json,
        lambda: codebook_table(rows),
    )
    for fact in facts:
        if "error" in fact:
            say(f"error: {fact['domain']}: {fact['error']}")


def _memory(text: str | None) -> int | None:
    memory = byte_count(text)
    if memory is not None and memory < LEAST_MEMORY:
        raise typer.BadParameter(
            f"{text} is {memory} bytes, too little to work in; give a size such as 512M or 2G", param_hint="--memory"
        )
    return memory


def _parse_domains(values: list[str], features: Path | None) -> list[str]:
    """Return the names of domains, each once, or none for all that there are."""
    names = list(dict.fromkeys(part.strip() for part in ",".join(values).split(",")))
    if "" in names:
        raise typer.BadParameter("a name is empty", param_hint="--domain")
    if features is not None and (len(names) > 1 or names == [ALL_DOMAINS]):
        raise typer.BadParameter("is the folder of one domain; name that domain alone", param_hint="--features")
    if ALL_DOMAINS in names and len(names) > 1:
        raise typer.BadParameter("all are more than those named beside it", param_hint="--domain")
    return [] if names == [ALL_DOMAINS] else names


def _parse_codebooks(values: list[str]) -> list[int]:
    parts = [part.strip() for part in ",".join(values).split(",")]
    if PAPER_SIZES not in parts:
        return parse_sizes(parts, "--k")

    from sctok.kmeans_tools.domains import PAPER_CODEBOOKS

    paper = ",".join(map(str, PAPER_CODEBOOKS))
    return parse_sizes([paper if part == PAPER_SIZES else part for part in parts], "--k")


def parse_sizes(values: list[str], option: str) -> list[int]:
    """Return the numbers of a repeated option whose values may be comma lists, each once, in their order."""
    sizes = []
    for part in ",".join(values).split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise typer.BadParameter(f"{part.strip()!r} is not a positive whole number", param_hint=option)
        sizes.append(int(part))
    return list(dict.fromkeys(sizes))


def parse_stack(token_rate: int | None, stack: int | None) -> int:
    """Return the stack factor that --token-rate or --stack gives; by default that of 100 tokens per second."""
    from sctok.formats.stacking import stack_factor
    from sctok.formats.stacking import token_rate as rate_of

    try:
        by_rate = None if token_rate is None else stack_factor(token_rate)
        if stack is not None:
            rate_of(stack)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--token-rate or --stack") from None
    if None not in (by_rate, stack) and by_rate != stack:
        raise typer.BadParameter(f"--token-rate {token_rate} is --stack {by_rate}, not {stack}", param_hint="--stack")
    return by_rate or stack or stack_factor(DEFAULT_TOKEN_RATE)


def _first_centroids(seeding: str, sizes: list[int]) -> Path:
    """Return the file that --seeding names, which holds as many centroids as the only size."""
    from sctok.kmeans_tools.domains import count_first_centroids

    path = Path(seeding)
    if not path.exists():
        names = ", ".join(SEEDING_NAMES)
        raise typer.BadParameter(f"{seeding!r} is none of {names} and no file", param_hint="--seeding")
    if sizes != [count := count_first_centroids(path)]:
        raise typer.BadParameter(f"{seeding} holds {count} centroids", param_hint="--k")
    return path
