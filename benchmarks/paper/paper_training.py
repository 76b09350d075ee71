"""Small codecs trained alike but for one thing, for the benchmarks of the paper's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from paper_common import DOMAINS, say

from sctok.codec.crops import Collection, open_collection
from sctok.codec.part_sources import open_vae, open_vocoder
from sctok.codec.training_config import TrainingPlan, read_plan
from sctok.codec.training_pipeline import CodecRun, TrainingParts
from sctok.features.checkpoints import load_weights
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.files import hash_json


@dataclass(frozen=True, eq=False)
class Variant:
    """A codec to train. acoustic: settings instead of those of `configs/mini.toml`. one_way: without the LSTM's way
    back, whose weights are zero and stay zero, so that it gives zeros.
    """

    name: str
    codebooks: Sequence[Codebook]
    acoustic: Mapping[str, Any] = field(default_factory=dict)
    one_way: bool = False


@dataclass(frozen=True)
class Budget:
    """Steps and windows a step of each training; the mini codec itself had 3000 of 8."""

    steps: int = 600
    batch_size: int = 8
    cycle_steps: int = 150

    @classmethod
    def of(cls, quick: bool, steps: int | None) -> "Budget":
        """Return that of `--quick`, or the default with another number of steps."""
        if quick:
            return cls(steps or 3, 2, 0)
        return cls() if steps is None else cls(steps, cycle_steps=min(150, steps))


def train_all(variants: Sequence[Variant], audio: Path, work: Path, budget: Budget, seed: int) -> dict[str, Path]:
    """Train what is not trained yet, going on from checkpoints, and return the folders of the codecs by name."""
    folders: dict[str, Path] = {}
    collection: Collection | None = None
    for variant in variants:
        plan = _plan(variant, budget, seed)
        about = [asdict(budget), seed, variant.acoustic, variant.one_way, [codebook_hash(b) for b in variant.codebooks]]
        name = f"{variant.name}-{hash_json([*about, load_weights('mini').hash])}"
        folder = folders[variant.name] = work / "codecs" / name
        if not (folder / "codec.json").exists():
            inputs = [str(audio / domain) for domain in DOMAINS]
            collection = collection or open_collection(inputs, work / "collection")
            say(f"training {variant.name}: {budget.steps} steps")
            _train(variant, plan, collection, work / "train" / name, folder)
    return folders


def _plan(variant: Variant, budget: Budget, seed: int) -> TrainingPlan:
    warm_up = min(200, budget.steps // 4)
    settings = {**asdict(budget), "warm_up": warm_up, "seed": seed, "precision": "fp32"}
    plan = read_plan("mini", settings)
    sections = {**plan.sections, "acoustic": {**plan.sections["acoustic"], **variant.acoustic}}
    windows = min(plan.run.validation_windows, 8 * budget.batch_size)
    run = replace(plan.run, validate_every=budget.steps, validation_windows=windows, listen_every=0)
    return replace(plan, sections=sections, run=run)


def _train(variant: Variant, plan: TrainingPlan, collection: Collection, run_folder: Path, folder: Path) -> None:
    parts = TrainingParts(load_weights("mini"), variant.codebooks, open_vae("mini"), open_vocoder("mini"))
    completed = plan.complete(parts.encoder.config.width, parts.vae.config, "fp32")
    run = CodecRun(plan, completed, parts, collection, run_folder, torch.device("cpu"))
    if variant.one_way:
        for model in (run.task.model, run.task.average):
            for name, parameter in model.acoustic.named_parameters():
                if name.endswith("_reverse"):
                    parameter.requires_grad_(False).zero_()
    if run.train(lambda row: None):
        raise SystemExit(130)
    run.save(folder, variant.name)


def codec_spec(name: str, folder: Path, steps: int, codebook: int | None = None) -> str:
    """Return a trained codec as `sctok evaluate --codec` takes it: DDIM without noise, guidance 2."""
    book = f",codebook={codebook}" if codebook else ""
    return f"{folder}:steps={steps},eta=0,name={name}{book}"
