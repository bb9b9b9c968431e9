"""What stands in for torchvision's compiled operations, and how channels pass through regions of an image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from benchmarks.zoo.detection_ops import non_maximum_suppression, prepare_detection_ops, roi_align


def test_boxes_that_overlap_a_better_one_are_left_out():
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6], [0, 0, 2, 1]], dtype=torch.float32)
    scores = torch.tensor([0.5, 0.9, 0.1, 0.4])
    assert non_maximum_suppression(boxes, scores, 0.6).tolist() == [1, 3, 2]
    assert non_maximum_suppression(boxes, scores, 0.5).tolist() == [1, 2]
    assert non_maximum_suppression(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("aligned", [False, True])
def test_regions_of_a_ramp_have_the_places_of_their_cells(aligned):
    image = torch.arange(8.0).expand(2, 3, 8, 8)
    regions = torch.tensor([[0, 2.0, 2.0, 6.0, 6.0], [1, 1.0, 3.0, 5.0, 7.0]])
    out = roi_align(image, regions, 1.0, 2, 2, 2, aligned)
    assert out.shape == (2, 3, 2, 2)
    left = torch.tensor([2.0, 1.0]) - (0.5 if aligned else 0.0)
    for row, start in zip(out[:, 0, 0], left, strict=True):
        assert torch.allclose(row, start + torch.tensor([1.0, 3.0]))


class Regions(nn.Module):
    """Features of an image, read in two regions of it."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12 * 4, 5)

    def forward(self, x, regions):
        made = torch.ops.torchvision.roi_align(self.features(x), regions, 1.0, 2, 2, 2, False)
        return self.head(made.flatten(1))


def test_channels_pass_through_regions_of_an_image():
    prepare_detection_ops()
    torch.manual_seed(0)
    regions = torch.tensor([[0, 1.0, 1.0, 5.0, 6.0], [0, 0.0, 2.0, 4.0, 4.0]])
    model, example = Regions().eval(), (torch.randn(1, 3, 8, 8), regions)
    (group,) = slimfast.trace_channels(model, example)
    assert (group.name, group.n) == ("features", 12)
    thin = slimfast.slim(model, example, overrides={"features": 5})
    assert (thin.features.out_channels, thin.head.in_features) == (5, 20)
