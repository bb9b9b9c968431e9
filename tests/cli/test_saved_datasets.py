"""Data sets that Hugging Face's datasets saved to a folder, as the command line reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli_cases import NET, needs_accelerate
from torch import nn

from slimfast.cli import main
from slimfast.cli.data import load_data
from slimfast.cli.models import build_model
from slimfast.errors import SlimfastError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("workshop")


class OfTokens(nn.Module):
    """Takes what a tokenizer makes."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return input_ids


def pictures(count: int) -> Any:
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(count)
    made = [image.fromarray(generator.integers(0, 255, (9, 7, 3), dtype=np.uint8)) for _ in range(count)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list("abcd")),
            "source": datasets.Value("string"),
        }
    )
    rows = {"image": made, "label": [i % 4 for i in range(count)], "source": ["here"] * count}
    return datasets.Dataset.from_dict(rows, features=features)


@needs_accelerate
def test_pictures_with_splits_go_all_the_way(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.DatasetDict({"train": pictures(16), "validation": pictures(8)}).save_to_disk("photos")
    arguments = ["slim", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "-o", "out"]
    assert main([*arguments, "--data", "photos?flip=true", "--epochs", "1", "--batch-size", "8"]) == 0
    told = capsys.readouterr().err
    assert "columns of words are passed over: source" in told
    assert "the original: score 0." in told


def test_a_picture_is_prepared_as_one_of_a_folder() -> None:
    image = pytest.importorskip("PIL.Image")
    pictures(1).save_to_disk("saved")
    Path("folder").mkdir()
    image.fromarray(np.array(pictures(1)[0]["image"])).save("folder/a.png")
    x, y = next(iter(load_data("saved?size=6", build_model(NET)).train))
    torch.testing.assert_close(x, next(iter(load_data("folder?size=6", build_model(NET)).train)))
    assert y.tolist() == [0]


@pytest.mark.parametrize("with_mask", [False, True])
def test_sequences_of_several_lengths_are_padded_and_masked(*, with_mask: bool) -> None:
    ids = [[1, 2, 3], [4], [5, 6]]
    rows: dict[str, Any] = {"input_ids": ids, "labels": ids, "text": ["a", "b", "c"]}
    if with_mask:
        rows["attention_mask"] = [[1] * len(row) for row in ids]
    datasets.Dataset.from_dict(rows).save_to_disk("tokens")
    (batch,) = list(load_data("tokens", OfTokens()).train)
    order = batch["input_ids"][:, 0].tolist()
    by_first = {row[0]: row for row in ids}
    for i, first in enumerate(order):
        row = by_first[first]
        padding = 3 - len(row)
        assert batch["input_ids"][i].tolist() == row + [0] * padding
        assert batch["labels"][i].tolist() == row + [-100] * padding
        assert batch["attention_mask"][i].tolist() == [1] * len(row) + [0] * padding


def test_bytes_and_doubles_become_what_networks_take() -> None:
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((3, 2, 2), "uint8"), "label": datasets.Value("uint8")}
    )
    pixels = np.full((2, 3, 2, 2), 255, dtype=np.uint8)
    data = datasets.Dataset.from_dict({"pixel_values": list(pixels), "label": [3, 3]}, features=features)
    data.save_to_disk("bytes")
    datasets.Dataset.from_dict({"x": [[0.5, 0.25]], "y": [1.5]}).save_to_disk("doubles")
    x, y = next(iter(load_data("bytes", build_model(NET)).train))
    assert x.shape == (2, 3, 2, 2)
    assert x.dtype == torch.float32
    assert float(x.max()) == 1
    assert y.tolist() == [3, 3]
    batch = next(iter(load_data("doubles", build_model(NET)).train))
    assert batch["x"].tolist() == [[0.5, 0.25]]
    assert batch["labels"].tolist() == [1.5]
    assert batch["x"].dtype == batch["labels"].dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "name", "reason"),
    [
        ({"text": ["a"]}, "data", "expected columns of numbers or images, got text"),
        ({"x": [1.0, None]}, "data", "column x has rows without a value"),
        ({"x": [1.0]}, "data?sise=3", r"got sise \(did you mean 'size'\?\)"),
    ],
)
def test_what_is_no_data_for_a_network(rows: dict[str, Any], name: str, reason: str) -> None:
    datasets.Dataset.from_dict(rows).save_to_disk("data")
    with pytest.raises(SlimfastError, match=reason):
        next(iter(load_data(name, build_model(NET)).train))
