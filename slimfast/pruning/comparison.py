"""Run an original whose removed units are masked beside its thin copy, and compare what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.channel_graph import Axis
from slimfast.graph.cutting.cut import Cut, select_indices
from slimfast.graph.recording.forward import tensors_in
from slimfast.graph.recording.module_copies import copy_network, copy_with
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.output_places import staying_tensors
from slimfast.pruning.closeness import difference, is_zero, rounding
from slimfast.pruning.precision import Precision, run_copy
from slimfast.pruning.random_draws import Draws
from slimfast.pruning.value_choices import Choices

# Networks of more parameters than this are compared in float32, for float64 copies of them would not fit.
_FLOAT64_ELEMENTS = 1 << 28

# Of no weight beside any other, and its square is a number in float32 yet.
_NEARLY_ZERO = 1e-18

# Where values decide, rounding may decide otherwise in one place in so many.
_CHOSEN = 20


class OriginalFails(SlimfastError):
    """The original's own forward fails with these inputs."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How close two outputs came, in which precision, and what else has to be known of it."""

    max_error: float
    tolerance: float
    dtype: torch.dtype
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """An original and its thin copy, of which ``cut`` is what both are compared for."""

    network: Network
    masked: nn.Module
    thin: nn.Module
    cut: Cut

    @classmethod
    def of(cls, network: Network, thin: nn.Module, cut: Cut) -> Pair:
        """Mask what the cut removes."""
        return cls(network, _masked(network, cut), thin, cut)

    def compare(self, inputs: Arguments) -> Comparison:
        """Run both, and compare their outputs.

        Raises:
            OriginalFails: For inputs that the original does not take.
            SlimfastError: Naming the first module whose output disagrees.
        """
        run = _Run(self, self.masked, inputs, Draws(self.cut), Choices())
        precision, wide = run.masked_output()
        if not _is_finite(wide):
            # A weight divided by its norm is 0 / 0 where it is masked.
            nearly = replace(run, masked=_masked(self.network, self.cut, fill=_NEARLY_ZERO))
            again = nearly.masked_output()
            if _is_finite(again[1]):
                run, (precision, wide) = nearly, again
        interface = self.cut.graph.outputs
        wide = staying_tensors(wide, interface)
        tolerance = rounding(self.network.model, precision.coarsest, precision.operations)
        notes = list(run.notes(precision))
        try:
            error = difference(wide, staying_tensors(run.thin_output(precision.dtype), interface))
        except SlimfastError:
            # rounding may have chosen otherwise, and what follows does not fit
            if not run.choices.names:
                raise
            error = math.inf
        if not error <= tolerance and run.choices.names:
            thin = staying_tensors(run.thin_output(precision.dtype, taking=True), interface)
            error = max(difference(wide, thin), run.choices.error)
            if run.choices.flips * _CHOSEN > run.choices.made:
                error = math.inf
            names, some = ", ".join(run.choices.names), f"{run.choices.flips} of {run.choices.made}"
            notes.append(
                f"both got what the original chooses by values ({names}): of its own the thin network "
                f"chooses {some} otherwise, or in another order, as rounding has it"
            )
        if not error <= tolerance:
            raise SlimfastError(
                f"verify: {run.blame(precision.dtype, tolerance)} (output off by {error:.2g} of its size)"
            )
        if is_zero(wide):
            notes.append("all of the output is 0, which proves nothing: pass an example that gives more")
        return Comparison(error, tolerance, precision.dtype, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Run:
    """Both networks with the inputs they are called with, what they draw, and what they choose by values."""

    pair: Pair
    masked: nn.Module
    inputs: Arguments
    draws: Draws
    choices: Choices

    def masked_output(self) -> tuple[Precision, Any]:
        """Run the masked network in the precision that works, float64 first."""
        elements = sum(tensor.numel() for tensor in self.pair.network.tensors.values())
        failure = None
        for dtype in (torch.float64, torch.float32) if elements <= _FLOAT64_ELEMENTS else (torch.float32,):
            refused = "" if failure is None else one_line(failure)
            precision = Precision(dtype, self.draws, self.choices, refused=refused)
            self.draws.begin(wide=True)
            self.choices.begin("note")
            try:
                return precision, run_copy(self.masked, self.inputs, precision)
            except Exception as error:
                failure = error
        assert failure is not None, "at least one dtype was tried"
        raise OriginalFails(f"verify: the original's forward fails: {one_line(failure)}") from failure

    def thin_output(self, dtype: torch.dtype, *, taking: bool = False) -> Any:
        """Run the thin network in that precision, ``taking`` what the original chose by values."""
        self.draws.begin(wide=False)
        self.choices.begin("take" if taking else "own")
        try:
            return run_copy(self.pair.thin, self.inputs, Precision(dtype, self.draws, self.choices))
        except SlimfastError:
            raise
        except Exception as error:
            # kernels that want sizes in multiples say so in their errors
            advice = "; a plan with multiple_of=16 may help" if "multiple" in str(error) else ""
            left = [name for name, _ in self.pair.network.plain_tensors()]
            if left and not advice:
                advice = f"; where {', '.join(left[:3])} is left of an earlier call, clear it before"
            raise SlimfastError(
                f"verify: the thin network's forward fails: {one_line(error)}{advice}"
            ) from error

    def notes(self, precision: Precision) -> list[str]:
        """Say what was done to compare them."""
        said = [
            f"{name} has no kernel for float64 here and ran in {str(dtype).removeprefix('torch.')}"
            for name, dtype in precision.coarse.items()
        ]
        if precision.refused:
            said.append(f"the original's forward fails in float64, both ran in float32: {precision.refused}")
        if self.draws.drawn:
            said.append(
                "the forward draws random numbers: the thin network got what is left of the original's"
            )
        return said

    def blame(self, dtype: torch.dtype, tolerance: float) -> str:
        """Name the module whose output is the first to disagree, from both networks run again."""
        kept = self.pair.cut.kept_indices
        wide: dict[tuple[str, int], Tensor] = {}

        def keep(call: tuple[str, int], output: Tensor) -> None:
            axes = self._axes(call[0], tuple(output.shape))
            if axes is not None:
                wide[call] = select_indices(
                    output, {d: kept(axis) for d, axis in enumerate(axes) if axis.places}
                )

        def compare(call: tuple[str, int], output: Tensor) -> None:
            if call in wide and not found and not difference(wide[call], output) <= tolerance:
                found.append(call[0])

        found: list[str] = []
        for module, watch in ((self.masked, keep), (self.pair.thin, compare)):
            self.draws.begin(wide=module is self.masked)
            self.choices.begin("own")
            run_copy(module, self.inputs, Precision(dtype, self.draws, self.choices), watch)
        where = found[0] if found else "the network itself"
        return f"the thin network is not the masked original: the first output to disagree is {where}'s"

    def _axes(self, module: str, shape: tuple[int, ...]) -> tuple[Axis, ...] | None:
        """Find the axes of a module's output: those of the last operation inside it that has this shape."""
        for operation in reversed(self.pair.cut.graph.operations):
            if operation.module == module or operation.module.startswith(f"{module}."):
                for axes in operation.outputs:
                    if tuple(axis.length for axis in axes) == shape:
                        return axes
        return None


def _is_finite(output: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(output))


def _masked(network: Network, cut: Cut, *, fill: float = 0.0) -> nn.Module:
    """Copy a network with the removed slices of its parameters set to ``fill``, sharing the other tensors."""
    tensors: dict[str, Tensor] = {}
    for name, dims in cut.tensor_cuts.items():
        if name in cut.graph.parameters:
            masked = network.tensors[name].detach().clone()
            for dim, index in dims.items():
                gone = torch.ones(masked.shape[dim], dtype=torch.bool, device="cpu")
                gone[torch.from_numpy(index)] = False
                masked.index_fill_(dim, gone.nonzero()[:, 0].to(masked.device), fill)
            tensors[name] = masked
    return copy_network(network, tensors, share=True)


def shaken(network: Network, thin: nn.Module, cut: Cut) -> tuple[Network, nn.Module, tuple[str, ...]]:
    """Put small random numbers for the parameters that are 0 everywhere, the same into both networks.

    A scale or a last layer that begins at 0 hides all that it multiplies: with it two networks agree,
    whatever they compute. Biases, which hide nothing, stay.

    Returns:
        Both networks, the given ones where there is no such parameter, and the names of these.
    """
    hiding = {
        name: tensor
        for name, tensor in network.tensors.items()
        if isinstance(tensor, nn.Parameter)
        and tensor.is_floating_point()
        and not tensor.is_meta
        and "bias" not in name.rpartition(".")[2]
        and not bool(tensor.detach().any())
    }
    if not hiding:
        return network, thin, ()
    generator = torch.Generator().manual_seed(0)
    wide: dict[str, Tensor] = {}
    for name, tensor in hiding.items():
        numbers = torch.randn(tensor.shape, generator=generator, device="cpu").mul_(0.1)
        wide[name] = numbers.to(tensor.device, tensor.dtype)
    narrow = {name: select_indices(tensor, cut.tensor_cuts.get(name, {})) for name, tensor in wide.items()}
    moved = Network.of(copy_network(network, wide, share=True))
    return moved, copy_with(thin, narrow, share=True), tuple(hiding)
