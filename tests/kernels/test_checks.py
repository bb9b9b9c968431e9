"""What the ops say of values that are not finite: which is the first, and how many, found part by part."""

from __future__ import annotations

import pytest
import torch

from slimfast.kernels import checks, grouped_covariance


# Within one look, of several rows at a time, of parts of a row, of single rows.
@pytest.mark.parametrize("shape", [(5, 7), (3000, 700), (3, 1_500_000), (1_500_000, 3)])
@pytest.mark.parametrize("strided", [False, True])
def test_the_first_of_all_values_is_named_whatever_the_parts(shape: tuple[int, int], strided: bool) -> None:
    n, d = shape
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    x = x.T.contiguous().T if strided else x
    first = (n // 2, d - 1)
    x[first] = float("inf")
    x[n // 2 + 1, 0] = x[n - 1, 1] = float("nan")
    expected = rf"covariance: expected finite values, got inf at \({first[0]}, {first[1]}\), 3 in all \(fc\)"
    with pytest.raises(ValueError, match=expected):
        grouped_covariance([x], names=["fc"])


def test_values_whose_squares_are_too_large_are_told_apart() -> None:
    x = 1e200 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected values whose squares are finite, got an overflow \(fc\)"):
        grouped_covariance([x], names=["fc"])


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
        # A byte each.
        assert max(looked) <= 1 << 20
