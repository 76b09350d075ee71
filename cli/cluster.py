"""`sctok cluster`: k-means codebooks from feature shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import DEFAULT_ROOT, DeviceOption, JsonOption, Progress, RootOption, SeedOption, emit, one_of, say, table

if TYPE_CHECKING:
    from sctok.kmeans_tools.config import KMeansConfig
    from sctok.kmeans_tools.sources import ShardSource
    from sctok.kmeans_tools.training import TrainedCodebook

DEFAULT_TOKEN_RATE = 100
SEEDING_NAMES = ("kmeans++", "random")


def cluster(
    domain: Annotated[str, typer.Option("--domain", help="Name of the features and of the codebook: speech …")],
    k: Annotated[list[str], typer.Option("--k", help="Centroids; several (repeated or 1024,2048) share each pass.")],
    root: RootOption = DEFAULT_ROOT,
    token_rate: Annotated[
        int | None, typer.Option("--token-rate", help="100, 50 or 25 tokens per second. Default: 100.")
    ] = None,
    stack: Annotated[
        int | None, typer.Option("--stack", help="Patches per vector, 1, 2 or 4, instead of --token-rate.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of feature shards. Default: features/DOMAIN under --root.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of codebooks. Default: codebooks under --root.")
    ] = None,
    algorithm: Annotated[
        str,
        typer.Option(
            "--algorithm", help="lloyd, or minibatch for very large sets.", callback=one_of("lloyd", "minibatch")
        ),
    ] = "lloyd",
    backend: Annotated[
        str,
        typer.Option("--backend", help="auto (PyTorch), torch or faiss.", callback=one_of("auto", "torch", "faiss")),
    ] = "auto",
    device: DeviceOption = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="exact (the float64 nearest centroid) or fp32.", callback=one_of("exact", "fp32")
        ),
    ] = "exact",
    seeding: Annotated[
        str, typer.Option("--seeding", help="kmeans++, random, or a codebook or .npy file to start from.")
    ] = "kmeans++",
    iterations: Annotated[
        int | None,
        typer.Option("--iterations", help="Passes that move centroids, at most. Default: 25, minibatch 5.", min=1),
    ] = None,
    tol: Annotated[
        float, typer.Option("--tol", help="Stop when the inertia falls by less than this share.", min=0)
    ] = 1e-5,
    max_points_per_centroid: Annotated[
        int | None, typer.Option("--max-points-per-centroid", help="Iterate on a part of the vectors.", min=1)
    ] = None,
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace codebooks made otherwise.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train k-means codebooks of one domain on its feature shards, without loading them whole.

    Interrupted training goes on where it stopped when the same command is run again.
    """
    sizes = parse_sizes(k, "--k")
    factor = parse_stack(token_rate, stack)

    from sctok.kmeans_tools.config import GIVEN, KMeansConfig
    from sctok.kmeans_tools.sources import ShardSource
    from sctok.kmeans_tools.training import find_feature_shards, load_first_centroids, train_codebooks

    given = seeding not in SEEDING_NAMES
    config = KMeansConfig(
        algorithm=algorithm,
        backend=backend,
        device=device,
        precision=precision,
        seeding=GIVEN if given else seeding,
        iterations=iterations,
        tol=tol,
        seed=seed,
        max_points_per_centroid=max_points_per_centroid,
    )
    source = ShardSource(find_feature_shards(features or root / "features" / domain, domain), factor)
    initial = {}
    if given:
        first = load_first_centroids(_seeding_path(seeding), source)
        if sizes != [len(first)]:
            raise typer.BadParameter(f"{seeding} holds {len(first)} centroids", param_hint="--k")
        initial = {len(first): first}
    with _Reporter(domain, source, config) as reporter:
        results = train_codebooks(
            source,
            sizes,
            config,
            domain=domain,
            folder=output or root / "codebooks",
            initial=initial,
            overwrite=overwrite,
            progress=reporter,
        )
    rows = [_result_row(result) for result in results]
    for result in results:
        if result.seconds is None:
            say(f"{result.path} is there already, made from the same features with the same settings")
    summary = {"domain": domain, "token_rate": 100 // factor, "encoder": source.encoder, "n_vectors": source.rows}
    emit({**summary, "codebooks": rows}, as_json, lambda: _result_table(rows))


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


def _seeding_path(seeding: str) -> Path:
    path = Path(seeding)
    if not path.exists():
        raise typer.BadParameter(f"{seeding!r} is neither kmeans++ nor random nor a file", param_hint="--seeding")
    return path


class _Reporter:
    """Shows the live line of a fit: vectors per second, and the inertia of every iteration."""

    def __init__(self, domain: str, source: "ShardSource", config: "KMeansConfig") -> None:
        self.name = f"{domain} r{100 // source.stack}"
        self.iterations = config.most_iterations
        self.rows = source.rows
        self.bar = Progress(f"cluster {self.name}", total=source.rows * (self.iterations + 1), unit="vectors")

    def __enter__(self) -> "_Reporter":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "rows":
            self.bar.update(event["rows"])
            return
        what = f"{self.name} k={event['k']}"
        if event["event"] == "start":
            start = f"resumed after pass {event['passes']}" if event["resumed"] else "seeded"
            self.bar.message(f"{what}: {start}, {event['rows']} vectors")
            return
        step = "final pass" if event["event"] == "done" else f"iteration {event['pass']}/{self.iterations}"
        self.bar.message(f"{what}: {step}, inertia {event['inertia']:.6g} ({event['mean_distance']:.5g} per vector)")


def _result_row(result: "TrainedCodebook") -> dict[str, Any]:
    certificate = result.codebook.metadata.certificate or {}
    names = ("inertia", "explained_variance", "perplexity", "dead_codes", "min_centroid_distance", "iterations")
    return {
        "k": result.codebook.k,
        **{name: certificate.get(name) for name in names},
        "rescored_rows": certificate.get("rescored_rows"),
        "seconds": result.seconds,
        "path": str(result.path),
        "trained": result.seconds is not None,
    }


def _result_table(rows: list[dict[str, Any]]) -> str:
    header = ("k", "inertia", "explained", "perplexity", "dead", "iterations", "seconds", "path")
    return table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    explained, seconds = row["explained_variance"], row["seconds"]
    return (
        str(row["k"]),
        f"{row['inertia']:.6g}",
        "-" if explained is None else f"{100 * explained:.1f}%",
        f"{row['perplexity']:.1f}",
        str(row["dead_codes"]),
        str(row["iterations"]),
        "-" if seconds is None else f"{seconds:.1f}",
        row["path"],
    )
