"""Encode an audio file with the bundled codec, store its tokens, and decode them to a new audio file.

python examples/encode_and_decode.py in.wav out.wav
"""

import sys
from pathlib import Path

import soundfile

from sctok import Codec
from sctok.codec.samplers import SamplerConfig
from sctok.formats.sct import read_sct, write_sct


def main(source: Path, target: Path) -> None:
    wave, rate = soundfile.read(source, dtype="float32")
    codec = Codec.load("mini", device="cpu")
    tokens = codec.encode(wave, rate)
    write_sct(target.with_suffix(".sct"), tokens)
    print(f"{len(tokens.tokens)} pairs of a semantic and an acoustic token for {tokens.samples / 16_000:.2f} s")
    sound = codec.decode(read_sct(target.with_suffix(".sct")), SamplerConfig(name="unipc", steps=5))
    soundfile.write(target, sound, 16_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
