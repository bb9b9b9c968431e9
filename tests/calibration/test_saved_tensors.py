"""What a backward pass needs, put away beyond a bound: the same sensitivities, from as many bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast.calibration import sensitivity
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.saved_tensors import SavedTensors
from slimfast.calibration.sleeping import Activations
from slimfast.calibration.spilling import Store

TOKENS, WORDS = 256, 3000


def decoder() -> nn.Module:
    """A small Llama with a large vocabulary."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=256, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    return model


def test_a_sample_beyond_the_bound_is_put_away_and_feels_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    batch = {"input_ids": torch.randint(WORDS, (2, TOKENS))}
    graph = slimfast.trace_channels(model, batch)
    calibration = slimfast.calibrate(model, graph, [batch])
    consumers = consumers_of(model, graph)[0]
    peaks, found, stored = [], [], []
    logits = 4 * TOKENS * WORDS
    made = calibration.bytes_made * TOKENS
    # Small things count here, and the probabilities of a few positions are made at once, as of a real
    # vocabulary.
    monkeypatch.setattr("slimfast.calibration.saved_tensors._SMALL", 1 << 10)
    monkeypatch.setattr("slimfast.calibration.directions._AT_ONCE", 8 * WORDS)

    class Counted(Store):
        def __exit__(self, *error: object) -> None:
            stored.append((self.held, self._blocks, len(self._free)))
            super().__exit__(*error)

    monkeypatch.setattr(sensitivity, "Store", Counted)
    for memory in (1 << 30, 1 << 20):
        with Activations(measure=True) as measured:
            found.append(sensitivity.sensitivities(model, consumers, calibration, memory=memory))
        peaks.append(measured.peak)
    assert made > 5 * logits
    # The whole is what two samples make. The other holds one's logits, their slope and half the bound, with
    # what an operation works on: a layer, and some positions' probabilities.
    assert peaks[0] > made
    layer = 8 * TOKENS * 256 * 4
    assert peaks[1] < 2 * logits + (1 << 19) + 3 * 8 * WORDS * 4 + layer
    for weight, felt in found[0].items():
        torch.testing.assert_close(found[1][weight], felt, rtol=1e-4, atol=1e-6 * float(felt.max()))
    # All was given back, and something had been in the file.
    assert stored[0] == (0, 0, 0)
    held, blocks, free = stored[1]
    assert held == 0
    assert blocks == free > 0


class Changing(nn.Module):
    """What a layer reads is written to afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 512), nn.Linear(512, 64), nn.Linear(512, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).sin().cos()
        read = self.second(hidden)
        return read + self.last(hidden.mul_(2.0))


@pytest.mark.parametrize("memory", [1 << 18, 5 << 20])
def test_what_is_written_to_afterwards_counts_as_it_was_read(memory: int) -> None:
    torch.manual_seed(0)
    model, x = Changing().eval(), torch.randn(2, 900, 64)
    graph = slimfast.trace_channels(model, x)
    calibration = slimfast.calibrate(model, graph, [x])
    consumers = consumers_of(model, graph)[0]
    assert calibration.bytes_made * x[0].numel() > memory
    expected = sensitivity.sensitivities(model, consumers, calibration)
    found = sensitivity.sensitivities(model, consumers, calibration, memory=memory)
    for weight, felt in expected.items():
        torch.testing.assert_close(found[weight], felt, rtol=1e-4, atol=1e-6 * float(felt.max()))


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_saved_tensors_are_what_was_saved(memory: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 200, requires_grad=True)
    with Store("test", memory) as store:
        saved = SavedTensors(store, set())
        with saved.saving():
            # A view, an expanded tensor, one that is saved twice, and one that is saved and let go.
            y = (x.T * x.T.exp()).sigmoid()
            z = (y * y[:1].expand_as(y)).sum()
        z.backward()
        del y, z
        assert store.held == 0
        assert len(store._free) == store._blocks
        assert (store._blocks > 0) == (memory == 0)
    found, x.grad = x.grad, None
    y = (x.T * x.T.exp()).sigmoid()
    (y * y[:1].expand_as(y)).sum().backward()
    assert found is not None
    assert torch.equal(found, x.grad)


def test_a_tensor_that_is_written_to_before_its_backward_pass_is_refused() -> None:
    x = torch.randn(300, 200, requires_grad=True)
    with Store("test", 1 << 30) as store:
        with SavedTensors(store, set()).saving():
            y = x * 1.0
            z = y.exp()
            w = (z * z).sum()
        z.detach().mul_(2.0)
        with pytest.raises(slimfast.SlimfastError, match=r"^plan: the network writes to a tensor.*memory="):
            w.backward()
