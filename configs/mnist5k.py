"""MNIST-5k: 5,000 real MNIST images that come with the install; nothing to download.

    python train.py configs/mnist5k.py
"""

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import Cosine, Experiment, Sgd
from instahide_jax.data.sources import Mnist5k, PoolHeldOut
from instahide_jax.encoders import ConvNet
from instahide_jax.hiding import NoHiding as Scheme


def _experiment(scheme: Scheme, **settings: object) -> Experiment:
    return Experiment(
        data=Mnist5k(),
        encoder=ConvNet(widths=(32, 64, 128)),
        scheme=scheme,
        optimizer=Sgd(learning_rate=0.1, weight_decay=5e-4, schedule=Cosine(warmup_epochs=2)),
        epochs=60,
        batch_size=100,
        **settings,  # type: ignore[arg-type]
    )


def default() -> Experiment:
    """InstaHide inside, k=4."""
    return inside()


def vanilla() -> Experiment:
    """Nothing hidden."""
    return _experiment(NoHiding())


def mixup() -> Experiment:
    """k=4 mixed without masks: hides nothing."""
    return _experiment(InstaHide.mixup(k=4))


def inside() -> Experiment:
    """InstaHide within the data set, k=4."""
    return _experiment(InstaHide.inside(k=4))


def cross() -> Experiment:
    """InstaHide across data sets, k=6; 1,000 of the training images act as the public pool."""
    return _experiment(InstaHide.cross(k=6), public_pool=PoolHeldOut(count=1000))
