"""Language models, of which weights alone say too little: a warning where no data was asked."""

from __future__ import annotations

import warnings

from torch import nn

from slimfast.calibration.directions import writes_text


def warn_of_units(model: nn.Module, method: str, verb: str) -> None:
    """Warn where the units of a language model are chosen by another method than by activations."""
    if method != "activations":
        warn_without_data(model, f"{verb}: units are chosen by {method},")


def warn_without_data(model: nn.Module, what: str) -> None:
    """Warn in one line that a language model cut by its weights alone is beyond use; ``what`` names what was
    decided so.
    """
    if writes_text(model):
        warnings.warn(
            f"{what} by the weights alone, after which the perplexity of a language model as "
            f"{type(model).__name__} is beyond use: calibrate with a few hundred sentences "
            f"(slimfast.calibrate), and pass calibration=",
            UserWarning,
            stacklevel=3,
        )
