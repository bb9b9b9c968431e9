"""State dicts in pickles of ``torch.save``, found where scripts put them; no code of a pickle runs."""

from __future__ import annotations

import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimfast.storage.atomic import cannot_read, reason_of

# Where training scripts put the state dict inside a checkpoint, in the order in which they are looked for.
NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
    "ema",
    "params_ema",
    "params",
    "net",
    "weights",
)


class _Inert:
    """Stands in for an object beside the tensors: it takes what its pickle gives, and keeps none of it."""

    def __new__(cls, *args: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Entries:
    """Stands in for a kind of dict: what is made is a plain one, which may hold tensors."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


def _items(*args: Any) -> list[Any]:
    """Stand in for a kind of list."""
    return []


# What checkpoints hold beside tensors, by the names in their pickles. None of it is imported or made: a name
# in a pickle gets its stand-in, and every other name is refused.
_INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "typing.Any",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.bool_",
    "numpy.float16",
    "numpy.float32",
    "numpy.float64",
    "numpy.int8",
    "numpy.int16",
    "numpy.int32",
    "numpy.int64",
    "numpy.uint8",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.torch_version.TorchVersion",
)
_ENTRIES = (
    "collections.defaultdict",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_STAND_INS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_INERT, _Inert),
    **dict.fromkeys(_ENTRIES, _Entries),
    "collections.deque": _items,
}
# PyTorch's list of names is the process's own.
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class StateDict:
    """The tensors of a checkpoint, the entries they lay under, and other entries that hold tensors too."""

    tensors: Mapping[str, Tensor]
    entry: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_state_dict(path: Path) -> StateDict:
    """Read the state dict in a pickle of tensors, bare or nested; :class:`SlimfastError` where there is
    none.
    """
    try:
        content = _load(path)
    except Exception as error:  # a malformed file can make the reader raise anything
        raise cannot_read(path, _load_error(error)) from None
    found = _state_dict(content)
    if not found.tensors:
        raise cannot_read(path, f"expected a state dict, got {_describe(content)}")
    return found


def _load(path: Path) -> Any:
    with _LOCK:
        known = {entry[1] if isinstance(entry, tuple) else _name(entry) for entry in _listed()}
        stand_ins: list[Any] = [(made, name) for name, made in _STAND_INS.items() if name not in known]
        with torch.serialization.safe_globals(stand_ins):
            if path.suffix == ".safetensors":
                # By that name PyTorch would take it for what it is not.
                with path.open("rb") as stream:
                    return torch.load(stream, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))


def _listed() -> list[Any]:
    return list(torch.serialization.get_safe_globals())


def _name(listed: Any) -> str:
    return f"{listed.__module__}.{listed.__qualname__}"


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is an archive whose records lie in it as they are, to be mapped instead of read.

    An archive packed anew may hold them deflated; a map of it would show the deflated bytes as weights.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def _state_dict(content: object) -> StateDict:
    """Find the tensors of a bare state dict, or of the first nested in a checkpoint; none where there are
    none.
    """
    if not isinstance(content, Mapping):
        return StateDict({})
    nested = {key: _state_dict(content[key]) for key in NESTED if isinstance(content.get(key), Mapping)}
    nested = {key: found for key, found in nested.items() if found.tensors}
    for key, found in nested.items():
        others = tuple(other for other in nested if other != key)
        return StateDict(found.tensors, (key, *found.entry), others or found.others)
    tensors = {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return StateDict(tensors)


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"


def _load_error(error: Exception) -> str:
    """Explain why ``torch.load`` gave up, in one line instead of its page of advice."""
    text = str(error)
    wanted = re.search(r"Unsupported (?:global|class): ?(?:GLOBAL )?(\S+)", text)
    if wanted:
        return f"the pickle needs {wanted[1]}, refused as it may run code (save its state_dict() instead)"
    if "Weights only load failed" in text:
        return "it is not a PyTorch file of tensors"
    if isinstance(error, EOFError) or "central directory" in text or "zip archive" in text:
        return "the file is empty or truncated"
    return reason_of(error)
