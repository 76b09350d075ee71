"""What `sctok cluster` shows: a live line per domain, and one table at the end."""

from typing import TYPE_CHECKING, Any

from sctok.cli.shared.terminal import Progress, table

if TYPE_CHECKING:
    from sctok.kmeans_tools.config import KMeansConfig
    from sctok.kmeans_tools.domains import DomainResult
    from sctok.kmeans_tools.sources.vectors import ShardSource
    from sctok.kmeans_tools.training import TrainedCodebook

_SHOWN = (
    "inertia",
    "explained_variance",
    "perplexity",
    "dead_codes",
    "min_centroid_distance",
    "median_centroid_distance",
    "iterations",
    "certified_rows",
)


class ClusterProgress:
    """Show the progress of one domain: vectors per second, and the inertia after each iteration."""

    def __init__(self, domain: str, source: "ShardSource", config: "KMeansConfig") -> None:
        self.name = f"{domain} r{100 // source.stack}"
        self.iterations = config.most_iterations
        self.bar = Progress(f"cluster {self.name}", total=source.rows * (self.iterations + 1), unit="vectors")

    def __enter__(self) -> "ClusterProgress":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event of `fit_codebooks`."""
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


def domain_facts(result: "DomainResult") -> dict[str, Any]:
    """Return the facts of a domain for JSON: its features, and the error if there was one."""
    facts = {"domain": result.domain, "encoder": result.encoder, "n_vectors": result.n_vectors}
    return facts if result.error is None else {**facts, "error": " ".join(str(result.error).split())}


def codebook_rows(result: "DomainResult") -> list[dict[str, Any]]:
    """Return the facts of each codebook of a domain for JSON."""
    return [_row(result.domain, book) for book in result.codebooks]


def _row(domain: str, book: "TrainedCodebook") -> dict[str, Any]:
    certificate = book.codebook.metadata.certificate or {}
    return {
        "domain": domain,
        "k": book.codebook.k,
        **{name: certificate.get(name) for name in _SHOWN},
        "seconds": book.seconds,
        "path": str(book.path),
        "trained": book.seconds is not None,
    }


def codebook_table(rows: list[dict[str, Any]]) -> str:
    """Return rows of `codebook_rows` as a table."""
    header = ("domain", "k", "inertia", "explained", "perplexity", "dead", "iterations", "seconds", "path")
    return table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    explained, seconds = row["explained_variance"], row["seconds"]
    return (
        row["domain"],
        str(row["k"]),
        f"{row['inertia']:.6g}",
        "-" if explained is None else f"{100 * explained:.1f}%",
        f"{row['perplexity']:.1f}",
        str(row["dead_codes"]),
        str(row["iterations"]),
        "-" if seconds is None else f"{seconds:.1f}",
        row["path"],
    )
