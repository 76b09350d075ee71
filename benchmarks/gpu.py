"""How fast are the k-means kernels on this GPU, and are their results right?

    python benchmarks/gpu.py [--points 1000000] [--quick] [--shapes 768x16384] [--operands fp16,int8] [--json FILE]

Correctness against float64 is checked first, and nothing is timed after a failure. Then each system is timed. The table
gives TFLOP/s (2 N K D per search) and the share of the roofline of the operand type: the peak of the tensor cores, or
the bandwidth limit of reading the points once if that is lower. Systems that are not installed are named and left out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from parts.gpu_peers import cuvs, faiss_gpu, flash_iteration, flash_kmeans, torch_argmin
from torch import Tensor

# Dense peaks by device name, from data sheets: TFLOP/s or TOP/s of 16-bit floats, TF32 and int8, then memory in TB/s.
PEAKS = {
    "H200": (989, 495, 1979, 4.8),
    "H100 PCIe": (756, 378, 1513, 2.0),
    "H100": (989, 495, 1979, 3.35),
    "B200": (2250, 1125, 4500, 8.0),
    "A100": (312, 156, 624, 2.0),
    "L40S": (362, 183, 733, 0.86),
    "L4": (121, 60, 242, 0.3),
    "4090": (165, 83, 661, 1.0),
}
PEAK_OF = {"bf16": 0, "fp16": 0, "tf32": 1, "tf32x3": 1, "int8": 2}
OPERANDS = tuple(PEAK_OF)
DEFAULT_OPERAND = "fp16"  # of `nearest_centroid`, which is always timed
REPEATS = 7


def main() -> int:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="measure one shape and skip the large checks")
    parser.add_argument(
        "--shapes", type=shapes_option, help="dimensions and centroids, such as 768x1024,3072x4096, instead of the nine"
    )
    parser.add_argument("--operands", default=",".join(OPERANDS), help="operand types to check and time")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA device here, nothing was measured", file=sys.stderr)
        return 1
    operands = args.operands.split(",")
    failures = check(sorted({*operands, DEFAULT_OPERAND}), large=not args.quick)
    if failures:
        print("\n".join(failures), file=sys.stderr)
        return 1
    device = torch.cuda.get_device_name()
    print(f"{device}, {args.points} points, median of {REPEATS}, all checks of what is timed passed")
    print(f"{'D':>5} {'K':>6} {'system':40s} {'ms':>9} {'TFLOP/s':>8} {'roofline':>9}")
    rows = []
    nine = [(dim, k) for dim in (768, 1536, 3072) for k in (1024, 4096, 16_384)]
    for dim, k in args.shapes or ([(768, 16_384)] if args.quick else nine):
        for row in measure(args.points, k, dim, operands):
            share = "-" if row["roofline"] is None else f"{100 * row['roofline']:.0f} %"
            print(f"{dim:5} {k:6} {row['system']:40s} {row['ms']:9.3f} {row['tflops']:8.1f} {share:>9}", flush=True)
            rows.append(row)
            if args.json:
                report = {"device": device, "torch": torch.__version__, "points": args.points, "rows": rows}
                args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def shapes_option(text: str) -> list[tuple[int, int]]:
    """Parse dimensions and centroids such as 768x1024,3072x4096."""
    pairs = [tuple(map(int, shape.split("x"))) for shape in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(text)
    return [(dim, k) for dim, k in pairs]


def check(operands: list[str], *, large: bool) -> list[str]:
    """Return the differences from float64, one line each."""
    failures = [message for operand in operands for message in check_search(operand)]
    failures += check_update()
    return failures + (check_large() if large else [])


def check_search(operand: str) -> list[str]:
    """Compare certified labels and runners-up with brute force on friendly and hostile data."""
    from sctok.kernels.assign import prepare_centroids
    from sctok.kernels.reference import squared_distances
    from sctok.kernels.triton.certify import certified_labels
    from sctok.kernels.triton.operands import prepare_operand

    failures = []
    for name, points, centroids in hostile_sets():
        prepared = prepare_centroids(centroids)
        rounded = prepare_operand(prepared.centroids, prepared.center, operand)
        found = certified_labels(points, rounded, runner_up=True)
        parts = [squared_distances(part[:, None], centroids[None]) for part in points.split(64)]
        order = torch.cat(parts).sort(dim=1, stable=True).indices
        wrong = int((found.labels != order[:, 0]).sum())
        second = int((found.second_labels != order[:, 1]).sum()) if found.second_labels is not None else len(points)
        print(f"{operand:6s} {name:24s} wrong {wrong} and {second}, rescored {found.rescored} of {len(points)}")
        if wrong or second:
            failures.append(f"{operand}, {name}: {wrong} labels and {second} runners-up differ from float64")
    return failures


def hostile_sets() -> list[tuple[str, Tensor, Tensor]]:
    """Return named points and centroids."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    points = torch.randn(1500, 768, generator=generator, device="cuda")
    centroids = torch.randn(700, 768, generator=generator, device="cuda")
    loud, loud_centroids = points.clone(), centroids.clone()
    loud[:, 5] *= 1e5
    loud_centroids[:, 5] *= 1e5
    near = centroids[:350].repeat(2, 1)
    near[350:, 0] += 2.0**-22
    far = points.clone()
    far[7] *= 1e12
    return [
        ("Gaussian", points, centroids),
        ("common offset 1000", points + 1000, centroids + 1000),
        ("duplicates", centroids[:350].repeat(4, 1), centroids[:350].repeat(2, 1)),
        ("near ties", points, near),
        ("dominating coordinate", loud, loud_centroids),
        ("outlier", far, centroids),
        ("subnormal", points * 1e-42, centroids * 1e-42),
        ("float16, ragged", points[:1499, :701].half(), centroids[:699, :701].half()),
    ]


def check_update() -> list[str]:
    """Compare segmented sums with the reference and with themselves."""
    from sctok.kernels.reference import segment_sum_reference
    from sctok.kernels.update import centroid_sums

    generator = torch.Generator(device="cuda").manual_seed(0)
    points = torch.randn(100_000, 768, generator=generator, device="cuda")
    labels = torch.randint(0, 300, (100_000,), generator=generator, device="cuda").clamp(max=200)
    sums, counts = centroid_sums(points, labels, 300)
    expected, expected_counts = segment_sum_reference(points, labels, 300)
    magnitude, _ = segment_sum_reference(points.abs(), labels, 300)
    failures = []
    if not bool(((sums - expected).abs() <= len(points) * 2.0**-52 * magnitude).all()):
        failures.append("centroid sums leave their bound")
    if not torch.equal(counts, expected_counts):
        failures.append("counts differ")
    if any(not torch.equal(sums, centroid_sums(points, labels, 300)[0]) for _ in range(5)):
        failures.append("centroid sums differ from run to run")
    return failures


def check_large() -> list[str]:
    """Search with more than 65,535 programs and with more than 2^31 elements, and compare the last rows."""
    from sctok.kernels.assign import nearest_centroid
    from sctok.kernels.reference import nearest_centroid_reference

    failures = []
    for n, dim in ((65_540 * 128, 16), ((1 << 31) // 768 + 5000, 768)):
        free, _ = torch.cuda.mem_get_info()
        if n * dim * 2 * 1.3 > free:
            print(f"{n} x {dim} points do not fit in memory: left out")
            continue
        points = torch.randn(n, dim, device="cuda", dtype=torch.float16)
        centroids = torch.randn(500, dim, device="cuda")
        labels = nearest_centroid(points, centroids).labels
        tail = nearest_centroid_reference(points[-2000:], centroids)[0]
        if not torch.equal(labels[-2000:], tail):
            failures.append(f"{n} x {dim} points: the last labels are wrong")
    return failures


def measure(n: int, k: int, dim: int, operands: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per system for one shape. The points are float16, around K centres, like features."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    centroids = torch.randn(k, dim, generator=generator, device="cuda")
    chosen = torch.randint(0, k, (n,), generator=generator, device="cuda")
    points = torch.empty(n, dim, dtype=torch.float16, device="cuda")
    for start in range(0, n, 65_536):
        part = chosen[start : start + 65_536]
        noise = torch.randn(len(part), dim, generator=generator, device="cuda")
        points[start : start + 65_536] = centroids[part] + noise
    for system, operand, search in systems(points, centroids, operands):
        if search is None:
            print(f"{system}: not installed")
            continue
        ms = median_ms(search)
        tflops = 0.0 if operand == "memory" else 2e-9 * n * k * dim / ms
        limit = roofline_ms(n, k, dim, operand)
        yield {
            "dim": dim,
            "k": k,
            "system": system,
            "operand": operand,
            "ms": ms,
            "tflops": tflops,
            "roofline": None if limit is None else limit / ms,
        }


def systems(
    points: Tensor, centroids: Tensor, operands: list[str]
) -> list[tuple[str, str, Callable[[], object] | None]]:
    """Return name, operand type and search of every system."""
    from sctok.kernels.assign import nearest_centroid, prepare_centroids
    from sctok.kernels.triton.certify import certified_labels
    from sctok.kernels.triton.operands import prepare_operand, quantise_points
    from sctok.kernels.triton.scan import scan_groups
    from sctok.kernels.update import centroid_sums

    found: list[tuple[str, str, Callable[[], object] | None]] = []
    prepared = prepare_centroids(centroids)
    for name in operands:
        operand = prepare_operand(prepared.centroids, prepared.center, name)
        rounded = quantise_points(points, operand)
        found.append((f"sctok scan only, {name}", name, lambda r=rounded, o=operand: scan_groups(r, o)))
        found.append((f"sctok exact labels, {name}", name, lambda o=operand: certified_labels(points, o)))
    half = centroids.half()
    labels = nearest_centroid(points, prepared).labels

    def iteration() -> Tensor:
        nearest = nearest_centroid(points, prepare_centroids(centroids)).labels
        sums, counts = centroid_sums(points, nearest, len(centroids))
        return sums / counts.clamp(min=1)[:, None]

    found.append(("sctok nearest_centroid", "fp16", lambda: nearest_centroid(points, prepared)))
    found.append(("sctok update only", "memory", lambda: centroid_sums(points, labels, len(centroids))))
    found.append(("sctok k-means iteration", "fp16", iteration))
    found.append(("PyTorch GEMM and argmin, fp16", "fp16", lambda: torch_argmin(points, half)))
    found.append(("flash-kmeans assign, fp16", "fp16", flash_kmeans(points, half)))
    found.append(("flash-kmeans iteration, fp16", "fp16", flash_iteration(points, half)))
    found.append(("cuVS predict, fp32", "tf32x3", cuvs(points, centroids)))
    found.append(("FAISS flat index, fp32", "tf32x3", faiss_gpu(points, centroids)))
    return found


def median_ms(function: Callable[[], object]) -> float:
    """Return the median time of a call in milliseconds, measured by events after two warm-up calls."""
    times = []
    for repeat in range(REPEATS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        if repeat > 1:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def roofline_ms(n: int, k: int, dim: int, operand: str) -> float | None:
    """Return the time at the peak of this device's data sheet, or None if the table does not have the device."""
    name = torch.cuda.get_device_name()
    peaks = next((value for key, value in PEAKS.items() if key in name), None)
    if peaks is None:
        return None
    reading = n * dim * 2 / peaks[3] * 1e-9
    if operand == "memory":
        return reading
    return max(reading, 2e-9 * n * k * dim / peaks[PEAK_OF[operand]] * (3 if operand == "tf32x3" else 1))


if __name__ == "__main__":
    sys.exit(main())
