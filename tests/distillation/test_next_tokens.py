"""The perplexity of a language model, against what its definition gives by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import slimfast
from slimfast.errors import SlimfastError

VOCABULARY = 11


class Table(nn.Module):
    """A language model that looks at the last token alone."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY, dtype=dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.table(input_ids)}


class TableForMaskedLM(Table):
    pass


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def by_hand(model: Table, pairs: list[tuple[int, int]]) -> float:
    """exp of the mean of -log p(next | token), each written out."""
    table = model.table.weight.detach().double()
    losses = [float(table[a].logsumexp(0) - table[a, b]) for a, b in pairs]
    return math.exp(sum(losses) / len(losses))


def pairs_of(rows: Tensor) -> list[tuple[int, int]]:
    return [pair for row in rows.tolist() for pair in itertools.pairwise(row)]


def test_every_token_counts_alike_whatever_the_lengths() -> None:
    model = Table()
    batches = [tokens(3, 5), {"input_ids": tokens(1, 9, 1)}, (tokens(2, 2, 2),)]
    expected = by_hand(model, pairs_of(tokens(3, 5)) + pairs_of(tokens(1, 9, 1)) + pairs_of(tokens(2, 2, 2)))
    assert slimfast.perplexity(model, batches) == pytest.approx(expected, rel=1e-6)
    assert slimfast.perplexity(model, iter(batches)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_predicts_nor_is_predicted(side: str) -> None:
    model, rows = Table(), [tokens(1, 6)[0], tokens(1, 3, 1)[0]]
    ids, mask = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(6 - len(row), 6) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    expected = by_hand(model, [pair for row in rows for pair in pairs_of(row[None])])
    found = slimfast.perplexity(model, [{"input_ids": ids, "attention_mask": mask}])
    assert found == pytest.approx(expected, rel=1e-6)


def test_ignored_labels_do_not_count() -> None:
    model, ids = Table(), tokens(2, 5)
    labels = ids.clone()
    labels[0, :3] = -100
    labels[1, 4] = -1
    expected = by_hand(model, [*pairs_of(ids[:1, 2:]), *pairs_of(ids[1:, :4])])
    for batch in ({"input_ids": ids, "labels": labels}, (ids, labels)):
        assert slimfast.perplexity(model, [batch], shift=True) == pytest.approx(expected, rel=1e-6)
        assert slimfast.perplexity(model, [batch]) == pytest.approx(expected, rel=1e-6)


def test_labels_that_were_moved_already_are_not_moved_again() -> None:
    model, ids = Table(), tokens(2, 8)
    expected = by_hand(model, pairs_of(ids))
    for options in ({}, {"shift": False}):
        found = slimfast.perplexity(model, [(ids[:, :-1], ids[:, 1:])], **options)
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_few_digits_are_summed_in_more(dtype: torch.dtype) -> None:
    model = Table(dtype)
    ids = tokens(8, 400)
    # The table is rounded to dtype, and nothing else is.
    assert slimfast.perplexity(model, [ids]) == pytest.approx(by_hand(model, pairs_of(ids)), rel=1e-6)


def test_it_is_the_loss_of_the_library() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
    )
    model = LlamaForCausalLM(config).train()
    ids = tokens(3, 16)
    found = slimfast.perplexity(model, [ids])
    assert model.training
    with torch.no_grad():
        loss = model.eval()(input_ids=ids, labels=ids).loss
    assert found == pytest.approx(math.exp(float(loss)), rel=1e-5)


def test_progress_is_told_of_every_batch() -> None:
    seen: list[tuple[int, int]] = []
    slimfast.perplexity(Table(), [tokens(1, 4)] * 3, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_token_without_any_probability_is_infinitely_surprising() -> None:
    model = Table()
    with torch.no_grad():
        model.table.weight[:, 3] = -torch.inf
    assert slimfast.perplexity(model, [torch.tensor([[1, 3]])]) == math.inf


def masked(row: int) -> dict[str, Tensor]:
    mask = torch.ones(3, 4, dtype=torch.int64)
    mask[row] = 0
    return {"input_ids": tokens(3, 4), "attention_mask": mask}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch"),
        ([tokens(2, 1)], "none in 1 batches"),
        ([torch.zeros(0, 4, dtype=torch.int64)], "none in 1 batches"),
        ([(tokens(1, 4), torch.full((1, 4), -100))], "none in 1 batches"),
        ([tokens(1, 4), tokens(1, 4) + VOCABULARY], r"0 to 10, the vocabulary of Table, got \d+ \(batch 1\)"),
        ([tokens(1, 4) - VOCABULARY], r"0 to 10, the vocabulary of Table, got -\d+ \(batch 0\)"),
        ([masked(2)], "row 2 of batch 0 is padding alone"),
        ([{"input_ids": tokens(2, 4), "attention_mask": torch.ones(2, 5)}], r"mask of shape \(2, 4\)"),
        ([(tokens(1, 4), tokens(1, 4) + VOCABULARY)], r"labels of 0 to 10, got \d+ \(batch 0\)"),
        ([(tokens(1, 4), tokens(1, 5))], r"logits of shape \(1, 5, 'tokens'\), got \(1, 4, 11\)"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(batches: list[Any], message: str) -> None:
    with pytest.raises(SlimfastError, match=message) as found:
        slimfast.perplexity(Table(), batches)
    assert "\n" not in str(found.value)


def test_texts_longer_than_the_positions_are_refused() -> None:
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    gpt = GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=2, **small)).eval()
    assert slimfast.perplexity(gpt, [tokens(1, 8)]) > 1
    with pytest.raises(SlimfastError, match=r"at most 8 positions, those of GPT2LMHeadModel, got 9 \(b"):
        slimfast.perplexity(gpt, [tokens(1, 9)])


def test_numbers_that_are_none_are_refused() -> None:
    model = Table()
    with torch.no_grad():
        model.table.weight[3] = torch.nan
    with pytest.raises(SlimfastError, match=r"logits that are numbers.*batch 1"):
        slimfast.perplexity(model, [torch.tensor([[1, 2]]), torch.tensor([[3, 2]])])


def test_a_forward_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(SlimfastError, match=r"perplexity: the forward fails: .* \(batch 0\)"):
        slimfast.perplexity(Table(), [{"input_ids": tokens(1, 4), "colour": torch.ones(1)}])


def test_models_that_see_what_they_predict_are_refused() -> None:
    with pytest.raises(TypeError, match="causal language model, got TableForMaskedLM"):
        slimfast.perplexity(TableForMaskedLM(), [tokens(1, 4)])
    with pytest.raises(TypeError, match=r"tokens \(samples, positions\), got \(1, 4\) float32"):
        slimfast.perplexity(Table(), [torch.ones(1, 4)])
