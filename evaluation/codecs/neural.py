"""EnCodec, DAC, Mimi and X-Codec by the library transformers, and SNAC by the package snac."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sctok.runtime.devices import resolve_device

from .base import CodecUnavailable, NamedCodec, RoundTrip, Spec, Wave, resampled, timed

_FLOAT_BYTES = 4


class _Codes(NamedTuple):
    """The codes of a wave (of any shapes), further arguments of the decoder, and the size of the latter in bytes."""

    codes: Sequence[Tensor]
    extras: Mapping[str, Any]
    extra_bytes: int = 0


@dataclass(frozen=True)
class _Family:
    """How to use one kind of model. `values` returns bandwidths in kbit/s, or numbers of codebooks."""

    weights: str  # the authors' repository on the Hugging Face hub
    values: Callable[[Any], Sequence[float]]
    encode: Callable[[Any, Tensor, float], _Codes]


@dataclass(frozen=True, eq=False)
class NeuralCodec(NamedCodec):
    """A neural codec; `bytes` is the size of its codes at ceil(log2(codebook size)) bits each, without a container.

    The published models have no delay.
    """

    family: _Family
    model: Any
    value: float
    device: torch.device
    rate: int
    bits: int

    @torch.inference_mode()
    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. A wave is coded as a whole, so memory grows with its length."""
        sound = torch.from_numpy(np.ascontiguousarray(resampled(wave, sample_rate, self.rate))).to(self.device)
        with torch.random.fork_rng():  # some decoders draw noise, which has to be the same each time
            torch.manual_seed(0)
            (codes, count), encoding = timed(lambda: self._encode(sound))
            decoded, decoding = timed(lambda: _decode(self.model, codes).float().cpu().numpy())
        written = -(-count * self.bits // 8) + codes.extra_bytes
        mono = decoded.reshape(-1, decoded.shape[-1]).mean(axis=0)
        return RoundTrip(mono, self.rate, written, encoding, decoding, count)

    def _encode(self, sound: Tensor) -> tuple[_Codes, int]:
        codes = self.family.encode(self.model, sound, self.value)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return codes, sum(each.numel() for each in codes.codes)


def _encode_encodec(model: Any, sound: Tensor, kbps: float) -> _Codes:
    found = model.encode(sound.expand(1, model.config.audio_channels, -1), bandwidth=kbps)
    scales = [scale for scale in found.audio_scales if scale is not None]
    extras = {"audio_scales": found.audio_scales, "last_frame_pad_length": found.last_frame_pad_length}
    return _Codes([found.audio_codes], extras, _FLOAT_BYTES * len(scales))


def _encode_with(option: str, convert: Callable[[float], float]) -> Callable[[Any, Tensor, float], _Codes]:
    """Return an encode function that passes the value to the model under the name `option`."""
    return lambda model, sound, value: _Codes(
        [model.encode(sound[None, None], **{option: convert(value)}).audio_codes], {}
    )


_bandwidths = attrgetter("target_bandwidths")


def _counts(most: str) -> Callable[[Any], Sequence[float]]:
    """Return a function that lists the possible numbers of codebooks, up to the value `most` of the configuration."""
    return lambda config: range(1, getattr(config, most) + 1)


def _decode(model: Any, codes: _Codes) -> Tensor:
    if not hasattr(model, "config"):  # SNAC, which takes one tensor for each codebook
        return model.decode(list(codes.codes))
    return model.decode(audio_codes=codes.codes[0], **codes.extras).audio_values


def _load(spec: Spec, weights: str) -> Any:
    """Load a model. Raises CodecUnavailable without its package or weights, ValueError for another kind of model."""
    try:
        if spec.family == "snac":
            return _package("snac", "snac").SNAC.from_pretrained(weights)
        transformers = _package("transformers", "sctok[eval]")
        transformers.utils.logging.disable_progress_bar()
        kind = _model_type(transformers, weights)
        if kind != spec.family:
            raise ValueError(f"codec {spec.text!r}: {weights} holds a model of type {kind}, not {spec.family}")
        model, notes = transformers.AutoModel.from_pretrained(weights, output_loading_info=True)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CodecUnavailable(
            f"codec {spec.text!r}: no weights at {weights} ({reason}); fetch them on a machine with a network "
            f"(hf download {weights} --local-dir FOLDER) and add weights=FOLDER"
        ) from None
    if notes["missing_keys"]:
        raise ValueError(f"codec {spec.text!r}: {weights} lacks {sorted(notes['missing_keys'])[0]}; fetch it again")
    return model


def _model_type(transformers: Any, weights: str) -> str:
    try:
        return str(transformers.AutoConfig.from_pretrained(weights).model_type)
    except ValueError as error:  # config.json names no type that transformers knows
        raise OSError(str(error)) from None


def _package(name: str, install: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise CodecUnavailable(f"this codec needs the package {name}; install {install}") from None


_FAMILIES = {
    "encodec": _Family("facebook/encodec_24khz", _bandwidths, _encode_encodec),
    "dac": _Family("descript/dac_16khz", _counts("n_codebooks"), _encode_with("n_quantizers", int)),
    "mimi": _Family("kyutai/mimi", _counts("num_quantizers"), _encode_with("num_quantizers", int)),
    "xcodec": _Family("hf-audio/xcodec-hubert-general", _bandwidths, _encode_with("bandwidth", float)),
    "snac": _Family(
        "hubertsiuzdak/snac_24khz",
        lambda snac: [snac.n_codebooks],
        lambda model, sound, _: _Codes(model.encode(sound[None, None]), {}),
    ),
}


def open_spec(spec: Spec, device: str) -> NeuralCodec:
    """Open `encodec:KBPS`, `xcodec:KBPS`, `dac:CODEBOOKS`, `mimi:CODEBOOKS` or `snac`, with `weights=` (folder or hub).

    The default value is the lowest bandwidth, or all codebooks. Raises CodecUnavailable if the package or the weights
    are missing.
    """
    spec.check_options(["weights"])
    family, chosen = _FAMILIES[spec.family], resolve_device(device)
    weights = spec.options.get("weights", family.weights)
    if not Path(weights).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        raise CodecUnavailable(f"codec {spec.text!r}: {weights} is neither a folder nor a repository owner/name")
    model = _load(spec, weights).to(chosen).eval()
    config = getattr(model, "config", model)  # SNAC has no separate configuration
    values = family.values(config)
    default = values[-1] if isinstance(values, range) else values[0]
    value = spec.read("value", spec.value, float) if spec.value else float(default)
    if value not in values:
        raise ValueError(
            f"codec {spec.text!r}: {weights} does not have {value:g}, only {', '.join(f'{v:g}' for v in values)}"
        )
    rate = getattr(config, "sampling_rate", None) or config.sample_rate
    settings = {
        "weights": weights,
        "sample_rate": rate,
        "value": value,
        "device": str(chosen),
        "bytes": "codes at ceil(log2 size) bits each, no container",
    }
    bits = math.ceil(math.log2(config.codebook_size))
    return NeuralCodec(spec.name, settings, family, model, value, chosen, rate, bits)
