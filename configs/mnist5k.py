"""MNIST-5k: 5,000 real MNIST images that come with the install; nothing to download.

    python train.py configs/mnist5k.py
    python train.py configs/mnist5k.py:vanilla

Variants: default (= inside), vanilla, mixup, inside, cross. A run takes a minute or two on one
core. Measured accuracies are in docs/results.md.
"""

from typing import Any

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Mnist5k, PoolHeldOut
from instahide_jax.encoders import ConvNet
from instahide_jax.optimizers import Cosine, Sgd


def _experiment(scheme: NoHiding, **settings: Any) -> ImageExperiment:
    return ImageExperiment(
        data=Mnist5k(validation=200),
        encoder=ConvNet(widths=(32, 64, 128), strides=(2, 2, 1)),
        scheme=scheme,
        augment=Augment(padding=1),
        optimizer=Sgd(learning_rate=0.2, weight_decay=5e-4, schedule=Cosine(warmup_epochs=2)),
        epochs=40,
        batch_size=100,
        **settings,
    )


def default() -> ImageExperiment:
    """InstaHide inside, k=4."""
    return inside()


def vanilla() -> ImageExperiment:
    """Nothing is hidden."""
    return _experiment(NoHiding())


def mixup() -> ImageExperiment:
    """Four images mixed without masks; hides nothing."""
    return _experiment(InstaHide.mixup(k=4))


def inside() -> ImageExperiment:
    """InstaHide within the data set, k=4."""
    return _experiment(InstaHide.inside(k=4))


def cross() -> ImageExperiment:
    """InstaHide across data sets, k=6; 1,000 of the training images act as the public pool."""
    return _experiment(InstaHide.cross(k=6), public_pool=PoolHeldOut(count=1000))
