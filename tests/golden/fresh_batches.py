"""Batches for the statistics of fresh networks, the same for PyTorch and for this project."""

import numpy as np


def batches(side, num_classes, seed, size=64):
    """Images [B, side, side, 3] of mean 0 and deviation 1, and soft labels [B, classes], float32.

    Plain ones ("vanilla"), mixtures of four ("mixup"), and these under random signs ("instahide").
    """
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(size, side // 4, side // 4, 3))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)  # neighbours are alike, as in photographs
    labels = np.eye(num_classes)[rng.integers(num_classes, size=size)]
    coefficients = np.abs(rng.normal(size=(size, 4)))
    coefficients /= coefficients.sum(axis=1, keepdims=True)
    partners = [np.arange(size), *(rng.permutation(size) for _ in range(3))]
    mixed, soft = (
        sum(coefficients[:, i].reshape(-1, *[1] * (x.ndim - 1)) * x[partners[i]] for i in range(4))
        for x in (images, labels)
    )
    signs = rng.choice([-1.0, 1.0], size=mixed.shape)
    made = {"vanilla": (images, labels), "mixup": (mixed, soft), "instahide": (signs * mixed, soft)}
    return {name: tuple(x.astype(np.float32) for x in pair) for name, pair in made.items()}


def tokens(seed, size=32, length=16, vocab=100):
    """Ids of texts, int [B, L], and their classes among 10, soft [B, 10] float32."""
    rng = np.random.default_rng(seed)
    labels = np.eye(10, dtype=np.float32)[rng.integers(10, size=size)]
    return rng.integers(vocab, size=(size, length)), labels
