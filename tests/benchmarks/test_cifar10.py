"""The CIFAR-10 benchmark: its loader, its augmentation, its networks, and the run from end to end."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accuracy.data import cifar10_data as data
from benchmarks.accuracy.networks.resnet_cifar import PaddedShortcut, ResNet, resnet20
from benchmarks.accuracy.studies import cifar10
from slimfast.errors import SlimfastError

DATA = data.data_folder()
needs_data = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(), reason=f"needs CIFAR-10 in {DATA} (set SLIMFAST_DATA)"
)


def write_mosaic(folder: Path, *splits: str) -> tuple[np.ndarray, np.ndarray]:
    """A data set of 1000 random images; tile i of the mosaic is at row i // 40, column i % 40."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(1000, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(10, size=1000, dtype=np.uint8)
    mosaic = np.zeros((800, 1280, 3), np.uint8)
    for i, image in enumerate(images):
        top, left = 32 * (i // 40), 32 * (i % 40)
        mosaic[top : top + 32, left : left + 32] = image
    entry = {
        "n": 1000,
        "sha256_uint8_nhwc": hashlib.sha256(images.tobytes()).hexdigest(),
        "sha256_labels": hashlib.sha256(labels.tobytes()).hexdigest(),
    }
    for split in splits:
        Image.fromarray(mosaic).save(folder / f"cifar10_{split}_00.webp", lossless=True, method=0)
        np.save(folder / f"cifar10_{split}_labels.npy", labels)
    (folder / "cifar10_manifest.json").write_text(json.dumps(dict.fromkeys(splits, entry)))
    return images, labels


def test_mosaics_are_read_tile_by_tile_and_checked(tmp_path: Path) -> None:
    images, labels = write_mosaic(tmp_path / "cifar10", "train")
    found = data.load_split("train", folder=tmp_path)
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), images)
    assert np.array_equal(found.labels.numpy(), labels)
    np.save(tmp_path / "cifar10" / "cifar10_train_labels.npy", labels[::-1].copy())
    with pytest.raises(SlimfastError, match="the train labels have sha256"):
        data.load_split("train", folder=tmp_path)
    with pytest.raises(SlimfastError, match="KeyError: 'test'"):
        data.load_split("test", folder=tmp_path)
    (tmp_path / "cifar10" / "cifar10_train_00.webp").write_bytes(b"RIFF")
    with pytest.raises(SlimfastError, match="cannot read CIFAR-10"):
        data.load_split("train", folder=tmp_path)


def test_the_official_binary_version_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(10, 3, 32, 32), dtype=np.uint8)
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        record = np.concatenate([np.array([[2 * i], [2 * i + 1]]), pixels[part].reshape(2, -1)], axis=1)
        record.astype(np.uint8).tofile(folder / f"data_batch_{i + 1}.bin")
    found = data.load_split("train", folder=tmp_path)
    assert np.array_equal(found.pixels.numpy(), pixels)
    assert found.labels.tolist() == list(range(10))
    with pytest.raises(SlimfastError, match=r"test_batch\.bin"):
        data.load_split("test", folder=tmp_path)
    (folder / "data_batch_1.bin").write_bytes(b"short")
    with pytest.raises(SlimfastError, match="cannot read CIFAR-10"):
        data.load_split("train", folder=tmp_path)


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlimfastError, match=r"no cifar10 or cifar-10-batches-bin in .*SLIMFAST_DATA"):
        data.load_split("train", folder=tmp_path)


def test_augmented_images_are_shifted_and_mirrored() -> None:
    torch.manual_seed(0)
    images = torch.arange(1.0, 4 * 2 * 8 * 8 + 1).view(4, 2, 8, 8).repeat(64, 1, 1, 1)
    found = data.augmented(images)
    assert found.shape == images.shape
    seen = set()
    for image, result in zip(images, found, strict=True):
        shifts = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.equal(result, _shifted(image, flip, top, left))
        ]
        assert len(shifts) == 1
        seen.update(shifts)
    # 162 ways, 256 draws.
    assert len(seen) > 100
    assert {flip for flip, _, _ in seen} == {False, True}


def _shifted(image: torch.Tensor, flip: bool, top: int, left: int) -> torch.Tensor:
    padded = torch.zeros(2, 16, 16)
    padded[:, 4:12, 4:12] = image
    return (
        padded[:, top : top + 8, left : left + 8].flip(2)
        if flip
        else padded[:, top : top + 8, left : left + 8]
    )


def test_batches_are_shuffled_once_each_and_the_tail_is_left_out() -> None:
    images = data.Images(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    batches = data.AugmentedBatches(images, 4)
    first, second = ([y.tolist() for _, y in batches] for _ in range(2))
    assert len(batches) == 2
    assert [len(y) for y in first] == [4, 4]
    assert len(set(first[0] + first[1])) == 8
    assert first != second
    assert [y.tolist() for _, y in images.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_pixels_are_normalised_by_channel() -> None:
    pixels = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    found = data.normalised(pixels).flatten().tolist()
    # 124 / 255 = 0.486275 and so on, by (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
    assert found == pytest.approx([0.005566, -0.004902, 0.008192], abs=1e-5)


def test_a_padded_shortcut_keeps_every_second_pixel_and_pads_channels() -> None:
    x = torch.arange(2.0 * 4 * 4).view(1, 2, 4, 4) + 1
    out = PaddedShortcut(stride=2, pad_before=1, pad_after=2)(x)
    assert out.shape == (1, 5, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not out[:, [0, 3, 4]].any()


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in resnet20().state_dict().items()}}, tmp_path / "20.th"
    )
    assert not resnet20().load_pretrained(tmp_path / "20.th").training
    with pytest.raises(ValueError, match=r"layer1\.3\.conv1\.weight is not there, this network has"):
        ResNet(blocks=5).load_pretrained(tmp_path / "20.th")


@needs_data
def test_the_public_resnet20_scores_what_is_published() -> None:
    # 91.73 % on all 10,000; the first 500 of a fair order are within three deviations (3.7 %).
    weights = next((DATA / "weights").glob("resnet20-*.th"))
    network = resnet20().load_pretrained(weights)
    test = data.load_split("test")
    from slimfast.distillation import accuracy

    assert accuracy(network, test[:500].batches(250)) == pytest.approx(0.9173, abs=0.037)


def test_the_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SLIMFAST_DATA", "elsewhere")
    assert data.data_folder() == Path("elsewhere")


def test_the_benchmark_from_end_to_end(tmp_path: Path) -> None:
    write_mosaic(tmp_path / "cifar10", "train", "test")
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    torch.save(resnet20().state_dict(), tmp_path / "weights" / "resnet20-random.th")
    settings = cifar10.Settings(
        network="resnet20",
        train_images=32,
        validation_images=20,
        test_images=30,
        batch=16,
    )
    rows = cifar10.run(settings, work=tmp_path / "work", data=tmp_path)
    assert [(row.kind, row.stage, row.seed) for row in rows] == [
        ("dense", "trained", None),
        ("plan", "one shot", None),
        ("plan", "distilled", 0),
        ("uniform", "one shot", None),
        ("uniform", "distilled", 0),
    ]
    dense = rows[0]
    assert dense.params == 269722
    for row in rows[1:]:
        # The dearest unit is one of the first stage: 2 % of the MACs.
        assert 0.475 < row.macs / dense.macs <= 0.5
    # Resumed after the end: trained networks and times are those of before.
    assert cifar10.run(settings, work=tmp_path / "work", data=tmp_path) == rows
    with pytest.raises(SlimfastError, match="1120 images for training and validation, but there are 1000"):
        cifar10.run(replace(settings, train_images=1100), work=tmp_path / "work", data=tmp_path)
    with pytest.raises(SlimfastError, match="no network resnet44"):
        cifar10.run(replace(settings, network="resnet44"), work=tmp_path / "work", data=tmp_path)


def test_the_summary_has_a_deviation_from_two_seeds_on() -> None:
    row = cifar10.Row("plan", "distilled", 0, params=1, macs=1, validation=0.5, test=0.9, seconds=1.0)
    assert cifar10.summary([row]) == {"plan, distilled": {"mean": 0.9}}
    both = cifar10.summary([row, replace(row, seed=1, test=0.8), replace(row, kind="uniform")])
    assert both["plan, distilled"] == pytest.approx({"mean": 0.85, "deviation": 0.1 / 2**0.5})
    assert both["uniform, distilled"] == {"mean": 0.9}
