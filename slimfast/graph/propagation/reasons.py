"""Say why an axis stays as long as it is, or why removing an index of it is not the same as masking it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique


@unique
class Reason(Enum):
    """A kind of reason with its text: ``{op}`` is the operation it arose at, ``{detail}`` what else there is
    to say."""

    # arises at no operation
    FIXED_LENGTH = "its length is fixed"
    NETWORK_INPUT = "network input"
    NETWORK_OUTPUT = "network output"
    NOT_FLOATING = "its elements are {detail}, of which no spectrum is made"
    NOT_USED = "the forward does not use it with this example"
    TRAINING_FAILED = "it is left out in eval mode, and in training mode the {detail}"
    TRAINING_ONLY = "it is used in training only"
    PLAIN_TENSOR = "{detail} is a plain tensor of the model: make it a buffer (register_buffer)"
    FIXED_PARTS = "its length is divided by a fixed number"
    SIZE = "a reshape mixes it with positions, so that its units are others at another size of the input"

    # why units that nothing freezes are in no group
    NO_PRODUCER = "no weight produces it"
    ONE_UNIT = "one unit only"
    EXCLUDED = "excluded by name"

    # what an operation does along the axis
    NO_RULE = "{op}"
    MIXES = "{op} mixes along it"
    JOINS_FIXED_AXIS = "{op} joins it with a fixed axis"
    JOINS_FIXED_INDEX = "{op} joins it with a fixed index"
    SPLITS = "{op} splits an axis of which it is a part"
    SUMS = "{op} sums over it"
    SUMS_NONZERO = "{op} adds up along it what is not 0 for removed units"
    REPEATS = "{op} runs for each of it"
    SLIDES = "{op} slides along it"
    RUNS = "{op} runs along it"
    ATTENDS = "attention runs along it"
    SCALE = "the default scale of attention depends on their number"
    REDUCES = "{op} reduces it"
    SAMPLES = "{op} samples along it"

    # statistics
    STATISTIC = "{op} takes a statistic along it"
    STATISTICS = "{op} takes statistics along it"
    NORM = "{op} takes a norm along it"
    LAYER_NORM = "a layer norm takes its mean and variance along it"
    GROUP_NORM = "a group norm takes its mean and variance along it"
    ONE_GROUP_NORM = "a group norm of one group takes its mean and variance along it"
    WEIGHT_NORM = "a weight norm takes its norm along it"

    # selections and writes
    ONE_INDEX = "{op} takes one index of it"
    INDEX_BY_INDEX = "{op} takes it apart index by index"
    EVERY = "{op} takes one of every {detail} indices of it"
    TAKES_PART = "{op} takes a part of it"
    READS_PART = "{op} reads a part of it"
    FROM_END = "{op} counts from the end of it"
    CROPS = "{op} crops it"
    SHIFTS = "{op} shifts it by a fixed number"
    BY_VALUE = "{op} looks it up by value"
    INDEXES = "{op} indexes with it"
    NUMBERS = "{op} computes values from the numbers of its indices"
    WRITES_THERE = "{op} writes where it says"
    WRITES_ELSEWHERE = "{op} writes where an index says"
    WRITES_PART = "{op} writes a part of it"
    WRITES_ALONG = "{op} writes a part along it"

    def __init__(self, text: str) -> None:
        self.text = text
        self.names_operation = "{op}" in text


@dataclass(frozen=True, slots=True)
class Cause:
    """A reason at the operation and the module where it arose.

    ``number``: from 1; a cause found earlier has a smaller one.
    """

    number: int
    reason: Reason
    module: str = ""
    operation: str = ""
    detail: str = ""

    @property
    def text(self) -> str:
        """Put the reason into words, without the module."""
        return self.reason.text.format(op=self.operation, detail=self.detail)

    def __str__(self) -> str:
        return f"{self.text} at {self.module}" if self.module else self.text


# Of kernel taps, axes of length 1, positions made by an operation: no reason worth telling.
FIXED_LENGTH = Cause(1, Reason.FIXED_LENGTH)


class Causes:
    """Keeps the causes found in one trace by their numbers."""

    def __init__(self) -> None:
        self._found = [FIXED_LENGTH]
        self._by_key: dict[tuple[Reason, str, str, str], Cause] = {}

    def __getitem__(self, number: int) -> Cause:
        return self._found[number - 1]

    def add(self, reason: Reason, module: str = "", operation: str = "", detail: str = "") -> Cause:
        """Number this reason at this module; what reads the same keeps the number it has."""
        key = (reason, module, operation if reason.names_operation else "", detail)
        cause = self._by_key.get(key)
        if cause is None:
            cause = self._by_key[key] = Cause(len(self._found) + 1, *key)
            self._found.append(cause)
        return cause
