"""The losses that are minimised."""

from torch import Tensor, nn
from torch.nn import functional


class LabelSmoothingLoss(nn.Module):
    """Mean cross-entropy against q_y = 1 − ε, q_i = ε/(K−1) for i ≠ y (He et al. 2019, section 5.2).

    torch spreads its smoothing over all K classes, the true one included, so that ε here is ε·K/(K−1) there.
    At the optimum the logit gap z_y − mean(z_i, i ≠ y) is log((K−1)(1−ε)/ε). Takes (b, K) logits and (b,) int64 labels;
    computes in float32. ε must be at least 0 and at most (K−1)/K, where the target would be uniform.
    """

    def __init__(self, smoothing: float, classes: int):
        super().__init__()
        assert 0 <= smoothing <= (classes - 1) / classes
        # min: at ε = (K−1)/K rounding may lead above 1.
        self.torch_smoothing = min(smoothing * classes / (classes - 1), 1.0)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self.torch_smoothing)
