"""What encoders compute in low precision, small enough to try on a CPU before it is used."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sctok.audio.windows import WINDOW_SPAN
from sctok.runtime.low_precision import Step, filled

from .checkpoints import EncoderWeights
from .encoder import AudioMAE, EncoderConfig
from .extractor import FeatureExtractor

_SIZES = EncoderConfig(128, 3, 2)


def encoder_steps() -> list[Step]:
    """Return the steps that embed a window, as sctok's own encoders do and as imported ones do."""
    tensors = {name: tensor.detach() for name, tensor in filled(AudioMAE(_SIZES)).state_dict().items()}
    waves, last = 0.1 * np.random.default_rng(0).standard_normal((1, WINDOW_SPAN), np.float32), np.array([True])

    def embed(published: bool, precision: str) -> Tensor:
        weights = EncoderWeights("probe", _SIZES, tensors, {"published_steps": published})
        return torch.from_numpy(FeatureExtractor(weights, torch.device("cpu"), precision).embed(waves, last))

    return [
        Step("AudioMAE's linear layers and attention", partial(embed, False)),
        Step("AudioMAE's patch convolution and attention in separate steps", partial(embed, True)),
    ]
