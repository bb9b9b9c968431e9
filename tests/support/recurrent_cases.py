"""Recurrent networks with examples, for the tests of their groups, costs and files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from support.recurrent_models import (
    Captioner,
    Directions,
    LanguageModel,
    Reader,
    Speaker,
    Stacked,
    Started,
    Stepped,
    Tagger,
    Translator,
    Twice,
)


def _tokens(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) * 7 % 13


# Name -> the network, an example, and arguments of other lengths and batches.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], tuple[Any, ...]]] = {
    "tagger": (Tagger, (_tokens(2, 6),), (_tokens(3, 9),)),
    "tagger of GRUs": (lambda: Tagger(kind="GRU"), (_tokens(2, 6),), (_tokens(1, 4),)),
    "packed": (lambda: Tagger(packed=True), (_tokens(3, 6), [6, 4, 1]), (_tokens(2, 8), [8, 3])),
    "packed, lengths in a tensor": (
        lambda: Tagger(packed=True, is_sorted=False, kind="GRU"),
        (_tokens(3, 6), torch.tensor([2, 6, 5])),
        (_tokens(4, 5), torch.tensor([1, 5, 2, 5])),
    ),
    "packed, not sorted": (
        lambda: Tagger(packed=True, is_sorted=False, kind="RNN"),
        (_tokens(3, 6), [2, 6, 5]),
        (_tokens(4, 5), [1, 5, 2, 5]),
    ),
    "reader": (Reader, (torch.randn(2, 1, 8, 20),), (torch.randn(3, 1, 8, 14),)),
    "translator": (Translator, (_tokens(2, 5), _tokens(2, 3)), (_tokens(4, 7), _tokens(4, 3))),
    **{
        f"directions {way}": (
            lambda way=way: Directions(way),
            (torch.randn(2, 5, 6),),
            (torch.randn(3, 7, 6),),
        )
        for way in ("sliced", "viewed", "chunked", "ends", "states")
    },
    **{
        f"started {kind}{' learned' if learned else ''}": (
            lambda kind=kind, learned=learned: Started(kind, learned=learned),
            (torch.randn(2, 6, 5),),
            (torch.randn(5, 3, 5),),
        )
        for kind in ("LSTM", "GRU", "RNN")
        for learned in (False, True)
    },
    **{
        f"stepped {kind}{' own' if own else ''}": (
            lambda kind=kind, own=own: Stepped(kind, own_states=own),
            (torch.randn(2, 4, 5),),
            (torch.randn(3, 4, 5),),
        )
        for kind in ("LSTMCell", "GRUCell", "RNNCell")
        for own in (False, True)
    },
    "captioner": (
        Captioner,
        (torch.randn(2, 3, 6, 6), _tokens(2, 5) % 9),
        (torch.randn(3, 3, 7, 5), _tokens(3, 4) % 9),
    ),
    "speaker": (
        Speaker,
        (torch.randn(2, 5, 6), torch.randn(2, 3, 4)),
        (torch.randn(3, 4, 6), torch.randn(3, 3, 4)),
    ),
    "language model": (LanguageModel, (_tokens(2, 5) % 11,), (_tokens(3, 7) % 11,)),
    "stacked": (Stacked, (torch.randn(2, 6, 5),), (torch.randn(3, 4, 5),)),
    "twice": (
        Twice,
        (torch.randn(2, 5, 6), torch.randn(2, 3, 6)),
        (torch.randn(1, 4, 6), torch.randn(1, 6, 6)),
    ),
}
