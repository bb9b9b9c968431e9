"""The benchmark of one plan by several processes: its model, its road through two processes, its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.large import scaling
from benchmarks.large.backbone import generate
from benchmarks.tables import fill
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.storage.weights import open_weights

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("size", scaling.SIZES)
def test_the_shards_are_the_weights_of_the_stock_decoder(size: str) -> None:
    decoder = scaling.SIZES[size]
    tensors = named_tensors(scaling.model_of(decoder))
    stored = {name: shape for shard in decoder.shards() for name, shape in shard.items()}
    assert {name: tuple(t.shape) for name, t in tensors.items() if name in stored} == stored
    # Frequencies of rotary positions are computed, not stored.
    assert all("rotary_emb" in name for name in tensors.keys() - stored.keys())


def test_two_processes_plan_as_one_does(tmp_path: Path) -> None:
    index = generate(scaling.SIZES["tiny"], tmp_path / "shards")
    (alone,) = scaling.measure(1, "tiny", index, tmp_path)
    both = scaling.measure(2, "tiny", index, tmp_path)
    assert len(open_weights(index).infos) > alone["groups"] > 4
    assert {run["plan"] for run in both} == {alone["plan"]}


def test_the_table_is_made_from_the_result(tmp_path: Path) -> None:
    text = "<!-- table:scaling-processes -->\n<!-- /table -->"
    assert "not measured" in fill(text, tmp_path)
    result = {
        "settings": {"bytes": 2e8, "rounds": 3},
        "cores": 2,
        "groups": 17,
        "runs": [
            {"processes": 1, "spectra": 30.0, "all": 31.25},
            {"processes": 2, "spectra": 16.0, "all": 17.0},
        ],
        "killed": {"seconds": 19.5},
        "stamp": {"machine": {"cpu": "a CPU", "load": 0.1}, "commit": "abc"},
    }
    (tmp_path / "scaling.json").write_text(json.dumps(result))
    made = fill(text, tmp_path)
    figures = ["| 1 | 30.0 s | 1.00 x | 31.2 s |", "| 2 | 16.0 s | 1.88 x | 17.0 s |", "17 groups", "19.5 s"]
    assert [figure for figure in figures if figure not in made] == []
