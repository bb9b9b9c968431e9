"""What language models feel is divergence of their next tokens: against differences of it, and as drawn."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import slimfast
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.directions import Directions, writes_text
from slimfast.calibration.sensitivity import sensitivities

VOCABULARY = 9
LENGTHS = (7, 3, 5, 4)


class Writer(nn.Module):
    """Scores the next token from each one and the one before it; what else it returns is large."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 8)
        self.down, self.head = nn.Linear(8, 6), nn.Linear(6, VOCABULARY)

    def can_generate(self) -> bool:
        return True

    def scores(self, hidden: Tensor, states: Tensor) -> Tensor:
        hidden = hidden + self.down(states)
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
        scores: Tensor = self.head(torch.tanh(hidden + before))
        return scores

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        states = torch.relu(self.up(hidden))
        scores = self.scores(hidden, states)
        return {"large": 100 * (scores + 1), "logits": scores}


@pytest.fixture
def model() -> Writer:
    torch.manual_seed(0)
    made = Writer().eval()
    with torch.no_grad():
        # Tokens of very unlike probabilities.
        made.head.weight.mul_(3.0)
    return made


def padded(sentences: list[Tensor]) -> dict[str, Tensor]:
    tokens = torch.full((len(sentences), max(map(len, sentences))), 1)
    mask = torch.zeros_like(tokens)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)], mask[row, : len(sentence)] = sentence, 1
    return {"input_ids": tokens, "attention_mask": mask}


def sentences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def felt(model: nn.Module, batches: list[Any], samples: int = 10_000) -> tuple[Any, Any, Tensor]:
    graph = slimfast.trace_channels(model, batches[0], include=["channel"])
    calibration = slimfast.calibrate(model, graph, batches, samples=samples, dtype=torch.float64)
    found = sensitivities(model, consumers_of(model, graph)[0], calibration)["down.weight"]
    return graph, calibration, found


def test_what_writes_text() -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    bert = BertModel(BertConfig(hidden_size=16, intermediate_size=24, **sizes))
    assert writes_text(gpt)
    assert not writes_text(bert)
    assert not writes_text(nn.Linear(2, 2))


def test_it_is_twice_the_divergence_of_a_unit_held_at_its_mean(model: Writer) -> None:
    batch = padded(sentences())
    _, calibration, found = felt(model, [batch] * 1500)
    mean, step = calibration.readings["down.weight"].mean, 1e-3
    wide, counting = copy.deepcopy(model).double(), batch["attention_mask"].bool()
    with torch.no_grad():
        hidden = wide.embed(batch["input_ids"])
        states = torch.relu(wide.up(hidden))
        known = wide.scores(hidden, states).log_softmax(-1)
        expected = []
        for unit in range(len(mean)):
            held = states.clone()
            held[..., unit] -= step * (states[..., unit] - mean[unit])
            changed = wide.scores(hidden, held).log_softmax(-1)
            divergence = (known.exp() * (known - changed)).sum(-1)[counting].sum() / len(LENGTHS)
            expected.append(float(2 * divergence / step**2))
    assert max(expected) > 0.05
    # 6,000 draws: a standard error is some 3 %.
    assert np.allclose(found.numpy(), expected, rtol=0.12)


def test_padding_counts_neither_in_what_is_felt_nor_in_what_is_drawn(model: Writer) -> None:
    batch, alone = padded(sentences()), [padded([sentence]) for sentence in sentences()]
    assert torch.allclose(felt(model, [batch])[2], felt(model, alone)[2], rtol=1e-4)
    other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"].bool(), 7)}
    assert torch.allclose(felt(model, [other])[2], felt(model, [batch])[2], rtol=1e-6)


def test_curves_are_the_divergence_of_each_unit_by_what_is_left_of_it(model: Writer) -> None:
    batch = padded(sentences())
    graph, calibration, found = felt(model, [batch])
    (curve,) = slimfast.error_curves(model, graph, calibration).values()
    reading = calibration.readings["down.weight"]
    norms = model.down.weight.detach().double().norm(dim=0)
    covariance = (reading.covariance * norms * norms[:, None]).numpy()
    kept: list[int] = []
    expected = float("inf")
    for k in range(8):
        part = covariance[np.ix_(kept, kept)]
        explained = covariance[:, kept] @ np.linalg.pinv(part) @ covariance[kept] if kept else 0.0
        left = np.diag(covariance - explained)
        fitted = 0.5 * float((found.numpy() * left / np.diag(covariance)).sum())
        # Each unit kept is a variable fitted to the 19 tokens; never more than without any, nor rising.
        expected = min(expected, fitted / (1 - k / sum(LENGTHS)) ** 2)
        assert curve.residual[k] == pytest.approx(expected, rel=1e-4, abs=1e-9 * curve.residual[0])
        kept.append(int(left.argmax()))
    assert curve.residual[8] == 0.0


def test_a_token_is_drawn_as_often_as_it_is_probable() -> None:
    scores = torch.tensor([2.0, -1.0, float("-inf"), 0.5, 1.0]).expand(2, 20_000, 5).clone().requires_grad_()
    (slopes,) = Directions(of_loss=True).of([scores], None)
    probabilities = scores.detach()[0, 0].softmax(-1)
    drawn = probabilities - slopes
    assert torch.equal(drawn.round(), torch.nn.functional.one_hot(drawn.argmax(-1), 5).float())
    assert torch.allclose(drawn, drawn.round(), atol=1e-6)
    often = drawn.mean((0, 1))
    error = (probabilities * (1 - probabilities) / 40_000).sqrt()
    assert ((often - probabilities).abs() <= 4 * error + 1e-6).all()


def test_draws_are_the_same_however_samples_are_parted() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 6, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None].clamp(max=6)
    (whole,) = Directions(of_loss=True).of([scores], mask)
    parted = Directions(of_loss=True)
    first = parted.of([scores[:1]], mask[:1])[0]
    before = parted.state()
    again = [parted.of([scores[1:]], mask[1:])[0]]
    parted.go_back(before)
    again.append(parted.of([scores[1:]], mask[1:])[0])
    resumed = Directions(of_loss=True)
    resumed.go_on(before)
    again.append(resumed.of([scores[1:]], mask[1:])[0])
    for rest in again:
        assert torch.equal(torch.cat([first, rest]), whole)
    assert not whole[~mask].any()
    assert whole[mask].abs().sum(-1).min() > 0.0


@pytest.mark.parametrize("kind", ["tuple", "object"])
def test_scores_are_found_in_what_is_returned(kind: str) -> None:
    class Returned:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    scores = torch.randn(2, 3, 5, requires_grad=True)
    states = torch.randn(2, 3, 4, requires_grad=True)
    loss = torch.randn((), requires_grad=True)
    output = (loss, scores, states) if kind == "tuple" else Returned(scores)
    (found,) = Directions(of_loss=True).outputs(output)
    assert found is scores
    # Those without a derivative as well, so that directions are the same where it is hidden.
    hidden = scores.detach()
    (found,) = Directions(of_loss=True).outputs({"logits": hidden, "states": states})
    assert found is hidden
    assert Directions(of_loss=True).outputs({"states": torch.zeros(3)}) == []


def test_a_loss_without_scores_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Flatten(0))
    graph = slimfast.trace_channels(model, torch.randn(2, 4))
    calibration = slimfast.calibrate(model, graph, [torch.randn(2, 4)])
    with pytest.raises(slimfast.SlimfastError, match=r"expected scores of classes, .* got none"):
        slimfast.calibration.error_curves(model, graph, calibration, unit="loss")


class Classifier(nn.Module):
    """Scores (samples, classes) from what one layer of hidden units says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).tanh())


def test_a_classifier_is_felt_in_the_unit_of_the_loss_where_that_is_asked_for() -> None:
    model, step = Classifier().eval(), 1e-2
    generator = torch.Generator().manual_seed(1)
    # The same few images many times: the draws differ, what they are draws of does not.
    images = 2 * torch.randn(3, 5, generator=generator)
    batch = images.repeat(2000, 1)
    graph = slimfast.trace_channels(model, images)
    calibration = slimfast.calibrate(model, graph, [batch], samples=len(batch))
    found = sensitivities(model, consumers_of(model, graph)[0], calibration, unit="loss")["down.weight"]
    mean = calibration.readings["down.weight"].mean
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        hidden = wide.up(images.double()).tanh()
        known = wide.down(hidden).log_softmax(-1)
        expected = []
        for unit in range(6):
            held = hidden.clone()
            held[:, unit] -= step * (hidden[:, unit] - mean[unit])
            changed = wide.down(held).log_softmax(-1)
            divergence = (known.exp() * (known - changed)).sum(-1).mean()
            expected.append(float(2 * divergence / step**2))
    # 6,000 draws: a standard error is some 3 %.
    assert np.allclose(found.numpy(), expected, rtol=0.12)
    plain = sensitivities(model, consumers_of(model, graph)[0], calibration)["down.weight"]
    assert not np.allclose(found.numpy(), plain.numpy(), rtol=0.3)
    (curve,) = slimfast.error_curves(model, graph, calibration, unit="loss").values()
    felt_of_group = found.sum().sqrt().item()
    assert curve.residual[0] == pytest.approx(felt_of_group, rel=1e-5)


def test_units_of_errors_that_cannot_be() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    batch = torch.randn(2, 3, 8, 8)
    graph = slimfast.trace_channels(model, batch)
    calibration = slimfast.calibrate(model, graph, [batch])
    with pytest.raises(ValueError, match="expected unit to be 'output', 'loss' or None, got 'nats'"):
        slimfast.error_curves(model, graph, calibration, unit="nats")  # type: ignore[arg-type]
    with pytest.raises(slimfast.SlimfastError, match="expected scores of classes, in the last dim"):
        slimfast.error_curves(model, graph, calibration, unit="loss")
