"""The memory of encoding and decoding does not grow with the length of a file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

PEAK = """
import json, resource, sys
from sctok.cli.app import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def peak_bytes(*arguments):
    """Run a command in a separate process and return the most memory that it held."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0, done.stderr
    return result["peak"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_sixteen_minutes_need_no_more_memory_than_eight(command, codec_folder, tmp_path):
    noise = (np.random.default_rng(0).standard_normal(16_000 * 60) * 3000).astype(np.int16)
    peaks = {}
    for minutes in (8, 16):  # eight are enough for all that is read ahead
        path, out = tmp_path / f"{minutes}.wav", tmp_path / f"out-{minutes}"
        with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(noise)
        options = ["--out", f"{out}.sct"] if command == "encode" else [f"{out}.wav", "--steps", 1, "--guidance", 1]
        peaks[minutes] = peak_bytes(command, path, *options, "--codec", codec_folder, "--device", "cpu")
    assert soundfile.info(out.with_suffix(".wav")).frames == 16 * 60 * 16_000 if command == "reconstruct" else True
    assert peaks[16] - peaks[8] < 25e6, peaks  # eight minutes of audio alone would be 31 MB
