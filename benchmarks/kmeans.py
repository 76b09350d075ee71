"""How does the k-means of sctok compare? Nearest centroids, time to inertia, final inertia, scaling and memory.

    python benchmarks/kmeans.py [--features DIR] [--only assign,time] [--quick] [--json FILE] [--markdown FILE]

Installed peers are measured in the same run, in turn (`pip install superkmeans kmeans-pytorch scikit-learn faiss-cpu`).
Every time is a median. Labels of all systems are compared with the exact ones, which a float64 oracle confirms on
random rows. Inertia is evaluated exactly, outside the clock. DIR holds feature shards of `sctok extract`. The default
is the few features of the bundled clips.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.kmeans_report import (
    describe_machine,
    first_time,
    markdown_report,
    median_curve,
    points_below,
    save_plots,
    slope,
)
from parts.kmeans_systems import (
    DIM,
    OURS,
    PEERS,
    System,
    Vectors,
    bundled_features,
    exact_inertia,
    isotropic,
    lowrank,
    peer_curve,
    real_features,
    sctok_assign,
    sctok_curve,
    set_threads,
    warm_up,
    write_shards,
)
from parts.markdown import write_between_markers

from sctok.kernels.assign import nearest_centroid, prepare_centroids
from sctok.kernels.reference import nearest_centroid_reference
from sctok.kernels.update import centroid_sums
from sctok.kmeans_tools.config import GIVEN, FitContext, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources.vectors import ArraySource

PARTS = ("assign", "time", "final", "scaling", "memory")
MEMORY_K = 256  # centroids of the runs whose memory is compared
TARGET_SYSTEM, TARGET_STEP = "faiss", 10  # the target is the inertia of faiss.Kmeans after 10 iterations
_ONCE = 120.0  # seconds; longer curves are measured once


_CHILD = """
import sys
from pathlib import Path
from sctok.cli.app import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements: `points` of each set are assigned to `centroids` trained on the other vectors."""

    vectors: int = 100_000
    points: int = 16_384
    centroids: int = 8_192
    repeats: int = 3
    reference_rows: int = 256
    time_k: int = 4_096
    time_repeats: int = 1
    final_vectors: int = 20_000
    final_k: int = 256
    final_iterations: int = 60
    seeds: int = 5
    scaling_rows: tuple[int, ...] = (1_000, 3_162, 10_000, 31_623, 100_000)
    scaling_k: tuple[int, ...] = (328, 1_036, 3_277, 10_362, 32_768)
    memory: int = 64 << 20


QUICK = Sizes(
    vectors=6_000,
    points=1_024,
    centroids=512,
    repeats=2,
    reference_rows=32,
    time_k=256,
    time_repeats=1,
    final_vectors=2_000,
    final_k=32,
    final_iterations=20,
    seeds=2,
    scaling_rows=(60, 600, 6_000),
    scaling_k=(30, 300, 3_000),
    memory=32 << 20,
)


def timed(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def installed() -> list[System]:
    """Return the peers that can be imported."""
    return [system for system in PEERS if system.version is not None]


def note(text: str) -> None:
    """Print to stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def first_centroids(rest: Vectors, k: int, iterations: int) -> Vectors:
    """Return k of the vectors, which are in random order, after `iterations` of Lloyd on all of them."""
    centroids, points = torch.from_numpy(rest[:k].copy()), torch.from_numpy(rest)
    for _ in range(iterations):
        sums, counts = centroid_sums(points, nearest_centroid(points, centroids).labels, k)
        used = counts > 0
        centroids[used] = (sums[used] / counts[used, None]).to(torch.float32)
    return centroids.numpy()


def measure_assign(points: Vectors, centroids: Vectors, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Time every system on one task, in turn, and count the labels that are not the float64 argmin."""
    prepared = prepare_centroids(torch.from_numpy(centroids))
    exact = nearest_centroid(torch.from_numpy(points), prepared)
    labels = exact.labels.numpy()
    rows = np.random.default_rng(3).choice(len(points), min(sizes.reference_rows, len(points)), replace=False)
    reference, _ = nearest_centroid_reference(torch.from_numpy(points[rows]), torch.from_numpy(centroids))
    counts = {OURS: len(points)} | {system.name: system.rows or len(points) for system in installed()}
    calls = {OURS: sctok_assign(points, centroids, threads)}
    calls |= {
        system.name: system.assign(points[: system.rows], centroids, threads) for system in installed() if system.assign
    }
    wrong = {name: int((np.asarray(call()) != labels[: counts[name]]).sum()) for name, call in calls.items()}
    calls["prepared"] = lambda: nearest_centroid(torch.from_numpy(points), prepared)
    calls["prepared"]()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(sizes.repeats):
        for name, call in calls.items():
            times[name].append(timed(call))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "points": len(points),
        "centroids": len(centroids),
        "dim": points.shape[1],
        "seconds": {name: medians[name] for name in wrong if counts[name] == len(points)},
        "extrapolated": {
            name: medians[name] * len(points) / counts[name] for name in wrong if counts[name] < len(points)
        },
        "measured_rows": {name: count for name, count in counts.items() if name in wrong},
        "mismatches": wrong,
        "prepared": medians["prepared"],
        "reference_rows": len(rows),
        "reference_mismatches": int((labels[rows] != reference.numpy()).sum()),
        "rescored": exact.rescored,
        "times": times,
    }


def run_assign(sets: dict[str, Vectors], sizes: Sizes, threads: int) -> dict[str, Any]:
    """Measure nearest centroids on each set with trained and with sampled centroids."""
    details: dict[str, dict[str, Any]] = {"trained": {}, "sampled": {}}
    for name, vectors in sets.items():
        count = min(sizes.points, len(vectors) // 4)
        points, rest = np.ascontiguousarray(vectors[:count]), np.ascontiguousarray(vectors[count:])
        k = min(sizes.centroids, len(rest) // 4)
        for kind, iterations in (("trained", 2), ("sampled", 0)):
            note(f"assign: {name}, {kind} centroids, {count} x {k}")
            details[kind][name] = measure_assign(points, first_centroids(rest, k, iterations), sizes, threads)
    seconds = {kind: {name: each["seconds"] for name, each in tables.items()} for kind, tables in details.items()}
    return {"assign": seconds["trained"], "assign_sampled": seconds["sampled"], "assign_details": details}


def measure_time(vectors: Vectors, k: int, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Measure the curve of every system on one set."""
    runs: dict[str, list[list[tuple[float, float]]]] = {}
    checks: list[dict[str, Any]] = []
    spent: dict[str, float] = {}
    systems = [system for system in installed() if system.curve is not None]
    warm_up(systems, vectors[: max(1_000, len(vectors) // 50)], threads)
    for repeat in range(sizes.time_repeats):
        ours, check = sctok_curve(vectors, k, 0)
        runs.setdefault(OURS, []).append(ours)
        checks.append(check)
        for system in systems:
            if repeat and spent[system.name] > _ONCE:
                continue
            note(f"time: {system.name}, round {repeat + 1}")
            started = time.perf_counter()
            runs.setdefault(system.name, []).append(peer_curve(system, vectors, k, 0, threads))
            spent[system.name] = time.perf_counter() - started
    curves = {name: median_curve(each) for name, each in runs.items()}
    steps = curves.get(TARGET_SYSTEM, [])
    target = steps[TARGET_STEP - 1][1] if len(steps) >= TARGET_STEP else None
    reached: dict[str, float | None] = {name: first_time(curve, target) for name, curve in curves.items()}
    refused = {
        s.name: f"needs {len(vectors) * k * s.bytes_per_distance / 1e9:,.0f} GB, it materialises n × k × D"
        for s in installed()
        if s.bytes_per_distance
    }
    return {
        "target": target,
        "reached": reached | dict.fromkeys(refused),
        "curves": curves,
        "vectors": len(vectors),
        "k": k,
        "runs": {name: len(each) for name, each in runs.items()},
        "refused": refused,
        "peers_below": points_below(curves),
        "whole_call": statistics.median(check["whole_call"] for check in checks),
        "final_inertia": checks[0]["final_inertia"],
        "inertia_error": max(check["inertia_error"] for check in checks),
    }


def run_time(sets: dict[str, Vectors], sizes: Sizes, threads: int) -> dict[str, Any]:
    """Measure the time to inertia on the sets that have structure."""
    details = {}
    for name in [name for name in sets if name != "isotropic"]:
        k = min(sizes.time_k, len(sets[name]) // 8)
        note(f"time: {name}, {len(sets[name])} vectors into {k}")
        details[name] = measure_time(sets[name], k, sizes, threads)
    reached = {name: {"target": each["target"], **each["reached"]} for name, each in details.items()}
    return {"time_to_inertia": reached, "time_details": details}


def final_fits(vectors: Vectors, k: int, seed: int, start: Vectors | None, iterations: int) -> dict[str, float]:
    """Return the exact final inertia of each system, from given centroids or from its own seeding."""
    results = {}
    settings: dict[str, Any] = {} if start is None else {"seeding": GIVEN, "iterations": iterations, "tol": 0}
    config = KMeansConfig(seed=seed, device="cpu", **settings)
    initial = {} if start is None else {k: start}
    results[OURS] = fit_codebooks(ArraySource(vectors), [k], config, FitContext(initial=initial))[k].centroids
    names = {system.name for system in installed()}
    if "scikit-learn" in names:
        from sklearn.cluster import KMeans

        init = "k-means++" if start is None else start
        model = KMeans(k, init=init, n_init=1, max_iter=iterations, random_state=seed).fit(vectors)
        results["scikit-learn"] = model.cluster_centers_
    if "faiss" in names:
        import faiss

        model = faiss.Kmeans(vectors.shape[1], k, niter=iterations, seed=seed, min_points_per_centroid=1)
        model.train(vectors, init_centroids=start)
        results["faiss"] = model.centroids
    return {name: exact_inertia(vectors, centroids) for name, centroids in results.items()}


def run_final(sets: dict[str, Vectors], sizes: Sizes) -> dict[str, Any]:
    """Compare the final inertia of five runs, from the same first centroids and from those of each system."""
    final = {}
    for name in [name for name in sets if name != "isotropic"]:
        vectors = np.ascontiguousarray(sets[name][: sizes.final_vectors])
        k = min(sizes.final_k, len(vectors) // 16)
        note(f"final: {name}, {len(vectors)} vectors into {k}")
        starts = [
            vectors[np.random.default_rng(seed).choice(len(vectors), k, replace=False)] for seed in range(sizes.seeds)
        ]
        tables = {
            kind: [
                final_fits(vectors, k, seed, start if kind == "given" else None, sizes.final_iterations)
                for seed, start in enumerate(starts)
            ]
            for kind in ("given", "own")
        }
        final[name] = {"vectors": len(vectors), "k": k} | {
            kind: {system: [run[system] for run in runs] for system in runs[0]} for kind, runs in tables.items()
        }
    return {"final_inertia": final}


def run_scaling(vectors: Vectors, sizes: Sizes) -> dict[str, Any]:
    """Time whole assignments over two decades of points and two decades of centroids."""
    points = torch.from_numpy(vectors)
    count = min(sizes.points, len(points) - max(sizes.scaling_k))
    fixed_k = min(1024, len(points) // 8)
    tasks = {
        "points": [(n, points[:n], points[-fixed_k:]) for n in sizes.scaling_rows],
        "centroids": [(k, points[:count], points[-k:]) for k in sizes.scaling_k],
    }
    scaling = {}
    for axis, cases in tasks.items():
        note(f"scaling: {axis}")
        times: dict[int, list[float]] = {size: [] for size, _, _ in cases}
        for _ in range(sizes.repeats):
            for size, rows, centroids in cases:
                times[size].append(timed(partial(nearest_centroid, rows, centroids)))
        line = [(size, statistics.median(values)) for size, values in times.items()]
        scaling[axis] = {"fixed": fixed_k if axis == "points" else count, "seconds": line, "slope": slope(line)}
    return {"scaling": scaling}


def cluster_peak(root: Path, domain: str, k: int, memory: int, threads: int) -> int:
    """Run `sctok cluster` with a limit in a child process and return its peak resident bytes.

    The child reads the peak itself: the maximum that its parent sees includes the parent's pages at the fork.
    """
    arguments = ["cluster", "--domain", domain, "--k", str(k), "--root", str(root), "--token-rate", "25"]
    arguments += ["--iterations", "3", "--device", "cpu", "--memory", f"{memory >> 20}M"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _CHILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"sctok {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1]) * 1024


def run_memory(sizes: Sizes, threads: int) -> dict[str, Any]:
    """Cluster features of four times the memory budget, and subtract the peak of a small run.

    The small run has as many centroids and a few vectors for each, so that it loads the same code.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        stored = write_shards(root / "features" / "large", 4 * sizes.memory // (2 * DIM))
        write_shards(root / "features" / "small", 4 * MEMORY_K)
        note(f"memory: {stored >> 20} MiB of features within {sizes.memory >> 20} MiB")
        small = cluster_peak(root, "small", MEMORY_K, sizes.memory, threads)
        large = cluster_peak(root, "large", MEMORY_K, sizes.memory, threads)
    return {"memory": {"budget": sizes.memory, "stored": stored, "empty": small, "peak": large}}


def load_sets(folder: Path | None, rows: int) -> dict[str, Vectors]:
    """Return the sets by name, with `rows` vectors each, or fewer if there are fewer real features."""
    features = bundled_features(rows) if folder is None else real_features(folder, rows)
    note(f"features: {len(features)} vectors" + (" of the bundled clips" if folder is None else ""))
    return {"lowrank": lowrank(rows), "features": features, "isotropic": isotropic(rows)}


def measure(parts: Sequence[str], features: Path | None, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Measure the parts and return all figures as JSON values."""
    sets = load_sets(features, sizes.vectors) if set(parts) - {"memory"} else {}
    runners: dict[str, Callable[[], dict[str, Any]]] = {
        "assign": lambda: run_assign(sets, sizes, threads),
        "time": lambda: run_time(sets, sizes, threads),
        "final": lambda: run_final(sets, sizes),
        "scaling": lambda: run_scaling(sets["lowrank"], sizes),
        "memory": lambda: run_memory(sizes, threads),
    }
    results: dict[str, Any] = {"assign": {}, "time_to_inertia": {}, "quick": sizes is QUICK}
    for part in parts:
        results |= runners[part]()
    return results | {"machine": describe_machine({s.name: s.version for s in PEERS}, threads)}


def main() -> int:
    """Measure, print the tables and write the requested files. Return 1 if labels or inertia of sctok are wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=Path, help="folder of feature shards, searched recursively")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="use small sizes, to try the script")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--markdown", type=Path, help="file to write the tables to, between <!-- results --> lines if it has them"
    )
    parser.add_argument("--plots", type=Path, help="folder for the figures; needs matplotlib")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    set_threads(args.threads)
    results = measure(parts, args.features, QUICK if args.quick else Sizes(), args.threads)
    report = markdown_report(results)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        write_between_markers(args.markdown, report)
    if args.plots:
        save_plots(results, args.plots)
    assigned = [each for table in results.get("assign_details", {}).values() for each in table.values()]
    wrong_labels = any(each["reference_mismatches"] for each in assigned)
    wrong_inertia = any(each["inertia_error"] > 1e-5 for each in results.get("time_details", {}).values())
    return int(wrong_labels or wrong_inertia)


if __name__ == "__main__":
    sys.exit(main())
