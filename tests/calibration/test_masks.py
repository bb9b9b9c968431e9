"""Padding counts nowhere: samples of several lengths padded to one, against each at its own length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.repair_cases import planned
from torch import Tensor, nn

import slimfast

LENGTHS = [3, 7, 5, 7, 2, 6, 7, 4] * 4


class Encoder(nn.Module):
    """Attention over the tokens that count, an MLP, and an answer for each token and for the sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 12)
        self.query, self.key, self.value, self.proj = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.head, self.pooled = nn.Linear(12, 5), nn.Linear(12, 3)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(tokens)
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = attention_mask.bool()[:, None, None, :]
        x = x + self.proj(
            nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        )
        x = x + self.down(torch.relu(self.up(x)))
        weights = attention_mask[..., None].to(x) / attention_mask.sum(1)[:, None, None]
        return self.head(x), self.pooled((x * weights).sum(1))


def samples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(50, (length,), generator=generator) for length in LENGTHS]


def padded(sentences: list[Tensor], *, left: bool = False) -> dict[str, Tensor]:
    longest = max(map(len, sentences))
    tokens = torch.full((len(sentences), longest), 9)
    mask = torch.zeros(len(sentences), longest, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        place = slice(longest - len(sentence), None) if left else slice(len(sentence))
        tokens[row, place], mask[row, place] = sentence, 1
    return {"tokens": tokens, "attention_mask": mask}


@pytest.fixture
def model() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def whole_road(model: nn.Module, batches: list[Any], **options: Any) -> Any:
    example = padded(samples()[:2])
    graph = slimfast.trace_channels(model, example)
    calibration = slimfast.calibrate(model, graph, batches, **options)
    curves = slimfast.error_curves(model, graph, calibration)
    units = next(group.name for group in graph if group.n == 24)
    plan = planned(model, example, {units: list(range(14))})
    thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
    return calibration, curves, thin


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("size", [32, 5])
def test_padded_batches_give_what_unpadded_samples_give(model: Encoder, left: bool, size: int) -> None:
    sentences = samples()
    alone = [padded([sentence]) for sentence in sentences]
    together = [padded(sentences[i : i + size], left=left) for i in range(0, len(sentences), size)]
    (known, curves, thin), (found, other_curves, other) = (whole_road(model, b) for b in (alone, together))
    assert known.samples == found.samples == len(LENGTHS)
    assert known.readings["down.weight"].count == sum(LENGTHS)
    for name, reading in known.readings.items():
        assert found.readings[name].count == reading.count, name
        assert torch.allclose(found.readings[name].mean, reading.mean, atol=1e-5), name
        assert torch.allclose(found.readings[name].covariance, reading.covariance, atol=1e-5), name
    for name, curve in curves.items():
        assert np.allclose(other_curves[name].residual, curve.residual, rtol=1e-3, atol=1e-4), name
    assert torch.allclose(other.down.weight, thin.down.weight, atol=1e-4)
    assert torch.allclose(other.down.bias, thin.down.bias, atol=1e-4)


def test_padding_would_have_counted(model: Encoder) -> None:
    together = padded(samples())
    found = whole_road(model, [together], mask=lambda args, kwargs: None)[0]
    assert found.readings["down.weight"].count == len(LENGTHS) * 7
    # Not one position for each token: the sentence's answer counts its own.
    assert whole_road(model, [together])[0].readings["pooled.weight"].count == len(LENGTHS)


def test_a_mask_of_another_name(model: Encoder) -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, tokens: Tensor, keep: Tensor) -> Any:
            return self.inner(tokens, keep)

    batch = padded(samples())
    named = {"tokens": batch["tokens"], "keep": batch["attention_mask"]}
    example = {name: value[:2] for name, value in named.items()}
    graph = slimfast.trace_channels(Renamed(), example)
    wanted = sum(LENGTHS)
    by_name = slimfast.calibrate(Renamed(), graph, [named], mask="keep")
    by_function = slimfast.calibrate(Renamed(), graph, [named], mask=lambda args, kwargs: kwargs["keep"])
    for found in (by_name, by_function):
        assert found.readings["inner.down.weight"].count == wanted
    plain = slimfast.calibrate(Renamed(), graph, [named])
    assert plain.readings["inner.down.weight"].count == len(LENGTHS) * 7


def test_what_is_wrong_with_a_mask_is_one_line(model: Encoder) -> None:
    batch = padded(samples())
    graph = slimfast.trace_channels(model, {name: value[:2] for name, value in batch.items()})
    empty = {**batch, "attention_mask": batch["attention_mask"].clone()}
    empty["attention_mask"][5] = 0
    with pytest.raises(slimfast.SlimfastError, match="sample 5 of batch 1 is padding alone"):
        slimfast.calibrate(model, graph, [batch, empty])
    with pytest.raises(
        TypeError, match=r"expected a mask of \(samples, positions\), got 1 dim.* \(batch 0\)"
    ):
        slimfast.calibrate(model, graph, [batch], mask=lambda args, kwargs: kwargs["tokens"][:, 0])
    with pytest.raises(TypeError, match=r"expected a mask of \(samples, positions\), got int"):
        slimfast.calibrate(model, graph, [batch], mask=lambda args, kwargs: 1)


def test_lengths_of_any_kind_without_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3)).eval()
    batches = [torch.randn(count, 3, length) for count, length in ((2, 20), (3, 11), (1, 37), (2, 20))]
    graph = slimfast.trace_channels(model, batches[0][:1])
    calibration = slimfast.calibrate(model, graph, batches)
    assert calibration.readings["3.weight"].count == sum(len(b) * (b.shape[2] - 2) for b in batches)
    slimfast.error_curves(model, graph, calibration)
    plan = planned(model, batches[0][:1], {"0": [0, 2, 5, 6]})
    thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
    with torch.no_grad():
        seen = torch.cat([thin[0](b).movedim(1, 0).flatten(1) for b in batches], 1)
    assert torch.allclose(thin[1].running_mean, seen.mean(1), atol=1e-5)
    assert torch.allclose(thin[1].running_var, seen.var(1), rtol=1e-4)
