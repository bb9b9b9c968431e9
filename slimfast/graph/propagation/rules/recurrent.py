"""Follow recurrent layers and cells, each recorded whole: decomposed, a layer would be a step per token.

A hidden unit has one row in each gate, so the rows of its gates go together with the column that reads it in
the next step. PyTorch's layers have one hidden size for all of their layers and directions: unit u of each is
one unit. That a unit is removed is exact: with rows of zeros its gates leave its state at a share of the
initial one, and nothing reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from slimfast.graph.propagation.axis_labels import FIXED, Axes, AxisLabels
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.propagation.rules.frozen import unknown
from slimfast.graph.propagation.rules.products import sum_along
from slimfast.graph.propagation.zeros import NonzeroByAxis, ZeroTracker
from slimfast.graph.recording.calls import Call, refs_in
from slimfast.graph.recording.meta_shortcuts import empty, plain, without_data
from slimfast.graph.recording.op_registry import op

# Rows that a unit has in the weights of each kind.
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class _Weights(NamedTuple):
    """The tensors of one layer in one direction, or of a cell.

    ``reads``: (gates * cells, inputs). ``recurs``: (gates * cells, hidden units). ``projects``: (hidden
    units, cells), None where the cells are the hidden units.
    """

    reads: Any
    recurs: Any
    biases: Sequence[Any]
    projects: Any = None

    def matrices(self) -> list[Any]:
        """List the weights that sum over an axis and start another."""
        return [self.reads, self.recurs, *([] if self.projects is None else [self.projects])]


def _gates(call: Call) -> int:
    """Count the rows that a unit has in each weight."""
    return _GATES[call.op.removeprefix("aten.").removesuffix("_cell")]


def _directions(arguments: Mapping[str, Any]) -> int:
    """Count the directions in which a layer goes through its sequence."""
    return 2 if arguments["bidirectional"] else 1


def _weights(arguments: Mapping[str, Any]) -> list[_Weights]:
    """Sort the tensors of a layer call: layer by layer, direction by direction."""
    params = arguments["params"]
    number = arguments["num_layers"] * _directions(arguments)
    each = len(params) // number if number else 0
    biases = 2 if arguments["has_biases"] else 0
    if number < 1 or len(params) != each * number or each - 2 - biases not in (0, 1):
        return []
    rows = [params[i : i + each] for i in range(0, len(params), each)]
    return [_Weights(row[0], row[1], row[2 : 2 + biases], *row[2 + biases :]) for row in rows]


def _cell_weights(arguments: Mapping[str, Any]) -> _Weights:
    """Sort the tensors of a call of a cell."""
    biases = [arguments[name] for name in ("b_ih", "b_hh") if arguments.get(name) is not None]
    return _Weights(arguments["w_ih"], arguments["w_hh"], biases)


def _zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis:
    """Track zeros: a unit whose gates have rows of zeros stays at 0 unless its initial state is not 0."""
    tensors = refs_in(call.arguments.get("params") or list(_cell_weights(call.arguments)))
    made = any(tracker.may_be_nonzero(ref, 0) for ref in tensors)
    given = any(tracker.may_be_nonzero(ref, -1) for ref in refs_in(call.arguments["hx"]))
    return [*[True] * (len(axes) - 1), made or given]


def _join_units(flow: Propagation, weights: Sequence[_Weights], gates: int) -> tuple[AxisLabels, AxisLabels]:
    """Make unit u of all layers and directions one unit; return the axes of the hidden units and the cells.

    Of layers with projections the first cells go along with the hidden units, one each, and the others are on
    their own: PyTorch needs more cells than hidden units, and tells a projection by that.
    """
    refs = [ref for own in weights for ref in own.matrices()]
    for ref in refs:
        produced, consumed = flow.axes(ref)
        flow.produce(ref, produced)
        flow.consume(ref, consumed)
        sum_along(flow, consumed, (ref, 1))
    rows = flow.axes(weights[0].reads)[0]
    cells = hidden = rows[: len(rows) // gates]
    if weights[0].projects is not None:
        hidden = flow.axes(weights[0].projects)[0]
        cells = flow.concatenate([hidden, cells[len(hidden) :]])
    for own in weights:
        for ref in (own.reads, own.recurs, *own.biases):
            flow.unify(cells.repeated(gates), flow.axes(ref)[0])
        flow.unify(hidden, flow.axes(own.recurs)[1])
        if own.projects is not None:
            flow.unify(hidden, flow.axes(own.projects)[0])
            flow.unify(cells, flow.axes(own.projects)[1])
    return hidden, cells


def _layers_shape(a: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """Know the shapes of what recurrent layers return for sequences of one length."""
    weights = _weights(a)
    states = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    if "input" not in a or not weights or not plain(*states, *a["params"]):
        return None
    source, like, directions = a["input"], a["params"][0], _directions(a)
    # for fake tensors PyTorch has the layout that the device's own kernel gives
    if not source.is_meta or not without_data(source, like) or source.dim() != 3 or 0 in source.shape:
        return None
    steps, batch = (1, 0) if a["batch_first"] else (0, 1)
    if any(t.dim() != 2 for own in weights for t in own.matrices()):
        return None
    rows, hidden = weights[0].recurs.shape
    cells = weights[0].projects.shape[1] if weights[0].projects is not None else hidden
    projected = (hidden, cells) if weights[0].projects is not None else None
    # the states tell PyTorch whether there are projections
    if (hidden != cells) != (projected is not None) or not cells or rows % cells:
        return None
    for i, own in enumerate(weights):
        incoming = source.shape[2] if i < directions else directions * hidden
        if tuple(own.reads.shape) != (rows, incoming) or tuple(own.recurs.shape) != (rows, hidden):
            return None
        if any(tuple(bias.shape) != (rows,) for bias in own.biases):
            return None
        if projected and tuple(own.projects.shape) != projected:
            return None
    shapes = [(len(weights), source.shape[batch], n) for n in (hidden, cells)[: len(states)]]
    if [tuple(state.shape) for state in states] != shapes:
        return None
    made = empty(like, (source.shape[steps], source.shape[batch], directions * hidden))
    if a["batch_first"]:
        made = made.transpose(0, 1)
    return made, *(empty(like, shape) for shape in shapes)


@op("lstm", "gru", "rnn_tanh", "rnn_relu", whole=True, zeros=_zeros, meta_shape=_layers_shape)
def layers(flow: Propagation, call: Call) -> list[Axes]:
    """Sum over what each layer reads and over its own units of the step before, and start the units.

    Steps of a packed sequence are counted as they are, without what would fill them up.
    """
    a, gates, directions = call.arguments, _gates(call), _directions(call.arguments)
    weights = _weights(a)
    projects = weights[0].projects
    if projects is not None and projects.shape[0] >= projects.shape[1]:
        return unknown(flow, call)
    packed = "batch_sizes" in a
    axes = list(flow.axes(a["data" if packed else "input"]))
    steps, batch = (1, 0) if a.get("batch_first") else (0, 1)
    axes[steps] = flow.freeze(axes[steps], Reason.RUNS)
    hidden, cells = _join_units(flow, weights, gates)
    for i, own in enumerate(weights):
        read = axes[-1] if i < directions else hidden.repeated(directions)
        flow.unify(read, flow.axes(own.reads)[1])
    states: list[Axes] = []
    for ref, units in zip(refs_in(a["hx"]), (hidden, cells), strict=False):
        number, lanes, entries = flow.axes(ref)
        flow.freeze(number, Reason.REPEATS)
        flow.unify(entries, units)
        if packed:
            lanes = flow.freeze(lanes, Reason.RUNS)
        else:
            flow.unify(lanes, axes[batch])
            lanes = axes[batch]
        states.append([FIXED, flow.known(lanes), units])
    further = len(weights) // directions - 1
    recurring = gates * (1 + further * (directions + 1)) + (0 if projects is None else 1 + further)
    summed = [axes[-1].repeated(gates), hidden.repeated(recurring)]
    flow.macs(*axes[:-1], directions, cells, flow.concatenate(summed))
    return [[*map(flow.known, axes[:-1]), hidden.repeated(directions)], *states]


def _cell_shape(a: Mapping[str, Any]) -> Tensor | tuple[Tensor, ...] | None:
    """Know the shapes of what a cell returns."""
    weights = _cell_weights(a)
    several = isinstance(a["hx"], (list, tuple))
    states = a["hx"] if several else [a["hx"]]
    source = a["input"]
    if not plain(source, *states, *weights.matrices(), *weights.biases):
        return None
    if any(t.dim() != 2 for t in (source, *states, *weights.matrices())) or 0 in source.shape:
        return None
    (rows, incoming), (rows_too, units) = weights.reads.shape, weights.recurs.shape
    shape = (source.shape[0], units)
    if rows != rows_too or source.shape[1] != incoming or not units or rows % units:
        return None
    if any(tuple(state.shape) != shape for state in states):
        return None
    if any(tuple(bias.shape) != (rows,) for bias in weights.biases):
        return None
    made = tuple(empty(source, shape) for _ in states)
    return made if several else made[0]


@op("lstm_cell", "gru_cell", whole=True, zeros=_zeros, meta_shape=_cell_shape)
@op("rnn_tanh_cell", "rnn_relu_cell", whole=True, zeros=_zeros, meta_shape=_cell_shape)
def cell(flow: Propagation, call: Call) -> list[Axes]:
    """Follow one step of a recurrent layer."""
    a, gates = call.arguments, _gates(call)
    weights = _cell_weights(a)
    axes = list(flow.axes(a["input"]))
    hidden, _ = _join_units(flow, [weights], gates)
    flow.unify(axes[-1], flow.axes(weights.reads)[1])
    for ref in refs_in(a["hx"]):
        for axis, own in zip([*axes[:-1], hidden], flow.axes(ref), strict=True):
            flow.unify(axis, own)
    flow.macs(*axes[:-1], gates, hidden, flow.concatenate([axes[-1], hidden]))
    return [[*map(flow.known, axes[:-1]), hidden] for _ in call.outputs]


@op("_pack_padded_sequence")
def pack(flow: Propagation, call: Call) -> list[Axes]:
    """Join batch and steps to the rows of the steps that there are, as the lengths say."""
    axes = flow.axes(call.arguments["input"])
    for axis in (*axes[:2], *flow.axes(call.arguments["lengths"])):
        flow.freeze(axis, Reason.RUNS)
    return [[FIXED, *axes[2:]], [FIXED]]


def _padded_zeros(tracker: ZeroTracker, call: Call, axes: Axes) -> NonzeroByAxis | bool:
    """Track zeros: what fills up a sequence may be another number."""
    return True if call.arguments["padding_value"] else tracker.handed_on(call, axes)


@op("_pad_packed_sequence", whole=True, zeros=_padded_zeros)
def pad(flow: Propagation, call: Call) -> list[Axes]:
    """Part the rows into batch and steps again, which are fixed."""
    rows, *rest = flow.axes(call.arguments["data"])
    flow.freeze(rows, Reason.RUNS)
    return [[FIXED, FIXED, *rest], [FIXED]]
