"""Networks with recurrent parts, as people build them, for the tests of their groups, costs and files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    """Embeddings, recurrent layers over packed or whole sentences, a classifier of each token."""

    def __init__(self, *, packed: bool = False, is_sorted: bool = True, kind: str = "LSTM") -> None:
        super().__init__()
        self.packed, self.is_sorted = packed, is_sorted
        self.embed = nn.Embedding(20, 10)
        self.rnn = getattr(nn, kind)(10, 12, 2, bidirectional=True, dropout=0.3, batch_first=True)
        self.out = nn.Linear(24, 5)

    def forward(self, tokens: Tensor, lengths: Any = None) -> Tensor:
        x = self.embed(tokens)
        if not self.packed:
            return self.out(self.rnn(x)[0])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.is_sorted)
        read, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.out(read)


class Reader(nn.Module):
    """Convolutions over a picture of a line, whose columns recurrent layers read: a CRNN with a CTC head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
        )
        self.first = nn.LSTM(12 * 4, 10, bidirectional=True)
        self.between = nn.Linear(20, 9)
        self.second = nn.GRU(9, 11, bidirectional=True)
        self.head = nn.Linear(22, 7)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        x = x.permute(3, 0, 1, 2).flatten(2)
        x = self.between(self.first(x)[0])
        return F.log_softmax(self.head(self.second(x)[0]), dim=-1)


class Translator(nn.Module):
    """An encoder, a decoder of cells, and attention over what the encoder says."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps, self.hidden = steps, 12
        self.embed = nn.Embedding(15, 9)
        self.encoder = nn.GRU(9, self.hidden, batch_first=True)
        self.cell = nn.GRUCell(9 + self.hidden, self.hidden)
        self.out = nn.Linear(2 * self.hidden, 15)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        said, state = self.encoder(self.embed(source))
        state = state[-1]
        context = torch.zeros(source.shape[0], self.hidden, device=source.device)
        logits = []
        for step in range(self.steps):
            state = self.cell(torch.cat([self.embed(target[:, step]), context], 1), state)
            weights = torch.bmm(said, state.unsqueeze(2)).softmax(1)
            context = (said * weights).sum(1)
            logits.append(self.out(torch.cat([state, context], 1)))
        return torch.stack(logits, 1)


class Directions(nn.Module):
    """What both directions say, taken apart in the ways that people do it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.hidden_size = way, 14
        self.lstm = nn.LSTM(6, self.hidden_size, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * 14 if way in ("states", "ends") else 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        said, (state, _) = self.lstm(x)
        batch, steps, _ = x.shape
        if self.way == "sliced":
            return self.out(said[:, :, : self.hidden_size] + said[:, :, self.hidden_size :])
        if self.way == "viewed":
            return self.out(said.view(batch, steps, 2, self.hidden_size).sum(2))
        if self.way == "chunked":
            forth, back = said.chunk(2, dim=-1)
            return self.out(torch.maximum(forth, back))
        if self.way == "ends":
            forth, back = said[:, -1, : self.lstm.hidden_size], said[:, 0, self.lstm.hidden_size :]
            return self.out(torch.cat([forth, back], 1))
        return self.out(state.transpose(0, 1).reshape(batch, -1))


class Started(nn.Module):
    """Initial states: made in the forward by a width that the model remembers, or learned."""

    def __init__(self, kind: str, *, learned: bool = False) -> None:
        super().__init__()
        self.num_layers, self.hidden_size = 2, 13
        self.rnn = getattr(nn, kind)(5, self.hidden_size, self.num_layers, batch_first=True)
        self.start = nn.Parameter(torch.randn(2, 2, 1, 13)) if learned else None
        self.out = nn.Linear(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        number = 2 if isinstance(self.rnn, nn.LSTM) else 1
        if self.start is None:
            states = [
                torch.zeros(self.num_layers, len(x), self.hidden_size, device=x.device) for _ in range(number)
            ]
        else:
            states = [start.expand(-1, x.shape[0], -1).contiguous() for start in self.start[:number]]
        said, _ = self.rnn(x, tuple(states) if number == 2 else states[0])
        return self.out(said[:, -1])


class Stepped(nn.Module):
    """Cells in a loop over the steps, with states of their own or PyTorch's."""

    def __init__(self, kind: str, *, own_states: bool) -> None:
        super().__init__()
        self.units, self.own_states = 11, own_states
        self.first = getattr(nn, kind)(5, self.units)
        self.second = getattr(nn, kind)(self.units, 9, bias=False)
        self.out = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        several = isinstance(self.first, nn.LSTMCell)
        state = other = None
        if self.own_states:
            zeros = [x.new_zeros(len(x), self.units) for _ in range(2 if several else 1)]
            state = tuple(zeros) if several else zeros[0]
        for step in x.unbind(1):
            state = self.first(step, state)
            other = self.second(state[0] if several else state, other)
        return self.out(other[0] if several else other)


class Stacked(nn.Module):
    """Recurrent layers in a residual stream, as speech and music separation have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.layers = nn.ModuleList(nn.LSTM(12, 12, batch_first=True) for _ in range(2))
        self.both = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.back = nn.Linear(16, 12)
        self.norm = nn.BatchNorm1d(12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)[0]
        x = x + self.norm(self.back(self.both(x)[0]).transpose(1, 2)).transpose(1, 2)
        return self.out(x)


class Twice(nn.Module):
    """One layer that is run on two inputs, the second time from the state of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 10, 2, batch_first=True)
        self.out = nn.Linear(10, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        _, state = self.rnn(x)
        said, (hidden, cells) = self.rnn(y, state)
        return self.out(said[:, -1] + hidden[0] * cells[1].sigmoid())


def _tokens(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) * 7 % 13


# Name -> the network, an example, and arguments of other lengths and batches.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], tuple[Any, ...]]] = {
    "tagger": (Tagger, (_tokens(2, 6),), (_tokens(3, 9),)),
    "tagger of GRUs": (lambda: Tagger(kind="GRU"), (_tokens(2, 6),), (_tokens(1, 4),)),
    "packed": (lambda: Tagger(packed=True), (_tokens(3, 6), [6, 4, 1]), (_tokens(2, 8), [8, 3])),
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
    "stacked": (Stacked, (torch.randn(2, 6, 5),), (torch.randn(3, 4, 5),)),
    "twice": (
        Twice,
        (torch.randn(2, 5, 6), torch.randn(2, 3, 6)),
        (torch.randn(1, 4, 6), torch.randn(1, 6, 6)),
    ),
}
