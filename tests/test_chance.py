"""What guessing loses, and the warning of a run that does no better."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instahide_jax.chance import MARGIN, WINDOW, LearningCheck, chance_loss, target_means
from instahide_jax.training import example_losses

BALANCED = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
RARE = np.eye(3, dtype=np.float32)[[0] * 30 + [1] * 9 + [2]]


def _best_constant(targets):
    """The lowest loss of constant outputs, by descent on the project's own loss."""
    outputs = jnp.zeros(targets.shape[1] if targets.ndim == 2 else 1)

    def loss(outputs):
        given = jnp.broadcast_to(outputs[None, :], (len(targets), len(outputs)))
        return example_losses(given, targets).mean()

    optimizer = optax.adam(0.1)

    def step(carry, _):
        outputs, state = carry
        updates, state = optimizer.update(jax.grad(loss)(outputs), state)
        return (optax.apply_updates(outputs, updates), state), None

    (outputs, _), _ = jax.lax.scan(step, (outputs, optimizer.init(outputs)), length=1000)
    return float(loss(outputs))


@pytest.mark.parametrize(
    "targets",
    [
        BALANCED,
        RARE,
        RARE * np.linspace(0.3, 1, 40, dtype=np.float32)[:, None],  # labels of cross InstaHide
        np.pad(BALANCED, ((0, 0), (0, 1))),  # a class that never occurs
        np.random.default_rng(0).normal(3, 2, 40).astype(np.float32),
    ],
    ids=["balanced", "rare", "light", "absent", "numbers"],
)
def test_chance_is_what_the_best_constant_loses(targets):
    assert chance_loss(target_means(jnp.asarray(targets))) == pytest.approx(
        _best_constant(targets), abs=2e-3
    )


def test_chance_of_balanced_classes_is_the_logarithm_of_their_number():
    assert chance_loss(target_means(jnp.asarray(BALANCED))) == pytest.approx(np.log(4))
    assert chance_loss(target_means(0.5 * jnp.asarray(BALANCED))) == pytest.approx(np.log(4) / 2)


def _warnings(check, losses, means=None):
    """What a check says of the steps 1, 2, ...: {step: warning}."""
    means = target_means(jnp.asarray(BALANCED)) if means is None else means
    warnings = {step: check.add(step, np.float32(x), means) for step, x in enumerate(losses, 1)}
    return {step: warning for step, warning in warnings.items() if warning is not None}


@pytest.mark.parametrize(
    ("epoch", "warmup", "due"), [(10, 0, WINDOW), (500, 0, 500), (300, 1, 600)]
)
def test_a_run_at_chance_is_warned_once(epoch, warmup, due):
    warnings = _warnings(LearningCheck(0, 10**6, epoch, warmup), [np.log(4)] * (2 * due))
    assert list(warnings) == [due]
    assert warnings[due].startswith(
        f"after {due:,} steps the training loss is 1.386, and guessing loses 1.386: the network has"
        " not begun to learn."
    )
    for option in ("--optimizer.learning-rate", "--optimizer.schedule.warmup-epochs", "--workdir"):
        assert option in warnings[due]


@pytest.mark.parametrize(
    ("factor", "warned"), [(1 - 1.2 * MARGIN, 0), (1 - 0.8 * MARGIN, 1), (4, 1)]
)
def test_the_margin(factor, warned):
    rng = np.random.default_rng(1)
    losses = factor * np.log(4) + 0.05 * rng.normal(size=WINDOW)
    assert (
        len(_warnings(LearningCheck(0, 10**6, 1, 0), losses - (losses - factor * np.log(4)).mean()))
        == warned
    )


def test_only_the_last_steps_count():
    """A high start does not hide that the network learns now, nor the other way round."""
    learned, lost = np.log(4) * 0.5, np.log(4) * 2
    assert not _warnings(
        LearningCheck(0, 10**6, 3 * WINDOW, 0), [lost] * 2 * WINDOW + [learned] * WINDOW
    )
    assert _warnings(
        LearningCheck(0, 10**6, 3 * WINDOW, 0), [learned] * 2 * WINDOW + [lost] * WINDOW
    )


def test_chance_is_that_of_all_targets_and_not_of_single_batches():
    """A batch of one class has no entropy of its own."""
    check = LearningCheck(0, 10**6, 1, 0)
    warnings = [
        check.add(step, np.float32(0.9), target_means(jnp.asarray(BALANCED[step % 4][None, :])))
        for step in range(1, WINDOW + 1)
    ]
    assert warnings == [None] * WINDOW


@pytest.mark.parametrize(
    ("start", "total", "due"),
    [
        (0, 10_000, [600]),
        (399, 10_000, [600]),
        (401, 10_000, [601]),  # before that it has too few steps of its own
        (599, 10_000, [799]),
        (600, 10_000, []),  # it was checked
        (900, 10_000, []),
        (0, 450, [450]),  # it ends within the warm-up or the epoch after it
        (0, WINDOW, [WINDOW]),
        (0, WINDOW - 1, []),
        (300, 450, []),
    ],
)
def test_a_run_is_checked_once_whenever_it_is_interrupted(start, total, due):
    check = LearningCheck(start, total, steps_per_epoch=300, warmup_epochs=1)
    means = target_means(jnp.asarray(BALANCED))
    steps = range(start + 1, total + 1)
    assert [step for step in steps if check.add(step, np.float32(9), means)] == due
