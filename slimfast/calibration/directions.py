"""Directions in a network's outputs along which sensitivities differentiate it, one for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.calibration.masks import positions_that_count
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.recording.inputs import tensors_in

Unit: TypeAlias = Literal["output", "loss"]
"""What errors are measured in: deviations of the outputs, or the divergence of the classes they speak of."""
# Numbers of a language model's output that are computed with at once: 16 MiB in float32.
_AT_ONCE = 4 << 20


def writes_text(model: nn.Module) -> bool:
    """Whether a model of Hugging Face's kind generates: a decoder with a language head."""
    ask: Any = getattr(model, "can_generate", None)
    return callable(ask) and bool(ask())


def in_loss(model: nn.Module, unit: Unit | None) -> bool:
    """Whether errors are measured in the loss: as ``unit`` says, None of language models alone."""
    if unit not in (None, "output", "loss"):
        raise ArgumentError(f"plan: expected unit to be 'output', 'loss' or None, got {unit!r}")
    return writes_text(model) if unit is None else unit == "loss"


class Directions:
    """Draws directions in outputs, the same ones however the samples are parted.

    Of most outputs a direction is random signs for every value: what is felt along it is, squared and in
    expectation, the sum over the values. ``of_loss``, as of language models, it is the slope of the cross
    entropy to a class that is drawn from the network's own probabilities, at each position: what is felt
    along it, squared, is in expectation twice the divergence from the network, to second order (its Fisher
    information). All else that it returns is left out.
    """

    def __init__(self, *, of_loss: bool) -> None:
        self._of_loss = of_loss
        self._generators: list[torch.Generator] = []

    def outputs(self, output: Any) -> list[Tensor]:
        """Find the outputs in which to draw, whether they have a derivative or not."""
        given = tensors_in(_scores(output) if self._of_loss else output)
        real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in given]
        return [t for t in real if t.is_floating_point() and t.numel()]

    def none(self) -> SlimfastError:
        """Make the error of a network without outputs to draw in."""
        what = "scores of classes, in the last dim," if self._of_loss else "outputs"
        return SlimfastError(
            f"plan: expected {what} that can be differentiated, got none; let the network return what it "
            "decides by, or plan without the calibration"
        )

    def of(self, outputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
        """Draw a direction in each output, 0 for padding."""
        draw = self._towards_classes if self._of_loss else self._signs
        return [draw(place, z, mask) for place, z in enumerate(outputs)]

    def _signs(self, place: int, z: Tensor, mask: Tensor | None) -> Tensor:
        generator, counting = self._generator(place), positions_that_count(z.shape, mask)
        shape = z.shape if counting is None else (int(counting.sum()),)
        signs = torch.randint(2, shape, generator=generator, dtype=torch.int8, device="cpu")
        return _placed(signs.mul_(2).sub_(1).to(z), z.shape, counting)

    def _towards_classes(self, place: int, z: Tensor, mask: Tensor | None) -> Tensor:
        generator, counting = self._generator(place), positions_that_count(z.shape[:-1], mask)
        shape = z.shape[:-1] if counting is None else (int(counting.sum()),)
        points = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        points = _placed(points.to(z.device), z.shape[:-1], counting)
        slopes = torch.empty_like(z, requires_grad=False, memory_format=torch.contiguous_format)
        rows, places = z.detach().reshape(-1, z.shape[-1]), points.reshape(-1, 1)
        # A few positions at a time: a vocabulary's probabilities are large.
        step = max(1, _AT_ONCE // z.shape[-1])
        for start in range(0, len(rows), step):
            scores = rows[start : start + step]
            wide = scores if scores.dtype == torch.float64 else scores.float()
            probabilities = wide.softmax(-1)
            below = probabilities.cumsum(-1)
            at = (places[start : start + step] * below[:, -1:]).to(below)
            drawn = torch.searchsorted(below, at, right=True)
            drawn = drawn.clamp_(max=z.shape[-1] - 1)
            probabilities.scatter_add_(-1, drawn, torch.full_like(below[:, :1], -1.0))
            slopes.view(-1, z.shape[-1])[start : start + step] = probabilities
        return slopes if counting is None else slopes.mul_(counting[..., None])

    def _generator(self, place: int) -> torch.Generator:
        """Find the random numbers of the output of this number."""
        for number in range(len(self._generators), place + 1):
            self._generators.append(torch.Generator().manual_seed(number))
        return self._generators[place]

    def state(self) -> list[Tensor]:
        """Note how many were drawn."""
        return [generator.get_state() for generator in self._generators]

    def go_on(self, state: list[Tensor]) -> None:
        """Draw from where others have stopped."""
        self._generators = [torch.Generator() for _ in state]
        for generator, before in zip(self._generators, state, strict=True):
            generator.set_state(before)

    def go_back(self, state: list[Tensor]) -> None:
        """Draw again what was drawn since."""
        del self._generators[len(state) :]
        for generator, before in zip(self._generators, state, strict=True):
            generator.set_state(before)


def _scores(output: Any) -> Any:
    """Find scores, (samples, classes) or (samples, positions, tokens): what is called so, else the first
    like them.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if named is not None:
        return named
    return next((t for t in tensors_in(output) if t.is_floating_point() and t.dim() in (2, 3)), None)


def _placed(values: Tensor, shape: torch.Size, counting: Tensor | None) -> Tensor:
    """Lay out the values of those positions that count, 0 elsewhere."""
    if counting is None:
        return values
    placed = values.new_zeros(shape)
    placed[counting] = values
    return placed
