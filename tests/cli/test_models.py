"""Models, weights, inputs and data by the names that the command line takes."""

from __future__ import annotations

import pickle
import sys
import textwrap
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from slimfast.cli.data import Data, load_data
from slimfast.cli.inputs import default_inputs, parse_inputs
from slimfast.cli.models import build_model, check_device
from slimfast.cli.specs import import_object
from slimfast.cli.stored import is_weight_file, load_weights
from slimfast.errors import SlimfastError

MODULE = "networks_of_a_test"


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / f"{MODULE}.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(5, 3)
                self.head = nn.Linear(3, 5, bias=False)
                self.head.weight = self.embed.weight

        class Nested:
            make = staticmethod(lambda: nn.Linear(2, 3))

        def net():
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def broken():
            raise KeyError("first line\\nsecond line")

        def no_model():
            return 7

        made = nn.Linear(2, 2)
        train_only = lambda: [1, 2]
        both = lambda: ([1], [2])
        three = lambda: ([1], [2], [3])
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(MODULE, None)


def test_a_factory_in_the_current_folder():
    model = build_model(f"{MODULE}:net")
    assert [type(m) for m in model] == [nn.Conv2d, nn.BatchNorm2d]
    assert not model.training


def test_a_nested_factory_and_a_module_that_is_already_made():
    assert isinstance(build_model(f"{MODULE}:Nested.make"), nn.Linear)
    assert build_model(f"{MODULE}:made") is import_object(f"{MODULE}:made", "model")


def test_the_seed_decides_random_weights():
    one, same, other = (build_model(f"{MODULE}:net", seed=seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet",
            r"^model: expected package\.module:factory, timm:NAME, .* or ultralytics:FILE, got 'resnet'$",
        ),
        ("a.safetensors", "a file of weights has no forward"),
        (
            "no_such_module:net",
            r"^model no_such_module:net: ModuleNotFoundError: No module named 'no_such_module'$",
        ),
        (f"{MODULE}:nope", rf"^model {MODULE}:nope: {MODULE} has no 'nope'$"),
        (f"{MODULE}:bth", r"has no 'bth' \(did you mean 'both'\?\)$"),
        (f"{MODULE}:broken", r"KeyError: 'first line\\nsecond line'$"),
        (f"{MODULE}:no_model", r"expected a torch\.nn\.Module, got int$"),
        (f"{MODULE}:", r"expected"),
    ],
)
def test_a_name_that_is_no_model(name, message):
    with pytest.raises(SlimfastError, match=message) as caught:
        build_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_nearest_model_of_a_library_is_asked_for(library):
    with pytest.raises(SlimfastError, match=r"\(did you mean 'mobilenet_?v3_large(_100)?'\?\)$"):
        build_model(f"{library}:mobilenetv3_larg{'' if library == 'torchvision' else 'e_10'}")


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_timm_and_torchvision_models_without_downloads():
    ours = build_model("timm:resnet18", seed=3)
    assert type(ours).__module__ == "timm.models.resnet"
    assert default_inputs(ours, "timm:resnet18") == ("3x224x224",)
    theirs = build_model("torchvision:resnet18", seed=3)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    for name in ("timm:no_such_net", "torchvision:no_such_net"):
        with pytest.raises(SlimfastError, match=rf"^model {name}: .*no_such_net"):
            build_model(name)


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SlimfastError, match=r"model timm:resnet18: timm is not installed"):
        build_model("timm:resnet18")


def test_weights_are_copied(tmp_path):
    source = build_model(f"{MODULE}:net", seed=1)
    source[1].running_mean += 3
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        model = build_model(f"{MODULE}:net", weights=tmp_path / file, seed=2)
        for name, tensor in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)


def test_a_missing_counter_of_batches_and_a_tied_tensor_stored_once_are_fine(tmp_path):
    state = build_model(f"{MODULE}:net").state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "old.safetensors")
    load_weights(build_model(f"{MODULE}:net", seed=1), tmp_path / "old.safetensors")
    save_file({"embed.weight": torch.ones(5, 3)}, tmp_path / "tied.safetensors")
    tied = build_model(f"{MODULE}:Tied", weights=tmp_path / "tied.safetensors")
    assert torch.equal(tied.head.weight, torch.ones(5, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"0.weight": torch.zeros(4, 1, 3, 3)},
            r"0\.weight: expected shape \(4, 3, 3, 3\), got \(4, 1, 3, 3\)$",
        ),
        ({"0.bias": None}, r"0\.bias: expected shape \(4,\), got no such tensor$"),
        ({"2.weight": torch.zeros(7)}, r"2\.weight: the model has no such tensor, got \(7,\)$"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, change, message):
    model = build_model(f"{MODULE}:net")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()} | change
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "w.safetensors")
    with pytest.raises(SlimfastError, match=rf"w\.safetensors: {message}"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Bomb:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return open, ("exploded", "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "bare.pth"):
        with pytest.raises(SlimfastError, match=rf"{name}"):
            build_model(f"{MODULE}:net", weights=tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_inputs():
    image, tokens, mask = parse_inputs(["3x8x9", "2x7:int64:11", "2x7:bool"])
    assert image.shape == (1, 3, 8, 9)
    assert image.dtype == torch.float32
    assert tokens.shape == (2, 7)
    assert tokens.dtype == torch.int64
    assert (int(tokens.min()), int(tokens.max())) == (0, 10)
    assert mask.dtype == torch.bool
    assert bool(mask.all())
    assert parse_inputs(["4:bfloat16"])[0].dtype == torch.bfloat16
    assert set(parse_inputs(["100:int32"])[0].tolist()) == {0, 1}
    assert torch.equal(image, parse_inputs(["3x8x9"])[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,224,224", r"expected \[NAME\[.KEY\]=\]SHAPE"),
        ("", r"expected \[NAME\[.KEY\]=\]SHAPE"),
        ("-1x3", r"expected \[NAME\[.KEY\]=\]SHAPE"),
        ("3x0x2", "expected lengths of at least 1, got 3x0x2"),
        ("3x4:complex64", "got complex64"),
        ("3x4:float32:7", "for integer inputs"),
        ("3x4:int8:129", "that torch.int8 can hold, got 129"),
        ("3x4:int64:0", "got 0"),
    ],
)
def test_inputs_that_cannot_be(text, message):
    with pytest.raises(SlimfastError, match=message) as caught:
        parse_inputs([text])
    assert repr(text) in str(caught.value)


def test_a_model_that_does_not_say_its_input():
    with pytest.raises(SlimfastError, match=r"^model a:b: expected an input, for example --input 3x224x224"):
        default_inputs(nn.Linear(2, 2), "a:b")


def test_data():
    net = nn.Linear(2, 2)
    assert load_data(f"{MODULE}:train_only", net) == Data([1, 2], None)
    assert load_data(f"{MODULE}:both", net) == Data([1], [2])
    with pytest.raises(SlimfastError, match=r"data .*:three: expected .*, got 3$"):
        load_data(f"{MODULE}:three", net)
    with pytest.raises(SlimfastError, match="KeyError"):
        load_data(f"{MODULE}:broken", net)
    with pytest.raises(SlimfastError, match=r"^data 'loader': expected package"):
        load_data("loader", net)


def test_devices():
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(SlimfastError, match="device 'nonsense': ") as caught:
        check_device("nonsense")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(SlimfastError, match="device 'cuda': "):
        check_device("cuda")


def test_weight_files():
    assert is_weight_file("a/b.safetensors")
    assert is_weight_file("b.pth")
    assert not is_weight_file("package.module:factory")
