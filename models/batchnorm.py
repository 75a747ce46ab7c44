"""BatchNorm over the pictures of all processes that train together."""

from typing import Any

import torch
from torch import Tensor, distributed, nn


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make the BatchNorms inside ``model`` normalise over all processes in training. Its state dict stays as it is."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            model.set_submodule(name, SyncBatchNorm(module))
    return model


class SyncBatchNorm(nn.BatchNorm2d):
    """``norm``, computed as torch.nn.SyncBatchNorm does on GPUs alone. A process may have no picture of a batch."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict(keep_vars=True), assign=True)
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (b, c, h, w), b from 0, in float32 at least; the result has the dtype of ``images``."""
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
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
        own = torch.stack([count.expand_as(mean), mean, spread])
        counts, means, spreads = _Sum.apply(own * (torch.arange(world_size) == rank)[:, None, None]).unbind(1)
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
    """Sum values over the processes, and their gradients. torch's own is deprecated, and its successor not public."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
