"""Whether the labels of a batch stand where they are predicted, or one position after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from slimfast.distillation.counting import is_label


def shifts_labels(model: Any, inputs: Any, targets: Any, ignore_index: int) -> bool:
    """Decide whether position t of the output is to be compared with label t + 1.

    That is so for a causal language model whose labels are its inputs, which is what Hugging Face's batches
    hold. It is taken for one where

    - the labels that count repeat the input tokens at their own positions, or
    - its class is named ``...ForCausalLM``,

    unless the labels are the input tokens moved by one already, or the model is an encoder and decoder or a
    masked language model. (For a network that shall give back its own input tokens pass ``shift=False``.)
    """
    name = type(model).__name__
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() < 2:
        return False
    if sees_what_it_predicts(model):
        return False
    counted = is_label(targets, ignore_index)
    repeated = moved = False
    for tokens in _token_inputs(inputs):
        if tokens.shape == targets.shape and bool(counted[:, :-1].any()):
            repeats = bool((tokens == targets)[counted].all())
            follows = bool((tokens[:, 1:] == targets[:, :-1])[counted[:, :-1]].all())
            repeated, moved = repeated or repeats, moved or (follows and not repeats)
    return not moved and (repeated or name.endswith("ForCausalLM"))


def sees_what_it_predicts(model: Any) -> bool:
    """Tell whether a model is an encoder and decoder or a masked language model: it reads on both sides."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) or type(model).__name__.endswith("ForMaskedLM")


def _token_inputs(inputs: Any) -> Iterator[Tensor]:
    """Yield the inputs that may be tokens: integers, ``input_ids`` alone where there are such."""
    if isinstance(inputs, Mapping):
        inputs = [inputs["input_ids"]] if "input_ids" in inputs else list(inputs.values())
    for value in inputs if isinstance(inputs, (tuple, list)) else (inputs,):
        if isinstance(value, Tensor) and not value.is_floating_point():
            yield value
