"""`sctok cluster`: train k-means codebooks from feature shards, or directly from audio."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    EncodingOptions,
    FileSelection,
    JsonOption,
    OverwriteOption,
    RootOption,
    SeedOption,
    byte_count,
    one_of,
    split_list,
    whole_numbers,
)
from sctok.cli.shared.terminal import emit, say

from .cluster_audio import SampleOptions, check_inputs, cluster_from_audio
from .cluster_report import ClusterProgress, codebook_rows, codebook_table, domain_facts

if TYPE_CHECKING:
    from sctok.kmeans_tools.config import KMeansConfig
    from sctok.kmeans_tools.domains import DomainPlan, DomainResult

DEFAULT_TOKEN_RATE = 100
LEAST_MEMORY = 1024
ALGORITHM_NAMES = ("auto", "lloyd", "minibatch")
BACKEND_NAMES = ("auto", "torch", "faiss", "faiss-superkmeans")
SEEDING_NAMES = ("auto", "hierarchical", "kmeans++", "random")
ALL_DOMAINS = "all"
PAPER_SIZES = "paper"


@dataclass(frozen=True)
class VectorOptions:
    """Which vectors are clustered, and where the codebooks go."""

    domain: Annotated[
        list[str], typer.Option(help="Domain of the features, repeated or separated by commas; all takes every domain.")
    ]
    k: Annotated[
        list[str],
        typer.Option(
            help="Number of centroids, repeated or separated by commas; several sizes share each pass over the "
            "vectors. paper: 1024, 2048, 4096, 8192 and 16384."
        ),
    ]
    token_rate: Annotated[
        int | None, typer.Option(help="Token rate of the codebook: 100, 50 or 25 per second.", show_default="100")
    ] = None
    stack: Annotated[
        int | None, typer.Option(help="Patches in one vector, 1, 2 or 4; another way to give --token-rate.")
    ] = None
    features: Annotated[
        Path | None,
        typer.Option(help="Folder with the feature shards of one domain.", show_default="ROOT/features/DOMAIN"),
    ] = None
    output: Annotated[
        Path | None, typer.Option(help="Folder to write codebooks to.", show_default="ROOT/codebooks")
    ] = None
    overwrite: OverwriteOption = False
    root: RootOption = DEFAULT_ROOT

    def domains(self) -> list[str]:
        """Return the names of the domains, each once; an empty list means all that exist."""
        names = list(dict.fromkeys(split_list(self.domain)))
        if "" in names:
            raise typer.BadParameter("a name is empty", param_hint="--domain")
        if self.features is not None and (len(names) > 1 or names == [ALL_DOMAINS]):
            raise typer.BadParameter(
                "is the folder of one domain; give --domain only that name", param_hint="--features"
            )
        if ALL_DOMAINS in names and len(names) > 1:
            raise typer.BadParameter("give either all or the names of domains", param_hint="--domain")
        return [] if names == [ALL_DOMAINS] else names

    def folders(self, domains: list[str]) -> dict[str, Path]:
        """Return the folder of the feature shards of each domain."""
        from sctok.kmeans_tools.domains import find_domains

        names = domains or find_domains(self.root / "features")
        return {name: self.features or self.root / "features" / name for name in names}

    def plan(self, fit: "FitOptions", device: str) -> "DomainPlan":
        """Return which codebooks are trained, and how."""
        sizes, factor = _parse_codebooks(self.k), parse_stack(self.token_rate, self.stack)
        first = None if fit.seeding in SEEDING_NAMES else _first_centroids(fit.seeding, sizes)

        from sctok.kmeans_tools.domains import DomainPlan

        folder = self.output or self.root / "codebooks"
        config = fit.config(device, first is not None)
        return DomainPlan(factor, tuple(sizes), config, folder, first, self.overwrite)


@dataclass(frozen=True)
class FitOptions:
    """How k-means runs."""

    panel: ClassVar[str] = "K-means"
    algorithm: Annotated[
        str,
        typer.Option(
            help="lloyd: full passes over all vectors. minibatch: small batches. auto: minibatch for sets far larger "
            "than the memory, else lloyd.",
            callback=one_of(*ALGORITHM_NAMES),
        ),
    ] = "auto"
    backend: Annotated[
        str,
        typer.Option(
            help="auto (torch), torch, faiss, or faiss-superkmeans, which clusters a sample in memory.",
            callback=one_of(*BACKEND_NAMES),
        ),
    ] = "auto"
    precision: Annotated[
        str,
        typer.Option(
            help="exact: labels are the nearest centroids in float64. fp32: labels may differ at near ties.",
            callback=one_of("exact", "fp32"),
        ),
    ] = "exact"
    seeding: Annotated[
        str, typer.Option(help="First centroids: auto, hierarchical, kmeans++, random, or a codebook or .npy file.")
    ] = "auto"
    iterations: Annotated[
        int | None,
        typer.Option(help="Largest number of passes that move centroids.", show_default="25; 5 for minibatch", min=1),
    ] = None
    tol: Annotated[
        float | None,
        typer.Option(
            help="Stop when a pass lowers the inertia by less than this share.",
            show_default="1e-4; 1e-5 for lloyd",
            min=0,
        ),
    ] = None
    max_points_per_centroid: Annotated[
        int | None,
        typer.Option(
            help="Iterate on a random sample with this many vectors for each centroid.",
            show_default="all vectors",
            min=1,
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(help="Largest size of vectors and caches, such as 2G.", show_default="half of the free memory"),
    ] = None
    seed: SeedOption = 0

    def config(self, device: str, is_given: bool) -> "KMeansConfig":
        """Return the configuration for the library. is_given: the first centroids come from a file."""
        from sctok.kmeans_tools.config import GIVEN, KMeansConfig

        return KMeansConfig(
            algorithm=self.algorithm,
            backend=self.backend,
            device=device,
            precision=self.precision,
            seeding=GIVEN if is_given else self.seeding,
            iterations=self.iterations,
            tol=self.tol,
            seed=self.seed,
            max_points_per_centroid=self.max_points_per_centroid,
            memory=_memory(self.memory),
        )


@command(
    "sctok cluster --domain speech --k 4096",
    "sctok cluster --domain all --k paper --token-rate 50",
    "sctok cluster ~/LibriSpeech --from-audio --domain speech --k 4096",
)
def cluster(
    vectors: VectorOptions,
    fit: FitOptions,
    sample: SampleOptions,
    files: FileSelection,
    run: EncodingOptions,
    audio: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AUDIO...]", help="Audio to cluster with --from-audio, as for sctok extract."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train k-means codebooks of one or several domains on their feature shards, which may exceed the memory.

    Run the same command again to resume after an interruption. Under torchrun the processes share the work.

    With --from-audio, audio is encoded first: by default enough files for 1024 vectors per centroid of the largest
    codebook, at most half of --memory. The options in the last three sections apply to that.
    """
    domains, plan = vectors.domains(), vectors.plan(fit, run.device)
    if audio and not sample.from_audio:
        raise typer.BadParameter("is clustered with --from-audio only; else omit it", param_hint="AUDIO")
    if sample.from_audio:
        domain = check_inputs(audio or [], domains, vectors.features)
        result = cluster_from_audio(audio or [], domain, plan, sample, files, run).domain
        _show([result], plan.stack, as_json)
        raise typer.Exit(int(result.error is not None))

    from sctok.kmeans_tools.domains import train_domains
    from sctok.runtime.distributed import join_group

    folders = vectors.folders(domains)
    with join_group() as group:
        results = train_domains(folders, plan, lambda name, source: ClusterProgress(name, source, plan.config), group)
        if group.leads:
            _show(results, plan.stack, as_json)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _show(results: list["DomainResult"], factor: int, as_json: bool) -> None:
    if len(results) == 1 and results[0].error:
        raise results[0].error
    rows = [row for result in results for row in codebook_rows(result)]
    for row in rows:
        if not row["trained"]:
            say(f"{row['path']} exists already, made from the same features with the same settings")
    facts = [domain_facts(result) for result in results]
    only = facts[0] if len(facts) == 1 else {}
    emit(
        {**only, "token_rate": 100 // factor, "domains": facts, "codebooks": rows},
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
            f"{text} is {memory} bytes, which is too little; give a size such as 512M or 2G", param_hint="--memory"
        )
    return memory


def _parse_codebooks(values: list[str]) -> list[int]:
    parts = split_list(values)
    if PAPER_SIZES not in parts:
        return whole_numbers(parts, "--k")

    from sctok.kmeans_tools.domains import PAPER_CODEBOOKS

    paper = ",".join(map(str, PAPER_CODEBOOKS))
    return whole_numbers([paper if part == PAPER_SIZES else part for part in parts], "--k")


def parse_stack(token_rate: int | None, stack: int | None) -> int:
    """Return the stack factor of --token-rate or --stack; by default the one for 100 tokens per second."""
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
    """Return the file that --seeding names; it must hold as many centroids as the only size."""
    from sctok.kmeans_tools.domains import count_first_centroids

    path = Path(seeding)
    if not path.exists():
        names = ", ".join(SEEDING_NAMES)
        raise typer.BadParameter(f"{seeding!r} is neither one of {names} nor a file", param_hint="--seeding")
    if sizes != [count := count_first_centroids(path)]:
        raise typer.BadParameter(f"{seeding} holds {count} centroids", param_hint="--k")
    return path
