"""Spectra of groups against numpy's float64 LAPACK: any layout of units, scaled; bad input is named."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.channel_graphs import chain, chain_weights, joint, units_of
from support.spectra_cases import lapack
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.spectra import eigenvalues, measure_spectra
from slimfast.spectra.unit_matrices import unit_matrix

# Units of a group


def test_unit_matrix_in_order_is_a_view() -> None:
    weight = torch.randn(6, 4, 3)
    heads = unit_matrix(weight, 0, units_of(3, 2))
    assert heads.shape == (3, 24)
    assert heads.data_ptr() == weight.data_ptr()
    part = unit_matrix(weight, 0, np.array([-1, -1, 0, 1, 2, -1]))
    assert part.data_ptr() == weight[2:].data_ptr()
    assert torch.equal(part, weight[2:5].reshape(3, 12))


def test_unit_matrix_collects_each_unit_s_slices() -> None:
    weight = torch.arange(5 * 6).reshape(5, 6)
    units = np.array([2, 0, -1, 1, 0, 2, 1])
    found = unit_matrix(torch.arange(7 * 2).reshape(7, 2), 0, units)
    assert found.tolist() == [[2, 3, 8, 9], [6, 7, 12, 13], [0, 1, 10, 11]]
    assert unit_matrix(weight, 1).tolist() == weight.T.tolist()


def numpy_of(tensor: Tensor, dim: int, units: np.ndarray) -> np.ndarray:
    """The unit matrix by a loop over units."""
    moved = np.moveaxis(tensor.double().numpy(), dim, 0)
    return np.stack([moved[units == u].ravel() for u in range(units.max() + 1)])


JOINT = [
    # residual stream: two convs and a transposed weight that produces with dim 1; n < d
    [("a", (8, 3, 2), 0, units_of(8)), ("b", (5, 8), 1, units_of(8)), ("c", (8, 1), 0, units_of(8))],
    # more units than positions
    [("a", (12, 3), 0, units_of(12)), ("b", (12, 2), 0, units_of(12))],
    # heads of 4 rows each in q, k and v, v's in another order
    [
        ("q", (12, 7), 0, units_of(3, 4)),
        ("k", (12, 7), 0, units_of(3, 4)),
        ("v", (12, 7), 0, np.tile(np.arange(3), 4)),
    ],
    # a part of an axis only
    [("a", (10, 4), 0, np.array([-1, 3, 2, -1, 1, 0, -1, -1, 4, -1])), ("b", (5, 9), 0, units_of(5))],
]


@pytest.mark.parametrize("scaling", ["raw", "unit"])
@pytest.mark.parametrize("member_scaling", [False, True])
@pytest.mark.parametrize("elements", [35, 1])
def test_more_units_than_positions_in_blocks(
    scaling: str, member_scaling: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 6 and 7 units, and of one."""
    monkeypatch.setattr(eigenvalues, "_BLOCK_ELEMENTS", elements)
    members = [("a", (47, 3), 0, units_of(47)), ("b", (2, 47), 1, units_of(47))]
    tensors = {name: torch.randn(shape) * (i + 1) + 2 for i, (name, shape, _, _) in enumerate(members)}
    layer = joint(members)
    found = measure_spectra(
        tensors, layer, scaling=scaling, member_scaling=member_scaling, dtype=torch.float64
    )
    expected = lapack(
        *(numpy_of(tensors[name], dim, units) for name, _, dim, units in members),
        scaling=scaling,
        member_scaling=member_scaling,
    )
    (s,) = found.values()
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-10, atol=1e-12 * expected[0])
    assert s.trace == pytest.approx(expected.sum())


@pytest.mark.parametrize("members", JOINT, ids=["residual", "wide", "heads", "part"])
@pytest.mark.parametrize("scaling", ["raw", "unit"])
@pytest.mark.parametrize("member_scaling", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_bytes", [eigenvalues.BATCH_BYTES, 1], ids=["in one pass", "in batches"])
def test_joint_groups_against_lapack(
    members: list[tuple[str, tuple[int, ...], int, np.ndarray]],
    scaling: str,
    member_scaling: bool,
    dtype: torch.dtype,
    batch_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eigenvalues, "BATCH_BYTES", batch_bytes)
    torch.manual_seed(1)
    # Means far from zero and members of very different size, so that centring and scaling both show.
    tensors = {name: (i + 1) * torch.randn(shape) + 3 for i, (name, shape, _, _) in enumerate(members)}
    found = measure_spectra(
        tensors,
        joint(members),
        scaling=scaling,
        member_scaling=member_scaling,
        dtype=dtype,
        backend="reference",
    )
    xs = [numpy_of(tensors[name], dim, units) for name, _, dim, units in members]
    expected = lapack(*xs, scaling=scaling, member_scaling=member_scaling)
    s = found["g"]
    assert (s.scaling, s.member_scaling) == (scaling, member_scaling)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=tolerance, atol=tolerance * expected[0])
    assert s.trace == pytest.approx(expected.sum(), rel=tolerance)


def test_unit_scaling_of_one_layer_is_the_correlation() -> None:
    torch.manual_seed(0)
    for shape in [(5, 30), (30, 5)]:
        weight = torch.randn(shape) * torch.logspace(-2, 2, shape[0])[:, None]
        (s,) = measure_spectra({"a": weight}, scaling="unit", dtype=torch.float64).values()
        expected = np.linalg.eigvalsh(np.corrcoef(weight.double().numpy()))[::-1][: min(shape)]
        np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-9, atol=1e-12)
        assert s.trace == pytest.approx(shape[0])


def test_a_unit_without_variance_stays_without_under_unit_scaling() -> None:
    weight = torch.randn(4, 9)
    weight[1] = 5.0
    # In float64: what float32 leaves of a zero is more than the numerical rank calls zero.
    (s,) = measure_spectra({"a": weight}, scaling="unit", dtype=torch.float64).values()
    assert s.trace == pytest.approx(3.0)
    assert s.width(explained_variance=1.0) == 3


def test_a_tied_weight_is_found_under_its_other_name() -> None:
    graph = chain([4, 2])
    graph = dataclasses.replace(graph, tied={"alias": "0.weight"})
    weights = chain_weights([4, 2])
    expected = measure_spectra(weights, graph)["0"]
    weights["alias"] = weights.pop("0.weight")
    assert measure_spectra(weights, graph)["0"].eigenvalues.tolist() == expected.eigenvalues.tolist()


# Bad input


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_value_that_is_not_finite_names_its_layer(value: float, grouped: bool) -> None:
    weights = chain_weights([6, 5, 4])
    weights["1.weight"][2, 3] = value
    graph = chain([6, 5, 4]) if grouped else None
    with pytest.raises(
        SlimfastError, match=rf"got {value} at \(2, 3\), 1 in all \({'1' if grouped else '1.weight'}\)"
    ):
        measure_spectra(weights, graph)


def test_an_empty_layer_names_itself() -> None:
    with pytest.raises(SlimfastError, match=r"expected a layer with elements, got shape \(0, 3\) \(b\)"):
        measure_spectra({"a": torch.eye(3), "b": torch.zeros(0, 3)})


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (1, 1), (4, 1)])
def test_a_layer_of_zeros_or_one_position_needs_one_unit(shape: tuple[int, int]) -> None:
    weight = torch.zeros(shape) if shape[1] > 1 else torch.randn(shape)
    (s,) = measure_spectra({"a": weight}, taus=(0.5, 1.0)).values()
    assert (s.trace, s.error) == (0.0, 0.0)
    assert s.width(explained_variance=1.0) == 1


def test_nothing_to_measure() -> None:
    with pytest.raises(SlimfastError, match="no floating tensor of two or more dims"):
        measure_spectra({"a": torch.zeros(3), "b": torch.zeros(3, 3, dtype=torch.int64)})


def test_weights_of_another_shape_than_the_graph_s() -> None:
    weights = chain_weights([6, 5, 4])
    weights["1.weight"] = torch.zeros(5, 7)
    with pytest.raises(SlimfastError, match=r"1\.weight: expected shape \(5, 6\), got \(5, 7\)"):
        measure_spectra(weights, chain([6, 5, 4]))
    del weights["1.weight"]
    with pytest.raises(SlimfastError, match=r"no tensor '1\.weight' \(did you mean"):
        measure_spectra(weights, chain([6, 5, 4]))
    weights["1.weight"] = torch.zeros(5, 6, dtype=torch.int64)
    with pytest.raises(SlimfastError, match=r"1\.weight: expected floating elements \(1\)"):
        measure_spectra(weights, chain([6, 5, 4]))


def test_units_of_unequal_size_have_no_matrix() -> None:
    graph = joint([("a", (5, 4), 0, np.array([0, 0, 1, 1, 1]))])
    with pytest.raises(
        SlimfastError, match=r"equally many indices for each of 2 units, got 2 to 3 for 2 \(g\)"
    ):
        measure_spectra({"a": torch.randn(5, 4)}, graph)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.float16}, "expected dtype float32 or float64"),
        ({"scaling": "folded"}, "expected scaling 'raw' or 'unit', got 'folded'"),
        ({"backend": "gpu"}, "expected one of auto"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_spectra({"a": torch.eye(3)}, **arguments)
