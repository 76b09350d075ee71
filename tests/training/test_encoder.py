import csv

import numpy as np
import pytest
import soundfile
import torch

from sctok.audio.filterbank import SILENCE
from sctok.features.checkpoints import EncoderWeights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.training.encoder import LOSS_CURVE, PretrainConfig, Pretrainer
from sctok.training.masked_autoencoder import MaskedAutoencoder, sine_positions
from sctok.training.mel_cache import MelCache, WindowSampler, build_mel_cache, cut_windows

TINY = {"width": 16, "depth": 3, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    rng = np.random.default_rng(0)
    for group in ("a", "b"):
        (folder / group).mkdir()
        for index in range(4):
            tone = np.sin(2 * np.pi * 200 * (index + 1) * np.arange(32_000) / 16_000) * 0.3
            soundfile.write(folder / group / f"{index}.wav", tone + 0.01 * rng.standard_normal(32_000), 16_000)
    (folder / "a" / "broken.wav").write_text("not audio")
    skipped = []
    inputs = [str(folder / "a"), str(folder / "b")]
    built = build_mel_cache(inputs, folder / "mels", workers=0, skipped=lambda path, reason: skipped.append(path))
    assert [path.rsplit("/", 1)[1] for path in skipped] == ["broken.wav"]
    return built


def tiny_config(**changes):
    settings = {**TINY, "batch_size": 2, "steps": 6, "validate_every": 2, "validation_windows": 2, "warmup_steps": 2}
    return PretrainConfig(**{**settings, **changes})


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_resuming_gives_the_weights_of_the_uninterrupted_run(cache, tmp_path):
    straight = Pretrainer(tiny_config(), cache, tmp_path / "straight", torch.device("cpu"))
    straight.run(lambda row: None)

    class Stop(Exception):
        pass

    def stop_after_three(row):
        if row["step"] == 3:
            raise Stop

    first = Pretrainer(tiny_config(), cache, tmp_path / "parts", torch.device("cpu"))
    with pytest.raises(Stop):
        first.run(stop_after_three, checkpoint_seconds=0)
    second = Pretrainer(tiny_config(), cache, tmp_path / "parts", torch.device("cpu"))
    assert 0 < second.step < 6
    second.run(lambda row: None)
    for name, value in weights_of(straight).items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_the_curve_of_a_resumed_run_has_each_step_once(cache, tmp_path):
    Pretrainer(tiny_config(steps=4), cache, tmp_path, torch.device("cpu")).run(lambda row: None)
    Pretrainer(tiny_config(steps=6), cache, tmp_path, torch.device("cpu")).run(lambda row: None)
    with (tmp_path / LOSS_CURVE).open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6]


def test_a_checkpoint_of_other_settings_is_refused(cache, tmp_path):
    Pretrainer(tiny_config(steps=1), cache, tmp_path, torch.device("cpu")).run(lambda row: None)
    with pytest.raises(ValueError, match="learning_rate"):
        Pretrainer(tiny_config(learning_rate=1.0), cache, tmp_path, torch.device("cpu"))


def test_the_loss_falls(cache, tmp_path):
    trainer = Pretrainer(tiny_config(steps=60, learning_rate=3e-3), cache, tmp_path, torch.device("cpu"))
    before = trainer.validate()
    trainer.run(lambda row: None)
    assert trainer.validate() < 0.97 * before


def test_the_cache_of_other_inputs_is_refused(cache, tmp_path):
    with pytest.raises(ValueError, match="--name"):
        build_mel_cache([str(tmp_path)], cache.frames.filename.parent, workers=0)


def test_cached_frames_are_those_of_the_file(cache):
    clip = cache.clips[0]
    assert clip.frames == 200
    assert cache.cut(clip, 150, 100).shape == (50, 128)


def test_a_file_without_samples_leaves_no_clip(tmp_path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "audio" / "sound.wav", np.full(16_000, 0.1), 16_000)
    built = build_mel_cache([str(tmp_path / "audio")], tmp_path / "mels", workers=0)
    assert [clip.key for clip in built.clips] == ["0/sound"]


def test_windows_are_reproducible_and_differ_by_step(cache):
    sampler = WindowSampler(cache, cache.clips, 0.5)
    frames = torch.from_numpy(cache.frames)
    drawn = (sampler.draw(np.random.default_rng(seed), 2) for seed in (1, 1, 2))
    first, again, other = (cut_windows(frames, *each) for each in drawn)
    assert first.shape == (2, 1024, 128)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_hold_frames_at_their_level_and_silence():
    cache = torch.randn(10, 128).half()
    frames = torch.full((1, 1024), -1)
    frames[0, :3] = torch.tensor([4, 5, 9])
    levels = torch.zeros(1, 1024)
    levels[0, :3] = torch.tensor([0.25, 0.25, -0.125])
    window = cut_windows(cache, frames, levels)[0]
    expected = np.maximum(cache[[4, 5, 9]].float().numpy() + levels[0, :3, None].numpy(), SILENCE)
    assert np.array_equal(window[:3].numpy(), expected)
    assert (window[3:] == SILENCE).all()


def test_visible_patches_alone_reach_the_encoder():
    torch.manual_seed(0)
    model = MaskedAutoencoder(AudioMAE(EncoderConfig(16, 3, 2)), 8, 1, 1)
    order = torch.randperm(512)[None]
    patches = torch.randn(1, 512, 256)
    changed = patches.clone()
    changed[:, order[0, 100:]] += 1
    assert torch.equal(model.encode(patches, order[:, :100]), model.encode(changed, order[:, :100]))


def test_padding_has_no_part_in_the_loss():
    torch.manual_seed(0)
    model = MaskedAutoencoder(AudioMAE(EncoderConfig(16, 3, 2)), 8, 1, 1)
    loss = model(torch.full((1, 1024, 128), -1.278), torch.arange(512)[None], 100)
    assert loss.item() == 0


def test_positions_tell_time_from_frequency():
    positions = sine_positions(16)
    assert torch.equal(positions[0, :8], positions[7, :8])
    assert torch.equal(positions[3, 8:], positions[8 * 5 + 3, 8:])
    assert len(positions.unique(dim=0)) == 512


@pytest.mark.parametrize(
    "change",
    [{"mask_ratio": 1.0}, {"steps": 0}, {"precision": "int4"}, {"width": 18}, {"heads": 5}, {"decoder_heads": 3}],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
        tiny_config(**change)


def test_an_empty_collection_is_refused(tmp_path):
    (tmp_path / "frames.f16").touch()
    with pytest.raises(ValueError, match="no clips"):
        WindowSampler(MelCache.__new__(MelCache), [], 0.5)


def test_the_decoder_learns_alone_before_an_encoder_that_is_given(cache, tmp_path):
    torch.manual_seed(3)
    model = MaskedAutoencoder(AudioMAE(tiny_config().encoder), 8, 1, 1).encoder
    first = EncoderWeights("first", model.config, {k: v.detach().clone() for k, v in model.state_dict().items()}, {})
    config = tiny_config(initial=first.hash, decoder_steps=3)
    trainer = Pretrainer(config, cache, tmp_path / "run", torch.device("cpu"), first)
    changed = []

    def watch(row):
        now = trainer.model.encoder.state_dict()
        changed.append(any(not torch.equal(now[name], value) for name, value in first.tensors.items()))

    trainer.run(watch)
    assert changed == [False, False, False, True, True, True]
    with pytest.raises(ValueError, match="starts from encoder"):
        Pretrainer(config, cache, tmp_path / "other", torch.device("cpu"))
