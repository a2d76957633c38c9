"""The schedules of pretraining for learning rate and mask rate, as pure functions of the step.

A step is counted from 0, the first update, to `total_steps - 1`, the last.
"""

import math
from dataclasses import dataclass


def mask_rate(
    step: int, total_steps: int, warmup_steps: int, minimum: float = 0.15, maximum: float = 0.30
) -> float:
    """Share of tokens to mask: up from `minimum` in the warm-up, then down to it again.

    With S = total_steps and S_w = warmup_steps:
        s <= S_w: minimum + (maximum - minimum) * s / S_w
        s >  S_w: maximum - (maximum - minimum) * (s - S_w) / (S - S_w)

    Raises:
        ValueError: on settings that contradict each other.

    Source: arXiv 2510.12285, mask-rate curriculum.
    """
    if not 0 < minimum <= maximum < 1:
        raise ValueError(
            f"mask_rate: minimum {minimum} and maximum {maximum} must satisfy "
            "0 < minimum <= maximum < 1."
        )
    _check_warmup("mask_rate", warmup_steps, total_steps)
    if step < warmup_steps:
        return minimum + (maximum - minimum) * step / warmup_steps
    return maximum - (maximum - minimum) * (step - warmup_steps) / (total_steps - warmup_steps)


@dataclass(frozen=True)
class DampedCosine:
    """Learning rate of a step: a cosine of `cycles` cycles between two envelopes.

    With p = s / S, s the step and S = total_steps:
        Peak(p) = minimum + (peak - minimum) * (1 - p) ** damping
        (Peak(p) + minimum) / 2 + (Peak(p) - minimum) / 2 * cos(pi * (2 * cycles - 1) * p)
    so it starts at `peak` and ends at `minimum`. During the first `warmup_steps` it is multiplied
    by s / warmup_steps, a linear ramp from 0 that meets the curve.

    The formula is the paper's; its envelopes were not available, so Peak(p) above and `minimum`
    below are our reading.

    Raises:
        ValueError: on settings that contradict each other.

    Source: arXiv 2510.12285, damped-cosine schedule.
    """

    peak: float
    minimum: float
    total_steps: int
    warmup_steps: int = 0
    cycles: int = 2
    damping: float = 1.0

    def __post_init__(self):
        _check_rates(self.minimum, self.peak)
        if self.cycles < 1:
            raise ValueError(f"learning_rate: cycles must be at least 1, got {self.cycles}.")
        if self.damping < 0:
            raise ValueError(f"learning_rate: damping must not be negative, got {self.damping}.")
        _check_warmup("learning_rate", self.warmup_steps, self.total_steps)

    def __call__(self, step: int) -> float:
        # Schedulers also ask for the step after the last.
        p = min(step, self.total_steps) / self.total_steps
        upper = self.minimum + (self.peak - self.minimum) * (1 - p) ** self.damping
        wave = math.cos(math.pi * (2 * self.cycles - 1) * p)
        rate = (upper + self.minimum) / 2 + (upper - self.minimum) / 2 * wave
        return rate * min(1.0, step / self.warmup_steps) if self.warmup_steps else rate


@dataclass(frozen=True)
class WarmupStableDecay:
    """Learning rate of a step: up to `peak`, there for most of the run, down to `minimum` (WSD).

    With S = total_steps and D = decay_share * S, in the last D steps, where q = (s - S + D) / D:
        "linear": peak - (peak - minimum) * q
        "sqrt":   peak - (peak - minimum) * sqrt(q), which falls faster at first
    During the first `warmup_steps` it is multiplied by s / warmup_steps.

    Raises:
        ValueError: on settings that contradict each other.

    Source: arXiv 2404.06395; the square root, arXiv 2405.18392.
    """

    peak: float
    minimum: float
    total_steps: int
    warmup_steps: int = 0
    decay_share: float = 0.2
    decay: str = "linear"

    def __post_init__(self):
        _check_rates(self.minimum, self.peak)
        if not 0 <= self.decay_share <= 1:
            raise ValueError(
                f"learning_rate: decay_share must lie between 0 and 1, got {self.decay_share}."
            )
        _check_warmup("learning_rate", self.warmup_steps, self.total_steps)

    def __call__(self, step: int) -> float:
        decay_steps = self.decay_share * self.total_steps
        into_decay = min(step, self.total_steps) - (self.total_steps - decay_steps)
        q = into_decay / decay_steps if into_decay > 0 else 0.0
        fallen = math.sqrt(q) if self.decay == "sqrt" else q
        rate = self.peak - (self.peak - self.minimum) * fallen
        return rate * min(1.0, step / self.warmup_steps) if self.warmup_steps else rate


def _check_rates(minimum: float, peak: float) -> None:
    if not 0 <= minimum <= peak or peak == 0:
        raise ValueError(
            f"learning_rate: minimum {minimum} and peak {peak} must satisfy "
            "0 <= minimum <= peak and 0 < peak."
        )


def _check_warmup(name: str, warmup_steps: int, total_steps: int) -> None:
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"{name}: warmup_steps {warmup_steps} must lie between 0 and the {total_steps} steps "
            "of the stage (max_steps); shorten the warm-up or train longer."
        )
