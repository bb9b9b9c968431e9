"""grouped_patch_moments: every backend against PyTorch's own patches; groups, batches and bad arguments."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases
from support.moments_cases import CONVOLUTIONS, assert_accurate, patches_of

from slimfast.kernels import Convolution, grouped_patch_moments

DTYPES = (torch.float32, torch.float64)
PLAIN = Convolution((3, 3), (1, 1), (1, 1), (1, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "conv"), CONVOLUTIONS)
def test_accuracy(shape: tuple[int, ...], conv: Convolution, dtype: torch.dtype, backend: str) -> None:
    x = (cases.normal(*shape) + 0.5).to(dtype)
    (found,) = grouped_patch_moments([x], [conv], backend=backend)
    assert_accurate(found, patches_of(x, conv))


def test_the_variables_are_in_the_order_of_the_weight(backend: str) -> None:
    layer = torch.nn.Conv2d(6, 8, (3, 2), stride=2, padding=1, groups=2, bias=False).double()
    x = cases.normal(3, 6, 9, 8)
    conv = Convolution(layer.kernel_size, layer.stride, (1, 1), layer.dilation, layer.groups)
    (found,) = grouped_patch_moments([x], [conv], backend=backend)
    weight = layer.weight.detach().reshape(2, 4, -1)
    outputs = layer(x).detach().movedim(1, 0).reshape(2, 4, -1)
    assert torch.allclose(
        weight @ found.squares @ weight.mT / (found.count - 1), torch.stack([torch.cov(o) for o in outputs])
    )
    assert torch.allclose((weight @ found.mean[..., None])[..., 0], outputs.mean(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_strides_and_sixteen_bits(dtype: torch.dtype, backend: str) -> None:
    dense = (cases.normal(5, 9, 12, 11) * 2 + 7).to(dtype)
    moments, seen = None, []
    for x in (
        dense[:1],
        dense[1:].contiguous(memory_format=torch.channels_last),
        dense.transpose(2, 3),
        dense[:, :, ::2],
    ):
        moments = grouped_patch_moments([x], [PLAIN], into=moments, backend=backend)
        seen.append(patches_of(x.float(), PLAIN))
    assert moments is not None
    assert_accurate(moments[0], torch.cat(seen, -1))


def test_a_value_that_is_not_finite_names_its_layer(backend: str) -> None:
    x = cases.normal(2, 3, 6, 6, dtype=torch.float32)
    x[1, 2, 3, 4] = float("nan")
    message = r"patch_moments: .* got nan of variable 2 at position \(1, 3, 4\), 1 in all \(conv\)"
    with pytest.raises(ValueError, match=message):
        grouped_patch_moments([x], [PLAIN], names=["conv"], backend=backend)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_arguments_are_refused() -> None:
    x = torch.zeros(2, 4, 6, 6)
    refused = [
        (PLAIN._replace(kernel=(3,)), r"expected \(N, C, ...\) of 1 to 3 spatial dims and as many numbers"),
        (PLAIN._replace(groups=3), "expected a convolution of 4 channels"),
        (PLAIN._replace(stride=(0, 1)), "expected a convolution of 4 channels"),
        (PLAIN._replace(padding=(-1, 0)), "expected a convolution of 4 channels"),
        (PLAIN._replace(kernel=(9, 3)), "expected an input that the kernel fits into"),
    ]
    for conv, message in refused:
        with pytest.raises(ValueError, match=rf"patch_moments: {message}"):
            grouped_patch_moments([x], [conv])
    with pytest.raises(ValueError, match="expected 1 convolutions, got 0"):
        grouped_patch_moments([x], [])
    good = grouped_patch_moments([x], [PLAIN])
    with pytest.raises(ValueError, match=r"expected contiguous float64 moments of shape \(2, 18\)"):
        grouped_patch_moments([x], [PLAIN._replace(groups=2)], into=good)
    assert grouped_patch_moments([], []) == []


def test_no_samples(backend: str) -> None:
    (found,) = grouped_patch_moments([torch.zeros(0, 4, 6, 6)], [PLAIN], backend=backend)
    assert found.count == 0
    assert not found.squares.any()
