"""What exceptions say, and in how many lines."""

from __future__ import annotations

import pytest
from torch import nn

from slimfast.errors import did_you_mean, one_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("no such luck", "no such luck"),
        ("\n  no   such\tluck \nand pages of advice", "no such luck"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
        ("two things are wrong:\n\n  the first\n  the second", "two things are wrong: the first"),
    ],
)
def test_one_line_of_an_exception(message: str, line: str) -> None:
    assert one_line(ValueError(message)) == line


def test_one_line_says_what_does_not_fit_in_a_state_dict() -> None:
    with pytest.raises(RuntimeError) as error:
        nn.Linear(2, 3).load_state_dict({"weight": nn.Linear(2, 3).weight})
    assert "bias" in one_line(error.value)


def test_the_nearest_known_name_is_asked_for() -> None:
    assert did_you_mean("layer1.0.conv", ["fc", "layer1.0.conv1"]) == " (did you mean 'layer1.0.conv1'?)"


@pytest.mark.parametrize("name", ["nothing like it", "fc", 5, None])
def test_no_hint_where_nothing_is_near_or_the_name_is_known(name: object) -> None:
    assert did_you_mean(name, ["fc", "layer1.0.conv1"]) == ""


def test_a_hint_is_short_whatever_the_names() -> None:
    assert len(did_you_mean("x" * 500, ["x" * 501])) < 90
