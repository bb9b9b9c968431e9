"""The MiniLM benchmark: ranks, batches and budgets as they must be, on a tiny network of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy.data import stsb_data
from benchmarks.accuracy.data.stsb_data import SentenceEncoder, TokenBatches, padded, spearman
from benchmarks.accuracy.studies import allocations, minilm
from benchmarks.accuracy.studies.study import Study
from slimfast.errors import SlimfastError
from slimfast.pruning.prune import prune_channels

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return SentenceEncoder(transformers.BertModel(config, add_pooling_layer=False)).eval()


@pytest.fixture(scope="module")
def study(encoder: SentenceEncoder) -> Study:
    batches = [padded(np.random.default_rng(0).integers(1, 50, (24, 6)).tolist())]
    return Study.of(encoder, batches[0], batches, 24, budget="params", include=minilm.CUT)


def test_spearman_of_ties_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 1.125, variances 1.125 and 1.25.
    assert spearman(np.array([0.1, 0.5, 0.5, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
        1.125 / (1.125 * 1.25) ** 0.5
    )
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([-1.0, -20.0, -300.0])) == pytest.approx(-1.0)


def test_padding_changes_no_embedding(encoder: SentenceEncoder) -> None:
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    together = encoder(**padded(rows))
    alone = torch.cat([encoder(**padded([row])) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(2), atol=1e-6)


def test_training_batches_are_the_same_in_another_order() -> None:
    batches = TokenBatches([[1] * length for length in (5, 1, 4, 2, 3)], 2)
    assert len(batches) == 2
    torch.manual_seed(1)
    seen = [[tuple(b["input_ids"].shape) for b in batches] for _ in range(20)]
    assert {tuple(order) for order in seen} == {((2, 2), (2, 4)), ((2, 4), (2, 2))}


@pytest.mark.parametrize("name", list(minilm.CONTENDERS))
def test_every_contender_keeps_at_most_the_share_of_the_encoder(study: Study, name: str) -> None:
    contender = minilm.CONTENDERS[name]
    encoder, params = (count(study.model) for count in (minilm.encoder_params, minilm._params))
    plan = contender.plan(study, 1 - 0.4 * encoder / params)
    assert {group.kind for group in plan.groups} == set(minilm.CUT)
    left = 1 - (plan.cost_before.params - plan.cost_after.params) / encoder
    assert 0.5 < left <= 0.6


def test_the_damping_of_a_contender_reaches_its_repair(study: Study) -> None:
    name = "marginal gain, lookahead{}, activations"
    weights = []
    for damping, contender in ((0.0, name.format("")), (1.0, name.format(", damping 1"))):
        thin = minilm.thin_network(minilm.CONTENDERS[contender], study, 0.8)
        expected = prune_channels(
            study.model,
            allocations.marginal_gain(study, 0.8),
            select="lookahead",
            repair="activations",
            repair_damping=damping,
            calibration=study.calibration,
            verify=False,
        )
        for (n, ours), theirs in zip(thin.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs), n
        weights.append(torch.cat([p.flatten() for p in thin.parameters()]))
    assert not torch.equal(*weights)


def test_the_loss_is_two_less_two_cosines() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert minilm.embedding_loss(a, b, None).item() == pytest.approx((2.0 + 0.0) / 2)


class FakeTokenizer:
    """A word's id is its length."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, sentences: list[str]) -> list[list[int]]:
        return [[len(word) for word in sentence.split()] for sentence in sentences]


def test_a_run_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: SentenceEncoder
) -> None:
    data = tmp_path / "stsb"
    data.mkdir()
    words = ["a", "an", "the", "many", "other"]
    lines = [
        f"g\tf\ty\t{i}\t{i % 5}\t{words[i % 5]} b cc ddd\t{words[i % 3]} {words[i % 4]} cc b"
        for i in range(12)
    ]
    for split in ("train", "dev", "test"):
        (data / f"sts-{split}.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(stsb_data, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(minilm, "model_folder", lambda: tmp_path)
    monkeypatch.setattr(minilm, "load_encoder", lambda folder: encoder)
    monkeypatch.setattr(minilm, "Tokenizer", FakeTokenizer)
    settings = minilm.Settings(calibration=8, length=4, epochs=1, batch=4, seeds=(0,))
    wanted = [("uniform, L1", None), ("uniform, L1", 0), ("marginal gain, activations", None)]
    monkeypatch.setattr(minilm, "wanted", lambda seeds: wanted[:2])
    path = tmp_path / "rows.json"
    minilm.run(settings, work=tmp_path / "work", path=path)
    monkeypatch.setattr(minilm, "wanted", lambda seeds: wanted)
    minilm.run(settings, work=tmp_path / "work", path=path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["seed"]) for row in rows] == wanted
    assert all(-1 <= row[split] <= 1 for row in rows for split in ("dev", "test"))
    assert len(list((tmp_path / "work").glob("uniform-L1-0-*"))) == 1
    with pytest.raises(SlimfastError, match="has results of other settings"):
        minilm.run(minilm.FULL, work=tmp_path / "work", path=path)


def test_only_the_encoder_is_counted(encoder: SentenceEncoder) -> None:
    # Two layers: query, key, value, output 16 x 16, MLP 16 x 32 twice, biases, two norms.
    assert minilm.encoder_params(encoder) == 2 * (4 * (256 + 16) + 2 * 512 + 32 + 16 + 2 * 32)


def test_a_line_that_is_no_pair_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "sts-dev.csv").write_text("only\tthree\tfields\n")
    monkeypatch.setattr(stsb_data, "data_folder", lambda: tmp_path)
    with pytest.raises(SlimfastError, match=r"cannot read STS-B from .*sts-dev.csv: IndexError"):
        stsb_data.load_pairs("dev")
