"""What the command line calls a model, its weights, its inputs and its data, made into the real things.

Whatever the user's own code raises on the way is turned into one line that names the model.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.errors import SlimfastError, did_you_mean, one_line
from slimfast.storage.weights import SUFFIXES, read_tensors

_INPUT = re.compile(r"(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]+\d*))?(?::(?P<high>\d+))?")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def is_weight_file(name: str) -> bool:
    """Whether a model's name is that of a file of tensors (or of the index of its shards)."""
    return name.endswith(SUFFIXES)


def build_model(
    name: str, *, weights: str | os.PathLike[str] | None = None, seed: int = 0, device: str = "cpu"
) -> nn.Module:
    """Build the model of that name in eval mode: ``package.module:factory``, ``timm:NAME`` or
    ``torchvision:NAME``.

    Nothing is downloaded: without ``weights`` it is initialised at random from ``seed``. A factory is a
    class or a function that takes no arguments, or a module itself; the current folder is searched too.
    """
    library, _, rest = name.partition(":")
    if not rest:
        hint = " (a file of weights has no forward; 'spectra' reads it)" if is_weight_file(name) else ""
        raise SlimfastError(
            f"model: expected package.module:factory, timm:NAME or torchvision:NAME, got {name!r}{hint}"
        )
    known: Sequence[str] = ()
    if library == "timm":
        timm = _library(name, "timm")
        factory, known = functools.partial(timm.create_model, rest, pretrained=False), timm.list_models()
    elif library == "torchvision":
        models = _library(name, "torchvision.models")
        factory, known = functools.partial(models.get_model, rest, weights=None), models.list_models()
    else:
        factory = import_object(name, "model")
    # Only now: what an import draws from the generator depends on what was imported before.
    torch.manual_seed(seed)
    hint = did_you_mean(rest, known)
    model = factory if isinstance(factory, nn.Module) else _call(f"model {name}", factory, hint=hint)
    if not isinstance(model, nn.Module):
        raise SlimfastError(f"model {name}: expected a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        load_weights(model, weights)
    return model.to(check_device(device)).eval()


def check_device(name: str) -> torch.device:
    """Find the device of that name; :class:`SlimfastError` where this machine or this PyTorch has none."""
    try:
        return torch.empty(0, device=name).device
    # PyTorch asserts that it was built for CUDA, and raises RuntimeError for all the rest.
    except (RuntimeError, AssertionError) as error:
        raise SlimfastError(f"device {name!r}: {one_line(error)}") from error


def import_object(name: str, what: str) -> Any:
    """Import ``package.module:attribute``; the current folder is searched first, as by ``python -m``."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise SlimfastError(f"{what} {name!r}: expected package.module:function")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _call(f"{what} {name}", importlib.import_module, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found))
            raise SlimfastError(f"{what} {name}: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    return found


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the tensors of a ``.safetensors`` or ``.pth`` file into the model; names and shapes must agree.

    Nothing is unpickled. The usual wrappings are looked through: a ``state_dict`` or ``model`` entry, and the
    ``module.`` prefix of a data-parallel run. A tied tensor may be stored under one of its names only.
    """
    stored = read_tensors(path)
    wanted = model.state_dict(keep_vars=True)
    held = {id(wanted[name]) for name in stored if name in wanted}
    for name, tensor in wanted.items():
        # Old checkpoints lack the counter of batches, which only a norm without momentum reads.
        optional = name.endswith("num_batches_tracked") or id(tensor) in held
        found = tuple(stored[name].shape) if name in stored else None
        if found != tuple(tensor.shape) and not (found is None and optional):
            got = "no such tensor" if found is None else found
            raise SlimfastError(f"{path}: {name}: expected shape {tuple(tensor.shape)}, got {got}")
    for name, tensor in stored.items():
        if name not in wanted:
            raise SlimfastError(f"{path}: {name}: the model has no such tensor, got {tuple(tensor.shape)}")
    model.load_state_dict(stored, strict=False)


def parse_inputs(texts: Sequence[str], *, seed: int = 0, device: str = "cpu") -> tuple[Tensor, ...]:
    """Make the example inputs that ``--input`` describes, one text each: ``SHAPE[:DTYPE[:HIGH]]``.

    ``3x224x224`` is one float32 image: a batch dimension of 1 comes in front of floating inputs. Integer
    inputs, such as token ids, are taken as written (``1x128:int64``) and hold values below HIGH (2 unless
    told).
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_parse_input(text, generator).to(device) for text in texts)


def default_inputs(model: nn.Module, name: str) -> tuple[str, ...]:
    """Find the input that a model states for itself (timm's ``input_size``); an error asks for
    ``--input``.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if not size:
        raise SlimfastError(f"model {name}: expected an input, for example --input 3x224x224, got none")
    return ("x".join(map(str, size)),)


def load_data(name: str) -> tuple[Any, Any | None]:
    """Load the train loader, and the eval loader or None, that ``package.module:function`` returns."""
    loaders = _call(f"data {name}", import_object(name, "data"))
    if not isinstance(loaders, tuple):
        return loaders, None
    if len(loaders) != 2:
        raise SlimfastError(f"data {name}: expected a loader or (train, eval) loaders, got {len(loaders)}")
    return loaders


def _parse_input(text: str, generator: torch.Generator) -> Tensor:
    match = _INPUT.fullmatch(text)
    if match is None:
        raise SlimfastError(
            f"input: expected SHAPE[:DTYPE[:HIGH]], as in 3x224x224 or 1x128:int64, got {text!r}"
        )
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
    values = torch.randint(0, high, shape, generator=generator, dtype=dtype, device="cpu")
    # What is recorded of an integer input is the range of its values, which is to be all of it.
    values.view(-1)[-1], values.view(-1)[0] = 0, high - 1
    return values


def _library(name: str, module: str) -> Any:
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise SlimfastError(f"model {name}: {package} is not installed (pip install {package})")
    prepare_torchvision()
    return _call(f"model {name}", importlib.import_module, module)


def _call(what: str, function: Callable[..., Any], *args: Any, hint: str = "") -> Any:
    """Run code that is not ours; whatever it raises becomes one line, with the ``hint`` at its end."""
    try:
        return function(*args)
    except SlimfastError:
        raise
    except Exception as error:
        raise SlimfastError(f"{what}: {type(error).__name__}: {one_line(error)}{hint}") from error
