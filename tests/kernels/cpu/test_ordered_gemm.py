"""Chains of fused multiply-adds have the bits of the reference."""

import numpy as np
import pytest
import torch

from sctok.kernels.cpu.ordered_gemm import LANES, chain_product, pack_panels
from sctok.kernels.reference import chain_product_reference


def product(x, weights):
    panels = np.full((-(-len(weights) // LANES), weights.shape[1], LANES), np.nan, np.float32)
    pack_panels(weights, panels)
    out = np.full((len(panels), len(x), LANES), np.nan, np.float32)
    chain_product(x, panels, out)
    columns = out.transpose(1, 0, 2).reshape(len(x), -1)
    assert not columns[:, len(weights) :].any()
    return columns[:, : len(weights)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (15, 33, 63), (29, 70, 1300), (500, 64, 600)])
def test_every_sum_is_one_chain(shape):
    rows, columns, depth = shape
    generator = np.random.default_rng(depth)
    x = generator.standard_normal((rows, depth)).astype(np.float32)
    weights = generator.standard_normal((columns, depth)).astype(np.float32)
    expected = chain_product_reference(torch.from_numpy(x), torch.from_numpy(weights)).numpy()
    assert np.array_equal(product(x, weights), expected)


def test_rows_with_a_stride():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((14, 2, 40)).astype(np.float32)
    weights = generator.standard_normal((9, 40)).astype(np.float32)
    assert np.array_equal(product(x[:, 1], weights), product(x[:, 1].copy(), weights))
