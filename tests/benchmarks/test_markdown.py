"""Tables that benchmarks declare: found by their name, made of the files they say, each name of one alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import tables
from benchmarks.markdown import Result, Table, rows_of


def shown(*results: Result) -> str:
    return "; ".join(str(dict(result)) for result in results)


def test_a_star_in_the_name_is_the_same_letters_in_the_files(tmp_path: Path) -> None:
    (tmp_path / "study-b.json").write_text(json.dumps({"rows": 3}))
    declared = Table("kind-study-*", ("study-*.json", "study-*-more.json"), shown)
    assert declared.fill("kind-study-b", tmp_path) == "{'rows': 3}; {}"
    assert declared.fill("kind-study-c", tmp_path) == "{}; {}"
    assert declared.fill("kind-other-b", tmp_path) is None
    assert declared.fill("a-kind-study-b", tmp_path) is None


def test_a_name_without_a_star_is_itself_alone(tmp_path: Path) -> None:
    declared = Table("zoo.times", ("zoo.json",), shown)
    assert declared.fill("zoo.times", tmp_path) == "{}"
    assert declared.fill("zoo-times", tmp_path) is None


def test_rows_are_lines_of_a_table() -> None:
    assert rows_of([["a", "b"], ["---", "--:"], ["1", ""]]) == "| a | b |\n| --- | --: |\n| 1 |  |"


def test_a_name_is_answered_by_one_benchmark_alone(tmp_path: Path) -> None:
    """A name that two benchmarks answer to would give the first of them."""
    for table in tables.TABLES:
        name = table.name.replace("*", "x")
        assert sum(other.fill(name, tmp_path) is not None for other in tables.TABLES) == 1, name
