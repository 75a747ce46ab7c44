"""Convolutions of maps of a few pixels, as they are deep in a network that small pictures go through."""

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = {1: 4, 3: 2}  # by the kernel's side, pixels: of larger maps than this, matrix products gain nothing or lose


class Conv2d(nn.Conv2d):
    """torch's, which on a CPU computes small maps as one matrix product: the same but for rounding.

    oneDNN's convolutions lose most where a map is a single pixel. In bfloat16, a whole training step of ResNet-50 is
    1.55 times as fast at 32 px, and 1.2 times at 56; in float32, 1.3 times and the same
    (benchmarks/results/convolution-cpu.md). Compiled or exported, it is a plain convolution.
    """

    @staticmethod
    def computes(module: nn.Module) -> bool:
        """Return whether it is one of torch's, of those that can be computed like this: all of a ResNet are."""
        return (
            type(module) is nn.Conv2d
            and module.kernel_size in ((1, 1), (3, 3))
            and module.padding == tuple(side // 2 for side in module.kernel_size)
            and module.stride in ((1, 1), (2, 2))
            and (module.dilation, module.groups, module.padding_mode) == ((1, 1), 1, "zeros")
        )

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cpu and self._is_small(input) and not torch.compiler.is_compiling():
            return self._multiply(input)
        return super().forward(input)

    def _is_small(self, input: Tensor) -> bool:
        kernel, stride = self.kernel_size[0], self.stride[0]
        return (max(input.shape[2:]) - 1) // stride < MOST[kernel]

    def _multiply(self, input: Tensor) -> Tensor:
        """Lay out what each output pixel sees as a row, and multiply: (b, c, h, w) → (b, channels, h', w')."""
        kernel, stride, pad = self.kernel_size[0], self.stride[0], self.kernel_size[0] // 2
        images, weight = input.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1)
        height, width = ((side - 1) // stride + 1 for side in images.shape[1:3])
        if kernel == 1:
            seen = images[:, ::stride, ::stride]
        elif height == width == 1:  # all of the picture, and no more of the kernel than meets it
            weight = weight[:, pad : pad + images.shape[1], pad : pad + images.shape[2]]
            seen = images.flatten(1)[:, None, None]
        else:
            padded = functional.pad(images, (0, 0, pad, pad, pad, pad))
            down, right = (slice(stride * (side - 1) + 1) for side in (height, width))
            shifts = [padded[:, row:, column:] for row in range(kernel) for column in range(kernel)]
            seen = torch.cat([shift[:, down, right][:, ::stride, ::stride] for shift in shifts], dim=3)
        rows = seen.reshape(-1, seen.shape[3])  # of more dimensions, torch would multiply one by one where none learns
        found = functional.linear(rows, weight.flatten(1), self.bias)
        return found.view(len(images), height, width, len(weight)).permute(0, 3, 1, 2)
