"""A network whose one argument is a dict, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.cli_cases import needs_accelerate
from torch import Tensor, nn

from slimfast.cli import main
from slimfast.cli.inputs import example_of
from slimfast.errors import SlimfastError

pytestmark = pytest.mark.usefixtures("workshop")


class OfADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, batch: dict[str, Tensor], scale: Tensor | None = None) -> Tensor:
        hidden = torch.relu(self.a(batch["image"]) + self.b(batch["kind"]))
        made: Tensor = self.out(hidden if scale is None else hidden * scale)
        return made


@needs_accelerate
def test_a_dict_goes_all_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dicts.py").write_text(
        "import torch\nfrom test_cli_dicts import OfADict as Net\n"
        "def data():\n"
        "    torch.manual_seed(0)\n"
        "    return [{'batch': {'image': torch.randn(8, 4), 'kind': torch.randint(5, (8,))}, "
        "'label': torch.randint(3, (8,))}] * 2\n"
    )
    torch.manual_seed(1)
    save_file(OfADict().state_dict(), "w.safetensors")
    common = ["dicts:Net", "--weights", "w.safetensors"]
    inputs = ["--input", "batch.image=4", "--input", "batch.kind=1:int64:5"]
    assert main(["calibrate", *common, *inputs, "--data", "dicts:data", "-o", "c.safetensors"]) == 0
    assert main(["plan", *common, *inputs, "--calibration", "c.safetensors", "--params", "0.6"]) == 0
    assert main(["plan", *common, *inputs, "--params", "0.6", "-o", "plan.json"]) == 0
    assert main(["prune", "dicts:Net", "plan.json", *common[1:]]) == 0
    distill = ["distill", "dicts:Net", "thin.safetensors", *common[1:], "--data", "dicts:data"]
    assert main([*distill, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["eval", *common, "--data", "dicts:data", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["score"] <= 1


def test_entries_stand_beside_other_arguments() -> None:
    texts = ["batch.image=4", "scale=8", "batch.kind=3:int64:5"]
    example = example_of(texts, OfADict(), "net")
    assert isinstance(example, dict)
    assert list(example) == ["batch", "scale"]
    held = example["batch"]
    assert isinstance(held, dict)
    assert {key: (*tensor.shape,) for key, tensor in held.items()} == {"image": (1, 4), "kind": (3,)}


@pytest.mark.parametrize(
    "texts",
    [
        ["batch.image=4", "batch.image=4"],
        ["batch=4", "batch.image=4"],
        ["batch.image=4", "batch=4"],
        ["4", "batch.image=4"],
        ["batch=4", "batch=4"],
    ],
)
def test_an_argument_is_one_thing(texts: list[str]) -> None:
    with pytest.raises(SlimfastError, match="model net: expected one --input for each argument, or for each"):
        example_of(texts, OfADict(), "net")


@pytest.mark.parametrize("text", ["batch.=4", ".image=4", "batch.a.b=4"])
def test_a_name_has_one_key_at_most(text: str) -> None:
    with pytest.raises(SlimfastError, match=r"expected \[NAME\[.KEY\]=\]SHAPE"):
        example_of([text], OfADict(), "net")
