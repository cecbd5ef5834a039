"""The learning rate as a function of the iteration. A pure function: resuming needs no saved scheduler."""

import math


def warmup_cosine(
    step: int,
    total_steps: int,
    warmup_steps: int,
    base_lr: float,
    final_lr: float = 0.0,
    start_lr: float = 0.0,
) -> float:
    """The rate of iteration ``step`` (0, 1, …): a straight line up, then half a cosine down.

        start + (base − start) · step / warmup                        for step < warmup
        final + (base − final) · ½ (1 + cos π u)                      after, u = (step − warmup) / (total − warmup)

    and ``final_lr`` from ``total_steps`` on. Early steps are small because Adam's v̂ is the mean of few gradients and
    attention starts far from its working point; the cosine (Loshchilov and Hutter, "SGDR", 2017, arXiv:1608.03983,
    equation 5, without restarts) stays long near the highest and the lowest rate, and crosses the middle fast.

    Raises ValueError for a negative step, or a warm-up that is longer than the run.

    >>> [round(warmup_cosine(step, 6, 2, base_lr=1.0), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < 0 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            "step must be at least 0 and warmup_steps lie in 0 … total_steps, "
            f"got step {step}, warmup_steps {warmup_steps}, total_steps {total_steps}"
        )
    if step < warmup_steps:
        return start_lr + (base_lr - start_lr) * step / warmup_steps
    if step >= total_steps:
        return final_lr
    u = (step - warmup_steps) / (total_steps - warmup_steps)
    return final_lr + (base_lr - final_lr) * 0.5 * (1 + math.cos(math.pi * u))
