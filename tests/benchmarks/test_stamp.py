"""Where and with what a result was made, over several runs."""

from __future__ import annotations

from typing import Any

from benchmarks.stamp import add_row, made_at


def _at(commit: str, date: str = "2026-01-02") -> dict[str, Any]:
    return {"versions": {"torch": "2"}, "commit": commit, "date": date}


def test_rows_of_several_commits_keep_the_stamps_of_all() -> None:
    result: dict[str, Any] = {"rows": [], "stamp": _at("zero")}
    add_row(result, {"n": 1}, _at("one", "2026-01-01"))
    assert "earlier" not in result
    assert made_at(result) == "torch 2, 2026-01-01, commit one"
    for number, commit in enumerate(("two", "two", "three", "one"), 2):
        add_row(result, {"n": number}, _at(commit))
    assert [row["n"] for row in result["rows"]] == [1, 2, 3, 4, 5]
    assert result["stamp"] == _at("one")
    assert made_at(result).endswith("commit one; earlier rows at three (2026-01-02), two (2026-01-02)")
