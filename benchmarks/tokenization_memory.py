"""How much more memory does `sctok tokenize` take for many files than for 20? It uses a tiny encoder.

    python benchmarks/tokenization_memory.py AUDIO [--device cuda] [--padding cut]

It prints the peak memory of this process for 20 one-second files and for the files in AUDIO, in MB, as one line of
JSON. Run it in a new process for each measurement, as benchmarks/tokenization.py does.
"""

import argparse
import json
import tempfile
from pathlib import Path

from parts.tokenization_corpora import real_audio, write_collection
from parts.tokenization_systems import make_system, run_whole

from sctok.features.extractor import CUT, KEEP, PADDINGS

FEW_FILES, FILE_SECONDS = 20, 1.0


def main() -> None:
    """Measure one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path, help="folder of audio")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--padding", choices=PADDINGS, default=KEEP)
    args = parser.parse_args()
    print(json.dumps(peak_memory(args.audio, args.device, args.padding)))


def peak_memory(audio: Path, device: str, padding: str) -> dict[str, float]:
    """Tokenize a few files and then those of `audio`, and return the peak memory of this process in both runs."""
    sound = real_audio(None, 60)
    system = make_system("tiny", device, "fp32", 256, sound)
    if padding == CUT:
        system = system.without_padding()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "few")
        write_collection(few, sound, FEW_FILES, FILE_SECONDS)
        for inputs in (few, audio):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
            found = run_whole(system, inputs, Path(folder, "tokens"), workers=1, batch=8)
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peaks.append(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
    return {"before_mb": peaks[0], "peak_mb": peaks[1], "seconds": found["seconds"]}


if __name__ == "__main__":
    main()
