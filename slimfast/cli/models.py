"""What the command line calls a model, made into the real thing.

Whatever the user's own code raises on the way is turned into one line that names the model.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.cli.specs import Spec, call_foreign, import_object, parse_spec
from slimfast.cli.stored import in_float32, is_weight_file, load_weights
from slimfast.errors import SlimfastError, did_you_mean, one_line
from slimfast.wrappers import modules_held

_FORMS = "package.module:factory, timm:NAME, torchvision:NAME, hf:FOLDER or ultralytics:FILE"


@dataclass(frozen=True, slots=True)
class Built:
    """A model and, by name, the dtypes its weights are stored in, where these are not its own."""

    model: nn.Module
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)


def build_model(
    name: str, *, weights: str | os.PathLike[str] | None = None, seed: int = 0, device: str = "cpu"
) -> nn.Module:
    """Build the model of that name as :func:`build` does, at random from ``seed`` without ``weights``."""
    return build(name, weights=weights, seed=seed, device=device, random_weights=True).model


def build(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    random_weights: bool = False,
) -> Built:
    """Build the model of that name in eval mode, on a device.

    A name is ``package.module:factory`` (a class or function, or a module itself; the current folder is
    searched too), ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER``, a folder or cached name of Hugging
    Face, or ``ultralytics:FILE``, a description (``yolov8n.yaml``) or, with ``?trust=true``, a ``.pt``;
    ``?key=value`` behind it passes arguments. Nothing is downloaded. Without ``weights`` a model whose
    parameters are random is refused, unless ``random_weights`` says that they may be. Half-precision weights
    are held in float32, which they fit exactly.
    """
    spec = parse_spec(name, "model")
    make = _maker(spec, stored=weights is None and device != "meta")
    model = _made(name, make, seed)
    dtypes: Mapping[str, torch.dtype] = {}
    if weights is not None:
        model, dtypes = load_weights(model, Path(weights))
    elif not random_weights and device != "meta":
        _check_not_random(name, make, model, seed)
    if device == "meta":
        return Built(model.eval(), dtypes)
    dtypes = {**in_float32(model), **dtypes}
    return Built(model.to(check_device(device)).eval(), dtypes)


def check_device(name: str) -> torch.device:
    """Find the device of that name; :class:`SlimfastError` where this machine or this PyTorch has none."""
    try:
        return torch.empty(0, device=name).device
    # PyTorch asserts that it was built for CUDA, and raises RuntimeError for all the rest.
    except (RuntimeError, AssertionError) as error:
        raise SlimfastError(f"device {name!r}: {one_line(error)}") from error


def _made(name: str, make: Callable[[], Any], seed: int) -> nn.Module:
    # Only now: what an import draws from the generator depends on what was imported before.
    torch.manual_seed(seed)
    model = make()
    if not isinstance(model, nn.Module):
        raise SlimfastError(
            f"model {name}: expected a torch.nn.Module, got {type(model).__name__}{modules_held(model)}"
        )
    return model


def _check_not_random(name: str, make: Callable[[], Any], model: nn.Module, seed: int) -> None:
    """Refuse a model whose parameters depend on the seed: it was not trained, and its widths mean nothing."""
    other = dict(_made(name, make, seed + 1).named_parameters())
    for tensor, parameter in model.named_parameters():
        if tensor not in other or not torch.equal(parameter, other[tensor]):
            raise SlimfastError(
                f"model {name}: expected --weights, for its own are random ({tensor}); "
                "--random-weights takes them as they are"
            )


def _maker(spec: Spec, *, stored: bool) -> Callable[[], Any]:
    """Find what makes the model; a folder of the hub brings its own weights where they are ``stored``."""
    library, _, rest = spec.name.partition(":")
    if not rest:
        hint = " (a file of weights has no forward; 'spectra' reads it)" if is_weight_file(spec.name) else ""
        raise SlimfastError(f"model: expected {_FORMS}, got {spec.name!r}{hint}")
    what = f"model {spec.name}"
    known: Sequence[str] = ()
    arguments = dict(spec.arguments)
    factory: Any
    if library == "timm":
        timm = _library(spec.name, "timm")
        factory, known = functools.partial(timm.create_model, rest), timm.list_models()
        arguments = {"pretrained": False, **arguments}
    elif library == "torchvision":
        models = _library(spec.name, "torchvision.models")
        factory, known = functools.partial(models.get_model, rest), models.list_models()
        arguments = {"weights": None, **arguments}
    elif library == "hf":
        transformers = _library(spec.name, "transformers")
        return functools.partial(_from_hub, transformers, what, rest, arguments, stored=stored)
    elif library == "ultralytics":
        return functools.partial(_from_ultralytics, _library(spec.name, "ultralytics"), what, rest, arguments)
    else:
        factory = import_object(spec.name, "model")
        if isinstance(factory, nn.Module):
            return lambda: factory
    hint = did_you_mean(rest, known)
    return lambda: call_foreign(what, factory, hint=hint, **arguments)


def _from_hub(
    transformers: Any, what: str, name: str, arguments: dict[str, Any], *, stored: bool
) -> nn.Module:
    """Make the transformer that a local folder, or a name in the local cache, describes."""
    given = dict(arguments)
    kind = given.pop("class", None)
    config = call_foreign(what, transformers.AutoConfig.from_pretrained, name, local_files_only=True, **given)
    kind = kind or next(iter(getattr(config, "architectures", None) or ()), "AutoModel")
    made = getattr(transformers, str(kind), None)
    if made is None:
        raise SlimfastError(
            f"{what}: transformers has no class {kind!r}{did_you_mean(kind, dir(transformers))}"
        )
    if stored and _has_weights(Path(name)):
        with _without_bars(transformers):
            model, found = call_foreign(
                what,
                made.from_pretrained,
                name,
                config=config,
                local_files_only=True,
                output_loading_info=True,
            )
        if found["missing_keys"]:
            raise SlimfastError(
                f"{what}: its weights lack {min(found['missing_keys'])}, which {kind} has; name another "
                "?class=, or pass --weights"
            )
    elif hasattr(made, "from_config"):
        model = call_foreign(what, made.from_config, config)
    else:
        model = call_foreign(what, made, config)
    loaded: nn.Module = model
    return loaded


def _from_ultralytics(ultralytics: Any, what: str, file: str, arguments: dict[str, Any]) -> nn.Module:
    """Make the network of a description, or read one from a ``.pt`` file, whose pickle that package runs."""
    given = dict(arguments)
    trusted = given.pop("trust", False)
    suffix = Path(file).suffix
    if suffix not in (".yaml", ".yml", ".pt"):
        raise SlimfastError(f"{what}: expected NAME.yaml or FILE.pt, got {file!r}")
    if suffix == ".pt" and not Path(file).is_file():
        raise SlimfastError(f"{what}: no such file is here, and nothing is downloaded")
    if suffix == ".pt" and trusted is not True:
        raise SlimfastError(
            f"{what}: ultralytics reads such a file with pickle, which runs the code in it; "
            "add ?trust=true where you know who wrote it"
        )
    network: nn.Module = call_foreign(what, ultralytics.YOLO, file, **given).model
    return network


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """Keep the progress bars of the library off stderr, where they would be between our lines."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _has_weights(folder: Path) -> bool:
    # A name that is no folder is one in the cache, which holds what it needs.
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _library(name: str, module: str) -> Any:
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise SlimfastError(f"model {name}: {package} is not installed (pip install {package})")
    prepare_torchvision()
    return call_foreign(f"model {name}", importlib.import_module, module)
