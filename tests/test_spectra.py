"""Spectra against numpy's float64 LAPACK: alone, in groups, scaled, certified, saved."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from channel_graphs import chain, chain_weights, joint, units_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.spectra import Spectrum, eigenvalues, load_spectra, measure_again, measure_spectra, save_spectra
from slimfast.spectra.unit_matrices import unit_matrix


def spectrum(values: list[float], *, n: int | None = None, error: float = 0.0) -> Spectrum:
    eigenvalues = np.array(values, dtype=np.float64)
    dtype = "float32" if error > 1e-9 else "float64"
    return Spectrum(
        "layer", n or len(values), len(values), eigenvalues, float(eigenvalues.sum()), error, dtype
    )


def lapack(*members: np.ndarray, scaling: str = "raw", member_scaling: bool = False) -> np.ndarray:
    """Descending eigenvalues of the joint covariance, written as the definition reads."""
    d = sum(x.shape[1] for x in members)
    centred = [x - x.mean(1, keepdims=True) for x in members]
    if member_scaling:
        centred = [x / (np.sqrt((x**2).sum() / (d - 1)) or 1.0) for x in centred]
    x = np.concatenate(centred, axis=1)
    s = x @ x.T / (d - 1)
    if scaling == "unit":
        deviation = np.sqrt(np.diag(s))
        s = s / deviation / deviation[:, None]
    return np.maximum(np.linalg.eigvalsh(s)[::-1], 0.0)[: min(s.shape[0], d)]


# One layer


def test_widths_of_a_hand_made_spectrum() -> None:
    s = spectrum([4.0, 3.0, 2.0, 1.0])
    np.testing.assert_allclose(s.explained_variance_ratio(), [0.4, 0.7, 0.9, 1.0])
    taus = [0.01, 0.4, 0.41, 0.7, 0.71, 0.89, 0.91, 1.0]
    assert [s.width(explained_variance=tau) for tau in taus] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [s.ratio(width) for width in range(5)] == pytest.approx([0.0, 0.4, 0.7, 0.9, 1.0])


def test_ratio_is_one_beyond_the_smaller_side() -> None:
    s = spectrum([1.0, 1.0], n=5)
    assert s.ratio(5) == 1.0
    for width in (-1, 6):
        with pytest.raises(ValueError, match=rf"expected a width in 0..5, got {width} \(layer\)"):
            s.ratio(width)


def test_everything_but_rounding_is_the_numerical_rank() -> None:
    s = spectrum([5.0, 2.0, 1e-17, 0.0])
    assert s.rank() == 2
    assert s.width(explained_variance=1.0) == 2


def test_a_layer_without_variance_needs_one_unit() -> None:
    s = spectrum([0.0, 0.0, 0.0])
    assert s.width(explained_variance=1.0) == 1
    assert s.effective_rank() == 1.0
    assert s.explained_variance_ratio().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_tau_outside_its_range(tau: float) -> None:
    for question in (spectrum([1.0]).width, spectrum([1.0]).certified):
        with pytest.raises(ValueError, match=r"expected explained_variance in \(0, 1\], got .* \(layer\)"):
            question(explained_variance=tau)
    with pytest.raises(ValueError, match="explained_variance"):
        measure_spectra({"a": torch.eye(3)}, taus=(tau,))


def test_effective_rank() -> None:
    assert spectrum([2.0] * 7).effective_rank() == pytest.approx(7.0)
    assert spectrum([3.0, 0.0]).effective_rank() == pytest.approx(1.0)
    # entropy of (1/2, 1/4, 1/4) is 1.5 ln 2
    assert spectrum([2.0, 1.0, 1.0]).effective_rank() == pytest.approx(2**1.5)


def test_certified_says_whether_the_error_can_change_the_width() -> None:
    s = spectrum([4.0, 3.0, 2.0, 1.0], error=1e-3)
    assert s.certified(explained_variance=0.8)
    assert s.certified(explained_variance=0.7 + 2e-3)
    assert not s.certified(explained_variance=0.7 + 5e-4)
    assert not s.certified(explained_variance=0.7 - 5e-4)
    assert s.certified(explained_variance=1.0)
    assert not spectrum([4.0, 3.0, 3e-6], error=1e-3).certified(explained_variance=1.0)
    assert dataclasses.replace(s, error=0.0).certified(explained_variance=0.7)
    assert s.width_range(explained_variance=0.7) == (2, 3)


descending = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.0, 1e3)).map(
    lambda a: np.sort(a)[::-1]
)
shares = st.floats(0.0, 1.0, exclude_min=True)


@given(descending, shares)
def test_width_is_the_smallest_that_explains_enough(values: np.ndarray, tau: float) -> None:
    s = spectrum(values.tolist())
    width = s.width(explained_variance=tau)
    enough = min(tau, s.ratio(s.rank()))
    assert s.ratio(width) >= enough
    assert width == 1 or s.ratio(width - 1) < enough


@given(descending, shares, st.floats(0.0, 0.3), st.floats(-1.0, 1.0))
def test_certified_widths_survive_any_shift_within_the_error(
    values: np.ndarray, tau: float, error: float, shift: float
) -> None:
    s = spectrum(values.tolist(), error=error)
    if s.certified(explained_variance=tau) and error > 0 and tau - error * shift <= 1.0:
        first = np.searchsorted(s.explained_variance_ratio(), tau - 0.999 * error * shift) + 1
        assert min(first, len(values)) == s.width_range(explained_variance=tau)[0]


# Sources without a graph


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 1), nn.Flatten(), nn.Linear(24, 5)
    )


def test_every_matrix_of_a_module_against_lapack(model: nn.Module) -> None:
    found = measure_spectra(model, dtype=torch.float64)
    assert list(found) == ["0.weight", "2.weight", "4.weight"]
    for name, s in found.items():
        x = model.get_parameter(name).detach().flatten(1).double().numpy()
        expected = lapack(x)
        assert (s.name, s.n, s.d, s.dtype) == (name, *x.shape, "float64")
        np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-10, atol=1e-13 * expected[0])
        assert s.trace == pytest.approx(expected.sum())


def test_float32_is_the_default_and_within_its_error(model: nn.Module) -> None:
    exact = measure_spectra(model, dtype=torch.float64)
    for name, s in measure_spectra(model).items():
        assert s.dtype == "float32"
        assert 1e-8 < s.error < 1e-4
        worst = np.abs(s.explained_variance_ratio() - exact[name].explained_variance_ratio()).max()
        assert 0 < worst < s.error


def test_float64_weights_are_measured_in_float64() -> None:
    (s,) = measure_spectra({"a": torch.randn(4, 6, dtype=torch.float64)}).values()
    assert (s.dtype, s.error) == ("float64", 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 20).to(dtype)
    (s,) = measure_spectra({"a": weight}).values()
    expected = lapack(weight.double().numpy())
    np.testing.assert_allclose(s.eigenvalues, expected, rtol=1e-5)


def test_module_mapping_file_and_shards_give_the_same(model: nn.Module, tmp_path: Path) -> None:
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "model.pth")
    index = tmp_path / "sharded.safetensors.index.json"
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"shard-{i}.safetensors"
        save_file({name: tensor}, tmp_path / weight_map[name])
    index.write_text(json.dumps({"weight_map": weight_map}))
    expected = measure_spectra(model)
    for source in (tensors, tmp_path / "model.safetensors", str(tmp_path / "model.pth"), index):
        found = measure_spectra(source)
        assert list(found) == list(expected)
        for name, s in found.items():
            assert s.eigenvalues.tolist() == expected[name].eigenvalues.tolist()


def test_a_tied_parameter_is_one_layer() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)})
    model["b"].weight = model["a"].weight
    assert list(measure_spectra(model)) == ["a.weight"]


def test_small_batches_change_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = chain([9, 8, 7, 2], inputs=40), chain_weights([9, 8, 7, 2], inputs=40)
    expected = [measure_spectra(model), measure_spectra(weights, graph, scaling="unit")]
    monkeypatch.setattr(eigenvalues, "BATCH_BYTES", 100)
    found = [measure_spectra(model), measure_spectra(weights, graph, scaling="unit")]
    for before, after in zip(expected, found, strict=True):
        assert list(before) == list(after)
        for name in before:
            np.testing.assert_allclose(
                before[name].eigenvalues, after[name].eigenvalues, rtol=1e-6, atol=1e-9
            )


def test_progress_counts_every_layer_once(model: nn.Module) -> None:
    seen: list[tuple[int, int]] = []
    measure_spectra(model, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


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


# Certification


def near_a_tie(seed: int) -> tuple[Tensor, float]:
    """A layer and a tau that float32 cannot tell from its F(9), but float64 can: 1e-10 above it."""
    weight = torch.randn(24, 200, generator=torch.Generator().manual_seed(seed))
    exact = lapack(weight.double().numpy())
    return weight, float(exact[:9].sum() / exact.sum()) + 1e-10


def test_what_float32_leaves_open_is_measured_in_float64() -> None:
    cases = {f"{seed}": near_a_tie(seed) for seed in range(20)}
    taus = [tau for _, tau in cases.values()]
    found = measure_spectra({name: weight for name, (weight, _) in cases.items()}, taus=taus)
    single = measure_spectra({name: weight for name, (weight, _) in cases.items()})
    wrong = 0
    for name, (_, tau) in cases.items():
        assert found[name].dtype == "float64"
        assert found[name].width(explained_variance=tau) == 10
        assert not single[name].certified(explained_variance=tau)
        wrong += single[name].width(explained_variance=tau) != 10
    # Without the second measurement about half of these would be wrong.
    assert wrong > 0


def test_a_layer_that_float32_settles_is_not_measured_again() -> None:
    (s,) = measure_spectra({"a": near_a_tie(0)[0]}, taus=(0.5,)).values()
    assert s.dtype == "float32"


def test_ties_are_what_lapack_in_float64_says() -> None:
    weight = torch.randn(12, 40)
    exact = lapack(weight.double().numpy())
    (reference,) = measure_spectra({"a": weight}, dtype=torch.float64, backend="reference").values()
    tau = float(reference.explained_variance_ratio()[4])
    (s,) = measure_spectra({"a": weight}, taus=(tau,)).values()
    assert (s.dtype, s.error) == ("float64", 0.0)
    assert s.width(explained_variance=tau) == 5
    np.testing.assert_allclose(s.eigenvalues, exact, rtol=1e-10)


def test_measure_again_goes_one_step_up_each_time() -> None:
    weights, graph = chain_weights([6, 5, 4], inputs=9), chain([6, 5, 4], inputs=9)
    first = measure_spectra(weights, graph, scaling="unit")
    second = measure_again(weights, first, ["1"], graph)
    assert list(second) == ["1"]
    assert (second["1"].dtype, second["1"].error, second["1"].scaling) == ("float64", 1e-12, "unit")
    third = measure_again(weights, second, ["1"], graph)
    assert (third["1"].dtype, third["1"].error) == ("float64", 0.0)
    np.testing.assert_allclose(third["1"].eigenvalues, first["1"].eigenvalues, rtol=1e-5, atol=1e-6)
    with pytest.raises(SlimfastError, match=r"no layer '11' \(did you mean '1'\?\)"):
        measure_again(weights, first, ["11"], graph)


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


# Files


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    save_spectra(measure_spectra(model, scaling="unit"), tmp_path / "spectra.safetensors")
    return tmp_path / "spectra.safetensors"


def test_saved_spectra_come_back_bit_for_bit(model: nn.Module, saved: Path) -> None:
    expected = measure_spectra(model, scaling="unit")
    found = load_spectra(saved)
    assert set(found) == set(expected)
    for name, s in found.items():
        for field in dataclasses.fields(s):
            assert np.array_equal(getattr(s, field.name), getattr(expected[name], field.name))
    assert [p.name for p in saved.parent.iterdir()] == ["spectra.safetensors"]


def rewritten(path: Path, change: str, by: str) -> Path:
    """The file with a text of its metadata replaced by one of the same length."""
    content = path.read_bytes()
    assert change.encode() in content
    assert len(change) == len(by)
    path.write_bytes(content.replace(change.encode(), by.encode()))
    return path


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ('\\"schema\\": 1', '\\"schema\\": 2', "expected schema 1 of slimfast.spectra, got 2"),
        ("slimfast.spectra", "slimfast.manifes", "expected a document of kind 'slimfast.spectra'"),
        ('\\"n\\": 16', '\\"n\\": 17', "expected 17 float64 eigenvalues for 17 units"),
        ('\\"n\\": 16', '\\"n\\": -6', "expected an integer in 1.."),
        ("float32", "float16", "dtype: expected one of float32, float64, got 'float16'"),
        ('slimfast"', 'slimfasT"', "expected a file of spectra, got other tensors"),
        ('\\"name\\": \\"0.weight', '\\"name\\": \\"9.weight', "no eigenvalues of '9.weight'"),
        ('\\"trace\\"', '\\"trac3\\"', "field 'trace' is missing"),
    ],
)
def test_a_file_with_wrong_fields_is_refused(saved: Path, change: str, by: str, message: str) -> None:
    with pytest.raises(SlimfastError, match=message) as error:
        load_spectra(rewritten(saved, change, by))
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    for broken in (b"", content[: len(content) // 2], content[:-3], b"once upon a time"):
        saved.write_bytes(broken)
        with pytest.raises(SlimfastError, match=rf"cannot read {saved}") as error:
            load_spectra(saved)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(SlimfastError, match=f"cannot read {path}"):
            load_spectra(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "descending order"),
        ([1.0, -1.0], "eigenvalues >= 0"),
        ([1.0, math.nan], "finite eigenvalues, got a sum of nan"),
        ([math.inf, 1.0], "finite eigenvalues, got a sum of inf"),
        ([1e308, 1e308], "finite eigenvalues, got a sum of inf"),
        ([1.0], r"expected 2 float64 eigenvalues for 2 units over 2 positions, got float64 of shape \(1,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_eigenvalues_that_no_measurement_gives_are_refused(
    values: list[float], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spectra.safetensors"
    save_spectra({"layer": spectrum([1.0, 1.0])}, path)
    content = path.read_bytes()
    start = len(content) - 16
    path.write_bytes(content[:start] + np.array(values).tobytes().ljust(16, b"\0"))
    if len(values) == 2:
        with pytest.raises(SlimfastError, match=rf"{message}.*\(layer\)"):
            load_spectra(path)
    with pytest.raises(SlimfastError, match=rf"{message}.*\(layer\)"):
        dataclasses.replace(spectrum([1.0, 1.0]), eigenvalues=np.array(values))


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SlimfastError, match="cannot write"):
        save_spectra({"layer": spectrum([1.0])}, tmp_path / "missing" / "spectra.safetensors")
