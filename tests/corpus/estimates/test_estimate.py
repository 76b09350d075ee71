import math

import numpy as np
import pytest
import soundfile
from torch.utils.flop_counter import FlopCounterMode

from sctok.audio.inputs.sources import AudioItem, BadItem, list_audio
from sctok.audio.windows import WINDOW_SAMPLES
from sctok.corpus.estimates.calibration import decode_cost, device_costs, feed_cost, write_rate
from sctok.corpus.estimates.estimate import (
    CORES,
    FEEDING,
    READING,
    WRITING,
    Costs,
    Fleet,
    Survey,
    encoder_flops,
    estimate,
    search_flops,
    survey_inputs,
    table_costs,
    token_bytes,
)
from sctok.corpus.estimates.hardware import HARDWARE, SEARCH_OVERHEAD, encoder_share, find_hardware
from sctok.corpus.runs.run_folder import RunError
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.features.extractor import FeatureExtractor
from sctok.formats.token_shards import TokenShardWriter
from sctok.runtime.stages import EMBEDDING, FILTERBANK, NEAREST

# 1000 files of a minute: 6 windows each.
MINUTES = Survey(1000, 60_000.0, 6000.0, 1e9, 1e8, 1000, 0, 0.0)
FREE = Costs({EMBEDDING: 0.0}, 0.0, 0.0)


def fleet(devices: int = 1, cores: int = 9, shared: bool = False) -> Fleet:
    return Fleet(devices, cores, 1e12, 1e12, shared)


def test_the_times_of_device_stages_add_up() -> None:
    costs = Costs({EMBEDDING: 0.5, NEAREST: 0.1}, 0.0, 0.0)
    found = estimate(MINUTES, costs, fleet(devices=4))
    assert found.hours == pytest.approx(6000 * 0.6 / 4 / 3600)
    assert found.bottleneck == EMBEDDING
    assert found.times_real_time == pytest.approx(60_000 / 900)


def test_decoding_uses_the_cores_that_do_not_feed_a_device() -> None:
    costs = Costs({EMBEDDING: 0.001}, 0.01, 0.0)
    found = estimate(MINUTES, costs, fleet(devices=2, cores=10))
    assert found.hours == pytest.approx(60_000 * 0.01 / 8 / 3600)
    assert found.bottleneck == CORES


def test_if_the_device_is_the_cores_all_times_add_up() -> None:
    costs = Costs({EMBEDDING: 0.5}, 0.01, 0.002)
    found = estimate(MINUTES, costs, fleet(cores=2, shared=True))
    assert found.hours == pytest.approx((6000 * 0.5 + 60_000 * 0.01 / 2 + 6000 * 0.002) / 3600)
    assert found.bottleneck == EMBEDDING


@pytest.mark.parametrize(
    ("costs", "rates", "part"),
    [
        (Costs({EMBEDDING: 0.001}, 0.0, 0.01), (1e12, 1e12), FEEDING),
        (FREE, (1e6, 1e12), READING),
        (FREE, (1e12, 1e3), WRITING),
    ],
)
def test_the_slowest_part_is_the_bottleneck(costs: Costs, rates: tuple[float, float], part: str) -> None:
    found = estimate(MINUTES, costs, Fleet(1, 2, *rates))
    assert found.bottleneck == part
    assert found.hours == pytest.approx(max(found.parts.values()))
    assert found.remedy


@pytest.mark.parametrize("sizes", [(32, 3, 2), (48, 4, 4)])
def test_the_operations_of_the_encoder_match_torch_s_count(sizes: tuple[int, int, int]) -> None:
    import torch

    config = EncoderConfig(*sizes)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model = AudioMAE(config)
        for block in model.blocks:
            block.attn.fused = False  # the counter does not know the fused kernel of CPUs
        model(torch.zeros(1, 1024, 128))
    assert counter.get_total_flops() == encoder_flops(config)


def test_the_search_takes_as_long_at_each_token_rate() -> None:
    assert search_flops(768, 1, 8192) == search_flops(768, 4, 8192) == 2 * 512 * 768 * 8192


def test_a_table_device_reaches_a_fraction_of_its_peak() -> None:
    h100 = find_hardware("H100")
    costs = table_costs(h100, EncoderConfig(), "bf16", 1, 4096)
    assert costs[EMBEDDING] == pytest.approx(encoder_flops(EncoderConfig()) / 989e12 / encoder_share("bf16", 768))
    assert table_costs(h100, EncoderConfig(), "fp32", 1, 4096)[EMBEDDING] > 5 * costs[EMBEDDING]
    assert set(costs) == {EMBEDDING, NEAREST, FILTERBANK}
    assert costs[NEAREST] > SEARCH_OVERHEAD


def test_the_bundled_encoder_on_an_h100_takes_as_long_as_measured() -> None:
    mini = EncoderConfig(192, 12, 3)
    costs = table_costs(find_hardware("h100"), mini, "bf16", 2, 4096)
    assert costs[EMBEDDING] == pytest.approx(1 / 12_764, rel=0.1)
    assert costs[FILTERBANK] == pytest.approx(1.658e-3 / 64, rel=0.1)
    assert costs[NEAREST] == pytest.approx(5.831e-3 / 64, rel=0.1)
    assert table_costs(find_hardware("h100"), mini, "fp32", 2, 4096)[EMBEDDING] == pytest.approx(1 / 3448, rel=0.1)


def test_an_unknown_device_is_refused_with_a_list_of_known_ones() -> None:
    with pytest.raises(RunError, match=r"unknown device 'abacus'; use one of .*h100.* or here"):
        find_hardware("abacus")
    assert all(name == each.name for name, each in HARDWARE.items())


@pytest.mark.parametrize("settings", [(0, 1, 1.0, 1.0), (1, 0, 1.0, 1.0), (1, 1, 0.0, 1.0), (1, 1, 1.0, -1.0)])
def test_impossible_fleets_are_refused(settings: tuple[int, int, float, float]) -> None:
    with pytest.raises(RunError):
        Fleet(*settings)


def test_the_estimated_size_of_tokens_matches_a_shard(tmp_path) -> None:
    samples, files = 60 * 16_000, 40
    with TokenShardWriter(tmp_path / "a.tar", codebook_sizes=[4096]) as writer:
        for index in range(files):
            tokens = np.zeros((math.ceil(samples / 2560) * 4 + 4, 1), np.int64)
            writer.add(
                f"some/folder/{index:06d}", tokens, {"samples": samples, "source": {"path": "/data/some/file.flac"}}
            )
    real = (tmp_path / "a.tar").stat().st_size
    assert files * token_bytes(samples, 2, 4096) == pytest.approx(real, rel=0.25)


def write(folder, lengths) -> list[AudioItem | BadItem]:
    folder.mkdir(exist_ok=True)
    for index, samples in enumerate(lengths):
        noise = np.random.default_rng(index).uniform(-0.5, 0.5, samples)
        soundfile.write(folder / f"{index:04d}.wav", noise, 16_000, subtype="PCM_16")
    return list(list_audio([folder]))


def test_a_survey_of_all_files_is_exact(tmp_path) -> None:
    lengths = [16_000, WINDOW_SAMPLES - 1, WINDOW_SAMPLES, 3 * WINDOW_SAMPLES + 5]
    found, items = survey_inputs(write(tmp_path / "audio", lengths), stack=2, centroids=4096)
    assert (found.files, found.surveyed, found.unreadable, found.deviation) == (4, 4, 0, 0.0)
    assert found.seconds == pytest.approx(sum(lengths) / 16_000)
    assert found.windows == 1 + 1 + 2 + 4
    assert found.input_bytes == sum(path.stat().st_size for path in (tmp_path / "audio").iterdir())
    assert found.output_bytes == sum(token_bytes(each, 2, 4096) for each in lengths)
    assert len(items) == 4


def test_a_survey_of_some_files_extrapolates(tmp_path) -> None:
    listed = write(tmp_path / "audio", [1600 * (1 + index % 5) for index in range(40)])
    found, items = survey_inputs(listed, stack=2, centroids=4096, most=20)
    assert (found.files, found.surveyed, len(items)) == (40, 20, 20)
    truth = 40 * 0.3
    assert found.seconds == pytest.approx(truth, abs=4 * found.deviation)
    assert 0 < found.deviation < truth


def test_the_files_that_are_surveyed_do_not_depend_on_the_order_of_the_listing(tmp_path) -> None:
    listed = write(tmp_path / "audio", [1600] * 30)
    assert (
        survey_inputs(listed, stack=2, centroids=16, most=5)[1]
        == survey_inputs(listed[::-1], stack=2, centroids=16, most=5)[1]
    )


def test_files_that_cannot_be_read_are_counted_and_no_audio_is_an_error(tmp_path) -> None:
    listed = write(tmp_path / "audio", [16_000])
    (tmp_path / "audio" / "bad.wav").write_bytes(b"no audio")
    listed = list(list_audio([tmp_path / "audio"]))
    assert survey_inputs(listed, stack=2, centroids=16)[0].unreadable == 1
    with pytest.raises(RunError, match="no audio was found"):
        survey_inputs([], stack=2, centroids=16)
    with pytest.raises(RunError, match="none of the 1 surveyed files"):
        survey_inputs([item for item in listed if item.key == "bad"], stack=2, centroids=16)
    gone = BadItem("", "gone.wav", "does not exist")
    with pytest.raises(RunError, match=r"none of 2 inputs can be read, such as gone\.wav: does not exist"):
        survey_inputs([gone, gone], stack=2, centroids=16)


def test_the_calibration_measures_every_part(tmp_path, small_weights) -> None:
    import torch

    items = [item for item in write(tmp_path / "audio", [32_000] * 3) if isinstance(item, AudioItem)]
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    costs = device_costs(extractor, items, stack=2, centroids=64)
    assert set(costs) == {EMBEDDING, NEAREST, FILTERBANK}
    assert all(value > 0 for value in costs.values())
    assert decode_cost(items) > 0
    assert feed_cost(items) > 0
    assert write_rate(tmp_path) > 0
