from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from plumage.models.resnet import build_model, parameter_groups

BLOCKS = [f"layer{stage}.{block}" for stage, depth in ((1, 3), (2, 4), (3, 6), (4, 3)) for block in range(depth)]


def with_lively_batchnorms(model):
    """Random γ and β, and the statistics of noise, with which logits stay of the order of 1 and differ by picture."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 43, 43))
    return model


def assert_same_function(model, reference):
    """Both in double precision: what rounds otherwise in training mode, BatchNorm amplifies."""
    for side in (32, 43):  # 43: the stages see 11, 6, 3 and 2 pixels, so that pooling has to round
        pictures = torch.randn(4, 3, side, side, dtype=torch.float64)
        with torch.no_grad():
            output, expected = model(pictures), reference(pictures)
        assert 0.2 < expected.std() < 2
        assert expected.std(0).min() > 0.02
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [  # the paper's table 5, which cuts 3.86 to 3.8, and timm's figure for D
        ("resnet50v1", 25_557_032, 3.8e9),
        ("resnet50", 25_557_032, 4.1e9),
        ("resnet50c", 25_576_264, 4.3e9),
        ("resnet50d", 25_576_264, 4.35e9),
    ],
)
def test_size_and_cost(name, parameters, multiply_adds):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(name, 1000)
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds, abs=0.06e9)


@pytest.mark.parametrize("name", ["resnet50", "resnet50c", "resnet50d"])
def test_computes_what_timms_does_with_the_same_weights(name):
    torch.manual_seed(0)
    theirs = with_lively_batchnorms(timm.create_model(name, num_classes=7)).to(memory_format=torch.channels_last)
    ours = build_model(name, 7)
    ours.load_state_dict(theirs.state_dict())
    assert_same_function(ours.double().train(), theirs.double().train())
    theirs.load_state_dict(ours.state_dict())
    assert_same_function(ours.eval(), theirs.eval())


def test_v1_is_the_original_network():
    torch.manual_seed(0)
    b, v1 = with_lively_batchnorms(resnet50(num_classes=7)).eval(), build_model("resnet50v1", 7).eval()
    b, v1 = b.double(), v1.double()
    v1.load_state_dict(b.state_dict())
    assert_same_function(v1, partial(original_resnet50, v1.state_dict()))
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert (v1(pictures) - b(pictures)).abs().max() > 0.1


def original_resnet50(state, x):
    """He et al. 2016, "Deep Residual Learning for Image Recognition", table 1, in evaluation."""

    def conv_bn(x, conv, bn, stride=1, padding=0):
        x = functional.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=padding)
        return functional.batch_norm(
            x, *(state[f"{bn}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        )

    x = functional.max_pool2d(conv_bn(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    for block in BLOCKS:
        stride = 2 if block in ("layer2.0", "layer3.0", "layer4.0") else 1
        y = conv_bn(x, f"{block}.conv1", f"{block}.bn1", stride).relu()
        y = conv_bn(y, f"{block}.conv2", f"{block}.bn2", padding=1).relu()
        y = conv_bn(y, f"{block}.conv3", f"{block}.bn3")
        if block.endswith(".0"):
            x = conv_bn(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
        x = (x + y).relu()
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_a_seed_gives_one_network_in_channels_last():
    def convolutions(seed):
        torch.manual_seed(seed)
        return [parameter for parameter in build_model("resnet50d", 4).parameters() if parameter.ndim == 4]

    for one, again, other in zip(convolutions(3), convolutions(3), convolutions(4), strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_the_deep_stem_is_initialised_as_the_rest():
    torch.manual_seed(0)
    stem = build_model("resnet50c", 4).conv1
    for index, fan_out in ((0, 9 * 32), (3, 9 * 32), (6, 9 * 64)):
        assert stem[index].weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "zero_gamma", "zeros"),
    [
        ("resnet18", False, set()),
        ("resnet18", True, {f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)}),
        *((f"resnet50{kind}", True, {f"{block}.bn3" for block in BLOCKS}) for kind in ("", "v1", "c", "d")),
    ],
)
def test_zero_gamma_is_for_the_last_batchnorm_of_each_block(name, zero_gamma, zeros):
    modules = build_model(name, 4, zero_gamma).named_modules()
    gammas = {key: module.weight for key, module in modules if isinstance(module, nn.BatchNorm2d)}
    assert {key for key, gamma in gammas.items() if (gamma == 0).all()} == zeros
    assert {key for key, gamma in gammas.items() if (gamma == 1).all()} == gammas.keys() - zeros


def names_by(key, groups, model):
    """The names of the parameters for each value of ``key``; each parameter must be in one group."""
    names, found = {parameter: name for name, parameter in model.named_parameters()}, {}
    for group in groups:
        for parameter in group["params"]:
            found.setdefault(group[key], set()).add(names.pop(parameter))
    assert not names
    return found


def test_without_bias_decay_only_the_weights_of_convolutions_and_the_head_decay():
    with torch.device("meta"):
        model = build_model("resnet50", 5)
    convolutions = {"conv1.weight"}
    convolutions |= {f"{block}.conv{number}.weight" for block in BLOCKS for number in (1, 2, 3)}
    convolutions |= {f"layer{stage}.0.downsample.0.weight" for stage in (1, 2, 3, 4)}
    assert len(convolutions) == 53
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    everything, decaying = set(names.values()), convolutions | {"fc.weight"}

    assert names_by("weight_decay", parameter_groups(model, 0.01), model) == {0.01: everything}
    groups = parameter_groups(model, 0.01, bias_decay=False, head_lr_multiplier=10.0)
    assert names_by("weight_decay", groups, model) == {0.01: decaying, 0.0: everything - decaying}
    head = {"fc.weight", "fc.bias"}
    assert names_by("lr_scale", groups, model) == {10.0: head, 1.0: everything - head}
    assert {names[id(parameter)] for parameter in groups[0]["params"]} == convolutions


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(2, 2)
        self.shortcut = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        self.fc = nn.Linear(2, 3, bias=False)


@pytest.mark.parametrize("bias_decay", [True, False])
def test_sgd_takes_the_groups_of_any_model_with_a_head(bias_decay):
    model = Toy()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(parameter_groups(model, 0.25, bias_decay), lr=1.0, fused=True).step()
    decayed = {name for name, parameter in model.named_parameters() if (parameter == 0.75).all()}
    weights = {"weight.weight", "shortcut.0.weight", "fc.weight"}
    others = {"weight.bias", "shortcut.0.bias", "shortcut.1.weight", "shortcut.1.bias"}
    assert decayed == (weights | others if bias_decay else weights)
