"""The learning rate as a function of where training is."""

import math


def learning_rate(iteration: int, total: int, warmup: int, peak: float, schedule: str = "cosine") -> float:
    """Return the rate of 0-based ``iteration`` of ``total``, the first ``warmup`` linear warm-up (Goyal et al. 2017).

    cosine (Loshchilov & Hutter 2017; He et al. 2019, eq. 1): ½(1 + cos(πt/T))·peak, with t and T counted after warm-up.
    step: a tenth after each quarter of T. constant: ``peak``.
    """
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    progress = (iteration - warmup) / (total - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * 0.1 ** int(4 * progress) if schedule == "step" else peak
