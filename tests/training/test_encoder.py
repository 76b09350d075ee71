"""Training an encoder: its windows, its loss, its checkpoints, and its learning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tests.runtime.ranks import run_ranks

from sctok.audio.filterbank import SILENCE, filterbank
from sctok.audio.windows import WINDOW_SPAN
from sctok.features.checkpoints import EncoderWeights, load_weights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.formats.tensors import read_arrays, read_header, save_tensors
from sctok.runtime.devices import low_precision_faults
from sctok.training.encoder import PRETRAINING, EncoderTraining
from sctok.training.filterbanks import FilterbankCache, WindowSampler, build_filterbank_cache, cut_windows
from sctok.training.loop import CHECKPOINT, RETIRED_FORMAT, StepReport, TrainingLength, TrainingRun, read_curve
from sctok.training.masked_autoencoder import MaskedAutoencoder, sine_positions
from sctok.training.parts import encoder_run

from .trainings import CPU, encoder_config, encoder_task, state_of, write_audio

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FilterbankCache:
    folder = tmp_path_factory.mktemp("pretrain")
    inputs = write_audio(folder)
    (folder / "a" / "broken.wav").write_text("not audio")
    skipped: list[str] = []
    built = build_filterbank_cache(
        inputs, folder / "mels", workers=0, skipped=lambda path, reason: skipped.append(path)
    )
    assert [path.rsplit("/", 1)[1] for path in skipped] == ["broken.wav"]
    return built


def test_the_loss_falls(cache: FilterbankCache) -> None:
    task = EncoderTraining(encoder_config(steps=60, learning_rate=3e-3), cache, CPU)
    before = task.validate(0)["loss"]
    for step in range(60):
        task.train_step(step)
    assert task.validate(60)["loss"] < 0.97 * before


def test_the_loss_curve_has_its_columns_and_each_step_once(cache: FilterbankCache, tmp_path: Path) -> None:
    encoder_run(encoder_config(steps=4), cache, tmp_path, CPU).train()
    encoder_run(encoder_config(steps=6), cache, tmp_path, CPU).train()
    rows = read_curve(tmp_path / "loss.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    names = ["step", "train_loss", "validation_loss", "learning_rate", "windows_per_second", "hours"]
    assert [list(row) for row in rows] == [names] * 3
    assert float(rows[0]["learning_rate"]) == 8e-4
    assert all(float(row["windows_per_second"]) > 0 for row in rows)
    assert all(len(row["train_loss"].partition(".")[2]) <= 5 for row in rows)


def test_a_checkpoint_of_other_settings_is_refused(cache: FilterbankCache, tmp_path: Path) -> None:
    encoder_run(encoder_config(steps=1), cache, tmp_path, CPU).train()
    with pytest.raises(ValueError, match=r"other settings \(learning_rate\)"):
        encoder_run(encoder_config(learning_rate=1.0), cache, tmp_path, CPU)


def test_the_loss_scale_of_fp16_is_resumed(cache: FilterbankCache, tmp_path: Path) -> None:
    if fault := low_precision_faults("fp16", [PRETRAINING])[PRETRAINING]:
        pytest.skip(f"this CPU does not train an encoder in fp16: {fault}")
    runs = []
    for name, lengths in (("straight", [3]), ("parts", [2, 3])):
        for steps in lengths:
            task = EncoderTraining(encoder_config(precision="fp16"), cache, CPU)
            task.scaler._init_scale = 1024.0  # type: ignore[attr-defined]
            task.scaler.set_growth_interval(1)
            run = TrainingRun(task, tmp_path / name, {})
            run.run(TrainingLength(steps, 5))
        runs.append(task)
    straight, resumed = runs
    assert straight.extra_state() == resumed.extra_state()
    assert straight.extra_state()["scaler"]["scale"] == 1024.0 * 2**3
    expected = state_of(straight)
    assert all(torch.equal(value, expected[name]) for name, value in state_of(resumed).items())


def test_a_checkpoint_of_an_earlier_version_is_refused(cache: FilterbankCache, tmp_path: Path) -> None:
    arrays = {"model.x": np.zeros(1, np.float32)}
    save_tensors(tmp_path / CHECKPOINT, arrays, format_name=RETIRED_FORMAT, version=1, metadata={"step": 3})
    with pytest.raises(ValueError, match="earlier version of sctok and cannot be resumed: finish the run with"):
        encoder_run(encoder_config(), cache, tmp_path, CPU)


def test_the_encoder_and_its_provenance_are_written(cache: FilterbankCache, tmp_path: Path) -> None:
    run = encoder_run(encoder_config(steps=2), cache, tmp_path, CPU)
    run.train()
    run.save(tmp_path / "encoder.safetensors")
    found = load_weights(tmp_path / "encoder.safetensors").tensors
    assert found.keys() == run.task.modules["model"].encoder.state_dict().keys()  # type: ignore[union-attr]
    header = read_header(tmp_path / "encoder.safetensors")[0]
    assert (header["trained"]["steps"], header["steps"], header["hours_of_audio"]) == (2, 2, 0.0)


def test_the_cache_of_other_inputs_is_refused(cache: FilterbankCache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--name"):
        build_filterbank_cache([str(tmp_path)], Path(str(cache.frames.filename)).parent, workers=0)


def test_cached_frames_are_those_of_the_file(cache: FilterbankCache) -> None:
    clip = cache.clips[1]
    assert (clip.key, clip.start, clip.frames, clip.seconds) == ("0/1", 200, 200, 2.0)
    assert cache.frames.shape == (8 * 200, 128)
    assert cache.hours == pytest.approx(16 / 3600)
    wave, _ = soundfile.read(Path(str(cache.frames.filename)).parents[1] / "a" / "1.wav", dtype="float32")
    span = np.zeros((1, WINDOW_SPAN), np.float32)
    span[0, : len(wave)] = wave
    mel = filterbank(torch.from_numpy(span), torch.zeros(1, dtype=torch.bool))[0, :200].half()
    assert np.array_equal(cache.frames[200:400], mel.numpy())


def test_a_file_without_samples_leaves_no_clip(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "audio" / "sound.wav", np.full(16_000, 0.1), 16_000)
    built = build_filterbank_cache([str(tmp_path / "audio")], tmp_path / "mels", workers=0)
    assert [clip.key for clip in built.clips] == ["0/sound"]


def test_windows_are_reproducible_and_differ_by_step(cache: FilterbankCache) -> None:
    sampler = WindowSampler(cache.clips, 0.5)
    frames = torch.from_numpy(cache.frames)
    drawn = (sampler.draw(np.random.default_rng(seed), 2) for seed in (1, 1, 2))
    first, again, other = (cut_windows(frames, *each) for each in drawn)
    assert first.shape == (2, 1024, 128)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_hold_frames_at_their_level_and_silence() -> None:
    cache = torch.randn(10, 128).half()
    frames = torch.full((1, 1024), -1)
    frames[0, :3] = torch.tensor([4, 5, 9])
    levels = torch.zeros(1, 1024)
    levels[0, :3] = torch.tensor([0.25, 0.25, -0.125])
    window = cut_windows(cache, frames, levels)[0]
    expected = np.maximum(cache[[4, 5, 9]].float().numpy() + levels[0, :3, None].numpy(), SILENCE)
    assert np.array_equal(window[:3].numpy(), expected)
    assert (window[3:] == SILENCE).all()


def test_only_visible_patches_reach_the_encoder() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(AudioMAE(EncoderConfig(16, 3, 2)), 8, 1, 1)
    order = torch.randperm(512)[None]
    patches = torch.randn(1, 512, 256)
    changed = patches.clone()
    changed[:, order[0, 100:]] += 1
    assert torch.equal(model.encode(patches, order[:, :100]), model.encode(changed, order[:, :100]))


def test_padding_has_no_part_in_the_loss() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(AudioMAE(EncoderConfig(16, 3, 2)), 8, 1, 1)
    loss = model(torch.full((1, 1024, 128), -1.278), torch.arange(512)[None], 100)
    assert loss.item() == 0


def test_positions_distinguish_time_and_frequency() -> None:
    positions = sine_positions(16)
    assert torch.equal(positions[0, :8], positions[7, :8])
    assert torch.equal(positions[3, 8:], positions[8 * 5 + 3, 8:])
    assert len(positions.unique(dim=0)) == 512


@pytest.mark.parametrize(
    "change",
    [{"mask_ratio": 1.0}, {"steps": 0}, {"precision": "int4"}, {"width": 18}, {"heads": 5}, {"decoder_heads": 3}],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
        encoder_config(**change)


def test_an_empty_collection_is_refused() -> None:
    with pytest.raises(ValueError, match="no clips"):
        WindowSampler([], 0.5)


def test_only_the_decoder_learns_at_first(cache: FilterbankCache, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MaskedAutoencoder(AudioMAE(encoder_config().encoder), 8, 1, 1).encoder
    first = EncoderWeights("first", model.config, {k: v.detach().clone() for k, v in model.state_dict().items()}, {})
    config = encoder_config(initial=first.hash, decoder_steps=3)
    run = encoder_run(config, cache, tmp_path / "run", CPU, first)
    changed = []

    def watch(report: StepReport) -> None:
        now = run.task.modules["model"].encoder.state_dict()  # type: ignore[union-attr]
        changed.append(any(not torch.equal(now[name], value) for name, value in first.tensors.items()))

    run.train(watch)
    assert changed == [False, False, False, True, True, True]
    with pytest.raises(ValueError, match="begins with the encoder"):
        encoder_run(config, cache, tmp_path / "other", CPU)


_RANKS = """
sys.path.insert(0, sys.argv[3])
from sctok.formats.tensors import save_tensors
from tests.training.trainings import encoder_task, state_of, vae_task, vocoder_task
for make in (encoder_task, vae_task, vocoder_task):
    task = make(sys.argv[1].split(","), Path(sys.argv[2]), group, batch_size=2, learning_rate=1e-4)
    for step in range(3):
        task.train_step(step)
    arrays = {key: value.numpy() for key, value in state_of(task).items()}
    name = f"{make.__name__}-{group.rank}"
    save_tensors(Path(sys.argv[2]) / name, arrays, format_name="x", version=1, metadata={})
"""


@pytest.mark.slow
def test_two_ranks_train_the_parts_as_one_process_on_the_doubled_batch(tmp_path: Path) -> None:
    from .trainings import vae_task, vocoder_task

    inputs = write_audio(tmp_path)
    vae_task(inputs, tmp_path)  # lists the clips
    ended = run_ranks(2, _RANKS, tmp_path, ",".join(inputs), tmp_path, ROOT, timeout=600, wait=900)
    assert [rank.code for rank in ended] == [0, 0], ended
    for make in (encoder_task, vae_task, vocoder_task):
        single = make(inputs, tmp_path, batch_size=4, learning_rate=1e-4)
        for step in range(3):
            single.train_step(step)
        ranks = [read_arrays(tmp_path / f"{make.__name__}-{rank}") for rank in range(2)]
        for key, value in state_of(single).items():
            assert np.array_equal(ranks[0][key], ranks[1][key]), (make.__name__, key)
            np.testing.assert_allclose(ranks[0][key].reshape(value.shape), value, rtol=0, atol=4e-4, err_msg=key)
