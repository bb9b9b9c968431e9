"""Tokens that a model can read: those of its vocabulary, in as many positions as it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slimfast.errors import SlimfastError

# The argument of Hugging Face's models that holds them.
TOKENS = "input_ids"


def check_tokens(model: nn.Module, tokens: Any, what: str, where: str) -> None:
    """Refuse tokens that the model's embedding has no row for, and more of them than it has positions.

    A lookup beyond the vocabulary ends a process that runs on a GPU, and rotary positions beyond those of the
    training give an output that means nothing. ``tokens`` are (samples, positions); anything else, and a
    model that does not say what it embeds, is left to the forward.
    """
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() != 2:
        return
    rows = vocabulary_of(model)
    if rows is not None and tokens.numel():
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= rows:
            raise SlimfastError(
                f"{what}: expected tokens of 0 to {rows - 1}, the vocabulary of {type(model).__name__}, got "
                f"{low if low < 0 else high} ({where}); use the tokenizer of this model"
            )
    positions = positions_of(model)
    if positions is not None and tokens.shape[1] > positions:
        raise SlimfastError(
            f"{what}: expected at most {positions} positions, those of {type(model).__name__}, got "
            f"{tokens.shape[1]} ({where}); cut the text into shorter windows"
        )


def vocabulary_of(model: nn.Module) -> int | None:
    """Count the tokens that a model of Hugging Face's kind embeds; None where it does not say."""
    ask = getattr(model, "get_input_embeddings", None)
    if not callable(ask):
        return None
    try:
        embedding = ask()
    except NotImplementedError:
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def positions_of(model: nn.Module) -> int | None:
    """Find how many positions a model's configuration gives its text; None where it does not say."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    found = getattr(text() if callable(text) else config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def tokens_in(inputs: Any) -> Any:
    """Take the tokens out of a model's inputs: ``input_ids`` of a dict, the first of a tuple, or they
    themselves.
    """
    if isinstance(inputs, Mapping):
        return inputs.get(TOKENS)
    return inputs[0] if isinstance(inputs, (tuple, list)) and inputs else inputs
