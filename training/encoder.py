"""Training an AudioMAE encoder by masked autoencoding: data order, schedule, checkpoints, validation."""

import csv
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.audio.windows import WINDOW_PATCHES
from sctok.features.checkpoints import EncoderWeights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.formats.tensors import read_tensors, save_tensors
from sctok.runtime.devices import DTYPES, Use, require_precision
from sctok.runtime.read_ahead import ReadAhead

from .masked_autoencoder import POSITION_PARTS, MaskedAutoencoder
from .mel_cache import MelCache, WindowSampler, cut_windows, validation_windows

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_FORMAT = "sctok-pretraining"
CHECKPOINT_VERSION = 1
LOSS_CURVE = "loss.csv"
AHEAD = 8  # batches drawn ahead for a GPU
PRETRAINING = Use("pretraining an encoder", "sctok.training.capabilities:pretraining_steps")
CURVE_COLUMNS = ("step", "train_loss", "validation_loss", "learning_rate", "windows_per_second", "hours")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what a run learns; the sizes are those of the bundled mini encoder.

    `predicted` of the masked patches go through the decoder in each step; validation predicts all of them. `initial` is
    the hash of the encoder that a run starts from, None for random weights. The decoder always starts at random; for
    the first `decoder_steps` it learns alone, lest its first gradients spoil such an encoder.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 3
    decoder_heads: int = 4
    mask_ratio: float = 0.8
    predicted: int = 128
    steps: int = 6000
    batch_size: int = 16
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 300
    decay_share: float = 0.3
    gradient_clip: float = 1.0
    balance: float = 0.5
    validation_windows: int = 128
    validate_every: int = 250
    precision: str = "fp32"
    seed: int = 0
    initial: str | None = None
    decoder_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask ratio {self.mask_ratio} is not between 0 and 1")
        for name in ("steps", "batch_size", "predicted", "validate_every", "validation_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        for name in ("width", "decoder_width"):
            if getattr(self, name) % POSITION_PARTS:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a multiple of {POSITION_PARTS}, which positions need"
                )
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width {self.decoder_width} is not a multiple of decoder_heads {self.decoder_heads}"
            )
        _ = self.encoder  # whose own sizes are checked when it is built
        if self.precision not in DTYPES:
            raise ValueError(f"precision {self.precision!r} is none of {', '.join(DTYPES)}")

    @property
    def encoder(self) -> EncoderConfig:
        """The sizes of the encoder that is trained."""
        return EncoderConfig(self.width, self.depth, self.heads)

    @property
    def visible(self) -> int:
        """How many of the 512 patches the encoder sees."""
        return round(WINDOW_PATCHES * (1 - self.mask_ratio))

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, constant, linear decay to zero over the last share.

        It warms up once more where the encoder begins to learn.
        """
        since = step - self.decoder_steps if step >= self.decoder_steps else step
        warm = min(1.0, (since + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return self.learning_rate * min(warm, 1.0, left)


class Pretrainer:
    """One training run in one folder, which can be stopped and resumed at any checkpoint.

    Batches and masks are drawn from the seed and the step number alone, so a resumed run sees the data that an
    uninterrupted one would.
    """

    def __init__(
        self,
        config: PretrainConfig,
        cache: MelCache,
        folder: Path,
        device: torch.device,
        initial: EncoderWeights | None = None,
    ) -> None:
        if (initial.hash if initial else None) != config.initial:
            raise ValueError(f"the configuration starts from encoder {config.initial}, not from the one that is given")
        if initial and initial.config != config.encoder:
            raise ValueError(f"encoder {initial.name} is {initial.config}, the run is for {config.encoder}")
        require_precision(config.precision, device, PRETRAINING)
        self.config, self.folder, self.device = config, folder, device
        torch.manual_seed(config.seed)
        encoder = AudioMAE(config.encoder)
        self.model = MaskedAutoencoder(encoder, config.decoder_width, config.decoder_depth, config.decoder_heads)
        if initial:
            encoder.load_state_dict(initial.tensors)
        self.model.to(device)
        self.optimizer = _optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.step, self.seconds = 0, 0.0
        train, held_out = cache.split()
        self.sampler = WindowSampler(cache, train, config.balance)
        # On a GPU a step is over before a thread has cut the windows of the next one.
        self._batches = ReadAhead(self._draw, ahead=1 if device.type == "cpu" else AHEAD)
        self._frames = _near(cache, device)
        self.validation = validation_windows(cache, held_out or train, config.validation_windows)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self.load()

    def run(self, progress: Callable[[dict[str, Any]], None], checkpoint_seconds: float = 120.0) -> None:
        """Train up to the last step, writing a checkpoint every two minutes and the curve at every validation."""
        self._truncate_curve()
        started, base = time.perf_counter(), self.seconds
        saved, window_start, losses = started, started, []
        while self.step < self.config.steps:
            losses.append(self._train_step())
            self.step += 1
            now = time.perf_counter()
            self.seconds = base + now - started
            done = self.step == self.config.steps
            if self.step % self.config.validate_every == 0 or done:
                speed = len(losses) * self.config.batch_size / (now - window_start)
                row = self._curve_row(sum(losses) / len(losses), self.validate(), speed)
                self._append_curve(row)
                progress(row)
                losses, window_start = [], time.perf_counter()
            else:
                progress({"step": self.step, "train_loss": losses[-1]})
            if now - saved > checkpoint_seconds or done:
                self.save()
                saved = now

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss over the held-out windows, always under the same masks."""
        self.model.eval()
        total = 0.0
        for start in range(0, len(self.validation), self.config.batch_size):
            mel = torch.from_numpy(self.validation[start : start + self.config.batch_size]).to(self.device)
            order = _random_order(len(mel), self.config.seed, start).to(self.device)
            total += float(self._loss(mel, order)) * len(mel)
        self.model.train()
        return total / len(self.validation)

    def save(self) -> None:
        """Write model, optimiser and position atomically."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        state = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        state["scaler"] = self.scaler.state_dict()
        arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        path = self.folder / CHECKPOINT
        save_tensors(path, arrays, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION, metadata=state)

    def load(self) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            ValueError: the checkpoint belongs to another configuration (only the number of steps may differ).
        """
        path = self.folder / CHECKPOINT
        arrays, state = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        differing = [f.name for f in fields(self.config) if _differs(f.name, state["config"], self.config)]
        if differing:
            raise ValueError(f"{path} was trained with other settings ({', '.join(differing)}): choose another name")
        self.step, self.seconds = state["step"], state["seconds"]
        self.scaler.load_state_dict(state["scaler"])
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            prefix = f"optimizer.{name}."
            self.optimizer.state[parameter] = {
                key.removeprefix(prefix): value if key.endswith(".step") else value.to(self.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }

    def _train_step(self) -> float:
        frames, levels, order = self._batches.take(self.step)
        mel = cut_windows(self._frames, *(each.to(self._frames.device) for each in (frames, levels))).to(self.device)
        self.model.encoder.requires_grad_(self.step >= self.config.decoder_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.step)
        loss = self._loss(mel, order.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss.detach())

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return frames and levels of the windows of a step, and which patches are seen and predicted."""
        order = _random_order(self.config.batch_size, self.config.seed + 1, step)
        seen = order[:, : self.config.visible + self.config.predicted]
        return *self.sampler.draw(np.random.default_rng((self.config.seed, step)), self.config.batch_size), seen

    def _loss(self, mel: Tensor, order: Tensor) -> Tensor:
        dtype = DTYPES[self.config.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.model(mel, order, self.config.visible)

    def _curve_row(self, train_loss: float, validation_loss: float, speed: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "train_loss": round(train_loss, 5),
            "validation_loss": round(validation_loss, 5),
            "learning_rate": self.config.rate_at(self.step - 1),
            "windows_per_second": round(speed, 2),
            "hours": round(self.seconds / 3600, 4),
        }

    def _append_curve(self, row: dict[str, Any]) -> None:
        path = self.folder / LOSS_CURVE
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CURVE_COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _truncate_curve(self) -> None:
        """Drop the rows of steps after the checkpoint, which will be trained again."""
        path = self.folder / LOSS_CURVE
        if path.exists():
            rows = [row for row in _read_curve(path) if int(row["step"]) <= self.step]
            path.unlink()
            for row in rows:
                self._append_curve(row)


def _near(cache: MelCache, device: torch.device) -> Tensor:
    """Return the frames of a cache, on a GPU where they leave half of its memory free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a memory map that is only read
        frames = torch.from_numpy(cache.frames)
    if device.type == "cuda" and 2 * frames.nbytes < torch.cuda.mem_get_info(device)[0]:
        return frames.to(device)
    return frames


def _read_curve(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _differs(name: str, stored: dict[str, Any], config: PretrainConfig) -> bool:
    return name != "steps" and stored.get(name) != getattr(config, name)


def _random_order(batch: int, seed: int, step: int) -> Tensor:
    """Return an independent random order of the 512 patches for each window, int64 (batch, 512)."""
    rng = np.random.default_rng((seed, step, batch))
    return torch.from_numpy(rng.random((batch, WINDOW_PATCHES)).argsort(axis=1))


def _optimizer(model: MaskedAutoencoder, config: PretrainConfig) -> torch.optim.AdamW:
    decayed = [
        p for name, p in model.named_parameters() if p.ndim >= 2 and "pos_embed" not in name and "token" not in name
    ]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
