"""The networks of the zoo by name, built with random weights, and an example of what each is called with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo import audio, detectors, diffusion, graphs, language, segmentation, small_transformers
from benchmarks.zoo.timm_files import SMALLEST
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.cli.inputs import default_inputs, parse_inputs
from slimfast.cli.models import build_model
from slimfast.graph.recording.inputs import map_leaves


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# One model of 45 families, at the sizes people use.
FAMILIES = _words(
    """
    resnet18 resnext50_32x4d vgg16_bn mobilenetv3_large_100 efficientnet_b0 convnext_tiny
    convnextv2_tiny vit_tiny_patch16_224 deit3_small_patch16_224 swin_tiny_patch4_window7_224
    densenet121 regnety_008 ghostnet_100 mixer_s32_224 gmlp_s16_224 pvt_v2_b0 coat_lite_tiny
    crossvit_9_240 maxvit_tiny_tf_224 mobilevit_xs edgenext_xx_small hrnet_w18_small dla34 vovnet39a
    res2net50_26w_4s selecsls42b inception_v3 nfnet_l0 rexnet_100 levit_128s efficientformer_l1
    poolformer_s12 twins_pcpvt_small xcit_nano_12_p16_224 cait_xxs24_224 volo_d1_224
    beit_base_patch16_224 eva02_tiny_patch14_224 fastvit_t8 repvgg_a0 tiny_vit_5m_224 hiera_tiny_224
    davit_tiny focalnet_tiny_srf inception_next_tiny
    """
)

CLASSIFIERS = _words(
    """
    alexnet convnext_tiny densenet121 densenet201 efficientnet_b0 efficientnet_v2_s googlenet
    inception_v3 maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf
    resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_t swin_v2_t vgg11 vit_b_32
    wide_resnet50_2
    """
)
SEGMENTERS = _words(
    """
    deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large
    """
)
DETECTORS = _words(
    """
    fasterrcnn_mobilenet_v3_large_fpn fcos_resnet50_fpn maskrcnn_resnet50_fpn_v2 retinanet_resnet50_fpn
    ssd300_vgg16 ssdlite320_mobilenet_v3_large
    """
)

ZOOS: dict[str, tuple[str, ...]] = {
    "families": tuple(f"timm:{name}" for name in FAMILIES),
    "timm": tuple(f"timm:{name}" for name in SMALLEST.values()),
    "transformers": tuple(f"transformers:{name}" for name in small_transformers.NETWORKS),
    "torchvision": tuple(f"torchvision:{name}" for name in (*CLASSIFIERS, *SEGMENTERS))
    + tuple(f"torchvision:{name}.backbone" for name in DETECTORS),
    "detectors": tuple(f"ultralytics:{name}" for name in detectors.NETWORKS),
    "segmentation": tuple(f"segmentation_models_pytorch:{name}" for name in segmentation.PLANAR)
    + tuple(f"monai:{name}" for name in segmentation.MEDICAL),
    "diffusion": tuple(f"diffusers:{name}" for name in diffusion.NETWORKS),
    "audio": tuple(f"torchaudio:{name}" for name in audio.NETWORKS),
    "graphs": tuple(f"torch_geometric:{name}" for name in graphs.NETWORKS),
    "language": tuple(f"transformers:{name}" for name in (*language.LANGUAGE, *language.SIGHT_AND_HEARING)),
}


# What makes the networks of each library from the rest of the name, timm's and torchvision's apart.
_BUILDERS: dict[str, Mapping[str, Callable[[], tuple[nn.Module, Any]]]] = {
    "transformers": {**small_transformers.NETWORKS, **language.LANGUAGE, **language.SIGHT_AND_HEARING},
    "ultralytics": detectors.NETWORKS,
    "segmentation_models_pytorch": segmentation.PLANAR,
    "monai": segmentation.MEDICAL,
    "diffusers": diffusion.NETWORKS,
    "torchaudio": audio.NETWORKS,
    "torch_geometric": graphs.NETWORKS,
}


# What takes seconds to import.
_IMPORTED = (
    "ultralytics",
    "segmentation_models_pytorch",
    "monai.networks.nets",
    "diffusers",
    "torch_geometric.nn",
)


def missing(name: str) -> str | None:
    """The package that a network needs and this environment lacks, None where all is there."""
    library = name.partition(":")[0]
    return None if importlib.util.find_spec(library) else library


def build(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """The network in eval mode and an example of its arguments, the same for the same seed.

    ``torchvision:NAME.backbone`` is what a detector extracts its features with.
    """
    prepare_torchvision()
    audio.prepare_torchaudio()
    library, _, rest = name.partition(":")
    torch.manual_seed(seed)
    if library in _BUILDERS:
        model, example = _BUILDERS[library][rest]()
    elif library == "torchvision":
        model, example = _torchvision(rest)
    else:
        model = build_model(name, seed=seed)
        (example,) = parse_inputs(default_inputs(model, name), seed=seed)
    return model.eval(), example


def _torchvision(name: str) -> tuple[nn.Module, Tensor]:
    models = importlib.import_module("torchvision.models")
    wide, _, part = name.partition(".")
    options: dict[str, Any] = {"weights": None}
    if wide in (*SEGMENTERS, *DETECTORS):
        options["weights_backbone"] = None
    if wide in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    model: nn.Module = models.get_model(wide, **options)
    size = 299 if wide == "inception_v3" else 300 if wide == "ssd300_vgg16" else 224
    return model.get_submodule(part) if part else model, torch.randn(1, 3, size, size)


def two_samples(example: Any) -> Any:
    """The example with a second sample in its batch, which norms over the batch need in training."""
    leaves: list[Tensor] = []
    map_leaves(example, lambda leaf: leaves.append(leaf) if isinstance(leaf, Tensor) else None)
    batch = leaves[0].shape[0]

    def twice(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != batch:
            return leaf
        return torch.cat([leaf, torch.randn_like(leaf) if leaf.is_floating_point() else leaf])

    return map_leaves(example, twice)


def classifier(model: nn.Module) -> list[nn.Module]:
    """The layers that make the network's answers, as its library tells; none where it has none."""
    found: Any = None
    for name in ("get_classifier", "get_output_embeddings", "fc", "classifier", "head", "heads"):
        if found is None and hasattr(model, name):
            found = getattr(model, name)
            found = found() if name.startswith("get_") else found
    several = found if isinstance(found, (tuple, list)) else [found]
    layers = [part for item in several if isinstance(item, nn.Module) for part in item.modules()]
    weighty = [part for part in layers if isinstance(part, (nn.Linear, nn.Conv2d))]
    # Of a classifier with hidden layers only the last answers.
    return weighty if isinstance(found, (tuple, list)) else weighty[-1:]


def preload() -> None:
    """Import now what every process of the zoo needs."""
    prepare_torchvision()
    audio.prepare_torchaudio()
    for name in ("timm", "torchvision", "transformers", "torch_pruning", *_IMPORTED):
        if name not in sys.modules and importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
