"""From audio to a codec folder: the saved codec, decoded windows, and parts that do not fit."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sctok.codec.models.tunet import TUNet
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.codec.noise_schedule import Schedule as NoiseSchedule
from sctok.codec.storage.codec_folder import CodecParts, load_codec
from sctok.features.checkpoints import EncoderWeights
from sctok.training.clips import open_collection
from sctok.training.config import read_plan
from sctok.training.log import TensorBoard
from sctok.training.loop import StepReport, TrainingLength, ValidationReport
from sctok.training.pipeline import CodecRun, TrainingParts

from .trainings import CONFIG, CPU, ENCODER, VAE, codebook, encoder, write_audio


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_audio(tmp_path_factory.mktemp("audio"))


def tiny_parts(encoder_hash: str | None = None, rate: int | None = None) -> TrainingParts:
    torch.manual_seed(2)
    weights = EncoderWeights("tiny", ENCODER, {k: v.detach() for k, v in encoder().state_dict().items()}, {})
    books = [codebook(k, k, encoder_hash or weights.hash, 100 // (rate or 25)) for k in (8, 12)]
    return TrainingParts(weights, books, AutoencoderKL(VAE), IstftVocoder(VocoderConfig(8, 1, 2)))


def tiny_run(inputs: list[str], folder: Path, parts: TrainingParts | None = None, **settings: Any) -> CodecRun:
    (folder / "x.toml").write_text(CONFIG)
    plan, parts = read_plan(folder / "x.toml", settings), parts or tiny_parts()
    config = plan.complete(ENCODER.width, VAE, "fp32")
    return CodecRun(plan, config, parts, open_collection(inputs, folder / "run"), folder / "run", CPU)


def test_the_codec_has_the_averages(inputs: list[str], tmp_path: Path) -> None:
    run = tiny_run(inputs, tmp_path)
    assert run.train() == 0
    run.save(tmp_path / "codecs" / "mine", "mine")
    codec = load_codec(tmp_path / "codecs" / "mine")
    for name, value in run.task.average.unet.state_dict().items():
        assert torch.equal(codec.unet.state_dict()[name], value)
    assert torch.equal(codec.acoustic.quantizer.codes, run.task.average.acoustic.quantizer.codes)
    assert codec.scale_factor == pytest.approx(float(run.task.model.scale_factor))
    assert torch.equal(codec.schedule.alphas_cumprod, run.task.schedule.alphas_cumprod)
    assert (codec.info.name, codec.info.token_rate, len(codec.codebooks)) == ("mine", 25, 2)
    assert codec.info.provenance["steps"] == 4
    assert codec.info.provenance["trained"]["parts"] == run.parts.hashes()


def test_windows_are_decoded_at_some_validations_and_at_the_end(inputs: list[str], tmp_path: Path) -> None:
    run = tiny_run(inputs, tmp_path, steps=5)
    reports: list[StepReport] = []
    windows: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    run.train(reports.append, lambda *arguments: windows.append(arguments))
    found = {each.step: each.metrics.get("mel_distance") for each in reports if isinstance(each, ValidationReport)}
    assert [step for step, distance in found.items() if distance is not None] == [2, 4, 5]
    assert [step for step, _, _ in windows] == [2, 4, 5]
    for _, decoded, original in windows:
        assert decoded.shape == original.shape == (1, 163_840)
        assert np.array_equal(original.numpy(), run.task.held_out[:1])
        assert bool(decoded.isfinite().all())


def test_listening_does_not_change_the_training(inputs: list[str], tmp_path: Path) -> None:
    for name in ("silent", "listening"):
        (tmp_path / name).mkdir()
    silent, listening = tiny_run(inputs, tmp_path / "silent"), tiny_run(inputs, tmp_path / "listening")
    silent.task.listen = lambda step: {}
    silent.run.run(TrainingLength(4, 1))
    listening.train()
    for name, value in silent.task.model.state_dict().items():
        assert torch.equal(listening.task.model.state_dict()[name], value)


def test_other_parts_are_refused(inputs: list[str], tmp_path: Path) -> None:
    tiny_run(inputs, tmp_path).train()
    parts = tiny_parts()
    with torch.no_grad():
        parts.vae.post_quant_conv.bias += 1
    with pytest.raises(ValueError, match=r"other settings \(parts\.vae\)"):
        tiny_run(inputs, tmp_path, parts)


def begun(inputs: list[str], folder: Path, **settings: Any) -> tuple[CodecRun, CodecParts]:
    """Return a run that begins with the codec of another run, and that codec."""
    (folder / "first").mkdir()
    first = tiny_run(inputs, folder / "first")
    first.train()
    first.save(folder / "codec", "first")
    codec = load_codec(folder / "codec")
    linear = replace(codec, schedule=NoiseSchedule.linear())
    parts = TrainingParts(linear.encoder, linear.codebooks, linear.vae, linear.vocoder, linear)
    return tiny_run(inputs, folder, parts, **settings), linear


def test_a_training_begins_with_a_codec(inputs: list[str], tmp_path: Path) -> None:
    run, codec = begun(inputs, tmp_path)
    for model in (run.task.model, run.task.average):
        for name, value in codec.unet.state_dict().items():
            assert torch.equal(model.unet.state_dict()[name], value)
        assert torch.equal(model.acoustic.quantizer.codes, codec.acoustic.quantizer.codes)
        assert float(model.scale_factor) == pytest.approx(codec.scale_factor)
    assert run.train() == 0
    again = tiny_run(inputs, tmp_path, run.parts, steps=5)
    assert again.run.step == 4
    assert torch.equal(again.task.model.unet.state_dict()[name], run.task.model.unet.state_dict()[name])
    assert not torch.equal(again.task.model.unet.state_dict()[name], value)
    assert torch.equal(again.task.schedule.alphas_cumprod, codec.schedule.alphas_cumprod)
    for other in (None, replace(codec, schedule=NoiseSchedule.cosine())):
        with pytest.raises(ValueError, match=r"other settings \(parts\.initial\)"):
            tiny_run(inputs, tmp_path, replace(run.parts, initial=other))


def test_an_initial_codec_with_other_settings_is_refused(inputs: list[str], tmp_path: Path) -> None:
    run, codec = begun(inputs, tmp_path)
    beginnings = {
        r"other settings .*\(\[unet\] model_channels 12 instead of 8, \[unet\] head_width 4 instead of 8\): train": {
            "unet": TUNet(replace(codec.unet.config, head_width=4, model_channels=12))
        },
        "the VAE has other latents than the VAE of first": {"vae": AutoencoderKL(VAE)},
        "first was trained with the encoder .*, not with": {
            "encoder": EncoderWeights("other", ENCODER, {k: v + 1 for k, v in codec.encoder.tensors.items()}, {})
        },
        r"\(order paper instead of published\)": {"info": replace(codec.info, order="paper")},
    }
    for message, changes in beginnings.items():
        with pytest.raises(ValueError, match=message):
            replace(run.parts, initial=replace(codec, **changes)).check(run.config)


def test_codebooks_of_another_encoder_or_rate_are_refused(inputs: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made with the encoder tiny"):
        tiny_run(inputs, tmp_path, tiny_parts(encoder_hash="0" * 16))
    with pytest.raises(ValueError, match="for 50 tokens per second, the codec for 25"):
        tiny_run(inputs, tmp_path, tiny_parts(rate=50))


def test_tensorboard_files_of_a_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(step: int, loss: float) -> None:
        board = TensorBoard(tmp_path, step)
        for number in range(step + 1, step + 21):
            board.add_report(StepReport(number, {"loss": loss}))
        board.add_report(ValidationReport(step + 20, {"loss": loss}, {"loss": loss}, 0.1, 1.0))
        board.add_decoded(step + 20, torch.zeros(1, 160), torch.zeros(1, 160))
        board.close()

    write(0, 1.0)
    time.sleep(1.1)  # the files' names, and so their order, begin with whole seconds
    write(10, 2.0)  # resumes from step 10 after an interruption
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in found.Scalars("training/loss")] == [(10, 1.0), (20, 2.0), (30, 2.0)]
    assert [each.step for each in found.Scalars("validation/loss")] == [30]
    assert found.Tags()["audio"] == ["decoded/0", "original/0"]


def test_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"install sctok\[train\]"):
        TensorBoard(tmp_path, 0)
