"""The command line's data: folders of images, arrays, and data without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli_cases import NET, needs_accelerate

from slimfast.cli import main
from slimfast.cli.data import load_data
from slimfast.cli.models import build_model
from slimfast.errors import SlimfastError

pytestmark = pytest.mark.usefixtures("workshop")


def images(folder: str, classes: int = 4, each: int = 6) -> None:
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            place = Path(folder) / split / f"class{label}"
            place.mkdir(parents=True)
            for i in range(each):
                pixels = generator.integers(0, 255, (9, 7, 3), dtype=np.uint8)
                image.fromarray(pixels).save(place / f"{i}.png")


@needs_accelerate
def test_a_folder_of_images_all_the_way(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    images("photos")
    arguments = ["slim", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "-o", "out"]
    arguments += [
        "--data",
        "photos?flip=true",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--export",
        "out/x/thin.pt2",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    for line in (
        "the original: score 0.",
        "pruned, before any training: score 0.",
        "epoch 1: loss",
        "epoch 2: loss",
    ):
        assert line in told
    assert Path("out/x/thin.pt2").exists()
    data = load_data("photos", build_model(NET), side=6)
    x, y = next(iter(data.train))
    assert x.shape == (24, 3, 6, 6)
    assert sorted(y.tolist()) == sorted([0, 1, 2, 3] * 6)
    assert data.evaluate is not None


def test_an_image_is_its_middle_normalised() -> None:
    image = pytest.importorskip("PIL.Image")
    Path("flat").mkdir()
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = (255, 0, 51)
    image.fromarray(pixels).save("flat/a.png")
    data = load_data("flat?size=4&mean=[0, 0, 0]&std=[1, 1, 0.5]", build_model(NET))
    assert not data.labelled()
    (x,) = list(data.train)
    torch.testing.assert_close(x, torch.tensor([1.0, 0.0, 0.4])[None, :, None, None].expand(1, 3, 4, 4))


@needs_accelerate
def test_unlabelled_data_distils_without_labels(
    thin: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(16, 3, 6, 6)))
    arguments = ["distill", NET, thin, "--weights", weights, "--data", "data.npz", "--epochs", "1"]
    assert main([*arguments, "--optimizer", "adamw", "--lr", "0.001", "--weight-decay", "0"]) == 0
    assert "the data has no labels" in capsys.readouterr().err
    assert main([*arguments, "--hard", "0.5"]) == 2
    assert "hard=0.5 needs targets" in capsys.readouterr().err


def test_arrays_by_name_with_an_evaluation_part() -> None:
    images = np.full((5, 3, 6, 6), 255, dtype=np.uint8)
    np.savez("d.npz", image=images, label=np.arange(5) % 4, val_image=images[:2], val_label=np.zeros(2, int))
    data = load_data("d.npz", build_model(NET))
    x, y = next(iter(data.train))
    assert x.dtype == torch.float32
    assert float(x.max()) == 1
    assert y.dtype == torch.int64
    assert data.evaluate is not None
    assert len(next(iter(data.evaluate))[1]) == 2


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, "as many samples each, got a 3, b 4"),
        ({"a": np.array(["x"])}, "a: expected numbers, got"),
        ({"a": np.array([None])}, "no archive of plain arrays"),
        ({}, "expected arrays to train on, got none"),
        ({"x": np.zeros((2, 3, 6, 6)), "z": np.zeros((2, 1)), "label": np.zeros(2)}, r"\(x\), got z too"),
    ],
)
def test_arrays_that_are_no_data(arrays: dict[str, Any], reason: str) -> None:
    np.savez("d.npz", **arrays)
    with pytest.raises(SlimfastError, match=reason):
        load_data("d.npz", build_model(NET))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("photos?sise=3", r"got sise \(did you mean 'size'\?\)"),
        ("photos?size=0", "expected size of at least 1"),
        ("photos?mean=3", "expected mean as"),
        ("empty", "expected images in folders named by class"),
        ("nowhere", "a folder or a .npz file"),
        ("uneven", "only one has class3"),
    ],
)
def test_folders_that_are_no_data(name: str, reason: str) -> None:
    images("photos")
    images("uneven")
    Path("empty").mkdir()
    for i in range(6):
        Path(f"uneven/val/class3/{i}.png").unlink()
    with pytest.raises(SlimfastError, match=reason):
        load_data(name, build_model(NET))
