"""The losses that are minimised."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LabelSmoothingLoss(nn.Module):
    """Mean cross-entropy against q_y = 1 − ε, q_i = ε/(K−1) for i ≠ y (He et al. 2019, section 5.2).

    torch spreads its smoothing over all K classes, the true one included, so that ε here is ε·K/(K−1) there.
    At the optimum the logit gap z_y − mean(z_i, i ≠ y) is log((K−1)(1−ε)/ε). Takes (b, K) logits and, as targets, (b,)
    int64 labels or (b, K) probabilities, whose mixture is smoothed alike; computes in float32. ε must be at least 0 and
    at most (K−1)/K, where the target would be uniform.
    """

    def __init__(self, smoothing: float, classes: int):
        super().__init__()
        assert 0 <= smoothing <= (classes - 1) / classes
        # min: at ε = (K−1)/K rounding may lead above 1.
        self.torch_smoothing = min(smoothing * classes / (classes - 1), 1.0)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), targets, label_smoothing=self.torch_smoothing)


class DistillationLoss(nn.Module):
    """T²·KL(softmax(r/T) ‖ softmax(z/T)), mean over the batch: what is added to the loss to learn from a ``teacher``.

    z: the (b, K) logits of the network that learns; r: the teacher's, of the same (b, 3, h, w) images and without
    gradient. He et al. 2019, section 5.3, write a cross-entropy, which is this plus the teacher's entropy, a constant;
    so this is 0 where both agree. T² keeps the gradient's size (Hinton et al. 2015). Computes in float32.
    """

    def __init__(self, teacher: nn.Module, distillation_temperature: float):
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.distillation_temperature = distillation_temperature

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.teacher(images)
        own, given = (functional.log_softmax(z.float() / self.distillation_temperature, 1) for z in (logits, taught))
        return self.distillation_temperature**2 * functional.kl_div(own, given, reduction="batchmean", log_target=True)
