"""Codecs to compare, opened by name.

mini  FOLDER  mini:steps=20,eta=0     codecs of sctok
opus:6  mp3:16  codec2:1200           real codecs, kbit/s or bit/s as they are usually named
encodec:1.5  dac:2  mimi:8  snac  xcodec:1   learned codecs, where their weights are at hand
cmd:NAME=PROGRAM {in} {out}           any program
dir:FOLDER,kbps=1.5                   files that something else has decoded
original  lowpass:3500                the anchors of a listening test
"""

import re
from importlib import import_module
from pathlib import Path

from .base import CodecUnavailable, CodecUnderTest, RoundTrip, Spec, split_options

__all__ = ["CodecUnavailable", "CodecUnderTest", "RoundTrip", "open_codec"]

_FAMILIES = {
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
    """Return the codec that `spec` names, ready to use; every family takes an option `name=`.

    device: auto, cpu, cuda or cuda:N, for the codecs that are neural networks.
    Raises ValueError for a name or option that is not known and a value beyond its limits, CodecUnavailable where a
    tool, a package or weights are missing, saying what to install.
    """
    parsed = _parse(spec)
    module = _FAMILIES.get(parsed.family, "sctok_codec")
    opened: CodecUnderTest = import_module(f".{module}", __package__).open_spec(parsed, device)
    return opened


def _parse(spec: str) -> Spec:
    if not isinstance(spec, str):
        raise ValueError(f"spec must be the text that names a codec, such as 'opus:6', not {spec!r:.80}")
    family = re.split("[:,]", spec, maxsplit=1)[0]
    rest = spec[len(family) + 1 :]
    if family == "cmd":  # the command may hold commas and equals signs of its own
        return Spec(spec, family, rest, {})
    if family in _FAMILIES:
        return Spec(spec, family, *split_options(rest))
    if spec and Path(spec).is_dir():
        return Spec(spec, "sctok", spec, {})
    if family == "mini":
        return Spec(spec, "sctok", family, split_options(rest)[1])
    folder, _, options = spec.rpartition(":") if "=" in spec else (spec, "", "")
    if not folder or not Path(folder).is_dir():
        known = ", ".join(["mini", *_FAMILIES])
        raise ValueError(f"codec {spec!r} is neither the folder of a codec nor one of: {known}")
    return Spec(spec, "sctok", folder, split_options(options)[1] if options else {})
