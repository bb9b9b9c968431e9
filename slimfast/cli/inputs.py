"""What the command line calls an input, made into tensors."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from slimfast.errors import SlimfastError, did_you_mean

_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)(?:\.(?P<key>[A-Za-z_]\w*))?=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]+\d*))?(?::(?P<high>\d+))?"
)
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}

# The arguments in order, or by name; one may be a dict.
Example: TypeAlias = tuple[Tensor, ...] | dict[str, Tensor | dict[str, Tensor]]


def example_of(
    texts: Sequence[str] | None, model: nn.Module, name: str, *, seed: int = 0, device: str = "cpu"
) -> Example:
    """Make the example that ``--input`` describes for a model, or the one that the model states for itself.

    A tuple in the order of the arguments; where some are named a dict of them all. ``batch.image=3x8x8`` is
    the entry ``image`` of the dict that the argument ``batch`` is.
    """
    given = texts or default_inputs(model, name)
    tensors = parse_inputs(given, seed=seed, device=device)
    matches = [_match(text) for text in given]
    names = [match["name"] for match in matches]
    if not any(names):
        return tensors
    positions = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if names.count(None) > len(positions):
        raise SlimfastError(f"model {name}: expected a name for each --input NAME=SHAPE, got one without")
    example: dict[str, Tensor | dict[str, Tensor]] = {}
    for i, (match, tensor) in enumerate(zip(matches, tensors, strict=True)):
        argument, key = names[i] or positions[i], match["key"]
        held = example.setdefault(argument, {} if key else tensor)
        if key and isinstance(held, dict) and key not in held:
            held[key] = tensor
        elif held is not tensor:
            raise SlimfastError(
                f"model {name}: expected one --input for each argument, or for each entry of one that is a "
                f"dict, got {match[0]!r} beside another for {argument!r}"
            )
    return example


def other_calls(
    texts: Sequence[str] | None, model: nn.Module, name: str, *, seed: int = 0, device: str = "cpu"
) -> list[Example]:
    """Make the examples of other calls that ``--also`` describes, the inputs of one call in one text."""
    return [example_of(text.split(","), model, name, seed=seed, device=device) for text in texts or []]


def parse_inputs(texts: Sequence[str], *, seed: int = 0, device: str = "cpu") -> tuple[Tensor, ...]:
    """Make the example inputs that ``--input`` describes: ``[NAME[.KEY]=]SHAPE[:DTYPE[:HIGH]]`` each.

    ``3x224x224`` is one float32 image: a batch dimension of 1 comes in front of floating inputs. Integer
    inputs, such as token ids, are taken as written (``1x128:int64``) and hold values below HIGH (2 unless
    told).
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_parse_input(text, generator).to(device) for text in texts)


def default_inputs(model: nn.Module, name: str) -> tuple[str, ...]:
    """Find the input that a model states for itself: timm's ``input_size``, ultralytics' ``imgsz``, or what
    the configuration of a transformer says; an error asks for ``--input``.
    """
    size = _mapping(model, "pretrained_cfg").get("input_size")
    if size:
        return ("x".join(map(str, size)),)
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if main == "input_ids" and vocabulary:
        length = min(128, getattr(config, "max_position_embeddings", None) or 128)
        return (f"input_ids=1x{length}:int64:{vocabulary}",)
    side = getattr(config, "image_size", None)
    if main == "pixel_values" and isinstance(side, int):
        return (f"pixel_values={getattr(config, 'num_channels', 3)}x{side}x{side}",)
    side = _mapping(model, "args").get("imgsz")
    if isinstance(side, int):
        return (f"{_mapping(model, 'yaml').get('channels', 3)}x{side}x{side}",)
    raise SlimfastError(f"model {name}: expected an input, for example --input 3x224x224, got none")


def _mapping(model: nn.Module, name: str) -> Mapping[str, Any]:
    """Get a mapping that a model holds under a name, or an empty one."""
    held = getattr(model, name, None)
    return held if isinstance(held, Mapping) else {}


def _match(text: str) -> re.Match[str]:
    match = _INPUT.fullmatch(text)
    if match is None:
        raise SlimfastError(
            f"input: expected [NAME[.KEY]=]SHAPE[:DTYPE[:HIGH]], as in 3x224x224 or 1x128:int64, got {text!r}"
        )
    return match


def _parse_input(text: str, generator: torch.Generator) -> Tensor:
    match = _match(text)
    dtype = _DTYPES.get(match["dtype"] or "float32")
    if dtype is None:
        hint = did_you_mean(match["dtype"], _DTYPES)
        raise SlimfastError(f"input {text!r}: expected {', '.join(_DTYPES)}, got {match['dtype']}{hint}")
    shape = [int(length) for length in match["shape"].split("x")]
    if math.prod(shape) == 0:
        raise SlimfastError(f"input {text!r}: expected lengths of at least 1, got {match['shape']}")
    high = int(match["high"] or 2)
    if dtype.is_floating_point:
        if match["high"]:
            raise SlimfastError(f"input {text!r}: a bound on the values is for integer inputs, got {high}")
        return torch.randn(1, *shape, generator=generator, device="cpu").to(dtype)
    if high < 1 or (dtype is not torch.bool and high - 1 > torch.iinfo(dtype).max):
        raise SlimfastError(f"input {text!r}: expected a bound that {dtype} can hold, got {high}")
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype, device="cpu")
    values: Any = torch.randint(0, high, shape, generator=generator, dtype=dtype, device="cpu")
    # What is recorded of an integer input is the range of its values, which is to be all of it.
    values.view(-1)[-1], values.view(-1)[0] = 0, high - 1
    made: Tensor = values
    return made
