"""Table II at laptop scale: semantics of tokens, compared with audio that other codecs decoded.

    python benchmarks/paper/table_ii.py AUDIO            about an hour on two cores; --quick: minutes

HEAR's probe on clip means of four representations: the first layer (semantic), both layers, features before
quantization, and features of audio that came through Opus and Codec2, which have no tokens to probe. The paper claims
that its tokens beat those of codecs at higher bit rates, and that the first layer is nearly as good as all layers.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from paper_common import QUICK_TASKS, TASKS, Report, Values, add_options, bootstrap, say
from paper_features import embedded, probe, read_tasks

from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.base import Wave, resampled
from sctok.evaluation.codecs.registry import CodecUnavailable, CodecUnderTest, open_codec
from sctok.evaluation.probe.features import (
    EncodedClip,
    EncoderSystem,
    MelSystem,
    System,
    TokenStream,
    load_codec_system,
)
from sctok.evaluation.probe.mlp import MlpConfig
from sctok.features.checkpoints import load_weights
from sctok.features.extractor import FeatureExtractor

OTHERS, QUICK_OTHERS = ("codec2:700C", "codec2:1200", "codec2:3200", "opus:6", "opus:12"), ("opus:6",)


@dataclass(frozen=True, eq=False)
class DecodedSystem:
    """Features of the audio that a codec decodes."""

    codec: CodecUnderTest
    encoder: EncoderSystem

    @property
    def streams(self) -> dict[str, TokenStream]:
        """Return no layers."""
        return {}

    @property
    def about(self) -> dict[str, object]:
        """Settings of the codec."""
        return {"codec": dict(self.codec.settings), "encoder": dict(self.encoder.about)}

    def encode(self, samples: Wave) -> EncodedClip:
        """Return the features of the decoded audio, cut or padded to the length of the input."""
        coded = self.codec.roundtrip(samples, SAMPLE_RATE)
        decoded = resampled(coded.samples, coded.sample_rate, SAMPLE_RATE)[: len(samples)]
        return self.encoder.encode(np.pad(decoded, (0, len(samples) - len(decoded))))


def systems(codec: str, others: list[str]) -> tuple[list[System], dict[str, str]]:
    """Return the systems to probe, and their representations by the names of the table."""
    ours = load_codec_system(codec, "cpu", "fp32")
    extractor = FeatureExtractor(load_weights("mini"), torch.device("cpu"), "fp32")
    found: list[System] = [MelSystem(), ours]
    prefix = next(iter(ours.streams)).removesuffix("/semantic")
    names = {"log-mel": "log-mel with deviation", "not quantized": f"{prefix}/features"}
    names |= {"first layer (semantic)": f"{prefix}/semantic", "acoustic": f"{prefix}/acoustic"}
    names |= {"both layers": f"{prefix}/semantic+acoustic"}
    for spec in others:
        try:
            opened = open_codec(spec, device="cpu")
        except CodecUnavailable as error:
            say(f"left out: {error}")
            continue
        found.append(DecodedSystem(opened, EncoderSystem(extractor, name=f"features after {opened.name}")))
        names[opened.name] = f"features after {opened.name}/features-r100"
    return found, names


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--codec", default="mini", help="codec of sctok with the encoder mini")
    parser.add_argument("--others", nargs="+")
    parser.add_argument("--tasks", nargs="+")
    options = parser.parse_args()
    config = MlpConfig(grid_points=1, max_epochs=60) if options.quick else MlpConfig()
    others = options.others or list(QUICK_OTHERS if options.quick else OTHERS)
    work = options.work / "table_ii"
    probed, names = systems(options.codec, others)
    hits: dict[str, dict[str, Values]] = {}
    for task in read_tasks(options.audio, options.tasks or (QUICK_TASKS if options.quick else TASKS)):
        clips, found = embedded(task, probed, work, 10.24)
        for name, key in names.items():
            hits.setdefault(name, {})[task.name] = probe(clips, name, found[key], config, work)
    tasks = list(next(iter(hits.values())))
    settings = {"codec": options.codec, "tasks": tasks, "seed": options.seed, "quick": options.quick}
    report = Report("table_ii", "Table II: semantics", settings)
    rows = [[n, bootstrap(list(each.values())), *(bootstrap([each[t]]) for t in tasks)] for n, each in hits.items()]
    report.table("Accuracy of the probe", ["features", "mean of tasks", *tasks], rows)

    def claim(text: str, first: str, second: str) -> None:
        found = bootstrap([hits[first][task] - hits[second][task] for task in tasks])
        report.claim(text, found.held(), f"difference {found}")

    for other in list(names)[5:]:
        claim(f"The first layer is ahead of features of {other}", "first layer (semantic)", other)
    claim("Both layers are ahead of the first layer", "both layers", "first layer (semantic)")
    claim("The first layer is ahead of the acoustic one", "first layer (semantic)", "acoustic")
    report.write(options.out)


if __name__ == "__main__":
    main()
