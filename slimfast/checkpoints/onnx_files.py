"""Captured networks as ONNX files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from slimfast.errors import SlimfastError
from slimfast.graph.recording.forward import tensors_in
from slimfast.latency.onnx_runtime import quiet_about_torchvision

# Protocol buffers stop at 2 GiB; the graph itself needs a part of it.
_ONNX_BYTES = 2_000_000_000

Run: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Any]

_ATEN = torch.ops.aten


def write_onnx(
    program: ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]
) -> Run:
    """Write a captured network, weights within; returns what runs the file in ONNX Runtime.

    ``outputs`` are the names of what it returns. The program may be changed. Raises :class:`SlimfastError`
    for weights beyond 2 GB.
    """
    import onnx
    import onnxruntime

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _ONNX_BYTES:
        raise SlimfastError(
            f"export: an .onnx file holds up to 2 GB, got {size / 1e9:.1f} GB of weights; use .pt2"
        )
    _write_out_attention(program.graph)
    with quiet_about_torchvision():
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    if converted is None:
        raise SlimfastError("export: the ONNX exporter returned nothing")
    written = converted.model_proto
    _name(written, outputs)
    onnx.helper.set_model_props(written, dict(metadata))
    onnx.save(written, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [t.detach().cpu().numpy() for t in tensors_in((args, kwargs))]
        return [
            torch.from_numpy(array) for array in session.run(None, dict(zip(names, tensors, strict=True)))
        ]

    return run


def _name(model: Any, outputs: Sequence[str]) -> None:
    """Name the batch ``batch``, and the outputs as the network does, where each is one of its own."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    batch = next((d.dim_param for v in graph.input for d in v.type.tensor_type.shape.dim[:1]), "")
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if batch and dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(batch)}\b", "batch", dim.dim_param)
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    old = [value.name for value in graph.output]
    if len(set(old)) < len(outputs) or len(old) != len(outputs) or taken & {*old, *outputs}:
        return
    inside = {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {o: new for o, new in zip(old, outputs, strict=True) if new == o or new not in inside}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for value in values:
        value.name = renamed.get(value.name, value.name)


def _write_out_attention(graph: Graph) -> None:
    """Write fused attention of any rank but 4, which PyTorch's exporter refuses (2.13), as the products it
    is.
    """
    for node in list(graph.nodes):
        if node.target is _ATEN.scaled_dot_product_attention.default and not _usual(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_products(graph, node))
            graph.erase_node(node)


def _usual(node: Node) -> bool:
    """Whether PyTorch's exporter can have this attention, or nothing here knows how to write it out."""
    given = _arguments(node)
    plain = not given["dropout_p"] and not given["is_causal"] and not given["enable_gqa"]
    mask = given["attn_mask"]
    added = mask is None or mask.meta["val"].is_floating_point()
    return given["query"].meta["val"].ndim == 4 or not (plain and added)


def _arguments(node: Node) -> dict[str, Any]:
    schema = _ATEN.scaled_dot_product_attention.default._schema
    given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return given | dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs


def _products(graph: Graph, node: Node) -> Node:
    """Compute softmax(scale * q k^T + mask) v, with the query scaled before the product."""
    given = _arguments(node)
    query, key, scale = given["query"], given["key"], given["scale"]
    scale = float(query.meta["val"].shape[-1]) ** -0.5 if scale is None else scale
    scaled = graph.call_function(_ATEN.mul.Scalar, (query, scale))
    turned = graph.call_function(_ATEN.transpose.int, (key, -2, -1))
    scores = graph.call_function(_ATEN.matmul.default, (scaled, turned))
    if given["attn_mask"] is not None:
        scores = graph.call_function(_ATEN.add.Tensor, (scores, given["attn_mask"]))
    weights = graph.call_function(_ATEN.softmax.int, (scores, -1))
    return graph.call_function(_ATEN.matmul.default, (weights, given["value"]))
