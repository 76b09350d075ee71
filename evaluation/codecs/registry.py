"""The codecs that `sctok evaluate --codec` can compare, by family. New codecs are added here.

mini  FOLDER  mini:steps=20,eta=0            codecs of sctok
opus:6  mp3:16  codec2:1200                  conventional codecs; kbit/s, or bit/s for Codec2
encodec:1.5  dac:2  mimi:8  snac  xcodec:1   neural codecs; their weights must be available
cmd:NAME=PROGRAM {in} {out}                  any program
dir:FOLDER,kbps=1.5                          audio that was decoded elsewhere
original  lowpass:3500                       anchors of a listening test

To add a codec:

1. Write a module in this folder with a subclass of `base.NamedCodec` that implements `roundtrip`.
2. Give the module a function `open_spec(spec, device)` that returns the codec, or raises `CodecUnavailable`.
3. Add the family to `_FAMILIES` below and to the list above.

Codecs of the `transformers` library need only an entry in `neural._FAMILIES` and in `_FAMILIES` below.
"""

import re
from importlib import import_module
from pathlib import Path

from .base import CodecUnavailable, CodecUnderTest, RoundTrip, Spec, split_options

__all__ = ["CodecUnavailable", "CodecUnderTest", "RoundTrip", "open_codec"]

_FAMILIES = {  # family: module of this folder
    "original": "anchors",
    "lowpass": "anchors",
    "opus": "opus",
    "mp3": "mp3",
    "codec2": "codec2",
    "encodec": "neural",
    "dac": "neural",
    "mimi": "neural",
    "xcodec": "neural",
    "snac": "neural",
    "cmd": "external",
    "dir": "external",
}


def open_codec(spec: str, *, device: str = "auto") -> CodecUnderTest:
    """Open the codec that `spec` names.

    Args:
        spec: `family[:value][,option=value…]`; every family except cmd takes an option `name=`.
        device: auto, cpu, cuda or cuda:N; used by neural networks.

    Raises:
        ValueError: the family or an option is unknown, or a value is out of range.
        CodecUnavailable: a tool, a package or weights are missing; the message says what to install.
    """
    parsed = _parse(spec)
    module = _FAMILIES.get(parsed.family, "sctok_codec")
    opened: CodecUnderTest = import_module(f".{module}", __package__).open_spec(parsed, device)
    return opened


def _parse(spec: str) -> Spec:
    if not isinstance(spec, str):
        raise ValueError(f"spec must be text that names a codec, such as 'opus:6', not {spec!r:.80}")
    family = re.split("[:,]", spec, maxsplit=1)[0]
    rest = spec[len(family) + 1 :]
    if family == "cmd":  # the command may contain commas and equals signs
        return Spec(spec, family, rest, {})
    if family in _FAMILIES:
        return Spec(spec, family, *split_options(rest))
    if spec and Path(spec).is_dir():
        return Spec(spec, "sctok", spec, {})
    if family == "mini":
        return Spec(spec, "sctok", family, split_options(rest)[1])
    folder, _, options = spec.rpartition(":") if "=" in spec else (spec, "", "")
    if not folder or not Path(folder).is_dir():
        families = ", ".join(["mini", *_FAMILIES])
        raise ValueError(f"codec {spec!r} is neither a codec folder nor one of: {families}")
    return Spec(spec, "sctok", folder, split_options(options)[1] if options else {})
