"""The verb that rotates the dims inside attention heads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, FloatArray
from slimfast.calibration.consumers import Consumer
from slimfast.calibration.data import Calibration
from slimfast.calibration.forward import running
from slimfast.calibration.measuring import Measured
from slimfast.calibration.spilling import MEMORY
from slimfast.distributed.dtensors import check_whole
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.channel_graph import Axis
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.inputs import arguments
from slimfast.graph.recording.module_copies import copy_network
from slimfast.graph.recording.network import Network
from slimfast.plans.fingerprint import fingerprint
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.manifests import Manifest, attach, compose, manifest
from slimfast.pruning.padded_inputs import padded
from slimfast.pruning.precision import Precision, run_copy
from slimfast.pruning.random_draws import Draws
from slimfast.pruning.rotation.pairs import HeadPair, Slice, Unturnable, pairs_of
from slimfast.pruning.rotation.report import RotationReport, attach_rotation_report
from slimfast.pruning.rotation.solving import balanced_basis
from slimfast.pruning.rotation.walk import Walk
from slimfast.pruning.value_choices import Choices
from slimfast.wrappers import unwrapped

# Networks of more parameters than this are compared in float32, for float64 copies of them would not fit.
_FLOAT64_ELEMENTS = 1 << 28
# So much more than rounding does alone can come of turning a basis forth and back.
_CONDITION = 1e4


@torch.inference_mode(False)
@torch.no_grad()
def rotate_heads(
    model: nn.Module,
    example: Any,
    *,
    calibration: Calibration | None = None,
    also: Iterable[Any] = (),
) -> nn.Module:
    """Rotate the dims inside attention heads, without a change of the output, so that the least come last.

    Of the value and output layers a network sees their product over the dims of a head alone, and of query
    and key layers likewise: one may be multiplied by any invertible matrix and the other one by its inverse.
    Both are put into the basis of singular vectors of the product, weighted by the second moments of what the
    layers read (MoDeGPT: Lin et al., ICLR 2025), of which the first r dims are the best approximation of
    rank r. Heads that share keys or values are solved together.

    Pairs are found in the recorded forward, not by the names of classes: two linear layers (fused ones too)
    with nothing between that works on the dims. Rotary positions, norms of queries and keys, and layers that
    are also used otherwise leave a group of head dims as it is; :func:`rotation_report` says why. A group in
    which queries, keys and values have one width (BERT, GPT-2) is rotated in both pairs, and its units are
    sorted by both.

    Whatever method chooses units afterwards, of a group that was sorted the first ones stay, as long as
    the weights are those that were rotated.

    Args:
        model: The network.
        example: A tensor, a tuple or a dict of its arguments.
        calibration: From :func:`slimfast.calibrate`; of it the inputs are used, on which the model runs once.
            Without one every input counts alike.
        also: Examples of other calls, as for :func:`slimfast.trace_channels`: what they use of a head
            otherwise leaves it as it is.

    Returns:
        A copy in the mode of ``model``, which is untouched. :func:`slimfast.manifest` knows which tensors
        are not the original's, so that a cut of it is not taken for one of the original's weights.

    Raises:
        TypeError: For a calibration that is none.
        SlimfastError: Where no group of head dims can be rotated, with the reasons, and where the copy
            computes anything else, naming the layer.

    Example:
        rotated = slimfast.rotate_heads(model, example, calibration=calibration)
        plan = slimfast.plan(rotated, example, params=0.9, include=["head_dim"])
        thin = slimfast.prune_channels(rotated, plan)
    """
    if calibration is not None and not isinstance(calibration, Calibration):
        raise ArgumentTypeError(
            f"rotate_heads: expected a calibration of slimfast.calibrate, got {type(calibration).__name__}"
        )
    model, others = unwrapped(model), list(also)
    calls = [arguments(each) for each in (example, *others)]
    network = Network.of(model)
    check_whole(network.tensors, type(model).__name__)
    if any(tensor.is_meta for tensor in network.tensors.values()):
        raise SlimfastError("rotate_heads: expected a network with weights, got tensors on the meta device")
    graph = trace_channels(model, example, also=others)
    walk = Walk.of([record(network, *call) for call in calls])
    found: dict[str, list[HeadPair]] = {}
    left: dict[str, str] = {}
    groups = [group for group in graph if group.kind == "head_dim"]
    for group in groups:
        try:
            found[group.name] = pairs_of(walk, group)
        except Unturnable as reason:
            left[group.name] = str(reason)
    if not found:
        told = "".join(f"; {name}: {reason}" for name, reason in list(left.items())[:3])
        raise SlimfastError(
            f"rotate_heads: expected groups of head dims that can be rotated, got none of {len(groups)}{told}"
        )
    grams = _Grams(network, walk, found, calibration)
    done: dict[str, Tensor] = {}
    losses = {name: _rotate(pairs, grams, done) for name, pairs in found.items()}
    rotated = copy_network(network, {key: value.to(network.tensors[key]) for key, value in done.items()})
    hidden = padded(network, calls[0])
    comparing = [_Outputs(network, Cut(graph, {}), call) for call in (*calls, *([hidden] if hidden else []))]
    for outputs in comparing:
        if outputs.error(done) > outputs.limit:
            raise SlimfastError(_blame(found, grams, outputs, outputs.error(done)))
    error = max(outputs.error_of(rotated) for outputs in comparing)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.tensors.items()}
    moved: Any = dict.fromkeys(done, ("rotation",))
    attach(rotated, compose(manifest(model), Manifest(shapes, {}, (), {}, moved)))
    attach_rotation_report(rotated, RotationReport(losses, left, error, fingerprint(rotated)))
    return rotated


class _Grams:
    """The products ``X C X^T`` (E, E) of slices of weights, C the second moment of what their layers read."""

    def __init__(
        self,
        network: Network,
        walk: Walk,
        found: Mapping[str, Sequence[HeadPair]],
        calibration: Calibration | None,
    ) -> None:
        self._network = network
        self._moments: dict[str, Tensor] | None = None
        if calibration is not None:
            self._moments = self._measured(walk, found, calibration)

    def _measured(
        self, walk: Walk, found: Mapping[str, Sequence[HeadPair]], calibration: Calibration
    ) -> dict[str, Tensor]:
        """Measure what the layers read whose rows are rotated: second moments, a constant one appended."""
        network = self._network
        made = {s.weight for pairs in found.values() for p in pairs for s in (p.first, *p.second)
                if p.kind == "score" or s is p.first}  # fmt: skip
        consumers = []
        for weight in sorted(made):
            layer = walk.layers[weight]
            if f"{layer.module}.weight" != weight:
                raise SlimfastError(
                    f"rotate_heads: what {weight} reads cannot be measured, for it is not the weight of a "
                    "module that is called; rotate without a calibration"
                )
            rows, columns = network.tensors[weight].shape[:: 1 - 2 * layer.dim]
            consumers.append(Consumer(weight, layer.module, 1 - layer.dim, Axis(columns), Axis(rows)))
        measured = Measured(consumers, None, "auto")
        with running(network.model) as (copy, _):
            for number, part in enumerate(calibration.slices(MEMORY)):
                measured.measure(copy, part, f"slice {number} of the calibration")
        moments = {}
        for weight, reading in measured.readings(network.tensors).items():
            mean = torch.cat([reading.mean, torch.ones(1, dtype=torch.float64, device="cpu")])
            second = mean[:, None] * mean
            second[:-1, :-1] += reading.covariance * ((reading.count - 1) / reading.count)
            moments[weight] = second
        if missing := made - moments.keys():
            raise SlimfastError(f"rotate_heads: {min(missing)} read nothing of the calibration")
        return moments

    def rows(self, piece: Slice, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Gather a slice (E, ...), and its bias (E, 1) where it has one, float64 on the CPU."""
        return [
            tensors.get(name, self._network.tensors[name]).detach().to("cpu", torch.float64).movedim(dim, 0)[
                list(piece.indices)
            ].reshape(len(piece.indices), -1)
            for name, dim in ((piece.weight, piece.dim), (piece.bias, 0))
            if name is not None
        ]  # fmt: skip

    def write(self, piece: Slice, matrix: Tensor, tensors: dict[str, Tensor]) -> None:
        """Multiply a slice, and its bias, by a matrix (E, E) in tensors of one's own."""
        parts = zip(((piece.weight, piece.dim), (piece.bias, 0)), self.rows(piece, tensors), strict=False)
        for (name, dim), rows in parts:
            assert name is not None, "it has as many rows"
            if name not in tensors:
                tensors[name] = self._network.tensors[name].detach().to("cpu", torch.float64, copy=True)
            whole = tensors[name].movedim(dim, 0)
            whole[list(piece.indices)] = (matrix @ rows).reshape(len(rows), *whole.shape[1:])

    def __call__(self, piece: Slice, tensors: Mapping[str, Tensor], *, reads: bool = True) -> Tensor:
        """Compute one; ``reads`` false: of columns, whose products all count alike."""
        rows = torch.cat(self.rows(piece, tensors), 1)
        if reads and self._moments is not None:
            moment = self._moments[piece.weight]
            rows_of_moment = moment if rows.shape[1] == len(moment) else moment[:-1, :-1]
            weighted: Tensor = rows @ rows_of_moment @ rows.T
            return weighted
        return rows @ rows.T


def _rotate(pairs: Sequence[HeadPair], grams: _Grams, tensors: dict[str, Tensor]) -> FloatArray:
    """Rotate the pairs of a group, and say what its first units leave out, (n + 1,)."""
    energies: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(pairs[0].units)))
    for pair in pairs:
        second = sum(grams(piece, tensors, reads=pair.kind == "score") for piece in pair.second)
        assert isinstance(second, Tensor), "a pair has two factors"
        basis, inverse, values = balanced_basis(grams(pair.first, tensors), second)
        rank = torch.tensor(pair.units, dtype=torch.int64, device="cpu")
        grams.write(pair.first, basis.T[rank], tensors)
        for piece in pair.second:
            grams.write(piece, inverse.T[rank], tensors)
        energies[pair.kind] += values.square().numpy()
    shares = [energy / (energy.sum() or 1.0) for energy in energies.values()]
    total = np.add.reduce(shares)
    losses: FloatArray = np.concatenate([np.cumsum(total[::-1])[::-1], [0.0]])
    return losses


class _Outputs:
    """What a network returns for a call, beside what its copies do, in float64 where that fits."""

    def __init__(self, network: Network, cut: Cut, call: Arguments) -> None:
        self._network, self._call = network, call
        elements = sum(tensor.numel() for tensor in network.tensors.values())
        self._dtype = torch.float64 if elements <= _FLOAT64_ELEMENTS else torch.float32
        self._draws, self._choices = Draws(cut), Choices()
        more = _CONDITION if self._dtype == torch.float64 else 1.0
        self.limit = more * rounding(network.model, self._dtype, len(cut.graph.operations))
        self._expected = self._run(network.model, first=True)

    def _run(self, module: nn.Module, *, first: bool = False) -> Any:
        self._draws.begin(wide=first)
        self._choices.begin("note" if first else "own")
        return run_copy(module, self._call, Precision(self._dtype, self._draws, self._choices))

    def error_of(self, module: nn.Module) -> float:
        """Measure how far a network's output is from the original's, as a share of its size."""
        return difference(self._expected, self._run(module))

    def error(self, tensors: Mapping[str, Tensor]) -> float:
        """Measure it with these tensors, which are not rounded, for the network's; inf for NaN."""
        here = {name: tensor.to(self._network.tensors[name].device) for name, tensor in tensors.items()}
        error = self.error_of(copy_network(self._network, here, share=True))
        return error if error == error else float("inf")


def _blame(found: Mapping[str, Sequence[HeadPair]], grams: _Grams, outputs: _Outputs, error: float) -> str:
    """Say which group cannot be rotated alone, where the outputs are others."""
    names = []
    for name, pairs in found.items():
        alone: dict[str, Tensor] = {}
        _rotate(pairs, grams, alone)
        if outputs.error(alone) > outputs.limit:
            names.append(name)
    return (
        f"rotate_heads: expected the original's output, got one off by {error:.2g} of its size where "
        f"rounding explains {outputs.limit:.2g} ({names[0] if names else 'all groups together'}): something "
        "else depends on these dims; cut them as they are"
    )
