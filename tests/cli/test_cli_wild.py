"""The command line with what a user brings along: checkpoints, data and names as they are found."""

from __future__ import annotations

import argparse
import copy
import json
import os
import stat
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cli_cases import NET, NETS, needs, needs_accelerate
from torch import nn

from slimfast.checkpoints.thin_files import load
from slimfast.cli import main
from slimfast.cli.data import load_data
from slimfast.cli.inputs import example_of
from slimfast.cli.models import build_model
from slimfast.errors import SlimfastError
from slimfast.plans import Plan
from slimfast.pruning.manifests import manifest

pytestmark = pytest.mark.usefixtures("workshop")
PLAN = ["plan", NET, "--input", "3x6x6", "--macs", "0.5"]


def test_a_factory_that_brings_its_weights_needs_none() -> None:
    save_file(build_model(NET, seed=5).state_dict(), "w.safetensors")
    Path("mine.py").write_text(
        f"from {NETS} import Net\nfrom safetensors.torch import load_file\n"
        "def net():\n    model = Net()\n    model.load_state_dict(load_file('w.safetensors'))\n"
        "    return model\n"
    )
    assert main(["plan", "mine:net", "--input", "3x6x6", "--macs", "0.5"]) == 0


def test_arguments_of_a_model_and_of_data(workshop: Path) -> None:
    assert build_model(f"{NET}?width=12").conv1.weight.shape[0] == 12
    Path("given.py").write_text(
        "from torch import nn\ndef net(**given):\n    m = nn.Linear(2, 2)\n    m.given = given\n"
        "    return m\n"
        "def data(count=1, **rest):\n    return [rest] * count\n"
    )
    model = build_model('given:net?a=[1, 2]&b=word&c={"x": "p&q"}&d=true')
    assert model.given == {"a": [1, 2], "b": "word", "c": {"x": "p&q"}, "d": True}
    assert len(list(load_data("given:data?count=3", model).train)) == 3


@needs("timm")
def test_the_number_of_classes_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build_model("timm:resnet10t?num_classes=7").state_dict(), "seven.pth")
    plan = ["plan", "--macs", "0.5", "--weights", "seven.pth"]
    assert main([*plan, "timm:resnet10t"]) == 2
    assert "fc has 7 rows in the file: pass num_classes=7" in capsys.readouterr().err
    assert main([*plan, "timm:resnet10t?num_classes=7", "--input", "3x64x64"]) == 0


def test_a_lightning_checkpoint_is_read_and_told(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"model.{name}": tensor for name, tensor in load_file(weights).items()}
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=1)}, "last.ckpt")
    assert main([*PLAN, "--weights", weights, "-o", "a.json"]) == 0
    capsys.readouterr()
    assert main([*PLAN, "--weights", "last.ckpt", "-o", "b.json"]) == 0
    assert "last.ckpt: names without their prefix 'model.'\n" in capsys.readouterr().err
    assert Path("a.json").read_text() == Path("b.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prune_keeps_the_dtype_of_the_checkpoint(dtype: torch.dtype, weights: str) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(weights).items()}
    save_file(state, "half.safetensors")
    assert main([*PLAN, "--weights", "half.safetensors", "-o", "plan.json"]) == 0
    prune = ["prune", NET, "plan.json", "--strict", "-o", "thin.safetensors"]
    assert main([*prune, "--weights", "half.safetensors"]) == 0
    thin = load_file("thin.safetensors")
    assert {v.dtype for v in thin.values() if v.is_floating_point()} == {dtype}
    kept = manifest(load("thin.safetensors", build_model(NET))).keeps["conv2.weight"]
    expected = state["conv2.weight"][kept[0].tolist()][:, kept[1].tolist()]
    assert torch.equal(thin["conv2.weight"], expected)


def test_a_thin_network_goes_through_a_second_round(
    thin: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["plan", NET, "--input", "3x6x6", "--weights", thin, "--macs", "0.5", "-o", "second.json"]
    assert main(again) == 0
    assert "thin.safetensors: a thin network, from which this goes on\n" in capsys.readouterr().err
    assert main(["prune", NET, "second.json", "--weights", thin, "-o", "thinner.safetensors"]) == 0
    first, second = (load(name, build_model(NET)) for name in (thin, "thinner.safetensors"))
    assert second.conv2.weight.numel() < first.conv2.weight.numel()
    assert manifest(second).shapes_before == manifest(first).shapes_before


def test_other_weights_are_a_line_and_with_strict_an_error(
    plan: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(build_model(NET, seed=6).state_dict(), "other.safetensors")
    prune = ["prune", NET, plan, "--weights", "other.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(prune) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(
        "slimfast: warning: prune: the plan was made from other weights of the same shapes"
    )
    Path("thin.safetensors").unlink()
    assert main([*prune, "--strict"]) == 2
    assert "the plan was made from other weights" in capsys.readouterr().err
    assert not Path("thin.safetensors").exists()


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, left: torch.Tensor, *, right: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = torch.relu(self.a(left) + self.b(right))
        made: torch.Tensor = self.out(hidden)
        return made


def several() -> nn.Module:
    torch.manual_seed(0)
    return Several()


def test_inputs_by_name() -> None:
    example = example_of(["4", "right=5"], several(), "x")
    assert isinstance(example, dict)
    assert {name: tuple(tensor.shape) for name, tensor in example.items()} == {
        "left": (1, 4),
        "right": (1, 5),
    }
    for wrong in (["4", "left=4"], ["4", "5", "right=5"]):
        with pytest.raises(SlimfastError, match="--input"):
            example_of(wrong, several(), "x")


@needs_accelerate
def test_several_inputs_one_of_them_keyword_only_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("many.py").write_text(
        "import torch\nfrom test_cli_wild import Several\ndef net():\n    return Several()\n"
        "def data():\n    return [{'left': torch.randn(8, 4), 'right': torch.randn(8, 5), "
        "'label': torch.randint(3, (8,))}] * 2\n"
    )
    save_file(several().state_dict(), "w.safetensors")
    common = ["many:net", "--weights", "w.safetensors"]
    inputs = ["--input", "4", "--input", "right=5"]
    assert main(["calibrate", *common, *inputs, "--data", "many:data", "-o", "c.safetensors"]) == 0
    assert main(["plan", *common, *inputs, "--params", "0.6", "-o", "plan.json"]) == 0
    assert main(["prune", "many:net", "plan.json", *common[1:]]) == 0
    assert (
        main(["distill", "many:net", "thin.safetensors", *common[1:], "--data", "many:data", "--epochs", "1"])
        == 0
    )
    assert (
        main(["eval", "many:net", "--weights", "distilled.safetensors", "--data", "many:data", "--json"]) == 0
    )
    assert 0 <= json.loads(capsys.readouterr().out.rpartition("{")[2].join(["{", ""]))["score"] <= 1


def test_output_to_stdout(weights: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([*PLAN, "--weights", weights, "-o", "-"]) == 0
    printed = capfdbinary.readouterr()
    plan = Plan.from_json(printed.out)
    assert b"network" in printed.err
    Path("plan.json").write_text(plan.to_json())
    assert main(["prune", NET, "plan.json", "--weights", weights, "-o", "/dev/stdout"]) == 0
    Path("t.safetensors").write_bytes(capfdbinary.readouterr().out)
    assert load("t.safetensors", build_model(NET)).conv2.weight.shape[0] == plan.widths()["conv2"]
    assert not Path("-").exists()


def test_explain_and_export(plan: str, thin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", plan]) == 0
    alone = capsys.readouterr().out
    assert str(Plan.load(plan)) in alone
    assert f"fingerprint {Plan.load(plan).weights}" in alone
    assert main(["explain", plan, NET]) == 0
    assert "removed together in" in capsys.readouterr().out
    assert main(["export", thin, NET, "--input", "3x6x6", "-o", "x.pt2"]) == 0
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.export.load("x.pt2").module()(x), load(thin, build_model(NET))(x))


def test_a_file_keeps_its_mode(plan: str, weights: str) -> None:
    os.chmod(plan, 0o640)
    assert main([*PLAN, "--weights", weights, "-o", plan]) == 0
    assert stat.S_IMODE(os.stat(plan).st_mode) == 0o640


def test_the_current_folder_hides_no_package(weights: str) -> None:
    Path("safetensors").mkdir()
    Path("json.py").write_text("raise RuntimeError('mine')\n")
    assert main([*PLAN, "--weights", weights]) == 0


@needs("transformers")
def test_a_folder_of_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained("bert")
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained("bare")
    capsys.readouterr()
    assert main(["plan", "hf:bert", "--params", "0.7", "--uniform", "-o", "plan.json"]) == 0
    assert Plan.load("plan.json").inputs.kwargs["input_ids"].high == 39
    assert main(["explain", "plan.json", "hf:bert"]) == 0
    assert "removed together in" in capsys.readouterr().out
    assert main(["prune", "hf:bert", "plan.json", "--strict", "--pretrained", "hub"]) == 0
    assert transformers.AutoModelForSequenceClassification.from_pretrained("hub").num_labels == 3
    assert main(["plan", "hf:bare", "--params", "0.7"]) == 2
    assert "its own are random" in capsys.readouterr().err
    assert main(["plan", "hf:bare", "--weights", "bert", "--params", "0.7", "--uniform", "-o", "b.json"]) == 0
    assert Plan.load("b.json").widths() == Plan.load("plan.json").widths()
    assert main(["plan", "hf:bert?class=BertForMaskedLM", "--params", "0.7"]) == 2
    assert "its weights lack cls." in capsys.readouterr().err
    assert main(["plan", "hf:nowhere/at-all", "--params", "0.7"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_thin_file_may_only_shorten(thin: str, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    with safe_open(thin, framework="pt") as file:
        document = json.loads(file.metadata()["slimfast"])
    tensors = load_file(thin)
    stride = {"module": "conv1", "attribute": "stride", "before": [1, 1], "after": [0, 1]}
    longer = {"module": "conv1", "attribute": "groups", "before": 1, "after": 2}
    rate = {"module": "bn1", "attribute": "momentum", "before": 0.1, "after": 0.9}
    for patch, reason in ((stride, "that it does not"), (longer, "makes shorter"), (rate, "makes shorter")):
        wrong = copy.deepcopy(document)
        wrong["patches"].append(patch)
        save_file(tensors, "wrong.safetensors", metadata={"slimfast": json.dumps(wrong)})
        with pytest.raises(SlimfastError, match=reason):
            load("wrong.safetensors", build_model(NET))
