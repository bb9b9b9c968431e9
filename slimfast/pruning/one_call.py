"""Plan and cut in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration.data import Calibration
from slimfast.calibration.spilling import MEMORY
from slimfast.plans import Allocation, plan
from slimfast.plans.request import WidthOptions, takes_width_options
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.repair import RepairKind
from slimfast.pruning.selection import DEFAULT_METHOD, Method
from slimfast.pruning.training_start import TrainingStart, check_not_chosen
from slimfast.wrappers import unwrapped


@takes_width_options
def slim(
    model: nn.Module,
    example: Any,
    *,
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    allocation: Allocation | None = None,
    calibration: Calibration | None = None,
    select: Method = DEFAULT_METHOD,
    repair: RepairKind | None = None,
    repair_damping: float = 0.0,
    for_training: bool = False,
    memory: int = MEMORY,
    verify: bool = True,
    backend: str = "auto",
    progress: Progress | None = None,
    **options: Unpack[WidthOptions],
) -> nn.Module:
    """Plan and cut a thin copy of ``model`` in one call.

    The other arguments are those of :func:`slimfast.plan` and :func:`prune_channels`.

    Args:
        model: The network.
        example: A tensor, a tuple or a dict of its arguments, for the tracing and the verification.
        progress: Told of the groups measured, then of the stages of the pruning.

    Returns:
        The thin network.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: As those two do.

    Example:
        thin = slimfast.slim(model, torch.randn(1, 3, 224, 224), macs=0.5)
    """
    if for_training:
        check_not_chosen(TrainingStart(select, repair, repair_damping))
    model = unwrapped(model)
    planned = plan(
        model,
        example,
        outputs=outputs,
        also=also,
        allocation=allocation,
        calibration=calibration,
        memory=memory,
        backend=backend,
        progress=progress,
        **options,
    )
    return prune_channels(
        model,
        planned,
        select=select,
        repair=repair,
        repair_damping=repair_damping,
        for_training=for_training,
        calibration=calibration,
        memory=memory,
        verify=verify,
        example=example,
        backend=backend,
        progress=progress,
    )
