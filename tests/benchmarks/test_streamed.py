"""The benchmark of the calibrated road through files, on a decoder of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.large import streamed
from benchmarks.large.decoder import Decoder, generate

pytest.importorskip("transformers", reason="transformers is not installed")
SMALL = Decoder(2, 64, 128, 32, 100)


def ended(number: int) -> None:
    """End a run as a signal does, but so that a test survives it."""
    raise KeyboardInterrupt


def test_the_road_gives_the_same_thin_tensors_whether_it_was_stopped_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = generate(SMALL, tmp_path / "wide")
    found = []
    for name, kills in (("whole", ("",)), ("killed", ("calibrate", "repair", ""))):
        (tmp_path / name).mkdir()
        for kill in kills:
            with monkeypatch.context() as patch:
                patch.setattr(streamed.signal, "raise_signal", ended)
                if kill:
                    with pytest.raises(KeyboardInterrupt):
                        streamed.road(SMALL, index, tmp_path / name, 4, 8, kill)
                else:
                    found.append(streamed.road(SMALL, index, tmp_path / name, 4, 8, kill))
    assert found[0]["digest"] == found[1]["digest"]
    assert list(found[0]["seconds"]) == ["calibrate", "plan", "repair"]
    assert json.loads(json.dumps(found[0])) == found[0]


def test_the_bound_is_that_of_the_largest_weight_and_the_largest_moments() -> None:
    assert streamed.bound(SMALL) == 4 * 128 * 64 + 8 * 128**2 + (1 << 30)
    assert streamed.bound(streamed.SIZES["8b"]) == 4 * 128256 * 4096 + 8 * 14336**2 + (1 << 30)


def test_the_table_says_so_where_nothing_was_measured() -> None:
    assert streamed.table({}) == "not measured\n"
