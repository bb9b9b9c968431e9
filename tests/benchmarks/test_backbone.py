"""The benchmark of a decoder that does not fit in memory: its shapes, its shards, its bound and its table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.large import backbone
from benchmarks.large.decoder import SIZES, Decoder, generate
from benchmarks.tables import fill
from slimfast.storage.weights import open_weights, read_tensors


def count(decoder: Decoder) -> int:
    return sum(math.prod(shape) for shard in decoder.shards() for shape in shard.values())


def test_the_decoder_has_the_parameters_of_llama_3_8b() -> None:
    # The model card's 8.03 billion, to the last one.
    assert count(SIZES["8b"]) == 8_030_261_248
    assert 1.4e9 < 2 * count(SIZES["1b"]) < 1.6e9


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(SIZES["tiny"], tmp_path_factory.mktemp("tiny"))


def test_shards_are_generated_once_and_the_same_everywhere(index: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in index.parent.glob("*.safetensors")}
    (index.parent / "model-00001.safetensors").write_bytes(b"half")
    generate(SIZES["tiny"], index.parent)
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["model-00001.safetensors"]
    other = read_tensors(generate(SIZES["tiny"], tmp_path))
    found = read_tensors(index)
    assert list(found) == list(other)
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, other[name])
    infos = {name: info.shape for name, info in open_weights(index).infos.items()}
    assert infos == {n: s for shard in SIZES["tiny"].shards() for n, s in shard.items()}


def test_the_bound_is_that_of_the_largest_layer(index: Path) -> None:
    # The embedding of 8016 x 256 in bf16, and a float64 matrix of 256.
    assert backbone.bound(index)["limit"] == 8016 * 256 * 2 + 8 * 256**2 + (1 << 30)


def test_a_run_writes_what_it_found(index: Path, tmp_path: Path) -> None:
    backbone.measure(index, tmp_path / "a.json", tmp_path / "side")
    backbone.measure(index, tmp_path / "b.json", tmp_path / "side")
    first, again = (json.loads((tmp_path / file).read_text()) for file in ("a.json", "b.json"))
    assert first["digest"] == again["digest"]
    assert first["widths"] == again["widths"]
    assert len(first["widths"]) == 16
    # Columns that fall off in size leave fewer directions than there are units.
    assert all(widths == sorted(widths) for widths in first["widths"].values())


def test_the_table_is_made_from_the_result(tmp_path: Path) -> None:
    text = "<!-- table:backbone-1b -->\n<!-- /table -->"
    assert "not measured" in fill(text, tmp_path)
    result = {
        "settings": {"bytes": 1_500_000_000, "vocabulary": 128256, "hidden": 4096},
        "layers": 8,
        "seconds": 61.4,
        "peak_rss": 3 << 29,
        "limit": 2 << 30,
        "kills": [{"after": 1.5}, {"after": 20.0}],
        "throughput": {"bytes": 2e8, "of_in_memory": 0.934},
        "stamp": {"machine": {"cpu": "a CPU", "threads": 2, "load": 0.1}, "commit": "abc"},
    }
    (tmp_path / "backbone-1b.json").write_text(json.dumps(result))
    made = fill(text, tmp_path)
    figures = ["1.50 GB", "8 layers up to 128256 x 4096", "61 s", "1.50 GiB of 2.00 GiB", "1.5, 20 s", "93%"]
    assert [figure for figure in figures if figure not in made] == []
