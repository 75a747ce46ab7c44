import pytest
import torch
from torch.nn import functional

from plumage.models.convolution import MOST, Conv2d
from plumage.models.resnet import build_model

CASES = [(1, 1), (1, 2), (3, 1), (3, 2)]


@pytest.mark.parametrize(("kernel", "stride"), CASES)
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (3, 3), (4, 4), (1, 2), (4, 1), (3, 2)])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_it_is_torchs_convolution_forward_and_backward(kernel, stride, sides, batch):
    torch.manual_seed(0)
    own = Conv2d(6, 7, kernel, stride, padding=kernel // 2, bias=False).double()
    images = torch.randn(batch, 6, *sides, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    expected = functional.conv2d(images, own.weight, stride=stride, padding=kernel // 2)
    found = own(images)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(each, (images, own.weight), gradient) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kernel", "stride"), CASES)
def test_small_maps_are_multiplied_and_no_others(monkeypatch, kernel, stride):
    convolved = []
    plain = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda own, images: convolved.append(1) or plain(own, images))
    own = Conv2d(4, 4, kernel, stride, padding=kernel // 2)
    most = stride * MOST[kernel]
    own(torch.zeros(2, 4, most, most))
    assert not convolved
    own(torch.zeros(2, 4, most, most + 1))
    assert convolved


def test_a_whole_network_gives_the_same_logits_and_gradients():
    """In training mode, in double precision, where rounding is no excuse: every kind of the paper, at 40 px."""
    for name in ("resnet18", "resnet50", "resnet50v1", "resnet50d"):
        torch.manual_seed(0)
        model = build_model(name, 3).double()
        images = torch.randn(4, 3, 40, 40, dtype=torch.float64)
        results = []
        for plain in (False, True):
            for module in model.modules():
                if plain and isinstance(module, Conv2d):
                    module.__class__ = torch.nn.Conv2d
            logits = model(images)
            results.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(("kernel", "stride"), CASES)
@pytest.mark.parametrize("side", [1, 2, 4])
def test_in_bfloat16_outputs_and_gradients_lie_in_memory_as_torchs(kernel, stride, side):
    """Else each layer after it would copy them."""
    own = Conv2d(8, 16, kernel, stride, padding=kernel // 2, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(4, 8, side, side).to(memory_format=torch.channels_last)
    found = []
    for kind in (Conv2d, torch.nn.Conv2d):
        own.__class__ = kind
        with torch.autocast("cpu", torch.bfloat16):
            output = own(images)
        (gradient,) = torch.autograd.grad(output.float().sum(), own.weight)
        contiguous = [each.is_contiguous(memory_format=torch.channels_last) for each in (output, gradient)]
        found.append((output.dtype, gradient.dtype, gradient.stride(), contiguous))
    assert found[0] == found[1]
    assert found[0][-1] == [True, True]


@pytest.mark.parametrize(
    "other",
    [{"padding": 0}, {"padding_mode": "reflect"}, {"dilation": 2, "padding": 2}, {"stride": (2, 1)}, {"groups": 2}],
)
def test_what_it_does_not_compute_stays_torchs(other):
    assert Conv2d.computes(torch.nn.Conv2d(4, 4, 3, padding=1))
    assert not Conv2d.computes(torch.nn.Conv2d(4, 4, 3, **{"padding": 1, **other}))


def test_exported_it_is_a_plain_convolution():
    program = torch.export.export(Conv2d(4, 4, 3, padding=1), (torch.zeros(2, 4, 2, 2),))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]
