"""Fashion-MNIST: 60,000 real images, with a small ResNet that trains on a CPU.

    instahide prepare fashion_mnist --source /usr/share/datasets/fashion-mnist
    instahide prepare public-pool --source PHOTOS --size 28 --channels 1 --out data/photos28.npy
    python train.py configs/fashion_mnist.py:inside
    python train.py configs/fashion_mnist.py:cross

Variants: default (= inside), vanilla, mixup, inside, cross. Vanilla has 10 epochs, which take 17
minutes on one core; mixed images need the 50 that they have, 70 minutes. Only cross needs the pool.
Measured accuracies are in docs/results.md.
"""

from typing import Any

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import ImageExperiment
from instahide_jax.data.sources import PoolFile, TfdsImages
from instahide_jax.encoders import ResNet
from instahide_jax.optimizers import Cosine, Sgd


def _experiment(scheme: NoHiding, epochs: int = 50, **settings: Any) -> ImageExperiment:
    return ImageExperiment(
        data=TfdsImages(name="fashion_mnist", validation=2000),
        encoder=ResNet(blocks=(1, 1, 1), width=32, stem="strided", form="standard"),
        scheme=scheme,
        optimizer=Sgd(learning_rate=0.3, weight_decay=2e-5, schedule=Cosine(warmup_epochs=1)),
        epochs=epochs,
        batch_size=64,
        save_every=2000,
        **settings,
    )


def default() -> ImageExperiment:
    """InstaHide inside, k=4."""
    return inside()


def vanilla() -> ImageExperiment:
    """Nothing is hidden."""
    return _experiment(NoHiding(), epochs=10)


def mixup() -> ImageExperiment:
    """Four images mixed without masks; hides nothing."""
    return _experiment(InstaHide.mixup(k=4))


def inside() -> ImageExperiment:
    """InstaHide within the data set, k=4."""
    return _experiment(InstaHide.inside(k=4))


def cross() -> ImageExperiment:
    """InstaHide across data sets, k=6, with patches of photographs as the public pool."""
    return _experiment(InstaHide.cross(k=6), public_pool=PoolFile("data/photos28.npy"))
