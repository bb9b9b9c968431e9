"""Networks in the usual wrappers: every verb works on the network inside, and returns it without them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import slimfast
from slimfast.wrappers import unwrapped

X = torch.randn(2, 3, 8, 8)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def _compiled(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend="eager")
    return wrapped


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compiled": _compiled,
    "AveragedModel": AveragedModel,
    "compiled in DistributedDataParallel": lambda m: nn.parallel.DistributedDataParallel(_compiled(m)),
    "averaged in DataParallel": lambda m: nn.DataParallel(AveragedModel(m)),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_fresh_wrapper_is_cut_like_the_network_inside(name, caplog):
    wrapped = WRAPPERS[name](_network())
    with caplog.at_level(logging.INFO, "slimfast"):
        thin = slimfast.slim(wrapped, X, params=0.5)
    plain = slimfast.slim(_network(), X, params=0.5)
    assert type(thin) is nn.Sequential
    assert thin.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(thin.state_dict()[name], tensor)
    said = [record.getMessage() for record in caplog.records if "is a wrapper" in record.getMessage()]
    assert said[0].endswith(("the network is its module", "the network is its _orig_mod"))


@pytest.mark.usefixtures("one_process")
def test_every_stage_takes_a_wrapped_network(tmp_path):
    wrapped = nn.parallel.DistributedDataParallel(_network())
    graph = slimfast.trace_channels(wrapped, X)
    assert [group.name for group in graph] == ["0"]
    spectra = slimfast.measure_spectra(wrapped, graph)
    calibration = slimfast.calibrate(wrapped, graph, [X])
    curves = slimfast.error_curves(wrapped, graph, calibration)
    for plan in (
        slimfast.plan_widths(graph, spectra, params=0.5),
        slimfast.plan_widths(graph, {}, params=0.5, curves=curves),
        slimfast.plan(wrapped, X, params=0.5),
    ):
        chosen = slimfast.select(wrapped, plan, method="l1")
        thin = slimfast.prune_channels(wrapped, chosen, repair="activations", calibration=calibration)
        assert thin[0].out_channels < 16
        keeps = {"0": slimfast.manifest(thin).keeps["0.weight"][0]}
        # the weights are not the slices any more after a repair
        plain = slimfast.prune_channels(wrapped, chosen)
        assert slimfast.verify(wrapped, nn.parallel.DistributedDataParallel(plain), graph, keeps).compared


@pytest.mark.usefixtures("one_process")
def test_a_training_under_a_wrapper_goes_on():
    wrapped = nn.parallel.DistributedDataParallel(_network())
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    wrapped(X).square().sum().backward()
    optimizer.step()
    average = AveragedModel(wrapped.module)
    thin, narrow = slimfast.prune_channels(
        wrapped, slimfast.plan(wrapped, X, params=0.5), optimizer=optimizer
    )
    state = narrow.state[thin[0].weight]["exp_avg"]
    assert state.shape == thin[0].weight.shape
    renewed = AveragedModel(thin)
    renewed.load_state_dict(slimfast.prune_state(average.state_dict(), wrapped, thin))


@pytest.mark.usefixtures("one_process")
def test_the_wrapper_and_what_is_inside_stay_as_they_are():
    wrapped = nn.parallel.DistributedDataParallel(_network())
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    slimfast.slim(wrapped, X, params=0.5)
    assert wrapped.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapped.state_dict().items())
    assert wrapped.training


def test_what_is_no_wrapper_stays():
    class Holder(nn.Module):
        """Holds a network under a wrapper's name, and does something with it."""

        def __init__(self) -> None:
            super().__init__()
            self.module = _network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x) * 2

    holder = Holder()
    assert unwrapped(holder) is holder
    thin = slimfast.slim(holder, X, params=0.5)
    assert type(thin) is Holder
    assert "module.0.weight" in thin.state_dict()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_network_that_accelerate_has_prepared(precision):
    accelerate = pytest.importorskip("accelerate")
    try:
        prepared = accelerate.Accelerator(mixed_precision=precision, cpu=True).prepare(_network())
        forward = vars(prepared).get("forward")
        assert (forward is not None) == (precision == "bf16")
        thin = slimfast.slim(prepared, X, params=0.5)
        assert vars(prepared).get("forward") is forward
    finally:
        accelerate.state.AcceleratorState._reset_state()
    assert "forward" not in vars(thin)
    plain = slimfast.slim(_network(), X, params=0.5)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in thin.state_dict().items())


def test_another_forward_of_ones_own_is_no_wrapper():
    model = _network()
    other = nn.Sequential(nn.Conv2d(3, 16, 3))
    model._original_forward = other[0].forward
    model.forward = lambda x: nn.Sequential.forward(model, x) * 2
    assert unwrapped(model) is model


def test_averages_of_timm_are_known_by_name():
    utils = pytest.importorskip("timm.utils")
    model = _network()
    for kind in (utils.ModelEma, utils.ModelEmaV2, utils.ModelEmaV3):
        average = kind(model)
        if isinstance(average, nn.Module):
            assert unwrapped(average) is average.module


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("inside", [False, True])
def test_a_sharded_network_is_refused_with_what_to_do(inside):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    assert "torch.distributed.fsdp" in sys.modules
    model = _network()
    fully_shard(model[3] if inside else model, mesh=init_device_mesh("cpu", (1,)))
    for verb in (
        lambda: slimfast.trace_channels(model, X),
        lambda: slimfast.slim(model, X, params=0.5),
        lambda: slimfast.plan(model, X, params=0.5),
    ):
        with pytest.raises(
            slimfast.UnsupportedGraph, match=r"is sharded by FSDP.*\(DCP\).*slimfast\.prune_checkpoint"
        ):
            verb()


class _Pipeline:
    """Is no module and holds some, as diffusers' pipelines do."""

    def __init__(self) -> None:
        self.unet, self.vae, self.steps = _network(), nn.Linear(2, 2), 3
        self.components = {"head": nn.Conv2d(1, 1, 1)}


class _Trainer:
    def __init__(self) -> None:
        self.strategy = _Strategy()


class _Strategy:
    def __init__(self) -> None:
        self.model = _network()


VERBS = {
    "trace": lambda model: slimfast.trace_channels(model, X),
    "plan": lambda model: slimfast.plan(model, X, params=0.5),
    "slim": lambda model: slimfast.slim(model, X, params=0.5),
    "count": lambda model: slimfast.count_module(model, X),
    "masks": lambda model: slimfast.plan_from_masks(model, X),
    "spectra": slimfast.measure_spectra,
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_holds_networks_is_refused_by_their_names(verb):
    with pytest.raises(TypeError) as caught:
        VERBS[verb](_Pipeline())
    said = str(caught.value)
    assert said.endswith(
        "got _Pipeline, which holds .unet (Sequential), .vae (Linear), .components['head'] (Conv2d): "
        "give one of them"
    )
    with pytest.raises(TypeError, match=r"_Trainer, which holds \.strategy\.model \(Sequential\): give it$"):
        VERBS[verb](_Trainer())


def test_what_holds_no_network_is_refused_without_names():
    with pytest.raises(TypeError, match=r"^expected an nn\.Module, got SimpleNamespace$"):
        slimfast.plan(SimpleNamespace(sizes=[1, {"a": "b"}]), X, params=0.5)
    with pytest.raises(TypeError, match=r"holds \[0\] \(Linear\), .*\[5\] \(Linear\) and 2 more: give one"):
        slimfast.plan([nn.Linear(1, 1) for _ in range(8)], X, params=0.5)


def test_a_module_that_trains_when_its_mode_is_switched_is_never_switched():
    """The ``train`` of ultralytics' objects begins a training, and ``eval`` calls it."""

    class Model(nn.Module):
        __module__ = "ultralytics.engine.model"

        def __init__(self):
            super().__init__()
            self.model = _network()

        def train(self, mode=True):
            raise AssertionError("a training began")

    class YOLO(Model):
        pass

    for verb in VERBS.values():
        with pytest.raises(
            TypeError, match=r"got YOLO, which runs one: give its \.model \(Sequential\), and"
        ):
            verb(YOLO())
