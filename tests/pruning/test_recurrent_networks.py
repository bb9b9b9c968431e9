"""Networks with recurrent parts through every stage: ranked, cut, repaired, trained, saved, exported."""

from __future__ import annotations

import pytest
import torch
from support.recurrent_cases import CASES
from support.recurrent_models import Reader, Stacked, Tagger

import slimfast
from slimfast import SlimfastError
from slimfast.checkpoints.exporting import export
from slimfast.graph import trace_channels
from slimfast.spectra.unit_matrices import layers_of, unit_matrix
from slimfast.storage.weights import open_weights


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(0))


def test_a_unit_is_measured_on_the_rows_of_its_gates_in_both_weights():
    torch.manual_seed(0)
    model, tokens = Tagger(), _tokens(2, 6)
    graph = trace_channels(model, tokens)
    (layer,) = (found for found in layers_of(model, open_weights(model), graph) if "rnn" in found.name)
    # 4 gates; 10 embeddings, then 2 x 12 units of the layer below; 12 units of the step before; 2 directions
    assert (layer.n, layer.d) == (12, 4 * 2 * ((10 + 12) + (24 + 12)))
    part = next(part for part in layer.parts if part.tensor == "rnn.weight_ih_l1_reverse")
    weight = model.rnn.weight_ih_l1_reverse.detach()
    rows = unit_matrix(weight, part.dim, part.units)
    assert torch.equal(rows[5], torch.cat([weight[gate * 12 + 5] for gate in range(4)]))


@pytest.mark.parametrize("method", ["l1", "l2", "lookahead", "geometric_median", "pivoted_cholesky"])
def test_every_ranking_chooses_units(method):
    torch.manual_seed(0)
    model, tokens = Tagger(), _tokens(2, 6)
    # three units that say nothing in any layer and direction: no ranking keeps them
    with torch.no_grad():
        for name, tensor in model.rnn.named_parameters():
            blocks = tensor.view(4, 12, -1)
            blocks[:, [1, 6, 7]] *= 1e-4
            if "weight_hh" in name:
                tensor[:, [1, 6, 7]] *= 1e-4
    plan = slimfast.plan(model, tokens, overrides={"rnn.*": 9})
    chosen = slimfast.select(model, plan, method=method)
    (group,) = (g for g in chosen.groups if g.name.startswith("rnn"))
    if method == "geometric_median":
        # those three are close to one another, but far from the centre of the others or not
        assert len(group.keep) == 9
    else:
        assert set(group.keep) == set(range(12)) - {1, 6, 7}


@pytest.mark.parametrize("name", CASES)
def test_every_network_is_planned_cut_trained_and_loaded_again(name, tmp_path):
    torch.manual_seed(0)
    make, arguments, other = CASES[name]
    model = make().eval()
    plan = slimfast.plan(model, arguments, params=0.6)
    thin = slimfast.prune_channels(model, plan, example=arguments)
    slimfast.save(thin, tmp_path / "thin.safetensors")
    loaded = slimfast.load(tmp_path / "thin.safetensors", make().eval())
    for key, tensor in thin.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*other), thin(*other))
    loaded.train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.01)
    loaded(*other).square().mean().backward()
    assert all(p.grad is not None for n, p in loaded.named_parameters() if "weight_hh" in n)
    optimizer.step()


def test_repair_solves_what_reads_linearly_and_says_why_recurrent_layers_are_left():
    torch.manual_seed(0)
    model, tokens = Tagger().eval(), _tokens(4, 6)
    plan = slimfast.plan(model, tokens, params=0.6)
    calibration = slimfast.calibrate(model, plan.graph, [tokens])
    thin = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration)
    report = slimfast.repair_report(thin)
    assert set(report.fits) == {"out.weight"}
    recurrent = {n for n, _ in model.named_parameters() if n.startswith("rnn.weight")}
    assert set(report.left) == recurrent
    assert set(report.left.values()) == {
        "rnn (LSTM) is recurrent: what it reads and what it says of the step before are one sum"
    }
    with torch.no_grad():
        plain = slimfast.prune_channels(model, plan, repair=None, calibration=calibration)
        wanted = model(tokens)
        assert (thin(tokens) - wanted).square().mean() < (plain(tokens) - wanted).square().mean()


def test_units_that_no_calibration_has_measured_are_chosen_by_the_weights():
    torch.manual_seed(0)
    model, tokens = Tagger().eval(), _tokens(4, 6)
    plan = slimfast.plan(model, tokens, params=0.6)
    calibration = slimfast.calibrate(model, plan.graph, [tokens])
    found = {g.name: g.keep for g in slimfast.select(model, plan, calibration=calibration).groups}
    by_weights = {g.name: g.keep for g in slimfast.select(model, plan).groups}
    with pytest.raises(SlimfastError, match=r"embed was not calibrated: rnn .LSTM. is recurrent"):
        slimfast.select(model, plan, method="activations", calibration=calibration)
    read = {
        g.name
        for g in plan.groups
        if any(m.tensor == "out.weight" for m in plan.graph.consumers(plan.graph[g.name]))
    }
    assert read
    assert {name: found[name] for name in found if name not in read} == {
        name: by_weights[name] for name in found if name not in read
    }
    assert any(found[name] != by_weights[name] for name in read)


def test_repair_from_weights_takes_on_no_units_of_gates():
    torch.manual_seed(0)
    model, tokens = Tagger(kind="GRU").eval(), _tokens(4, 6)
    plan = slimfast.plan(model, tokens, params=0.6)
    report = slimfast.repair_report(slimfast.prune_channels(model, plan, repair="weights"))
    assert report.fits == {}
    assert report.left["out.weight"] == (
        "units of rnn.weight_ih_l0 are products of the gates of rnn, which weights do not tell"
    )
    plain = Tagger(kind="RNN").eval()
    thin = slimfast.prune_channels(plain, slimfast.plan(plain, tokens, params=0.6), repair="weights")
    assert set(slimfast.repair_report(thin).fits) == {"out.weight"}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_thin_network_is_exported(suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    model, tokens = Tagger().eval(), _tokens(2, 6)
    thin = slimfast.slim(model, tokens, params=0.5)
    export(thin, tmp_path / f"thin{suffix}", tokens)
    assert (tmp_path / f"thin{suffix}").stat().st_size > 0


@pytest.mark.parametrize("make", [Reader, Stacked])
def test_a_thin_network_is_distilled(make):
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(2, 1, 8, 12) if make is Reader else torch.randn(2, 6, 5)
    thin = slimfast.slim(model, x, params=0.6)
    was = {name: tensor.clone() for name, tensor in thin.state_dict().items()}
    loss = slimfast.DistillationLoss(hard=0)
    history = slimfast.distill(thin, teacher=model, train=[x, x + 0.1], epochs=1, lr=0.01, loss=loss)
    assert len(history.epochs) == 1
    changed = {name for name, tensor in thin.state_dict().items() if not torch.equal(was[name], tensor)}
    assert {name for name in was if "weight_hh" in name} <= changed


def test_a_thin_network_is_cut_again():
    torch.manual_seed(0)
    model = Tagger().eval()
    tokens = _tokens(2, 6)
    once = slimfast.slim(model, tokens, params=0.7)
    twice = slimfast.slim(once, tokens, params=0.7)
    assert twice.rnn.hidden_size < once.rnn.hidden_size < 12
    described = slimfast.manifest(twice)
    assert described.shapes_before["rnn.weight_hh_l0"] == (48, 12)
    assert {p.attribute: (p.before, p.after) for p in described.patches if p.module == "rnn"}[
        "hidden_size"
    ] == (12, twice.rnn.hidden_size)
