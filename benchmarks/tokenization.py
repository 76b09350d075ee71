"""How fast is `sctok tokenize` on this machine, where does the time go, and how fast is the model by itself?

    python benchmarks/tokenization.py [--device cuda] [--encoder base] [--quick] [--json FILE] [--markdown FILE]

Sections (`--only NAME,NAME`): stages of a run; the model on batches in memory; decoding workers; length and number of
files; memory; a plain loop over files; three scripts as people write them. With --device cuda, a first section measures
the encoder in each precision, batch size and launch mode, and counts the tokens that low precision changes. The audio
is real sound, cut and repeated: the bundled clips, or --audio FOLDER.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.tokenization_corpora import Audio, real_audio, windows_of
from parts.tokenization_report import report
from parts.tokenization_sections import SECTIONS, Setting
from parts.tokenization_systems import System, bare_job, make_system

import sctok
from sctok.features.extractor import ENCODER
from sctok.runtime.devices import resolve_device, resolve_precision


def main() -> int:
    """Run the chosen sections, print their tables and return the exit code."""
    args = _parser().parse_args()
    chosen = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        print(f"tokenization.py: no section {unknown[0]}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    where = resolve_device(args.device)
    system_name, precision = str(where), resolve_precision(args.precision, where, [ENCODER])
    sound = real_audio(args.audio, 120 if args.quick else 600)
    system = make_system(args.encoder, system_name, precision, args.rows, sound)
    bare_job(system)(*windows_of(sound, 2))  # compiles before anything is timed
    results: dict[str, Any] = {"device": _device_name(where), "encoder": args.encoder, "precision": precision}
    results |= {"rows": len(system.codebook.centroids), "sections": {}}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        setting = _setting(args, system, sound, Path(folder))
        for name in chosen:
            print(f"{name} …", file=sys.stderr, flush=True)
            results["sections"][name] = SECTIONS[name](setting)
            results["machine"] = _machine()
            _save(results, args)
    print(report(results))
    return 0


def _save(results: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the results so far, so that a run that is stopped keeps them."""
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(report(results) + "\n", encoding="utf-8")


def _setting(args: argparse.Namespace, system: System, sound: Audio, folder: Path) -> Setting:
    on_gpu = system.device.startswith("cuda")
    cores = len(os.sched_getaffinity(0))
    default = 36_000.0 if on_gpu else 1800.0
    return Setting(
        system,
        sound,
        folder,
        workers=args.workers if args.workers is not None else min(16, cores) if on_gpu else 1,
        batch=args.batch or (64 if on_gpu else 8),
        seconds=args.seconds or (default / 5 if args.quick else default),
        short_files=args.files or (200 if args.quick else 10_000),
        memory_files=(100, 300) if args.quick else (100, 1000, 10_000),
        clusters=args.clusters,
        repeats=1 if args.quick else 3,
        quick=args.quick,
    )


def _machine() -> dict[str, Any]:
    names = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {"sctok": sctok.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _device_name(where: torch.device) -> str:
    return torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tokenization.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", default="mini", help="mini, base (random weights of that size), tiny, or a file")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rows", type=int, default=4096, help="rows of the codebook")
    parser.add_argument("--audio", help="folder of audio to use instead of the bundled clips")
    parser.add_argument(
        "--seconds", type=float, help="seconds of audio in most sections (default: 1800, on a GPU 36,000)"
    )
    parser.add_argument("--files", type=int, help="files of one second (default: 10,000)")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--only", help=f"sections to run, of {','.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="use small sizes, once each")
    parser.add_argument("--work", help="folder for temporary files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
