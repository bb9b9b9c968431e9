"""What exceptions say, and in how many lines."""

from __future__ import annotations

import pytest
from torch import nn

from slimfast.errors import one_line


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
