import pytest
import torch

from sctok.features.extractor import BACKENDS, ENCODER, FeatureExtractor, accelerate
from sctok.runtime.devices import low_precision_faults


def test_eager_returns_the_function_itself() -> None:
    assert accelerate(torch.sin, torch.zeros(2), "eager") is torch.sin


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=f"one of {', '.join(BACKENDS)}, not 'fast'"):
        accelerate(torch.sin, torch.zeros(2), "fast")


def test_a_graph_needs_a_cuda_device() -> None:
    with pytest.raises(ValueError, match="not cpu"):
        accelerate(torch.sin, torch.zeros(2), "graph")


def test_tensors_and_arrays_give_the_same_embeddings(small_weights) -> None:
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    waves, last = torch.randn(2, 164_080), torch.tensor([False, True])
    assert torch.equal(extractor.embed(waves, last), torch.from_numpy(extractor.embed(waves.numpy(), last.numpy())))


def test_weights_stored_in_low_precision_give_the_results_of_autocast(small_weights) -> None:
    if fault := low_precision_faults("bf16", [ENCODER])[ENCODER]:
        pytest.skip(f"this CPU does not run the encoder in bf16: {fault}")
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "bf16")
    waves, last = torch.randn(1, 164_080), torch.tensor([True])
    stored = extractor.embed(waves, last)
    extractor._model = small_weights.build()
    assert extractor._model.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert torch.equal(extractor.embed(waves, last), stored)
