"""Training a codec: each step follows the paper, and two ranks take the same steps as one."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.ranks import run_ranks

from sctok.runtime import devices
from sctok.runtime.devices import low_precision_faults
from sctok.runtime.distributed import Group, average_gradients
from sctok.training.codec import CODEC_TRAINING, CodecTraining
from sctok.training.loop import CHECKPOINT

from .trainings import GRID, GRID_CHANGES, UNET_AND_GRID, codec_config, codec_task, make_task, state_of, write_audio

_RANKS = """
import os
sys.path.insert(0, sys.argv[4])
import torch
from sctok.training.loop import TrainingLength, TrainingRun
from sctok.formats.tensors import save_tensors
from tests.training.trainings import RANKED, codec_task, state_of
inputs, folder = sys.argv[1].split(","), Path(sys.argv[2])
for name, changes in RANKED.items():
    task = codec_task(inputs, folder, group, crops={"packed": 0.3}, **changes, batch_size=2)
    losses = [task.train_step(step) for step in range(3)]
    arrays = {key: value.numpy() for key, value in state_of(task).items()}
    save_tensors(Path(sys.argv[3]) / f"{name}-{group.rank}", arrays, format_name="x", version=1, metadata={})
task = codec_task(inputs, folder, group, batch_size=1)
run, train_step = TrainingRun(task, Path(sys.argv[3]) / "stopped", {}, group), task.train_step
def stop_one_rank(step):
    if step == 1 and group.rank == 1:
        os.kill(os.getpid(), 15)
    return train_step(step)
task.train_step = stop_one_rank
print(run.run(TrainingLength(50, 25)), run.step)
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_audio(tmp_path_factory.mktemp("audio"))


@pytest.fixture
def task(inputs: list[str], tmp_path: Path) -> CodecTraining:
    return codec_task(inputs, tmp_path)


def watched(task: CodecTraining) -> list[dict[str, Any]]:
    """Return the inputs of the task's model: one entry per batch, filled while it trains."""
    seen: list[dict[str, Any]] = []
    condition, backward, noise, timesteps = task.model.condition, task._backward, task._noise, task._timesteps

    def watch_part(step: int, part: int) -> dict[str, float]:
        seen.append({})
        return backward(step, part)

    def watch_condition(batch: Any, dropped: bool) -> Any:
        seen[-1] |= {"batch": batch, "dropped": dropped}
        return condition(batch, dropped)

    def note(key: str, value: Any) -> Any:
        if seen:  # the scale is measured before the first batch
            seen[-1][key] = value
        return value

    task._backward = watch_part  # type: ignore[method-assign]
    task.model.condition = watch_condition  # type: ignore[method-assign]
    task._noise = lambda *arguments: note("noise", noise(*arguments))  # type: ignore[method-assign]
    task._timesteps = lambda *arguments: note("timestep", timesteps(*arguments))  # type: ignore[method-assign]
    return seen


def test_the_loss_is_reconstruction_and_commitment(task: CodecTraining) -> None:
    seen = watched(task)
    losses = task.train_step(0)
    [batch] = seen
    assert losses.keys() == {"reconstruction", "commitment"}
    assert batch["batch"].latent.shape == (2, 2, 64, 4)
    assert batch["noise"].shape == batch["batch"].latent.shape


def test_gradients_equal_those_of_the_weighted_sum_of_all_losses(inputs: list[str], tmp_path: Path) -> None:
    changes = {**GRID_CHANGES, "estimate_weight": 0.7, "condition_dropout": 0.0}
    found, expected = (codec_task(inputs, tmp_path, **changes) for _ in range(2))
    found._descend = lambda step: None  # type: ignore[method-assign]
    found.train_step(0)
    expected._measure_scale()
    expected.model.train()
    for part in range(2):
        batch = expected._batch(0, 2 * part)
        noise, timestep = expected._noise((0, 2 * part), batch.latent.shape), expected._timesteps(0, 2 * part)
        losses = expected.model.losses(batch, noise, timestep, expected.schedule, dropped=False)
        total = losses["reconstruction"] + losses["commitment"] + 0.7 * losses["estimate"]
        (total / 2).backward()
    for (name, ours), theirs in zip(found.model.named_parameters(), expected.model.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_each_batch_uses_one_random_codebook(task: CodecTraining) -> None:
    drawn = []
    for step in range(12):
        rows = task._batch(step, 0).semantic.reshape(-1, 64)
        found = [bool((rows[:, None] == book).all(dim=2).any(dim=1).all()) for book in task.centroids]
        assert sum(found) == 1
        drawn.append(found.index(True))
    assert set(drawn) == {0, 1, 2, 3}


def test_the_condition_is_dropped_for_whole_batches(inputs: list[str], tmp_path: Path) -> None:
    task = codec_task(inputs, tmp_path, condition_dropout=0.5)
    seen = watched(task)
    for step in range(8):
        before = {name: p.clone() for name, p in task.model.acoustic.named_parameters()}
        task.train_step(step)
        dropped = seen[-1]["dropped"]
        unchanged = [torch.equal(p, before[name]) for name, p in task.model.acoustic.named_parameters()]
        assert all(unchanged) == dropped
    assert {each["dropped"] for each in seen} == {True, False}


def test_the_learning_rate_warms_up_and_stays(inputs: list[str], tmp_path: Path) -> None:
    task = codec_task(inputs, tmp_path, steps=100, warm_up=4, learning_rate=1e-4)
    rates = []
    for step in range(6):
        task.train_step(step)
        rates.append(task.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4, 1e-4])


def test_averages_follow_all_trained_parts(inputs: list[str], tmp_path: Path) -> None:
    task = codec_task(inputs, tmp_path, ema_decay=0.25)
    expected = {name: p.detach().clone() for name, p in task.average.named_parameters()}
    for step in range(4):
        task.train_step(step)
        decay = min(0.25, (2 + step) / (11 + step))  # the ramp of the published training code
        for name, parameter in task.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, parameter in task.average.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-6)
        assert any(name.startswith(part) for part in ("acoustic.", "unet."))
    for name, buffer in task.average.named_buffers():
        assert torch.equal(buffer, dict(task.model.named_buffers())[name])


def test_latents_are_scaled_to_a_deviation_of_one(inputs: list[str], tmp_path: Path) -> None:
    task = codec_task(inputs, tmp_path, scale_batches=2)
    seen = watched(task)
    task.train_step(0)
    scale = float(task.model.scale_factor)
    latents = [task.prepare(task.crops.draw(0, first, 2), (0, first), 0.0).latent for first in (0, 2)]
    assert torch.cat(latents).std(correction=0).item() == pytest.approx(1, rel=1e-4)
    task.train_step(1)
    assert float(task.model.scale_factor) == scale
    assert torch.equal(seen[0]["batch"].latent, latents[0])


def test_gradients_are_clipped(inputs: list[str], tmp_path: Path) -> None:
    task = codec_task(inputs, tmp_path, gradient_clip=1e-3)
    task.train_step(0)
    gradients = [p.grad.norm() for p in task.model.parameters() if p.grad is not None]
    assert torch.stack(gradients).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_accumulation_equals_the_larger_batch(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The quantizer moves with every batch, so that its codes are kept still here.
    whole, parts = (
        codec_task(inputs, tmp_path, batch_size=4 // n, accumulate=n, scale_batches=n, condition_dropout=0.0)
        for n in (1, 2)
    )
    for task in (whole, parts):
        task.model.acoustic.quantizer.eval()
        monkeypatch.setattr(task.model, "train", lambda mode=True: None)
        task.train_step(0)
    for name, parameter in whole.model.named_parameters():
        other = dict(parts.model.named_parameters())[name]
        if parameter.grad is not None and other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_frozen_parts_do_not_change(task: CodecTraining) -> None:
    before = {name: value.clone() for part in (task.encoder, task.vae) for name, value in part.state_dict().items()}
    for step in range(2):
        task.train_step(step)
    after = {name: value for part in (task.encoder, task.vae) for name, value in part.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_step_does_not_depend_on_the_steps_before(inputs: list[str], tmp_path: Path) -> None:
    first, second = codec_task(inputs, tmp_path), codec_task(inputs, tmp_path)
    first.train_step(0)
    second.train_step(0)
    torch.manual_seed(99)
    second.validate(1)
    seen = watched(first), watched(second)
    first.train_step(5)
    second.train_step(5)
    for key in ("noise", "timestep"):
        assert torch.equal(seen[0][-1][key], seen[1][-1][key])
    assert torch.equal(seen[0][-1]["batch"].latent, seen[1][-1]["batch"].latent)


def test_steps_that_overflow_are_skipped(task: CodecTraining) -> None:
    task.train_step(0)
    before = state_of(task)
    denoise = task.model.denoise
    task.model.denoise = lambda *arguments: {  # type: ignore[method-assign]
        name: loss * float("inf") for name, loss in denoise(*arguments).items()
    }
    task.train_step(1)
    assert all(
        torch.equal(value, before[f"model/{name}"])
        for name, value in task.model.state_dict().items()
        if "quantizer" not in name
    )


def test_bf16_learns_as_well_as_fp32(inputs: list[str], tmp_path: Path) -> None:
    if fault := low_precision_faults("bf16", [CODEC_TRAINING])[CODEC_TRAINING]:
        pytest.skip(f"this CPU does not train a codec in bf16: {fault}")
    half, full = (codec_task(inputs, tmp_path, precision=each, condition_dropout=0.0) for each in ("bf16", "fp32"))
    found = [[task.train_step(step)["reconstruction"] for step in range(3)] for task in (half, full)]
    np.testing.assert_allclose(found[0], found[1], rtol=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_fails_on_the_cpu_is_refused(
    precision: str, inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(devices._faults, (precision, CODEC_TRAINING), "LSTM, forward pass: not there")
    with pytest.raises(ValueError, match=rf"training a codec in {precision} does not work on this CPU \(LSTM, forward"):
        codec_task(inputs, tmp_path, precision=precision)


def test_the_loss_scale_changes_no_step_and_is_resumed(inputs: list[str], tmp_path: Path) -> None:
    plain, scaled, resumed = (codec_task(inputs, tmp_path) for _ in range(3))
    for task in (scaled, resumed):
        task.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain.train_step(0)
    scaled.train_step(0)
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(dict(scaled.model.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)
    scaled.scaler.update(16.0)
    resumed.load_extra_state(json.loads(json.dumps(scaled.extra_state())))
    assert resumed.extra_state() == scaled.extra_state()


def test_validation_is_reproducible_and_uses_the_averages(task: CodecTraining) -> None:
    task.train_step(0)
    found = task.validate(1)
    assert found == task.validate(1)
    assert found.keys() == {"reconstruction", "commitment", "codes_used"}
    with torch.no_grad():
        task.model.unet.out[-1].bias += 5.0
    assert task.validate(1) == found
    with torch.no_grad():
        task.average.unet.out[-1].bias += 5.0
    assert task.validate(1)["reconstruction"] > 10 * found["reconstruction"]


def test_a_grid_learns_to_estimate_the_latent(inputs: list[str], tmp_path: Path) -> None:
    task = make_task("grid", inputs, tmp_path)
    before = [task.train_step(step)["estimate"] for step in range(2)]
    for step in range(2, 16):
        task.train_step(step % 6)
    after = [task.train_step(step)["estimate"] for step in range(2)]
    assert np.mean(after) < 0.95 * np.mean(before)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_on_the_doubled_batch(inputs: list[str], tmp_path: Path) -> None:
    from sctok.formats.tensors import read_arrays

    from .trainings import RANKED

    codec_task(inputs, tmp_path)  # lists the clips
    ended = run_ranks(2, _RANKS, tmp_path, ",".join(inputs), tmp_path, tmp_path, ROOT, timeout=600, wait=900)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert [rank.out for rank in ended] == ["15 2\n"] * 2  # a signal to one rank stops both after the same step
    assert (tmp_path / "stopped" / CHECKPOINT).exists()
    for name, changes in RANKED.items():
        single = codec_task(inputs, tmp_path, crops={"packed": 0.3}, **changes, batch_size=4)
        for step in range(3):
            single.train_step(step)
        ranks = [read_arrays(tmp_path / f"{name}-{rank}") for rank in range(2)]
        for key, value in state_of(single).items():
            assert np.array_equal(ranks[0][key], ranks[1][key]), (name, key)
            np.testing.assert_allclose(ranks[0][key].reshape(value.shape), value, rtol=0, atol=1e-4, err_msg=key)


class Doubling(Group):
    """Imitates two ranks whose sums are three times the tensors of this one."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "sizes", [])

    def sum_(self, *tensors: torch.Tensor) -> None:
        self.sizes.extend(tensor.numel() for tensor in tensors)  # type: ignore[attr-defined]
        for tensor in tensors:
            tensor *= 3


def test_gradients_are_summed_in_buckets() -> None:
    torch.manual_seed(0)
    shapes = [(3,), (2, 4), (5, 5), (1,), ()]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters[:-1]:
        parameter.grad = torch.randn(parameter.shape)
    parameters[1].grad = torch.randn(4, 2).T  # of another memory format
    before = copy.deepcopy([parameter.grad for parameter in parameters])
    group = Doubling()
    average_gradients(parameters, group, bucket_bytes=48)
    assert group.sizes == [11, 25, 1]  # type: ignore[attr-defined]
    for parameter, gradient in zip(parameters, before, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, 1.5 * gradient)
    assert parameters[-1].grad is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"condition_dropout": 1.5}, "condition_dropout 1.5"),
        ({"precision": "fp8"}, "fp8"),
        ({"unet": UNET_AND_GRID}, "extra channels"),
        ({"grid": GRID}, "extra channels"),
        ({"estimate_weight": 1.0}, "needs a grid"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        codec_config(**changes)
