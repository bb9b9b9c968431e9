"""How much a network's output feels of what each consumer reads: one backward pass for each slice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Progress
from slimfast.calibration.consumers import Consumer, input_of
from slimfast.calibration.data import Calibration
from slimfast.calibration.derivatives import AllDerivatives, as_it_is
from slimfast.calibration.directions import Directions, Unit, in_loss
from slimfast.calibration.forward import Slice, elements_of, running
from slimfast.calibration.heap import give_back
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.massive import shrinking
from slimfast.calibration.saved_tensors import SavedTensors
from slimfast.calibration.spilling import MEMORY, Store
from slimfast.calibration.sums_file import SumsFile
from slimfast.errors import NonFinite, SlimfastError, one_line
from slimfast.graph.recording.inputs import cloned
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.storage.stored_tensors import left_on_shelves, shelves_of

# After a weight's name: what is felt of it where nothing is hidden.
_BEHIND = ", behind what hides it"


def sensitivities(
    model: nn.Module,
    consumers: Iterable[Consumer],
    calibration: Calibration,
    *,
    memory: int = MEMORY,
    unit: Unit | None = None,
    progress: Progress | None = None,
    resume: SumsFile | None = None,
) -> dict[str, Tensor]:
    """Measure what the output loses where a variable is held at its mean: (L,) float64 for each consumer, by
    weight.

    To first order that is the sum over a sample's positions of (x - mean) dz/dx, squared, summed over the
    output's values z and averaged over the samples (the Taylor score of Molchanov et al., CVPR 2019, of the
    outputs instead of a loss). The derivative is that through this consumer alone. The sum over the outputs
    is the expectation over a direction in them, of which each sample gets one
    (:class:`slimfast.calibration.directions.Directions`). In the ``unit`` of the loss, None: of a language
    model, that is twice the divergence, in nats a sample, of what it then says of the classes or of the next
    tokens from what it said. Positions are
    summed before the square: errors of neighbouring positions add up where the network averages them. Padded
    positions count neither in the sum nor in the outputs.

    So many samples run at once as hold ``memory`` bytes for their backward pass; of one that holds more by
    itself half of ``memory`` stays there, and the rest of what its forward saves goes to a temporary file (on
    a CPU). ``progress`` is told of them, and ``resume`` is where the sums are after each slice. Raises
    :class:`SlimfastError` where the output has no values, or none that can be differentiated.
    """
    wanted = [consumer for consumer in consumers if consumer.weight in calibration.readings]
    if not wanted:
        return {}
    measured = _Measured(wanted, calibration, Directions(of_loss=in_loss(model, unit)))
    done, before = 0, measured.go_on(resume)
    shelves = shelves_of(named_tensors(model).values())
    with (
        running(model) as (network, device),
        left_on_shelves(shelves),
        Store("plan", memory // 2) as store,
    ):
        network.requires_grad_(False)
        own = {t.untyped_storage()._cdata for t in named_tensors(network).values() if not t.is_meta}
        for number, part in enumerate(calibration.slices_for_backward(memory)):
            if number >= before:
                size = calibration.bytes_made * elements_of(part.args) * part.samples
                large = size > memory and device.type == "cpu"
                if large:
                    give_back(memory // 8)
                measured.run(network, part, number, SavedTensors(store, own, shelves) if large else None)
                measured.keep(number + 1)
            done += part.samples
            if progress is not None:
                progress(done, calibration.samples)
    return {name: total / calibration.samples for name, total in measured.totals().items()}


class _Measured:
    """Sums over the samples, for each consumer."""

    def __init__(
        self, consumers: Sequence[Consumer], calibration: Calibration, directions: Directions
    ) -> None:
        self._consumers, self._readings = consumers, calibration.readings
        self._directions = directions
        self._totals: dict[str, Tensor] = {}
        self._file: SumsFile | None = None
        # Whether what the network hides is looked at as well; None until the first slice decides.
        self._behind: bool | None = None
        # Layers whose input the network changes in place after they have read it.
        self._changed: set[str] = set()

    def go_on(self, resume: SumsFile | None) -> int:
        """Take the sums of an earlier run; how many slices they are of."""
        self._file = resume
        if resume is None:
            return 0
        slices, self._totals, drawn = resume.read()
        self._directions.go_on(drawn)
        if slices:
            self._behind = any(weight.endswith(_BEHIND) for weight in self._totals)
        return slices

    def keep(self, slices: int) -> None:
        """Write down the sums of so many slices."""
        if self._file is not None:
            self._file.write(slices, self._totals, self._directions.state())

    def run(self, network: nn.Module, part: Slice, number: int, saved: SavedTensors | None = None) -> None:
        """Add up one slice, of this number; ``saved`` holds what its backward pass will need.

        A network may hide what its outputs depend on: it detaches it, or computes without gradients. Where
        the first slice has layers that no output feels, or outputs without a derivative, it runs once more
        with nothing hidden; where that tells more, all slices do, and of each layer the larger sums count.
        """
        drawn = self._directions.state()
        felt, lacking = self._felt(network, part, saved, behind=False)
        if self._behind or (self._behind is None and (lacking or self._numb(felt))):
            # The same directions, for they go by the outputs alone.
            self._directions.go_back(drawn)
            behind, still = self._felt(network, part, saved, behind=True)
            if self._behind is None:
                self._behind = still < lacking or len(self._numb(behind)) < len(self._numb(felt))
            if self._behind:
                felt |= {weight + _BEHIND: values for weight, values in behind.items()}
        self._behind = bool(self._behind)
        if not felt:
            raise self._directions.none()
        self._check_finite(felt, number)
        for weight, values in felt.items():
            self._totals[weight] = self._totals[weight] + values if weight in self._totals else values

    def _numb(self, felt: Mapping[str, Tensor]) -> list[str]:
        """Name the weights of layers that no output feels."""
        return [c.weight for c in self._consumers if c.weight not in felt or not felt[c.weight].any()]

    def _felt(
        self, network: nn.Module, part: Slice, saved: SavedTensors | None, *, behind: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """Measure one slice; also whether it has outputs without a derivative."""
        drawn = self._directions.state()
        with torch.enable_grad():
            probes = self._forward(network, part, saved, behind=behind)
            changed = {weight for weight, is_changed in probes.reads if is_changed()}
            if changed:
                self._changed |= changed
                self._directions.go_back(drawn)
                probes.let_go()
                probes = self._forward(network, part, saved, behind=behind)
            felt = [i for i, z in enumerate(probes.outputs) if z.requires_grad]
            lacking = len(felt) < len(probes.outputs)
            if felt:
                torch.autograd.backward([probes.outputs[i] for i in felt], [probes.slopes[i] for i in felt])
        probes.let_go()
        return probes.felt, lacking

    def _check_finite(self, felt: Mapping[str, Tensor], number: int) -> None:
        """Refuse derivatives that are not finite, in one wait for each device."""
        by_device: dict[torch.device, list[str]] = {}
        for weight, values in felt.items():
            by_device.setdefault(values.device, []).append(weight)
        for weights in by_device.values():
            finite = torch.stack([felt[weight].sum() for weight in weights]).isfinite()
            for weight, fine in zip(weights, finite.tolist(), strict=True):
                if not fine:
                    name = weight.removesuffix(_BEHIND)
                    module = next(c.module for c in self._consumers if c.weight == name)
                    raise NonFinite(
                        f"plan: expected finite derivatives, got others at what {module} reads, "
                        f"slice {number}"
                    )

    def totals(self) -> dict[str, Tensor]:
        """Give the sums, zero for what no output feels."""
        return {c.weight: self._total(c) for c in self._consumers}

    def _total(self, consumer: Consumer) -> Tensor:
        ways = (consumer.weight, consumer.weight + _BEHIND)
        sums = [self._totals[way].cpu() for way in ways if way in self._totals]
        nothing = torch.zeros(consumer.length, dtype=torch.float64, device="cpu")
        return max(sums, key=lambda values: float(values.sum()), default=nothing)

    def _forward(
        self, network: nn.Module, part: Slice, saved: SavedTensors | None, *, behind: bool
    ) -> _Probes:
        probes = _Probes(part, saved)
        with ExitStack() as hooks:
            for consumer in self._consumers:
                mean = self._readings[consumer.weight].mean
                hook = functools.partial(probes.look, consumer, mean, consumer.weight in self._changed)
                module = network.get_submodule(consumer.module)
                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            with (
                nullcontext() if saved is None else saved.saving(),
                AllDerivatives() if behind else nullcontext(),
            ):
                output = _output(network, part)
            probes.outputs = self._directions.outputs(output)
            del output
            probes.slopes = self._directions.of(probes.outputs, part.mask)
        return probes


class _Probes:
    """What consumers read in one forward, and what the output felt of it when the derivatives came."""

    outputs: list[Tensor]
    slopes: list[Tensor]

    def __init__(self, part: Slice, saved: SavedTensors | None) -> None:
        self._part, self._saved = part, saved
        self.reads: list[tuple[str, Callable[[], bool]]] = []
        self.felt: dict[str, Tensor] = {}

    def let_go(self) -> None:
        """Let the graph go, whose hooks hold what holds it: it would stay during the next slice."""
        self.outputs, self.slopes, self.reads = [], [], []

    def look(
        self, consumer: Consumer, mean: Tensor, copy: bool, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        """Let a layer read a tensor of its own, whose derivative is that through this layer alone."""
        x = input_of(args, kwargs)
        if x is None or not x.numel():
            return None
        with as_it_is():
            seen = x.detach().clone() if copy else x.detach()
            read = x.view_as(x) if x.requires_grad else seen.requires_grad_()
            kept, version = seen.detach, seen._version
            is_changed: Callable[[], bool] = lambda: seen._version != version  # noqa: E731
            if self._saved is not None:
                # In memory or in a file.
                saved = self._saved.hold(seen.detach())
                kept, is_changed = saved.tensor, saved.changed
        self.reads.append((consumer.weight, is_changed))
        read.register_hook(functools.partial(self._feel, consumer, kept, mean))  # type: ignore[no-untyped-call]
        if args and args[0] is x:
            return (read, *args[1:]), kwargs
        return args, {name: read if value is x else value for name, value in kwargs.items()}

    def _feel(self, consumer: Consumer, kept: Callable[[], Tensor], mean: Tensor, gradient: Tensor) -> None:
        """Square the sums over each sample's positions, and sum them over the samples: (L,) float64."""
        with torch.no_grad():
            x = kept()
            view, slope = consumer.laid_out(x), consumer.laid_out(gradient)
            wide = view if view.dtype == torch.float64 else view.float()
            counting = positions_that_count(view.shape[:-1], self._part.mask)
            factors = shrinking(consumer, x, self._part.samples, counting)
            if factors is not None:
                wide = wide * factors[..., None].to(wide)
            change = (wide - mean.to(wide)).mul_(slope)
            if counting is not None:
                change = change * counting[..., None]
            count = self._part.samples
            if change.dim() > 2 and len(change) == count:
                each = change.sum(tuple(range(1, change.dim() - 1)))
            elif change[..., 0].numel() % count == 0:
                each = change.reshape(count, -1, change.shape[-1]).sum(1)
            else:
                each = change.reshape(-1, change.shape[-1])
            felt = each.double().square().sum(0)
            known = self.felt.get(consumer.weight)
            self.felt[consumer.weight] = felt if known is None else known + felt


def _output(network: nn.Module, part: Slice) -> Any:
    """Run one forward, and return what the network does."""
    args, kwargs = part.args
    try:
        return network(*cloned(args), **cloned(kwargs))
    except SlimfastError:
        raise
    except Exception as error:
        raise SlimfastError(f"plan: the forward fails: {one_line(error)}") from error
