"""BatchNorm over the pictures of all processes that train together."""

from typing import Any

import torch
from torch import Tensor, distributed, nn


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with its BatchNorms normalising, in training, over all processes; the state dict stays as it is."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm  # which has nothing of its own but what it computes
    return model


class SyncBatchNorm(nn.BatchNorm2d):
    """What torch.nn.SyncBatchNorm computes on GPUs alone. A process may have no picture of a batch."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        wide = images if images.dtype == torch.float64 else images.float()
        count = wide.new_tensor(wide.numel() // wide.shape[1])
        mean = wide.sum((0, 2, 3)) / count.clamp(min=1)
        spread = (wide - mean[:, None, None]).square().sum((0, 2, 3))
        # Each process's row, put together by a sum, which autograd can go back through.
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        own = torch.stack([count.expand_as(mean), mean, spread])
        counts, means, spreads = _Sum.apply(own * (torch.arange(processes) == rank)[:, None, None]).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        spread = (spreads + counts * (means - mean).square()).sum(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((spread / (total - 1)).to(self.running_var), self.momentum)
        scale = self.weight * (spread / total + self.eps).rsqrt()
        return ((wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


class _Sum(torch.autograd.Function):
    """Over the processes, of values and of gradients. torch's own is deprecated, and its successor is not public."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        distributed.all_reduce(summed)
        return summed
