"""Small codecs trained alike but for one thing, for the benchmarks of the paper's tables.

All begin with the weights of the bundled codec, but for the acoustic codebook, whose codes begin as vectors of the
first batches: a training from nothing would take days to come near to where the paper's codecs are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from paper_common import DOMAINS, say

from sctok.codec.storage.codec_folder import CodecParts, load_codec
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.files import hash_json
from sctok.training.clips import Collection, open_collection
from sctok.training.codec import TrainedParts
from sctok.training.config import TrainingPlan, read_plan
from sctok.training.pipeline import CodecRun, TrainingParts


@dataclass(frozen=True, eq=False)
class Variant:
    """A codec to train. acoustic: settings instead of those of `configs/mini.toml`. fresh: the acoustic encoder begins
    with random weights. one_way: without the LSTM's way back, whose weights are zero and stay zero, so that it gives
    zeros.
    """

    name: str
    codebooks: Sequence[Codebook]
    acoustic: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    one_way: bool = False


@dataclass(frozen=True)
class Budget:
    """Steps and windows a step of each training; the bundled codec itself had 2038 of 128 in its last run."""

    steps: int = 200
    batch_size: int = 8
    cycle_steps: int = 50

    @classmethod
    def of(cls, quick: bool, steps: int | None) -> "Budget":
        """Return that of `--quick`, or the default with another number of steps."""
        if quick:
            return cls(steps or 3, 2, 0)
        return cls() if steps is None else cls(steps)


def train_all(variants: Sequence[Variant], audio: Path, work: Path, budget: Budget, seed: int) -> dict[str, Path]:
    """Train what is not trained yet, going on from checkpoints, and return the folders of the codecs by name."""
    folders: dict[str, Path] = {}
    collection: Collection | None = None
    start = load_codec("mini")
    for variant in variants:
        plan = _plan(variant, budget, seed)
        about = [asdict(budget), seed, variant.acoustic, variant.fresh, variant.one_way]
        about += [[codebook_hash(book) for book in variant.codebooks], start.info.token_hash]
        name = f"{variant.name}-{hash_json(about)}"
        folder = folders[variant.name] = work / "codecs" / name
        if not (folder / "codec.json").exists():
            inputs = [str(audio / domain) for domain in DOMAINS]
            collection = collection or open_collection(inputs, work / "collection")
            say(f"training {variant.name}: {budget.steps} steps")
            _train(variant, plan, start, collection, work / "train" / name, folder)
    return folders


def _plan(variant: Variant, budget: Budget, seed: int) -> TrainingPlan:
    warm_up = min(200, budget.steps // 4)
    settings = {**asdict(budget), "warm_up": warm_up, "seed": seed, "precision": "fp32"}
    plan = read_plan("mini", settings)
    sections = {**plan.sections, "acoustic": {**plan.sections["acoustic"], **variant.acoustic}}
    windows = min(plan.run.validation_windows, 8 * budget.batch_size)
    run = replace(plan.run, validate_every=budget.steps, validation_windows=windows, listen_every=0)
    return replace(plan, sections=sections, run=run)


def _train(
    variant: Variant, plan: TrainingPlan, start: CodecParts, collection: Collection, run_folder: Path, folder: Path
) -> None:
    parts = TrainingParts(start.encoder, variant.codebooks, start.vae, start.vocoder)
    completed = plan.complete(parts.encoder.config.width, parts.vae.config, "fp32")
    run = CodecRun(plan, completed, parts, collection, run_folder, torch.device("cpu"))
    if run.run.step == 0:
        for model in (run.task.model, run.task.average):
            _begin(model, start, variant.fresh)
    if variant.one_way:
        for model in (run.task.model, run.task.average):
            for name, parameter in model.acoustic.named_parameters():
                if name.endswith("_reverse"):
                    parameter.requires_grad_(False).zero_()
    if run.train():
        raise SystemExit(130)
    run.save(folder, variant.name)


def _begin(model: TrainedParts, start: CodecParts, fresh: bool) -> None:
    """Give a model the weights of a codec, without its acoustic codebook."""
    assert model.grid is not None
    assert start.grid is not None
    model.unet.load_state_dict(start.unet.state_dict())
    model.grid.load_state_dict(start.grid.state_dict())
    model.scale_factor.fill_(start.scale_factor)
    if not fresh:
        ours = model.acoustic.state_dict()
        given = {name: value for name, value in start.acoustic.state_dict().items() if "_codebook" not in name}
        model.acoustic.load_state_dict(ours | given)


def codec_spec(name: str, folder: Path, steps: int, codebook: int | None = None) -> str:
    """Return a trained codec as `sctok evaluate --codec` takes it: DDIM without noise, guidance 2."""
    book = f",codebook={codebook}" if codebook else ""
    return f"{folder}:steps={steps},eta=0,name={name}{book}"
