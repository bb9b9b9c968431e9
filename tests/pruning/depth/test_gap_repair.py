"""What stands before a gap makes up for it, as far as its product can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.depth_cases import Mlps, ResNet, llama, tokens

import slimfast


def batches(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(40, 6, generator=generator) for _ in range(count)]


def test_a_constant_that_went_is_kept_in_a_bias_exactly():
    model = Mlps().eval()
    with torch.no_grad():
        model.blocks[2].out.weight.zero_()  # it adds its bias, whatever it reads
        model.blocks[2].out.bias.copy_(torch.arange(6.0))
    x = torch.randn(5, 6)
    short = slimfast.drop_layers(model, x, calibration=batches(), layers=["blocks.2"])
    with torch.no_grad():
        torch.testing.assert_close(short(x), model(x), rtol=1e-4, atol=1e-4)
    (mended,) = slimfast.depth_report(short).mended
    assert mended.writer == "blocks.1.out"
    assert mended.after < 1e-6 < mended.before


def test_the_writer_moves_by_the_ridge_regression_of_what_is_missing():
    """By NumPy, with the damping that the report names."""
    model = Mlps(4, bias=False).double().eval()
    data = [batch.double() for batch in batches()]
    short = slimfast.drop_layers(model, data[0], calibration=data, layers=["blocks.1", "blocks.2"])
    with torch.no_grad():
        x = torch.cat(data)
        first = model.blocks[0](x)
        h = torch.nn.functional.gelu(model.blocks[0].inner(model.blocks[0].norm(x))).numpy()
        r = (model.blocks[2](model.blocks[1](first)) - first).numpy()
    (mended,) = slimfast.depth_report(short).mended
    assert mended.moved
    squares = h.T @ h
    damping = mended.damping * squares.diagonal().mean() * np.eye(12)
    moved = (short.blocks[0].out.weight - model.blocks[0].out.weight).detach().numpy()
    np.testing.assert_allclose(moved, np.linalg.solve(squares + damping, h.T @ r).T, rtol=1e-6, atol=1e-9)
    assert mended.after < mended.before


@pytest.mark.parametrize("gone", ["2", "1 2 4", "3.mlp", "3.self_attn"])
def test_the_output_is_nearer_with_repair(gone):
    """On other samples than those it was fitted to."""
    layers = [f"model.layers.{name}" for name in gone.split()]
    model = llama()
    calibration = [tokens(8, 24, seed, padding=5) for seed in range(16)]
    fresh = tokens(8, 24, 99)

    def off(short):
        with torch.no_grad():
            p, q = (network(**fresh).logits.log_softmax(-1) for network in (model, short))
        return float((p.exp() * (p - q)).sum(-1).mean())

    plain = slimfast.drop_layers(model, fresh, layers=layers, repair=False)
    mended = slimfast.drop_layers(model, fresh, layers=layers, calibration=calibration)
    assert off(mended) < off(plain)
    report = slimfast.depth_report(mended)
    assert report.mended
    assert not report.left
    assert all(each.after <= each.before for each in report.mended)
    moved = set(slimfast.manifest(mended).moved)
    assert moved == {f"{each.writer}.weight" for each in report.mended if each.moved}


def test_what_stands_behind_padding_is_not_looked_at():
    model = llama()
    calibration = [tokens(4, 12, seed, padding=6) for seed in range(8)]
    other = [dict(batch) for batch in calibration]
    for batch in other:
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])
    first, second = (
        slimfast.drop_layers(model, tokens(), layers=["model.layers.2"], calibration=some)
        for some in (calibration, other)
    )
    torch.testing.assert_close(
        first.model.layers[1].mlp.down_proj.weight, second.model.layers[1].mlp.down_proj.weight
    )


def test_gaps_that_cannot_be_mended_are_told():
    images = torch.randn(4, 3, 8, 8)
    short = slimfast.drop_layers(ResNet().eval(), images, calibration=[images], layers=["stage1.1"])
    (left,) = slimfast.depth_report(short).left
    assert "does not write into the stream by a product alone" in left
    first = slimfast.drop_layers(Mlps().eval(), batches()[0], calibration=batches(), layers=["blocks.0"])
    assert "stands no branch" in slimfast.depth_report(first).left[0]
    assert not slimfast.manifest(first).moved
