"""What `sctok cluster` shows: a live line per domain, and one table at the end."""

from typing import TYPE_CHECKING, Any

from sctok.cli.shared.terminal import Progress, ProgressReporter, table_of

if TYPE_CHECKING:
    from sctok.kmeans_tools.config import KMeansConfig
    from sctok.kmeans_tools.domains import DomainResult
    from sctok.kmeans_tools.progress import FitEvent
    from sctok.kmeans_tools.sources.vectors import ShardSource

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
_COLUMNS = {
    "domain": "domain",
    "k": "k",
    "inertia": "inertia:.6g",
    "explained": "explained_variance:.1%",
    "perplexity": "perplexity:.1f",
    "dead": "dead_codes",
    "iterations": "iterations",
    "seconds": "seconds:.1f",
    "path": "path",
}


class ClusterProgress(ProgressReporter):
    """Show the progress of one domain: vectors per second, and the inertia after each iteration."""

    bar: Progress

    def __init__(self, domain: str, source: "ShardSource", config: "KMeansConfig") -> None:
        self.name = f"{domain} r{100 // source.stack}"
        self.rows, self.iterations = source.rows, config.most_iterations
        self.bar = Progress(f"cluster {self.name}", total=source.rows * (self.iterations + 1), unit="vectors")

    def __call__(self, event: "FitEvent") -> None:
        """Show an event of `fit_codebooks`."""
        from sctok.kmeans_tools.progress import FitStarted, RowsRead

        if isinstance(event, RowsRead):
            self.bar.update(event.rows)
        elif isinstance(event, FitStarted):
            start = f"resumed after pass {event.passes}" if event.resumed else "seeded"
            self.bar.message(f"{self.name} k={event.k}: {start}, {event.rows} vectors")
        else:
            step = "final pass" if event.is_final else f"iteration {event.number}/{self.iterations}"
            inertia = f"inertia {event.inertia:.6g} ({event.inertia / self.rows:.5g} per vector)"
            self.bar.message(f"{self.name} k={event.k}: {step}, {inertia}")


def domain_facts(result: "DomainResult") -> dict[str, Any]:
    """Return the facts of a domain for JSON: its features, and the error if there was one."""
    facts = {"domain": result.domain, "encoder": result.encoder, "n_vectors": result.n_vectors}
    return facts if result.error is None else {**facts, "error": " ".join(str(result.error).split())}


def codebook_rows(result: "DomainResult") -> list[dict[str, Any]]:
    """Return the facts of each codebook of a domain for JSON."""
    return [
        {
            "domain": result.domain,
            "k": book.codebook.k,
            **{name: (book.codebook.metadata.certificate or {}).get(name) for name in _SHOWN},
            "seconds": book.seconds,
            "path": str(book.path),
            "trained": book.seconds is not None,
        }
        for book in result.codebooks
    ]


def codebook_table(rows: list[dict[str, Any]]) -> str:
    """Return rows of `codebook_rows` as a table."""
    return table_of(rows, _COLUMNS)
