"""Codecs of sctok under test."""

import tempfile
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sctok.codec.codec import Codec
from sctok.codec.samplers import SamplerConfig
from sctok.codec.storage.codec_folder import BUNDLED_CODECS, INFO_FILE
from sctok.formats.sct import sct_bytes, write_sct
from sctok.formats.untrusted.bounds import parse_json

from .base import NamedCodec, RoundTrip, Spec, Wave, plain_name, timed

_READERS: dict[str, Any] = {"steps": int, "eta": float, "guidance": float, "seed": int}
_TEXTS = {"sampler": "name", "guidance_form": "guidance_form", "spacing": "spacing"}


@dataclass(frozen=True, eq=False)
class SctokCodec(NamedCodec):
    """A codec of sctok; `bytes` is the size of the `.sct` file, `container` its header and checksum."""

    codec: Codec
    sampler: SamplerConfig
    codebook: int | None

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`."""
        tokens, encoding = timed(lambda: self.codec.encode(wave, sample_rate, codebook=self.codebook))
        with tempfile.TemporaryDirectory() as folder:
            written = write_sct(Path(folder) / "tokens.sct", tokens)
        decoded, decoding = timed(lambda: self.codec.decode(tokens, self.sampler))
        container = sct_bytes(0, tokens.codebook_sizes)
        return RoundTrip(
            decoded, self.codec.sample_rate, written, encoding, decoding, int(tokens.tokens.size), container
        )


def _decoder_hashes(name_or_path: str) -> Any:
    """Return the hashes of a codec's decoder."""
    bundled = name_or_path in BUNDLED_CODECS
    folder = files("sctok.weights") / f"codec-{name_or_path}" if bundled else Path(name_or_path)
    return parse_json((folder / INFO_FILE).read_bytes())["decoder_hashes"]


def open_spec(spec: Spec, device: str) -> SctokCodec:
    """Open `mini` or a codec folder, with the sampler's options, `codebook=ROWS` and `precision=`."""
    spec.check_options([*_READERS, *_TEXTS, "codebook", "precision"])
    numbers = {key: spec.option(key, read, None) for key, read in _READERS.items() if key in spec.options}
    texts: dict[str, Any] = {field: spec.options[key] for key, field in _TEXTS.items() if key in spec.options}
    try:
        sampler = SamplerConfig(**numbers, **texts)
    except ValueError as error:
        raise ValueError(f"codec {spec.text!r}: {error}") from None
    codec = Codec.load(spec.value, device, spec.options.get("precision", "auto"))
    rows = spec.option("codebook", int, None)
    settings = {
        "codec": codec.info.name,
        "hash": codec.hash,
        "decoder": _decoder_hashes(spec.value),
        "token_rate": codec.token_rate,
        "codebook": codec.codebook_sizes(rows)[0],
        "precision": codec.precision,
        "sampler": asdict(sampler),
        "bytes": "the .sct file; container: header and checksum",
    }
    default = plain_name(":".join([Path(spec.value).resolve().name, *spec.text[len(spec.value) + 1 :].split(":")]))
    return SctokCodec(spec.options.get("name") or default, settings, codec, sampler, rows)
