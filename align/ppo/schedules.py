"""How the learning rates and the KL coefficient of PPO change."""

import math


def rate_factor(step: int, total: int, warmup_steps: float) -> float:
    """Return the factor of the learning rates at optimizer step `step` (from 0): a linear rise, then a fall towards 0.

    Adam's first steps have almost the full rate in every weight, whatever the noise of the gradients, so without the
    rise they would spend the KL on noise.

    Args:
        step, total: the step's number, and how many there are.
        warmup_steps: of the rise; below 1 a share of all steps.
    """
    warmup = warmup_steps if warmup_steps >= 1 else math.ceil(warmup_steps * total)
    return (step + 1) / (warmup + 1) if step < warmup else (total - step) / max(1.0, total - warmup)


def kl_coef_factor(kl: float, target: float, share: float) -> float:
    """Return the factor of the adaptive KL coefficient (Ziegler et al., 2019, section 2.2).

    Args:
        kl: of the last rollout, in nats per response.
        target: the desired KL.
        share: responses of the rollout over the horizon.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return 1 + error * share
