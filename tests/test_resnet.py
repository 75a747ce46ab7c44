import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.resnet import build_model


def test_is_torchvisions_resnet50_with_another_head():
    model = build_model("resnet50", 7)
    assert model.state_dict().keys() == resnet50().state_dict().keys()
    assert sum(parameter.numel() for parameter in build_model("resnet50", 1000).parameters()) == 25_557_032
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_a_seed_gives_one_network_in_channels_last():
    torch.manual_seed(3)
    one = build_model("resnet18", 4)
    torch.manual_seed(3)
    other = build_model("resnet18", 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "block", "last", "count"), [("resnet50", Bottleneck, "bn3", 16), ("resnet18", BasicBlock, "bn2", 8)]
)
def test_zero_gamma_makes_each_block_the_identity(name, block, last, count):
    for zero_gamma in (True, False):
        model = build_model(name, 4, zero_gamma)
        gammas = [getattr(module, last).weight for module in model.modules() if isinstance(module, block)]
        assert len(gammas) == count
        assert all(torch.equal(gamma, torch.full_like(gamma, 1 - zero_gamma)) for gamma in gammas)
