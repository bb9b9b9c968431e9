"""A thin language model, distilled: rows, texts and the table, on a tiny network of random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.accuracy.data import smollm2_data
from benchmarks.accuracy.studies import decoder_tables, decoder_training
from slimfast.errors import SlimfastError
from tests.support.small_decoder import decode, encode, small_llama, write_texts

pytest.importorskip("transformers")

SETTINGS = decoder_training.Settings(
    share=0.6, calibration=4, length=6, steps=3, batch=2, lr=0.01, windows=3, test_length=8, seeds=(0, 1)
)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    write_texts(tmp_path)
    monkeypatch.setenv("SLIMFAST_DATA", str(tmp_path))
    monkeypatch.setattr(smollm2_data, "model_file", lambda: tmp_path)
    monkeypatch.setattr(smollm2_data, "load_decoder", lambda path: small_llama())
    monkeypatch.setattr(smollm2_data, "load_tokenizer", lambda path: encode)
    monkeypatch.setattr(smollm2_data, "load_decoding", lambda path: decode)
    return tmp_path


def test_a_run_goes_on_with_the_rows_it_lacks(place: Path) -> None:
    path, names = place / "rows.json", list(decoder_training.CONTENDERS)
    decoder_training.run(SETTINGS, work=place, path=path, names=names[1:], seeds=[0])
    first = json.loads(path.read_text())
    result = decoder_training.run(SETTINGS, work=place, path=path)
    assert result["rows"][:1] == first["rows"]
    assert {(row["name"], row["seed"]) for row in result["rows"]} == {(n, s) for n in names for s in (0, 1)}
    for row in result["rows"]:
        assert row["params"] <= 0.6 * result["dense"]["layers"]
        assert row["before"] != row["after"]
        assert len(row["writes_before"]) == len(row["writes_after"]) == len(decoder_training.PROMPTS)
    table = decoder_tables.training_table(result)
    for row in result["rows"]:
        assert f"| {row['name']}{' (control)' if row['control'] else ''} | " in table
    assert "3 test windows of 8 tokens" in table
    with pytest.raises(SlimfastError, match="has results of other settings"):
        decoder_training.run(replace(SETTINGS, steps=4), work=place, path=path)


def test_a_training_goes_towards_the_original(place: Path) -> None:
    longer = replace(SETTINGS, steps=20, batch=1, seeds=(0,))
    result = decoder_training.run(longer, work=place, path=place / "rows.json", seeds=[0])
    for row in result["rows"]:
        dense = result["dense"]["perplexity"]
        assert abs(row["after"] - dense) < abs(row["before"] - dense) or row["after"] < dense


def test_the_text_is_what_generation_with_a_cache_gives() -> None:
    model = small_llama()
    ids = torch.tensor([encode(decoder_training.PROMPTS[0])])
    greedy: list[int] = []
    for _ in range(decoder_training._WRITTEN):
        tokens = torch.cat([ids, torch.tensor([greedy], dtype=torch.int64)], dim=1)
        with torch.no_grad():
            greedy.append(int(model(tokens).logits[0, -1].argmax()))
        if greedy[-1] == model.config.eos_token_id:
            break
    assert decoder_training.written(model, encode, decode)[0] == decode(greedy)


@pytest.mark.parametrize(
    ("names", "seeds", "said"), [(["mine"], None, "no contender"), (None, [7], "seed 7")]
)
def test_what_there_is_not_is_told(place: Path, names: Any, seeds: Any, said: str) -> None:
    with pytest.raises(SlimfastError, match=said):
        decoder_training.run(SETTINGS, work=place, path=place / "rows.json", names=names, seeds=seeds)


def test_nothing_trained_says_so() -> None:
    assert decoder_tables.training_table({}) == "Not measured yet.\n"
