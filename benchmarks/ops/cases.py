"""Layer lists of real networks, written as generators of weight shapes, and random weights of those shapes.

Time depends on shapes, not on values, so nothing is downloaded. A test compares every list with the library
that publishes the network. Position tables and token embeddings are left out: they are no layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A network as its weights (units first), with ``vectors`` of its units' length beside each weight."""

    name: str
    weights: tuple[Shape, ...]
    vectors: int
    dtype: torch.dtype = torch.float32

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(n, d) of every weight's matrix of units."""
        return [(shape[0], prod(shape[1:])) for shape in self.weights]


def vgg16() -> Iterator[Shape]:
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            yield width, channels, 3, 3
            channels = width
    yield from ((4096, 512 * 7 * 7), (4096, 4096), (1000, 4096))


def resnet50() -> Iterator[Shape]:
    yield 64, 3, 7, 7
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield width, channels, 1, 1
            yield width, width, 3, 3
            yield 4 * width, width, 1, 1
            if block == 0:
                yield 4 * width, channels, 1, 1
            channels = 4 * width
    yield 1000, channels


# Kernel, expanded channels, output channels, squeeze-excite channels of every inverted residual.
_MOBILENET_V3 = (
    *((3, 64, 24, 0), (3, 72, 24, 0), (5, 72, 40, 24), (5, 120, 40, 32), (5, 120, 40, 32), (3, 240, 80, 0)),
    *((3, 200, 80, 0), (3, 184, 80, 0), (3, 184, 80, 0), (3, 480, 112, 120), (3, 672, 112, 168)),
    *((5, 672, 160, 168), (5, 960, 160, 240), (5, 960, 160, 240)),
)


def mobilenet_v3_large() -> Iterator[Shape]:
    yield from ((16, 3, 3, 3), (16, 1, 3, 3), (16, 16, 1, 1))
    channels = 16
    for kernel, expanded, width, squeezed in _MOBILENET_V3:
        yield expanded, channels, 1, 1
        yield expanded, 1, kernel, kernel
        if squeezed:
            yield squeezed, expanded, 1, 1
            yield expanded, squeezed, 1, 1
        yield width, expanded, 1, 1
        channels = width
    yield from ((960, 160, 1, 1), (1280, 960, 1, 1), (1000, 1280))


def convnext(width: int, depths: tuple[int, ...]) -> Iterator[Shape]:
    yield width, 3, 4, 4
    for stage, depth in enumerate(depths):
        if stage:
            yield 2 * width, width, 2, 2
            width *= 2
        for _ in range(depth):
            yield from ((width, 1, 7, 7), (4 * width, width), (width, 4 * width))
    yield 1000, width


def transformer_block(width: int) -> Iterator[Shape]:
    yield from ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))


def vit(width: int, depth: int) -> Iterator[Shape]:
    yield width, 3, 16, 16
    for _ in range(depth):
        yield from transformer_block(width)
    yield 1000, width


def swin(width: int, depths: tuple[int, ...]) -> Iterator[Shape]:
    yield width, 3, 4, 4
    for stage, depth in enumerate(depths):
        if stage:
            yield 2 * width, 4 * width
            width *= 2
        for _ in range(depth):
            yield from transformer_block(width)
    yield 1000, width


def decoder_8b(depth: int = 32) -> Iterator[Shape]:
    """Llama 3 8B without its embeddings: grouped-query attention with 8 key/value heads of 128."""
    for _ in range(depth):
        yield from ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096))
        yield from ((14336, 4096), (14336, 4096), (4096, 14336))


_BUILDERS: dict[str, tuple[Callable[[], Iterator[Shape]], int]] = {
    "VGG-16": (vgg16, 1),
    # Batch norm's scale, shift, mean and variance.
    "ResNet-50": (resnet50, 4),
    "MobileNetV3-L": (mobilenet_v3_large, 4),
    "ConvNeXt-T": (lambda: convnext(96, (3, 3, 9, 3)), 1),
    "ConvNeXt-L": (lambda: convnext(192, (3, 3, 27, 3)), 1),
    "ViT-B": (lambda: vit(768, 12), 1),
    "ViT-L": (lambda: vit(1024, 24), 1),
    "Swin-L": (lambda: swin(192, (2, 2, 18, 2)), 1),
}
DECODER = "8B decoder"
NETWORKS = (*_BUILDERS, DECODER)


def network(name: str, *, blocks: int = 32) -> Network:
    """The network of this name; ``blocks`` of the decoder."""
    if name == DECODER:
        return Network(name, tuple(decoder_8b(blocks)), vectors=0, dtype=torch.bfloat16)
    build, vectors = _BUILDERS[name]
    return Network(name, tuple(build()), vectors)


def matrices(net: Network, device: str = "cpu") -> list[Tensor]:
    """Seeded Gaussian (n, d) matrices of all layers, with a spread like that of initialised weights."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(n, d, generator=generator, device=device, dtype=net.dtype).mul_(d**-0.5)
        for n, d in net.layers
    ]


def tensors(net: Network, device: str = "cpu") -> tuple[list[Tensor], list[dict[int, Tensor]]]:
    """All weights and vectors, and the indices that cut every one of them to half its width.

    Image channels and depthwise inputs are not cut. One set of indices for each length, as in a plan.
    """
    generator = torch.Generator(device).manual_seed(0)
    order = torch.Generator().manual_seed(0)
    indices: dict[int, Tensor] = {}

    def half(length: int) -> Tensor:
        if length not in indices:
            kept = torch.randperm(length, generator=order)[: max(length // 2, 1)]
            indices[length] = kept.sort().values
        return indices[length]

    found: list[Tensor] = []
    keeps: list[dict[int, Tensor]] = []
    for shape in net.weights:
        found.append(torch.randn(shape, generator=generator, device=device, dtype=net.dtype))
        keeps.append({dim: half(shape[dim]) for dim in (0, 1) if shape[dim] > 3})
        for _ in range(net.vectors):
            found.append(torch.randn(shape[0], generator=generator, device=device, dtype=net.dtype))
            keeps.append({0: half(shape[0])})
    return found, keeps
