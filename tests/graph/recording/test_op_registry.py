"""One entry for each ATen operation, made beside its rule."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import slimfast
from slimfast.graph.recording import op_registry
from slimfast.graph.recording.op_registry import OpEntry, entry_of, op, register, sized_operations

GRAPH = Path(slimfast.__file__).parent / "graph"


@pytest.mark.parametrize("name", sorted(n for n in op_registry._ENTRIES if n.startswith("aten.")))
def test_every_entry_is_an_operation_of_pytorch(name):
    namespace, _, operation = name.partition(".")
    assert hasattr(getattr(torch.ops, namespace), operation)


def test_a_second_entry_for_an_operation_is_refused():
    with pytest.raises(ValueError, match=r"expected one entry for aten\.linear, got two"):
        register(OpEntry(), "linear")
    with pytest.raises(ValueError, match=r"aten\.relu"):
        op("relu")(lambda flow, call: [])


def test_an_operation_in_place_has_the_entry_of_its_twin():
    assert entry_of("aten.relu_") is entry_of("aten.relu")
    assert entry_of("aten.zero_").zeros is not None
    assert entry_of("aten.zero").zeros is None


def test_sizes_are_looked_for_where_a_result_has_them():
    assert {"view", "reshape", "expand", "zeros", "new_full"} <= sized_operations()
    assert "linear" not in sized_operations()


def test_no_other_file_lists_operations():
    """What is known of an operation stands in its entry: its name is a literal nowhere but in the rules."""
    known = set(op_registry._ENTRIES)
    found = []
    for path in sorted(GRAPH.rglob("*.py")):
        if path.parent.name == "rules":
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        literals = {node.value for node in nodes if isinstance(node, ast.Constant)}
        found += [f"{path.relative_to(GRAPH)}: {name}" for name in sorted(known & literals)]
    assert found == []
