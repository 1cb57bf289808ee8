"""Optimizers and learning-rate schedules: configurations, and what optax makes of them."""

import math
from dataclasses import dataclass, field

import optax

from instahide_jax.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """A constant learning rate after a linear warm-up; base of the other schedules.

    Attributes:
      warmup_epochs: epochs in which the learning rate rises from 0.
    """

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < math.inf:
            raise InputError(
                f"warmup_epochs is {self.warmup_epochs}; it must be at least 0 and finite"
            )


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiply the learning rate at given epochs.

    Attributes:
      boundaries: epochs, ascending, after the warm-up; as published, 100 and 150 of 200.
      factor: multiplier at each, > 0.
    """

    boundaries: tuple[float, ...] = (100, 150)
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        starts = (self.warmup_epochs, *self.boundaries)
        ascend = all(a < b < math.inf for a, b in zip(starts, self.boundaries, strict=False))
        if not ascend:
            raise InputError(
                f"boundaries are {self.boundaries}; they must ascend and be above "
                f"warmup_epochs={self.warmup_epochs}"
            )
        if not 0 < self.factor < math.inf:
            raise InputError(f"factor is {self.factor}; it must be above 0 and finite")


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the learning rate to 0 over the whole run."""


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from the learning rate to 0 over the whole run."""


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
      learning_rate: peak, > 0.
      schedule: of the learning rate.
      accumulate: steps whose gradients are averaged into one update; steps at the end of a run that
        do not fill a group change nothing but the running statistics.
      clip: gradients whose norm over all parameters is larger are scaled down to this, > 0; None
        leaves them.
    """

    learning_rate: float = 0.1
    schedule: Schedule = field(default_factory=Cosine, kw_only=True)
    accumulate: int = field(default=1, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"learning_rate is {self.learning_rate}; it must be above 0 and finite"
            )
        if self.accumulate < 1:
            raise InputError(f"accumulate is {self.accumulate}; it must be at least 1")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise InputError(f"clip is {self.clip}; it must be above 0 and finite, or None")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Updates from gradients under the learning rates of a schedule."""
        raise TypeError(f"{type(self).__name__} does not define transformation")


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Attributes:
      momentum: in [0, 1).
      nesterov: look ahead.
      weight_decay: coefficient on every parameter, as in the published PyTorch code.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum}; it must lie in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"weight_decay is {self.weight_decay}; it must be at least 0 and finite"
            )

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(rate, self.momentum, self.nesterov),
        )


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay on every parameter (Loshchilov and Hutter, 2019).

    The defaults are those of the published TextHide code: linear decay without warm-up, gradients
    clipped to norm 1, no weight decay.

    Attributes:
      b1: decay of the mean of gradients, in [0, 1).
      b2: decay of the mean of their squares, in [0, 1).
      epsilon: added to the root of the latter, > 0.
      weight_decay: multiplied by the learning rate.
    """

    learning_rate: float = 2e-5
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Linear, kw_only=True)
    clip: float | None = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"epsilon is {self.epsilon}; it must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"weight_decay is {self.weight_decay}; it must be at least 0 and finite"
            )

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(
            rate, b1=self.b1, b2=self.b2, eps=self.epsilon, weight_decay=self.weight_decay
        )


def make_schedule(config: Optimizer, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """The learning rate of a run by the number of updates done, not steps, where they differ."""
    updates = config.accumulate
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch / updates)
    rest = max(1, total_steps // updates - warmup)
    peak, schedule = config.learning_rate, config.schedule
    match schedule:
        case StepDecay():
            at = [round(b * steps_per_epoch / updates) - warmup for b in schedule.boundaries]
            # Boundaries of a short run may fall on one update: each counts.
            scales = {u: schedule.factor ** at.count(u) for u in at}
            after = optax.piecewise_constant_schedule(peak, scales)
        case Cosine():
            after = optax.cosine_decay_schedule(peak, rest)
        case Linear():
            after = optax.linear_schedule(peak, 0.0, rest)
        case _:
            after = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: Optimizer, steps_per_epoch: int, total_steps: int
) -> optax.GradientTransformation:
    """The optimizer of a run; with accumulation, one update per several steps."""
    rate = make_schedule(config, steps_per_epoch, total_steps)
    optimizer = config.transformation(rate)
    if config.clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
    if config.accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()
