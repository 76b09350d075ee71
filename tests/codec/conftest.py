"""Fixtures for the tests of this folder."""

import pytest
import torch

from sctok.codec.codec import Codec

from .tiny import tiny_parts


@pytest.fixture(scope="session")
def codec() -> Codec:
    """An untrained codec with 25 tokens per second."""
    return Codec(tiny_parts(), torch.device("cpu"), "fp32", batch_windows=3)
