import json

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Three files of two seconds."""
    folder = tmp_path_factory.mktemp("audio")
    for index in range(3):
        noise = np.random.default_rng(index).uniform(-0.5, 0.5, 32_000)
        soundfile.write(folder / f"{index}.wav", noise, 16_000, subtype="PCM_16")
    return folder


def planned(capsys, *arguments: str) -> dict:
    assert main(["plan", *arguments, "--write-mb", "100", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_for_known_devices(audio, capsys) -> None:
    found = planned(capsys, str(audio), "--device", "H100", "--count", "8", "--encoder", "base", "--codebook", "8192")
    assert (found["files"], found["windows"], found["seconds"], found["device"]) == (3, 3, 6.0, "h100")
    assert found["fleet"] == {"devices": 8, "cores": 128, "read_rate": 4e9, "write_rate": 1e8, "shared": False}
    assert found["hours"] >= max(found["parts"]["decoding"], found["parts"]["encoder"])
    assert found["bottleneck"] in found["parts"]
    assert any("97.0 GFLOP per window at 40% of 989 TFLOP/s" in each for each in found["assumptions"])


def test_twice_the_devices_halve_the_encoder_time(audio, capsys) -> None:
    one, two = (planned(capsys, str(audio), "--device", "l4", "--count", count) for count in "12")
    assert one["parts"]["encoder"] == pytest.approx(2 * two["parts"]["encoder"])


def test_a_plan_for_this_machine_measures_it(audio, capsys) -> None:
    found = planned(capsys, str(audio), "--codebook", "64")
    assert found["device"] == "here"
    assert found["costs"]["device"]["encoder"] > found["costs"]["device"]["nearest centroid"] > 0


def test_the_text_names_the_bottleneck_and_the_assumptions(audio, capsys) -> None:
    assert main(["plan", str(audio), "--device", "t4", "--write-mb", "0.001"]) == 0
    text = capsys.readouterr()
    assert "bottleneck: writing; to speed it up: a faster disk" in text.out
    assert "a core decodes" in text.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "abacus"], 1, "unknown device 'abacus'"),
        (["--count", "0"], 2, "--count"),
        (["--token-rate", "60"], 2, "not one of 100, 50, 25"),
        (["--encoder", "nothing-like-it"], 1, "nothing-like-it"),
    ],
)
def test_impossible_plans_are_refused(audio, capsys, arguments: list[str], code: int, message: str) -> None:
    assert main(["plan", str(audio), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_folder_without_audio_is_named(tmp_path, capsys) -> None:
    assert main(["plan", str(tmp_path)]) == 1
    assert "no audio" in capsys.readouterr().err
