"""Memory does not grow with the length of a file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from sctok.features.checkpoints import save_weights

PEAK = """
import json, resource, sys
from sctok.cli.app import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def peak_bytes(audio, root, encoder):
    """Extract one file in a separate process and return its peak memory."""
    arguments = ["extract", audio, "--domain", "d", "--root", root, "--encoder", encoder, "--json"]
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0
    return result["peak"]


@pytest.mark.slow
def test_forty_minutes_need_no_more_memory_than_two(tmp_path, small_weights):
    save_weights(tmp_path / "small.safetensors", small_weights.build(), {})
    noise = (np.random.default_rng(0).standard_normal(16_000 * 60) * 3000).astype(np.int16)
    peaks = {}
    for minutes in (2, 40):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(noise)
        peaks[minutes] = peak_bytes(path, tmp_path / str(minutes), tmp_path / "small.safetensors")
    assert peaks[40] - peaks[2] < 60e6, peaks
