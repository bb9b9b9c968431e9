"""Networks in ONNX Runtime: exported together, as an export takes long however small a network is, and run
each in a session of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.recording.inputs import tensors_in


class _Together(nn.Module):
    """Networks side by side: given the tensors of all of them, it returns what all of them return."""

    def __init__(self, networks: Sequence[nn.Module], given: Sequence[tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.numbers = [len(args) for args in given]

    def forward(self, *tensors: Tensor) -> list[Any]:
        made, begin = [], 0
        for network, number in zip(self.networks, self.numbers, strict=True):
            made.append(network(*tensors[begin : begin + number]))
            begin += number
        return made


def onnx_run(network: nn.Module, given: Arguments, threads: int) -> Callable[[], Any]:
    """Make what runs a network in ONNX Runtime.

    Raises :class:`SlimfastError` in one line where it cannot take the network.
    """
    args, kwargs = given
    with _named(network):
        return _session(_exported(network, args, kwargs), list(tensors_in((args, kwargs))), threads)


def onnx_runs(
    networks: Sequence[nn.Module], given: Sequence[tuple[Tensor, ...]], threads: int
) -> list[Callable[[], Any]]:
    """Make what runs each of several networks of plain tensors, from one export.

    Raises :class:`SlimfastError` in one line where one of them cannot be taken.
    """
    if len(networks) == 1:
        return [onnx_run(networks[0], (given[0], {}), threads)]
    together = _Together(networks, given)
    try:
        with _named(together):
            returned = [
                len(list(tensors_in(network(*args)))) for network, args in zip(networks, given, strict=True)
            ]
            # Of one tensor that is given twice the export makes one input.
            whole = _exported(together, tuple(t.clone() for args in given for t in args), {})
            if len(whole.graph.input) != sum(map(len, given)) or len(whole.graph.output) != sum(returned):
                raise SlimfastError("latency: the export has not what every network is given and returns")
    except SlimfastError:
        # Alone each says what is wrong with it.
        return [onnx_run(one, (args, {}), threads) for one, args in zip(networks, given, strict=True)]
    runs, begin, first = [], 0, 0
    for network, args, number in zip(networks, given, returned, strict=True):
        outputs = [value.name for value in whole.graph.output[begin : begin + number]]
        inputs = [value.name for value in whole.graph.input[first : first + len(args)]]
        begin, first = begin + number, first + len(args)
        with _named(network):
            runs.append(_session(_part(whole, inputs, outputs), list(args), threads))
    return runs


def _exported(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with quiet_about_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(network, args, kwargs=kwargs, dynamo=True, verbose=False)
    assert written is not None
    return written.model_proto


def _part(whole: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Take what makes these outputs out of a model, as a model of these inputs."""
    import onnx

    needed, nodes = set(outputs), []
    for node in reversed(whole.graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            nodes.append(node)
    graph = onnx.helper.make_graph(
        nodes[::-1],
        "piece",
        [value for value in whole.graph.input if value.name in inputs],
        [value for value in whole.graph.output if value.name in outputs],
        [tensor for tensor in whole.graph.initializer if tensor.name in needed],
        value_info=[value for value in whole.graph.value_info if value.name in needed],
    )
    return onnx.helper.make_model(
        graph, ir_version=whole.ir_version, opset_imports=whole.opset_import, functions=whole.functions
    )


def _reads(node: Any) -> Iterator[str]:
    """List what a node reads, and what the graphs inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def _session(model: Any, tensors: Sequence[Tensor], threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    # What the network does not read is an input as well, or the pairs would be wrong: an error then.
    feed = dict(zip([value.name for value in session.get_inputs()], arrays, strict=True))
    return lambda: session.run(None, feed)


@contextmanager
def _named(network: nn.Module) -> Iterator[None]:
    """Say of what goes wrong in which network it did."""
    try:
        yield
    except Exception as error:
        raise SlimfastError(
            f"latency: ONNX Runtime cannot take {type(network).__name__}: {one_line(error)}"
        ) from error


@contextmanager
def quiet_about_torchvision() -> Iterator[None]:
    """Drop PyTorch's warnings that torchvision is not installed, which come with every network (2.13).

    Its exporter looks up the operators of torchvision before it looks at the network, and a network that was
    captured without torchvision has none of them.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
