"""What the command line calls data, made into batches.

A function of the user's own, a folder of images, a data set that Hugging Face saved, or arrays of NumPy.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from slimfast.cli.image_folders import Images, open_folder
from slimfast.cli.saved_datasets import open_saved
from slimfast.cli.specs import Spec, call_foreign, import_object, parse_spec
from slimfast.errors import SlimfastError

# What data sets call the targets, and what they call training and evaluation.
_TARGETS = ("labels", "label", "target", "targets", "y")
_TRAIN, _EVALUATE = ("train", "training"), ("val", "valid", "validation", "eval", "test")


@dataclass(frozen=True, slots=True)
class Loading:
    """How samples become batches."""

    batch_size: int = 64
    workers: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Data:
    """The batches to train or measure on, and those to take scores on, if any."""

    train: Iterable[Any]
    evaluate: Iterable[Any] | None = None

    def for_scores(self) -> Data:
        """Take scores on the training batches where there are no others."""
        return self if self.evaluate is not None else Data(self.train, self.train)

    def labelled(self) -> bool:
        """Whether the first training batch has targets."""
        if isinstance(self.train, Iterator):
            return True
        first = next(iter(self.train), None)
        if first is None:
            return True
        if isinstance(first, Mapping):
            return first.get("labels") is not None
        return isinstance(first, (tuple, list)) and len(first) > 1


_USUAL = Loading()


def load_data(text: str, model: nn.Module, loading: Loading = _USUAL, side: int | None = None) -> Data:
    """Load the data of that name for a model, ``?key=value`` behind it being arguments.

    ``package.module:function`` returns a train loader, or (train, eval) loaders. A folder holds images by
    class, or a data set saved by Hugging Face's datasets, either with splits or without; a ``.npz`` file
    arrays, named as the model's arguments and ``labels``, or two of any name. ``side`` is that of the images
    the model takes.
    """
    spec = parse_spec(text, "data")
    path = Path(spec.name)
    if path.is_file() and path.suffix == ".npz":
        data = _arrays(spec, loading)
    elif path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        how = _preparation(spec, model, side)
        data = _saved(spec, loading, how) if saved else _images(spec, loading, how)
    elif ":" in spec.name:
        data = _called(spec)
    else:
        raise SlimfastError(
            f"data {spec.name!r}: expected package.module:function, a folder or a .npz file, got none of them"
        )
    evaluate = None if data.evaluate is None else _for_model(data.evaluate, model)
    return Data(_for_model(data.train, model), evaluate)


def _called(spec: Spec) -> Data:
    function = import_object(spec.name, "data")
    loaders = call_foreign(f"data {spec.name}", function, **spec.arguments)
    if not isinstance(loaders, tuple):
        return Data(loaders)
    if len(loaders) != 2:
        raise SlimfastError(
            f"data {spec.name}: expected a loader or (train, eval) loaders, got {len(loaders)}"
        )
    return Data(*loaders)


def _preparation(spec: Spec, model: nn.Module, side: int | None) -> dict[str, Any]:
    """Say how images are prepared: as asked for, and else as the model states it."""
    stated = getattr(model, "pretrained_cfg", None) or {}
    return {"size": side, "mean": stated.get("mean"), "std": stated.get("std")} | dict(spec.arguments)


def _images(spec: Spec, loading: Loading, how: Mapping[str, Any]) -> Data:
    train, evaluate = open_folder(Path(spec.name), how, _TRAIN, _EVALUATE)
    held: Images | None = evaluate
    return Data(_loader(train, loading, shuffled=True), None if held is None else _loader(held, loading))


def _arrays(spec: Spec, loading: Loading) -> Data:
    """Read a ``.npz`` file; arrays whose names begin with ``test_`` or ``val_`` are the evaluation's."""
    what = f"data {spec.name}"
    _no_arguments(spec, what)
    try:
        with np.load(spec.name, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise SlimfastError(f"{what}: it is no archive of plain arrays: {error}") from None
    parts: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
    for name, array in arrays.items():
        split, _, rest = name.partition("_")
        part = "eval" if rest and split in _EVALUATE else "train"
        own = rest if rest and split in (*_EVALUATE, *_TRAIN) else name
        if array.dtype.kind not in "fiub":
            raise SlimfastError(f"{what}: {name}: expected numbers, got {array.dtype}")
        parts[part][own] = torch.from_numpy(array)
    if not parts["train"]:
        raise SlimfastError(f"{what}: expected arrays to train on, got {', '.join(arrays) or 'none'}")
    for tensors in parts.values():
        lengths = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise SlimfastError(f"{what}: expected arrays of as many samples each, got {told}")
    evaluate = _loader(_Named(parts["eval"]), loading) if parts["eval"] else None
    return Data(_loader(_Named(parts["train"]), loading, shuffled=True), evaluate)


class _Named(Dataset[dict[str, Tensor]]):
    """Samples of arrays by name, bytes as numbers in [0, 1]."""

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self._names = list(arrays)
        self._rows = TensorDataset(*arrays.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = zip(self._names, self._rows[i], strict=True)
        return {n: _number(t, label=n in _TARGETS) for n, t in row}


def _number(value: Tensor, *, label: bool) -> Tensor:
    if label:
        return value if value.is_floating_point() else value.long()
    if value.dtype == torch.uint8:
        return value.float() / 255
    return value.float() if value.dtype == torch.float64 else value


def _saved(spec: Spec, loading: Loading, how: Mapping[str, Any]) -> Data:
    """Open a data set that Hugging Face's ``datasets`` saved to a folder."""
    if importlib.util.find_spec("datasets") is None:
        raise SlimfastError(f"data {spec.name}: datasets is not installed (pip install datasets)")
    train, evaluate = open_saved(spec.name, how, _TRAIN, _EVALUATE, _TARGETS)
    held = None if evaluate is None else _loader(evaluate, loading, collate=evaluate.batch)
    return Data(_loader(train, loading, shuffled=True, collate=train.batch), held)


def _no_arguments(spec: Spec, what: str) -> None:
    if spec.arguments:
        raise SlimfastError(f"{what}: expected no arguments, got {', '.join(spec.arguments)}")


def _loader(
    samples: Any, loading: Loading, *, shuffled: bool = False, collate: Callable[[Any], Any] | None = None
) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(loading.seed)
    # Batch norms cannot be trained on a last batch of one sample.
    ragged = shuffled and len(samples) > loading.batch_size
    return DataLoader(
        samples,
        batch_size=loading.batch_size,
        shuffle=shuffled,
        generator=generator,
        num_workers=loading.workers,
        drop_last=ragged,
        collate_fn=collate,
    )


def _for_model(batches: Iterable[Any], model: nn.Module) -> Iterable[Any]:
    """Name the entries of batches that are dicts as the model's arguments and ``labels``."""
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        return batches
    first = next(iter(batches), None)
    if not isinstance(first, Mapping) or _renamed(first, model) is first:
        return batches
    return _Renamed(batches, model)


class _Renamed:
    """The batches of a loader with their entries renamed; all else of the loader is its own."""

    def __init__(self, batches: Iterable[Any], model: nn.Module) -> None:
        self._batches = batches
        self._model = model

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (_renamed(batch, self._model) for batch in self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def _renamed(batch: Any, model: nn.Module) -> Any:
    """Give a batch's entries the names of the model's arguments, its targets the name ``labels``.

    One entry that is no argument of the model goes to its first one.
    """
    target = next((name for name in _TARGETS if name in batch), None)
    inputs = {name: value for name, value in batch.items() if name != target}
    parameters = inspect.signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {name: value for name, value in inputs.items() if anything or name in parameters}
    if target in (None, "labels") and len(known) == len(inputs):
        return batch
    labels = {} if target is None else {"labels": batch[target]}
    if len(known) == len(inputs):
        return {**known, **labels}
    if len(inputs) > 1:
        others = ", ".join(name for name in inputs if name not in known)
        arguments = ", ".join(itertools.islice(parameters, 8))
        raise SlimfastError(
            f"data: expected entries named as the model's arguments ({arguments}), got {others} too"
        )
    (value,) = inputs.values()
    return (value, *labels.values()) if labels else value
