"""Plan and cut in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration.data import Calibration, check_is_calibration
from slimfast.calibration.spilling import MEMORY
from slimfast.plans import Allocation, plan
from slimfast.plans.request import WidthOptions, takes_width_options
from slimfast.pruning.choices import Given, Repair, check_not_given
from slimfast.pruning.depth.mixed import check_depth, slim_to_depth
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.selection import Method
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
    depth: int | Iterable[int] = 0,
    select: Method | None = None,
    repair: Repair = "auto",
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
        depth: So many layers go first (:func:`slimfast.drop_layers`), and the widths of the others are cut to
            what that leaves of the budget, which is one of the whole network. Of several numbers all are
            tried, and the network that diverges least from the original on samples of the ``calibration`` is
            returned. Names in other options are those of the shorter network.
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
        check_not_given(Given(select, repair, repair_damping))
    if calibration is not None:
        check_is_calibration(calibration)
    model = unwrapped(model)
    if depth != 0:
        numbers = depth if isinstance(depth, int) else list(depth)
        asked = check_depth(numbers, calibration, options)
        assert calibration is not None, "it was checked"

        def cut_widths(short: nn.Module, own: Calibration, rest: Mapping[str, Any]) -> nn.Module:
            return slim(
                short, example, outputs=outputs, also=also, allocation=allocation, calibration=own,
                select=select, repair=repair, repair_damping=repair_damping, for_training=for_training,
                memory=memory, verify=verify, backend=backend, progress=progress, **rest,
            )  # fmt: skip

        return slim_to_depth(model, example, asked, calibration, options, cut_widths, progress)
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
