"""Texts that ``datasets`` keeps on a disk: in batches for everything, and refused without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_decoders import llama, texts
from torch import Tensor
from torch.utils.data import DataLoader

import slimfast

datasets = pytest.importorskip("datasets")


def saved(folder: Path) -> Any:
    rows = [text.tolist() for text in texts(5, 9, 7, 12, 4, 11, 8, 10)]
    datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(folder)
    return datasets.load_from_disk(folder).with_format("torch")


def batch(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = [row["input_ids"] for row in rows]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in ids], batch_first=True)
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def test_a_loader_of_saved_texts_calibrates_measures_and_trains(tmp_path: Path) -> None:
    model, rows = llama(), saved(tmp_path / "texts")
    loader = DataLoader(rows, batch_size=3, collate_fn=batch)
    example = {"input_ids": torch.ones(1, 8, dtype=torch.int64)}
    graph = slimfast.trace_channels(model, example, include=["channel"])
    calibration = slimfast.calibrate(model, graph, loader)
    alone = slimfast.calibrate(model, graph, [{"input_ids": row["input_ids"][None]} for row in rows])
    assert calibration.samples == 8
    for weight, reading in alone.readings.items():
        assert reading.count == calibration.readings[weight].count == 66
        assert torch.allclose(reading.covariance, calibration.readings[weight].covariance, atol=1e-5)
    one_by_one = slimfast.perplexity(model, [row["input_ids"][None] for row in rows])
    assert slimfast.perplexity(model, loader) == pytest.approx(one_by_one, rel=1e-5)
    thin = slimfast.slim(model, example, params=0.8, include=["channel"])
    history = slimfast.distill(
        thin, teacher=model, train=loader, epochs=4, lr=5e-3, optimizer="adamw", progress=False
    )
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_rows_that_are_no_batches_are_refused_in_one_line(tmp_path: Path) -> None:
    model, rows = llama(), saved(tmp_path / "texts").with_format(None)
    graph = slimfast.trace_channels(model, {"input_ids": torch.ones(1, 8, dtype=torch.int64)})
    with pytest.raises(
        TypeError, match=r"expected a batch of tensors, got none in a dict \(batch 0\); .* DataL"
    ):
        slimfast.calibrate(model, graph, rows)
    with pytest.raises(TypeError, match="inputs must be a tensor, or a tuple or dict of them, got dict"):
        slimfast.perplexity(model, rows)
    with pytest.raises(TypeError, match="inputs must be a tensor, or a tuple or dict of them, got dict"):
        slimfast.distill(llama(1), teacher=model, train=rows, progress=False)
