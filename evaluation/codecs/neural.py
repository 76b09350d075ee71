"""EnCodec, DAC, Mimi and X-Codec as transformers has them, and SNAC as its package has it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sctok.runtime.devices import resolve_device

from .base import CodecUnavailable, RoundTrip, Spec, Wave, resampled, timed

_FLOAT_BYTES = 4


class _Codes(NamedTuple):
    """What stands for a wave: codes of any shapes, whatever else the decoder asks for, and the bytes of that."""

    codes: Sequence[Tensor]
    more: Mapping[str, Any]
    more_bytes: int = 0


@dataclass(frozen=True)
class _Family:
    """How to use one kind of model; `value` is kbit/s where the codec is asked for a bandwidth, else codebooks."""

    weights: str  # where the hub keeps those that the authors published
    load: Callable[[Spec, str], Any]
    rate: Callable[[Any], int]
    values: Callable[[Any], Sequence[float]]
    default: int  # index into the values
    encode: Callable[[Any, Tensor, float], _Codes]
    decode: Callable[[Any, _Codes], Tensor]


@dataclass(frozen=True, eq=False)
class NeuralCodec:
    """A learned codec; `bytes` are its codes at ceil(log2 of the codebook's size) bits each, with nothing around them.

    Published models of these kinds keep sound where it was, so that there is no delay to remove.
    """

    name: str
    settings: Mapping[str, Any]
    family: _Family
    model: Any
    value: float
    device: torch.device
    bits: int

    @torch.inference_mode()
    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. Waves are coded whole, so that memory grows with their length."""
        rate = self.family.rate(self.model)
        sound = torch.from_numpy(np.ascontiguousarray(resampled(wave, sample_rate, rate))).to(self.device)
        with _repeatable():
            (codes, count), encoding = timed(lambda: self._encode(sound))
            decoded, decoding = timed(lambda: self.family.decode(self.model, codes).float().cpu().numpy())
        written = -(-count * self.bits // 8) + codes.more_bytes
        return RoundTrip(decoded.reshape(-1, decoded.shape[-1]).mean(axis=0), rate, written, encoding, decoding, count)

    def _encode(self, sound: Tensor) -> tuple[_Codes, int]:
        codes = self.family.encode(self.model, sound, self.value)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return codes, sum(each.numel() for each in codes.codes)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Have what a decoder draws at random be the same each time, without touching anybody else's generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _encode_encodec(model: Any, sound: Tensor, kbps: float) -> _Codes:
    found = model.encode(sound.expand(1, model.config.audio_channels, -1), bandwidth=kbps)
    scales = [scale for scale in found.audio_scales if scale is not None]
    more = {"audio_scales": found.audio_scales, "last_frame_pad_length": found.last_frame_pad_length}
    return _Codes([found.audio_codes], more, _FLOAT_BYTES * len(scales))


def _decode(model: Any, codes: _Codes) -> Tensor:
    return model.decode(audio_codes=codes.codes[0], **codes.more).audio_values


def _encode_snac(model: Any, sound: Tensor, _: float) -> _Codes:
    return _Codes(model.encode(sound[None, None]), {})


def _load_transformers(spec: Spec, weights: str) -> Any:
    transformers = _package("transformers")
    transformers.utils.logging.disable_progress_bar()
    try:
        kind = transformers.AutoConfig.from_pretrained(weights).model_type
    except (OSError, ValueError) as error:  # the latter where the description names no kind of model
        raise _no_weights(spec, weights, error) from None
    if kind != spec.family:
        raise ValueError(f"codec {spec.text!r}: {weights} holds a model of type {kind}, not {spec.family}")
    try:
        model, notes = transformers.AutoModel.from_pretrained(weights, output_loading_info=True)
    except OSError as error:
        raise _no_weights(spec, weights, error) from None
    if notes["missing_keys"]:
        raise ValueError(f"codec {spec.text!r}: {weights} lacks {sorted(notes['missing_keys'])[0]}; fetch it again")
    return model


def _load_snac(spec: Spec, weights: str) -> Any:
    snac = _package("snac", "snac")
    try:
        return snac.SNAC.from_pretrained(weights)
    except OSError as error:
        raise _no_weights(spec, weights, error) from None


def _package(name: str, install: str = "sctok[eval]") -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise CodecUnavailable(f"install {install} to compare with this codec: there is no package {name}") from None


def _no_weights(spec: Spec, weights: str, error: Exception) -> CodecUnavailable:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CodecUnavailable(
        f"codec {spec.text!r}: no weights at {weights} ({reason}); "
        f"fetch them on a machine with a network (hf download {weights} --local-dir FOLDER) and add weights=FOLDER"
    )


def _whole(count: int) -> Sequence[float]:
    return range(1, count + 1)


_FAMILIES = {
    "encodec": _Family(
        "facebook/encodec_24khz",
        _load_transformers,
        lambda model: model.config.sampling_rate,
        lambda model: model.config.target_bandwidths,
        0,
        _encode_encodec,
        _decode,
    ),
    "dac": _Family(
        "descript/dac_16khz",
        _load_transformers,
        lambda model: model.config.sampling_rate,
        lambda model: _whole(model.config.n_codebooks),
        -1,
        lambda model, sound, books: _Codes([model.encode(sound[None, None], n_quantizers=int(books)).audio_codes], {}),
        _decode,
    ),
    "mimi": _Family(
        "kyutai/mimi",
        _load_transformers,
        lambda model: model.config.sampling_rate,
        lambda model: _whole(model.config.num_quantizers),
        -1,
        lambda model, sound, books: _Codes(
            [model.encode(sound[None, None], num_quantizers=int(books)).audio_codes], {}
        ),
        _decode,
    ),
    "xcodec": _Family(
        "hf-audio/xcodec-hubert-general",
        _load_transformers,
        lambda model: model.config.sample_rate,
        lambda model: model.config.target_bandwidths,
        0,
        lambda model, sound, kbps: _Codes([model.encode(sound[None, None], bandwidth=kbps).audio_codes], {}),
        _decode,
    ),
    "snac": _Family(
        "hubertsiuzdak/snac_24khz",
        _load_snac,
        lambda model: model.sampling_rate,
        lambda model: [model.n_codebooks],
        0,
        _encode_snac,
        lambda model, codes: model.decode(list(codes.codes)),
    ),
}


def open_spec(spec: Spec, device: str) -> NeuralCodec:
    """Open `encodec:KBPS`, `xcodec:KBPS`, `dac:CODEBOOKS`, `mimi:CODEBOOKS` or `snac`, with `weights=` (folder or hub).

    Without a value: the lowest bandwidth, or all codebooks. CodecUnavailable where package or weights are missing.
    """
    spec.check_options(["weights"])
    family, chosen = _FAMILIES[spec.family], resolve_device(device)
    weights = spec.options.get("weights", family.weights)
    if not Path(weights).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        raise CodecUnavailable(f"codec {spec.text!r}: {weights} is neither a folder nor a repository owner/name")
    model = family.load(spec, weights).to(chosen).eval()
    values = family.values(model)
    value = spec.read("value", spec.value, float) if spec.value else float(values[family.default])
    if value not in values:
        raise ValueError(
            f"codec {spec.text!r}: {weights} has no {value:g}; it has {', '.join(f'{v:g}' for v in values)}"
        )
    size = getattr(model, "codebook_size", None) or model.config.codebook_size
    settings = {
        "weights": weights,
        "sample_rate": family.rate(model),
        "value": value,
        "device": str(chosen),
        "bytes": "codes at ceil(log2 size) bits each, no container",
    }
    return NeuralCodec(spec.name, settings, family, model, value, chosen, math.ceil(math.log2(size)))
