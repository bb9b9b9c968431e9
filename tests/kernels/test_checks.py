"""What the ops say of values that are not finite: which is the first, and how many, found part by part."""

from __future__ import annotations

import pytest
import torch

from slimfast.kernels import checks


@pytest.mark.parametrize("part", [1, 3, 7, 20, 100])
@pytest.mark.parametrize("strided", [False, True])
def test_the_first_of_all_values_is_named_whatever_the_parts(
    monkeypatch: pytest.MonkeyPatch, part: int, strided: bool
) -> None:
    monkeypatch.setattr(checks, "_PART", part)
    x = torch.zeros(7, 5).T if strided else torch.zeros(5, 7)
    x[1, 6] = float("inf")
    x[2, 0] = x[4, 1] = float("nan")
    assert checks.non_finite("op", "fc", x) == "op: expected finite values, got inf at (1, 6), 3 in all (fc)"
    x[:] = 1e30
    assert checks.non_finite("op", "fc", x) == (
        "op: expected values whose squares are finite, got an overflow (fc)"
    )


def test_no_look_at_values_is_larger_than_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    isfinite = torch.Tensor.isfinite

    def counting(x: torch.Tensor) -> torch.Tensor:
        looked.append(x.numel())
        return isfinite(x)

    monkeypatch.setattr(torch.Tensor, "isfinite", counting)
    for shape in ((3000, 700), (1, 3_000_000), (2_100_000, 1)):
        looked.clear()
        checks.non_finite("op", "fc", torch.full(shape, float("nan"), dtype=torch.bfloat16))
        assert sum(looked) == shape[0] * shape[1]
        assert max(looked) <= checks._PART
