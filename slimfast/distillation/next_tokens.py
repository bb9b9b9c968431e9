"""Perplexity: how many tokens a language model hesitates between, on average, before each next one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Progress
from slimfast.calibration.tokens import check_tokens, tokens_in
from slimfast.distillation.batches import (
    call,
    describe,
    device_of,
    evaluating,
    mask_of,
    split_batch,
    to_device,
)
from slimfast.distillation.causal import sees_what_it_predicts, shifts_labels
from slimfast.distillation.counting import IGNORED, is_label
from slimfast.distillation.network_outputs import logits_of
from slimfast.errors import ArgumentTypeError, SlimfastError, one_line
from slimfast.wrappers import unwrapped

# Logits converted to float32 at once: 256 MiB.
_LOGITS = 1 << 26


def perplexity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    shift: bool | None = None,
    ignore_index: int = IGNORED,
    progress: Progress | None = None,
) -> float:
    """Measure the perplexity of a causal language model on tokenised texts: the exponential of the mean
    negative log-likelihood of all tokens that are predicted, in nats.

    Every token counts alike, whatever the lengths of the batches. A token is predicted from those before it
    in its row, so that the first of a row is not; nor are those that the mask hides, or that have nothing
    but padding before them, or whose label is ``ignore_index`` or negative. The model runs in eval mode on
    its own device; logits of bfloat16 are summed up in float32 and float64. It stays as it is.

    Args:
        model: The language model: its logits are (samples, positions, tokens).
        batches: Each is a tensor of tokens (samples, positions), a dict of the model's arguments with
            ``input_ids`` and, where there is padding, ``attention_mask``, or a tuple (inputs, labels).
            ``labels`` are the tokens themselves where there are none. Rows of a batch have one length, other
            batches any other.
        shift: Whether position t predicts label t + 1, as Hugging Face's labels are; False for labels that
            were moved already. None: found on the first batch with labels.
        ignore_index: The label of what does not count.
        progress: Called with the batches done and of all (0 where ``batches`` has no length).

    Returns:
        The perplexity, 1 or above; infinite where a token has the probability 0.

    Raises:
        TypeError: For a model that is not causal.
        SlimfastError: For tokens beyond the vocabulary, more positions than the model has, rows that are
            padding alone, nothing to predict, and logits that are not finite, naming the batch.

    Example:
        before, after = (slimfast.perplexity(network, windows) for network in (model, thin))
    """
    network = unwrapped(model)
    if sees_what_it_predicts(network):
        raise ArgumentTypeError(
            f"perplexity: expected a causal language model, got {type(network).__name__}, which sees the "
            f"tokens it predicts"
        )
    device = device_of(network)
    total, count, number = 0.0, 0, -1
    of_all = len(batches) if isinstance(batches, Sized) else 0
    with evaluating(network), torch.no_grad():
        for number, batch in enumerate(batches):
            where = f"batch {number}"
            inputs, labels = split_batch(to_device(batch, device))
            own = labels is None
            labels = _checked(network, inputs, labels, where)
            if not own and shift is None:
                shift = shifts_labels(network, inputs, labels, ignore_index)
            mask = _mask(inputs, labels, where)
            logits = _logits(network, inputs, labels, where)
            if own or shift:
                logits, labels, mask = _one_on(logits, labels, mask)
            loss, counted = _loss(logits, labels, mask, ignore_index, where)
            if math.isnan(loss):
                raise SlimfastError(f"perplexity: expected logits that are numbers, got others ({where})")
            total, count = total + loss, count + counted
            if progress is not None:
                progress(number + 1, of_all)
    if number < 0:
        raise SlimfastError("perplexity: expected at least one batch, got none")
    if not count:
        raise SlimfastError(
            f"perplexity: expected tokens to predict, got none in {number + 1} batches: rows need two tokens "
            f"that count"
        )
    mean = total / count
    return math.exp(mean) if mean < 700.0 else math.inf


def _checked(network: nn.Module, inputs: Any, labels: Any, where: str) -> Tensor:
    """Check a batch's tokens, and give its labels, which are the tokens where there are none."""
    tokens = tokens_in(inputs)
    check_tokens(network, tokens, "perplexity", where)
    found = tokens if labels is None else labels
    if not isinstance(found, Tensor) or found.dim() != 2 or found.is_floating_point():
        got = describe(inputs if labels is None else labels)
        raise ArgumentTypeError(f"perplexity: expected tokens (samples, positions), got {got} ({where})")
    return found


def _mask(inputs: Any, labels: Tensor, where: str) -> Tensor | None:
    """Find which positions are no padding; refuse a row without any."""
    mask = mask_of(inputs)
    if mask is None:
        return None
    if mask.shape != labels.shape:
        raise SlimfastError(
            f"perplexity: expected a mask of shape {tuple(labels.shape)} as the tokens have, got "
            f"{tuple(mask.shape)} ({where})"
        )
    empty = (~mask.bool().any(1)).nonzero()
    if len(empty):
        raise SlimfastError(
            f"perplexity: row {int(empty[0])} of {where} is padding alone: its mask is 0 everywhere; leave "
            f"it out"
        )
    return mask.bool()


def _logits(network: nn.Module, inputs: Any, labels: Tensor, where: str) -> Tensor:
    try:
        output = call(network, inputs)
    except Exception as error:
        raise SlimfastError(f"perplexity: the forward fails: {one_line(error)} ({where})") from error
    logits = logits_of(output)
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise SlimfastError(
            f"perplexity: expected logits of shape {(*labels.shape, 'tokens')}, got {tuple(logits.shape)} "
            f"({where})"
        )
    return logits


def _one_on(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring every position together with the label of the next one; both must be no padding."""
    counted = None if mask is None else mask[:, :-1] & mask[:, 1:]
    return logits[:, :-1], labels[:, 1:], counted


def _loss(
    logits: Tensor, labels: Tensor, mask: Tensor | None, ignore_index: int, where: str
) -> tuple[float, int]:
    """Sum the negative log-likelihoods of the labels that count, and say how many those are."""
    counted = is_label(labels, ignore_index)
    if mask is not None:
        counted = counted & mask
    wanted = labels[counted].long()
    classes = logits.shape[-1]
    if len(wanted) and int(wanted.max()) >= classes:
        raise SlimfastError(
            f"perplexity: expected labels of 0 to {classes - 1}, got {int(wanted.max())} ({where})"
        )
    places = counted.nonzero()
    total, step = 0.0, max(1, _LOGITS // classes)
    for start in range(0, len(places), step):
        rows, columns = places[start : start + step].T
        own = logits[rows, columns]
        own = own if own.dtype == torch.float64 else own.float()
        losses = nn.functional.cross_entropy(own, wanted[start : start + step], reduction="none")
        total += float(losses.double().sum())
    return total, len(places)
