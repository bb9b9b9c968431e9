"""Networks with recurrent parts, as people build them."""

from __future__ import annotations

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


class Captioner(nn.Module):
    """States that a layer computes, and the step before fed back: from a picture to words."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.units = 2, 10
        self.conv, self.embed = nn.Conv2d(3, 8, 3), nn.Embedding(9, 6)
        self.hidden, self.cells = nn.Linear(8, 2 * 10), nn.Linear(8, 2 * 10)
        self.rnn, self.out = nn.LSTM(6, 10, 2, batch_first=True), nn.Linear(10, 9)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        seen = self.conv(image).relu().mean((2, 3))
        states = [
            layer(seen).view(len(image), self.layers, self.units).transpose(0, 1).contiguous()
            for layer in (self.hidden, self.cells)
        ]
        return self.out(self.rnn(self.embed(words), tuple(states))[0])


class Speaker(nn.Module):
    """Two cells and an additive attention, as Tacotron 2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.keys, self.query = nn.Linear(16, 9, bias=False), nn.Linear(12, 9, bias=False)
        self.score, self.before = nn.Linear(9, 1, bias=False), nn.Linear(4, 7)
        self.attends, self.speaks = nn.LSTMCell(7 + 16, 12), nn.LSTMCell(12 + 16, 14)
        self.attention_dim, self.decoder_dim = 12, 14
        self.frame = nn.Linear(14 + 16, 4)

    def forward(self, text: Tensor, frames: Tensor) -> Tensor:
        said, _ = self.read(text)
        keys, batch = self.keys(said), text.size(0)
        first = [text.new_zeros(batch, self.attention_dim) for _ in "hc"]
        second = [text.new_zeros(batch, self.decoder_dim) for _ in "hc"]
        context, made = text.new_zeros(batch, said.size(2)), []
        for step in range(frames.size(1)):
            first = self.attends(torch.cat([self.before(frames[:, step]).relu(), context], -1), first)
            scores = self.score(torch.tanh(self.query(first[0].unsqueeze(1)) + keys)).squeeze(-1)
            context = torch.bmm(scores.softmax(1).unsqueeze(1), said).squeeze(1)
            second = self.speaks(torch.cat([first[0], context], -1), second)
            made.append(self.frame(torch.cat([second[0], context], 1)))
        return torch.stack(made, 1)


class LanguageModel(nn.Module):
    """Layers of widths of their own, and one table for words that are read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 12), nn.Linear(12, 11)
        self.rnns = nn.ModuleList([nn.LSTM(12, 20), nn.LSTM(20, 12)])
        self.out.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for rnn in self.rnns:
            x = F.dropout(rnn(x)[0], 0.3, self.training)
        return self.out(x)
