"""The verb of gradual pruning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration import Calibration
from slimfast.calibration.masks import MaskOption
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentError, ArgumentTypeError
from slimfast.gradual.carrying import averaged
from slimfast.gradual.rounds_folder import RoundsFolder
from slimfast.gradual.runs import Rounds
from slimfast.gradual.schedule import Schedule, ways_done
from slimfast.plans.fingerprint import fingerprint
from slimfast.plans.limits import budget_of
from slimfast.plans.request import WidthOptions, takes_width_options
from slimfast.wrappers import unwrapped


@takes_width_options
def rounds(
    model: nn.Module,
    example: Any,
    *,
    rounds: int = 4,
    schedule: Schedule | Sequence[float] = "geometric",
    calibration: Iterable[Any] | None = None,
    samples: int = 512,
    mask: MaskOption = "attention_mask",
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    averages: Iterable[nn.Module] = (),
    in_place: bool = False,
    folder: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    verify: bool = True,
    backend: str = "auto",
    progress: Progress | None = None,
    **options: Unpack[WidthOptions],
) -> Rounds:
    """Prune a network in rounds, between which the caller trains it.

    Each round measures the network as it is then, plans, chooses units and repairs as a training best starts
    from (:func:`slimfast.pruning.choices.chosen_for_training`), and cuts to its share of the way to the
    budget. ``model`` stays as it is unless ``in_place``; names, and the manifest, which is relative to
    ``model``, allow :func:`slimfast.save` and :func:`slimfast.load` after any round. The other keywords are
    those of :func:`slimfast.plan_widths`.

    Args:
        model: The network.
        example: A tensor, a tuple or a dict of its arguments.
        rounds: How many times to cut.
        schedule: How the budget comes down: ``"geometric"`` by the same share in each round, ``"linear"`` by
            the same amount, ``"cubic"`` most in the first rounds; or a number for each round, which part of
            the way it has come.
        calibration: Batches for :func:`slimfast.calibrate`, which every round measures anew: something that
            can be iterated again. None: widths from the weights alone, and no repair.
        samples: How many samples to measure, at most.
        mask: As for :func:`slimfast.calibrate`.
        outputs: Which outputs stay as they are, as for :func:`slimfast.trace_channels`.
        also: Examples of other calls, likewise.
        optimizer: That of ``model``. It is changed in place: after each cut it holds the thin network's
            parameters, with the state of what was kept.
        scheduler: The learning-rate scheduler of that optimizer: it goes on as it is, and is kept in the
            ``folder``.
        averages: Averaged weights of ``model`` (``AveragedModel``, timm's), cut in place likewise. What a
            repair has solved for begins anew.
        in_place: Makes the modules of ``model`` those of the thin network, for training loops that hold on to
            them, instead of new ones.
        folder: Where each round is kept. A run with the same arguments goes on there with the last round that
            was cut; the training of that round is done again from its beginning.
        memory: Bytes of activations held at once.
        verify: Also runs both networks of each cut and compares (:func:`slimfast.verify`).
        backend: The kernels to use.
        progress: Called with steps done and of all; what it raises (:class:`slimfast.Cancelled`) ends the
            work, and the iterator can be asked again.

    Returns:
        An iterator of :class:`Round`, each of which unpacks into plan, thin network, optimizer. Its ``model``
        is the network as it is, also where a ``folder`` holds a run that is done and nothing is left to cut.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: As :func:`slimfast.plan` and :func:`slimfast.prune_channels`, when the next round is
            asked for; for a folder of another run.

    Example:
        run = slimfast.rounds(
            model, example, macs=0.3, rounds=4, calibration=loader, optimizer=optimizer, folder="rounds"
        )
        for plan, thin, optimizer in run:
            train(thin, optimizer, epochs=2)
        slimfast.save(run.model, "thin.safetensors")
    """
    ways = ways_done(schedule, rounds)
    _check_batches(calibration)
    if not budget_of(options):
        raise ArgumentError("rounds: expected a budget of params or macs, got none of them")
    if options.get("latency") is not None or options.get("latency_table") is not None:
        raise ArgumentError(
            "rounds: expected a budget of params or macs, got latency, whose table is of one network; "
            "slimfast.plan(..., latency=) says how many macs that is"
        )
    if options.get("peak_memory") is not None or options.get("memory_table") is not None:
        raise ArgumentError(
            "rounds: expected a budget of params or macs, got peak_memory, whose table is of one network; "
            "slimfast.plan(..., peak_memory=) says how many macs that is"
        )
    if options.get("explained_variance") is not None:
        raise ArgumentError("rounds: expected a budget of params or macs, got explained_variance")
    held = list(averages)
    for average in held:
        averaged(average)
    network = unwrapped(model)
    asked = {name: value for name, value in sorted(options.items()) if value is not None}
    request = f"{asked} in {rounds} rounds, {schedule if isinstance(schedule, str) else list(ways)}"
    kept = None if folder is None else RoundsFolder(folder, request, fingerprint(network))
    return Rounds(
        network,
        example,
        options,
        ways=ways,
        schedule=schedule,
        batches=calibration,
        trace={"outputs": outputs, "also": list(also)},
        measure={"samples": samples, "mask": mask, "memory": memory, "backend": backend},
        optimizer=optimizer,
        scheduler=scheduler,
        averages=held,
        in_place=in_place,
        folder=kept,
        verify=verify,
        progress=progress,
    )


def _check_batches(batches: object) -> None:
    """Refuse what cannot be measured anew in every round."""
    if isinstance(batches, Calibration):
        raise ArgumentTypeError(
            "rounds: expected batches, which every round measures anew, got a Calibration, which was "
            "measured: give the batches that it was made from"
        )
    if batches is not None and (not isinstance(batches, Iterable) or iter(batches) is batches):
        raise ArgumentTypeError(
            "rounds: expected calibration batches that can be iterated again, such as a list or a "
            f"DataLoader, got {type(batches).__name__}"
        )
