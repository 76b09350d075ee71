"""Configuration files of codec trainings: TOML with known keys; the other sizes follow from the parts."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sctok.audio.windows import WINDOW_FRAMES, WINDOW_SAMPLES
from sctok.codec.models.acoustic import AcousticConfig
from sctok.codec.models.condition import PE_WIDTH
from sctok.codec.models.grid import GridConfig
from sctok.codec.models.tunet import TUNetConfig
from sctok.codec.models.vae import VAEConfig
from sctok.formats.stacking import stack_factor
from sctok.formats.untrusted.bounds import check_nesting
from sctok.runtime.devices import PRECISIONS

from .codec import CodecTrainingConfig
from .crops import CropConfig

CONFIG_PACKAGE = "sctok.configs"
SUFFIX = ".toml"
_MAX_BYTES, _MAX_DOTS = 1 << 20, 1000  # parsing a dotted key takes time quadratic in its parts

T = TypeVar("T")


@dataclass(frozen=True)
class PartsConfig:
    """The frozen parts of a training: names or files, as `sctok train` takes them.

    codebooks: sizes of merged codebooks, or files.
    """

    encoder: str = "base"
    codebooks: tuple[str | int, ...] = ()
    vae: str = ""
    vocoder: str = ""


@dataclass(frozen=True)
class RunConfig:
    """Steps between validations, windows to validate on, seconds between checkpoints, and threads that read audio.

    Every `listen_every` validations (0 for never), `listen_windows` of the held-out windows are decoded with
    `listen_steps` DDIM steps and a guidance scale of `listen_guidance`.
    """

    validate_every: int = 1000
    validation_windows: int = 64
    checkpoint_seconds: float = 600.0
    listen_every: int = 5
    listen_windows: int = 4
    listen_steps: int = 20
    listen_guidance: float = 2.0
    readers: int = 4

    def __post_init__(self) -> None:
        for name in ("validate_every", "validation_windows", "listen_windows", "listen_steps", "readers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        for name in ("listen_every", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class TrainingPlan:
    """A checked configuration file, before the parts are loaded.

    settings: keys of `CodecTrainingConfig` except for its three parts, whose keys are in `sections`.
    """

    settings: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]
    crops: CropConfig
    parts: PartsConfig = field(default_factory=PartsConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def token_rate(self) -> int:
        """Tokens per second of both streams together."""
        return int(self.settings["token_rate"])

    def complete(self, encoder_width: int, vae: VAEConfig, precision: str) -> CodecTrainingConfig:
        """Return the configuration for an encoder of this width and a VAE, in fp32, bf16 or fp16.

        Raises ValueError if a size in the file contradicts the parts.
        """
        stack = stack_factor(self.token_rate)
        latent = vae.latent_shape(WINDOW_FRAMES)
        acoustic = _derived(AcousticConfig, "acoustic", self.sections, {"feature_width": encoder_width * stack})
        context = acoustic.quantizer.dim + acoustic.feature_width + PE_WIDTH
        grid = None
        if "grid" in self.sections:
            sizes = {"context_width": context, "stack_factor": stack, "latent_shape": latent}
            grid = _derived(GridConfig, "grid", self.sections, sizes)
        channels = {"latent_channels": latent[0], "extra_channels": grid.channels if grid else 0}
        unet = _derived(TUNetConfig, "unet", self.sections, {**channels, "context_width": context})
        settings = {**self.settings, "precision": precision}
        return CodecTrainingConfig(acoustic=acoustic, unet=unet, grid=grid, **settings)


def config_names() -> list[str]:
    """Return the names of the bundled configurations."""
    return sorted(each.name.removesuffix(SUFFIX) for each in files(CONFIG_PACKAGE).iterdir() if SUFFIX in each.name)


def read_plan(
    name_or_path: str | Path, settings: Mapping[str, Any] | None = None, parts: Mapping[str, Any] | None = None
) -> TrainingPlan:
    """Return a configuration by name or path; `settings` and `parts` replace those of the file.

    Raises:
        ValueError: the name is unknown, the file is not TOML, a key is unknown, or a value has another type or is out
            of range. The message names the file and the key, and what is allowed.
    """
    name, text = _read(name_or_path)
    try:
        if max(line.count(".") for line in text.split("\n")) > _MAX_DOTS:
            raise ValueError(f"a line has more than {_MAX_DOTS} dots")
        table = tomllib.loads(text)
        check_nesting(table)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not TOML: {error}") from None
    try:
        return _plan(table, settings or {}, parts or {})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _read(name_or_path: str | Path) -> tuple[str, str]:
    if str(name_or_path) in config_names():
        return f"{name_or_path}{SUFFIX}", (files(CONFIG_PACKAGE) / f"{name_or_path}{SUFFIX}").read_text("utf-8")
    if not Path(name_or_path).is_file():
        raise ValueError(f"{name_or_path} is neither a file nor one of {', '.join(config_names())}")
    try:
        content = Path(name_or_path).read_bytes()
        if len(content) > _MAX_BYTES:
            raise ValueError(f"{name_or_path} has {len(content):,} bytes; a configuration has at most {_MAX_BYTES:,}")
        return str(name_or_path), content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name_or_path} is not TOML: {error}") from None


_SECTIONS: dict[str, type[Any]] = {
    "acoustic": AcousticConfig,
    "unet": TUNetConfig,
    "grid": GridConfig,
    "crops": CropConfig,
    "parts": PartsConfig,
    "run": RunConfig,
}


def _plan(table: Mapping[str, Any], settings: Mapping[str, Any], parts: Mapping[str, Any]) -> TrainingPlan:
    top = {key: value for key, value in table.items() if key not in _SECTIONS}
    top = _checked(CodecTrainingConfig, "", {**top, **settings}, without=("acoustic", "unet", "grid"))
    found = {name: table.get(name, {}) for name in _SECTIONS if name != "grid" or name in table}
    for name, section in found.items():
        if not isinstance(section, dict):
            raise ValueError(f"{name} = {section!r:.200} is not a section: write [{name}]")
    found["parts"] = {**found["parts"], **parts}
    sections = {name: _checked(_SECTIONS[name], name, section) for name, section in found.items()}
    if "token_rate" not in top:
        raise ValueError("token_rate is missing: set it to 25, 50 or 100")
    stack_factor(top["token_rate"])
    if top.get("precision", "auto") not in PRECISIONS:
        raise ValueError(f"precision {top['precision']!r} is not one of {', '.join(PRECISIONS)}")
    crops = CropConfig(**{"seed": top.get("seed", 0), **sections.pop("crops")})
    if crops.samples != WINDOW_SAMPLES:
        raise ValueError(f"[crops] samples = {crops.samples}, but a codec is trained on windows of {WINDOW_SAMPLES}")
    run, chosen = RunConfig(**sections.pop("run")), PartsConfig(**sections.pop("parts"))
    return TrainingPlan(top, sections, crops, chosen, run)


def _checked(
    config: type[Any], section: str, table: Mapping[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the table of a section, with tuples for lists. Raises ValueError for unknown keys and wrong types."""
    where, hints = f"[{section}] " if section else "", get_type_hints(config)
    allowed = [each.name for each in fields(config) if each.name not in without]
    if unknown := [key for key in table if key not in allowed]:
        names = ", ".join(unknown) + (f"; sections: {', '.join(_SECTIONS)}" if not section else "")
        raise ValueError(f"{where}unknown {names} (allowed: {', '.join(allowed)})")
    for key, value in table.items():
        if not _fits(value, hints[key]):
            raise ValueError(f"{where}{key} = {value!r:.200} is not {_describe_type(hints[key])}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _describe_type(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (Union, UnionType):
        return " or ".join(_describe_type(each) for each in inner if each is not type(None))
    if origin is tuple:
        return f"a list, each element {_describe_type(inner[0])}"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]


def _derived(config: type[T], section: str, sections: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Any]) -> T:
    """Return the configuration of a part, with the sizes that follow from other parts."""
    stated = sections[section]
    for name, value in sizes.items():
        if stated.get(name, value) != value:
            raise ValueError(f"[{section}] {name} = {stated[name]}, but the other parts require {value}: remove it")
    return config(**{**stated, **sizes})
