"""Class activation maps: against the logits, a gradient-weighted map, and where the network's cells look."""

import pytest
import torch
from test_resnet import with_lively_batchnorms

from plumage.data.augment import Transform
from plumage.engine.evaluator import forward, forward_maps
from plumage.hardware.device import Machine
from plumage.models.maps import GRID, class_maps, over_pictures
from plumage.models.resnet import build_model

CPU = torch.device("cpu")


def lively(name, classes=7):
    torch.manual_seed(0)
    return with_lively_batchnorms(build_model(name, classes)).eval()


def grad_cam(model, images, labels):
    """Selvaraju et al. 2017, equations 1 and 2, without its rectifier."""
    stages = [module for name, module in model.named_children() if name not in ("avgpool", "fc")]
    features = torch.nn.Sequential(*stages)(images).detach().requires_grad_()
    scores = model.fc(features.mean((2, 3))).gather(1, labels[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), features)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach()


@pytest.mark.parametrize(("name", "side", "cells"), [("resnet18", 43, 2), ("resnet50d", 65, 3)])
def test_the_mean_of_a_map_and_the_bias_are_the_logit_of_any_class(name, side, cells):
    model = lively(name)
    images = torch.randn(7, 3, side, side)
    labels = torch.randperm(7)  # each class once
    with torch.no_grad():
        expected = model(images)
        logits, maps = class_maps(model, images, labels)
    assert (maps.shape, maps.dtype, logits.dtype) == ((7, cells, cells), torch.float32, torch.float32)
    assert torch.equal(logits, expected)
    bias = model.fc.bias[labels]
    torch.testing.assert_close(maps.mean((1, 2)) + bias, expected.gather(1, labels[:, None])[:, 0], rtol=0, atol=1e-5)
    assert maps.flatten(1).std(1).min() > 0.01  # it has places to tell apart


def test_they_are_those_weighted_by_gradients_up_to_the_number_of_cells():
    model = lively("resnet18")
    images, labels = torch.randn(3, 3, 96, 64), torch.tensor([6, 0, 3])
    with torch.no_grad():
        maps = class_maps(model, images, labels)[1]
    assert maps.shape == (3, 3, 2)
    torch.testing.assert_close(grad_cam(model, images, labels) * 6, maps, rtol=1e-4, atol=1e-5)


def test_a_compiled_network_in_low_precision_has_the_same_and_keeps_no_hook():
    model, machine = lively("resnet18"), Machine(CPU, "bf16", True)
    stored, labels = torch.randint(0, 256, (4, 70, 70, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    view = Transform(64)
    exact = forward_maps(model, view.center, Machine(CPU, "fp32", False), stored, labels)
    model.compile(backend="eager")
    with torch.inference_mode():
        forward(model, view.center, machine, stored)  # so that it is compiled before the hook is there
    maps = forward_maps(model, view.center, machine, stored, labels)
    assert maps.dtype == torch.float32
    assert 0 < (maps - exact).abs().max() < 0.05 * exact.abs().max()
    assert not model.layer4._forward_hooks
    with pytest.raises(RuntimeError):
        class_maps(model, torch.zeros(1, 5, 64, 64), labels[:1])
    assert not model.layer4._forward_hooks
    with pytest.raises(AssertionError):
        class_maps(model.train(), torch.zeros(2, 3, 64, 64), labels[:2])


def test_interpolated_by_hand():
    """Cell i lies at pixel 32 · i, so that 224 pixels end 31 pixels after the last of 7 cells, and 56 after 23."""
    ramp = torch.arange(7.0).expand(1, 7, 7)
    pixels = (torch.arange(GRID) + 0.5) * 224 / GRID - 0.5
    expected = (pixels / 32).clamp(max=6)
    torch.testing.assert_close(over_pictures(ramp, 224)[0], expected.expand(GRID, GRID))
    torch.testing.assert_close(over_pictures(ramp.mT, 224)[0], expected[:, None].expand(GRID, GRID))
    two = over_pictures(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]), GRID)[0]  # a value a pixel
    assert (two[16, 32], two[32, 16], two[16, 16], two[32, 32], two[55, 55]) == (0.5, 0.5, 0.25, 1, 1)
    assert torch.equal(over_pictures(torch.full((2, 1, 1), 3.0), 32), torch.full((2, GRID, GRID), 3.0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])
def test_cells_look_where_they_are_put(name):
    """By the gradient of a row of cells: half of what moves the one in the middle lies above the picture's middle.

    With kernels that are the same upside down, so that nothing but the geometry counts.
    """
    model, images = lively(name), torch.randn(2, 3, 192, 192, requires_grad=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data += module.weight.data.flip(2)
    stages = [module for name, module in model.named_children() if name not in ("avgpool", "fc")]
    features = torch.nn.Sequential(*stages)(images)
    (gradient,) = torch.autograd.grad(features[:, :, 3].sum(), images)
    moved = gradient.abs().sum((0, 1, 3)).cumsum(0)
    assert abs(int((moved < moved[-1] / 2).sum()) - 96) <= 6  # spread evenly, it would be at 112
    shown = over_pictures(torch.eye(6)[3].reshape(1, 6, 1).expand(1, 6, 6), 192)[0, :, 0]
    assert abs((int(shown.argmax()) + 0.5) * 192 / GRID - 96) <= 192 / GRID
