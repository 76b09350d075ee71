import json

import pytest
import torch
from tests.runtime.ranks import run_ranks

from sctok.codec.models.ema_codebook import EMAVectorQuantizer, VQConfig

_TRAIN = """
import hashlib, json, torch
from sctok.codec.models.ema_codebook import EMAVectorQuantizer, VQConfig
config = VQConfig(4, 40, decay=0.5, restart_threshold=0.3, init="rows")
quantizer = EMAVectorQuantizer(config).train()
for step in range(6):
    batch = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(step)).round(decimals=2)
    quantizer(batch[group.rank * 4 // group.world : (group.rank + 1) * 4 // group.world])
print(json.dumps({name: value.tolist() for name, value in quantizer.state_dict().items()}))
"""


def quantizer_of(codes, **settings):
    codes = torch.as_tensor(codes, dtype=torch.float32)
    quantizer = EMAVectorQuantizer(VQConfig(codes.shape[1], len(codes), **settings))
    quantizer._codebook.set_codes(torch.arange(len(codes)), codes)
    quantizer._codebook.initted.fill_(True)
    return quantizer


def test_changes_of_codes_in_inference_mode_take_effect():
    x = torch.tensor([[[0.0, 0.1], [1.0, 0.9]]])
    with torch.inference_mode():
        quantizer = quantizer_of([[0.0, 0.0], [1.0, 1.0]]).eval()
        assert quantizer(x).indices.tolist() == [[0, 1]]
        quantizer._codebook.embed.copy_(quantizer._codebook.embed.flip(1))
        assert quantizer(x).indices.tolist() == [[1, 0]]


def test_nearest_code_with_the_lowest_index_is_chosen():
    quantizer = quantizer_of([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).eval()
    found = quantizer(torch.tensor([[[0.9, 0.0], [0.0, 0.0], [9.0, 0.0]]]))
    assert found.indices.tolist() == [[1, 1, 0]]
    assert torch.equal(found.vectors, quantizer.decode(found.indices))


def test_commitment_loss_is_a_mean_and_gradients_are_straight_through():
    quantizer = quantizer_of([[0.0, 0.0], [8.0, 8.0]], commitment=0.5).train()
    x = torch.tensor([[[1.0, 0.0], [8.0, 7.0]]], requires_grad=True)
    found = quantizer(x)
    assert found.commit_loss.item() == pytest.approx(0.5 * (1 + 1) / 4)
    assert found.vectors.tolist() == [[[0.0, 0.0], [8.0, 8.0]]]
    (found.vectors * torch.tensor([1.0, 2.0])).sum().backward()
    assert x.grad.tolist() == [[[1.0, 2.0], [1.0, 2.0]]]


def test_moving_averages_by_hand():
    quantizer = quantizer_of([[0.0], [10.0]], decay=0.75).train()
    quantizer(torch.tensor([[[1.0], [2.0], [3.0]]]))
    book = quantizer._codebook
    assert book.cluster_size.tolist() == [[0.75 * 1 + 0.25 * 3, 0.75]]
    assert book.embed_avg[0, :, 0].tolist() == [0.25 * 6, 7.5]
    assert book.embed[0, :, 0].tolist() == pytest.approx([1.0, 10.0], rel=1e-4)


def test_evaluation_changes_nothing():
    quantizer = quantizer_of([[0.0], [10.0]], restart_threshold=0.5).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.full((1, 9, 1), 4.0))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_evaluation_uses_codes_that_training_changed():
    quantizer = quantizer_of([[0.0], [10.0]], decay=0.0)
    x = torch.tensor([[[4.0], [10.0]]])
    assert quantizer.eval()(x).vectors.tolist() == [[[0.0], [10.0]]]
    quantizer.train()(x)
    assert quantizer.eval()(x).vectors[0, :, 0].tolist() == pytest.approx([4.0, 10.0], rel=1e-4)


@pytest.mark.parametrize(("counts", "size"), [(True, 2.0), (False, 1.0)])
def test_padding_counts_as_published_unless_disabled(counts, size):
    quantizer = quantizer_of([[0.0], [10.0]], decay=0.0, padding_counts=counts).train()
    found = quantizer(torch.tensor([[[9.0], [7.0]]]), torch.tensor([[False, True]]))
    assert quantizer._codebook.cluster_size.tolist() == [[0.0, size]]
    assert found.commit_loss.item() == (5.0 if counts else 1.0)
    assert found.indices.tolist() == [[1, 1]]


def test_dead_codes_become_vectors_of_the_batch():
    quantizer = quantizer_of([[0.0], [100.0], [200.0]], decay=0.5, restart_threshold=0.6).train()
    quantizer(torch.tensor([[[1.0], [2.0], [3.0]]]))
    codes = quantizer.codes[1:, 0].tolist()
    assert len({*codes} & {1.0, 2.0, 3.0}) == 2
    assert quantizer._codebook.cluster_size[0, 1:].tolist() == [1.0, 1.0]


def test_rows_of_the_first_batches_become_the_codes():
    quantizer = EMAVectorQuantizer(VQConfig(2, 10, init="rows")).train()
    batches = torch.arange(24.0).view(3, 1, 4, 2)
    for batch in batches[:2]:
        assert torch.equal(quantizer(batch).vectors, batch)
        assert bool(quantizer._codebook.initted) is False
    quantizer(batches[2])
    assert bool(quantizer._codebook.initted)
    assert (quantizer._codebook.cluster_size > 0).all()


def test_empty_codebook_cannot_quantize():
    with pytest.raises(ValueError, match="train the codec first"):
        EMAVectorQuantizer(VQConfig(2, 10, init="rows")).eval()(torch.zeros(1, 1, 2))


def test_resumed_training_gives_the_codes_of_an_uninterrupted_one():
    config = VQConfig(3, 30, restart_threshold=0.4, init="rows")
    batches = torch.randn(8, 2, 8, 3, generator=torch.Generator().manual_seed(0))
    straight = EMAVectorQuantizer(config).train()
    for batch in batches:
        straight(batch)
    first, second = EMAVectorQuantizer(config).train(), EMAVectorQuantizer(config).train()
    for batch in batches[:1]:
        first(batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[1:]:
        second(batch)
    assert all(torch.equal(value, straight.state_dict()[name]) for name, value in second.state_dict().items())


@pytest.mark.slow
def test_two_ranks_get_the_codebook_of_one_process_with_both_batches(tmp_path):
    both = run_ranks(2, _TRAIN, tmp_path)
    (alone,) = run_ranks(1, _TRAIN, tmp_path)
    assert [rank.code for rank in (*both, alone)] == [0, 0, 0], both
    assert both[0].out == both[1].out
    expected = json.loads(alone.out)
    for name, value in json.loads(both[0].out).items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(expected[name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", [-1, 2])
def test_indices_out_of_range_are_rejected(index):
    with pytest.raises(ValueError, match=r"acoustic tokens must lie in \[0, 2\)"):
        quantizer_of([[0.0], [1.0]]).decode(torch.tensor([0, index]))


def test_nan_is_rejected():
    with pytest.raises(ValueError, match="NaN"):
        quantizer_of([[0.0], [1.0]]).eval()(torch.tensor([[[float("nan")]]]))


@pytest.mark.parametrize(
    "settings", [{"decay": 1.0}, {"codebook_size": 0}, {"restart_threshold": 1.0}, {"init": "kmeans"}]
)
def test_invalid_settings_are_rejected(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VQConfig(4, **settings)
