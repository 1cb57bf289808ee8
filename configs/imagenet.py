"""ImageNet at 224 pixels, streamed, with ResNet-18 (standard form, 7x7 stem).

    instahide prepare imagenet2012
    instahide prepare public-pool --source JPEGS --out data/photos224.npy --size 224 --test-size 256
    python train.py configs/imagenet.py:inside --data.data-dir TFDS_FOLDER
    python train.py configs/imagenet.py:vit --data.data-dir TFDS_FOLDER --encoder.remat

Variants: default (= inside), vanilla, mixup, inside, cross, vit. Partners are drawn from the batch,
because a stream is not in memory. Another prepared data set of photographs takes `--data.name` and
its splits. Plain images have 90 epochs. Mixed ones have 300, because they need more: those of
CIFAR-10 still gained after 76 epochs, where plain ones were done after 30 (an older measurement,
docs/results.md). This project has not run these recipes on ImageNet, which was not at hand, and
does not know what they reach or cost; they are for TPU pods and machines with several GPUs.
"""

from dataclasses import replace

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import PoolConfig, PoolFile, TfdsStream
from instahide_jax.encoders import ResNet18, ViT
from instahide_jax.optimizers import AdamW, Cosine, Sgd


def _experiment(
    scheme: NoHiding, public_pool: PoolConfig | None = None, epochs: int = 300
) -> ImageExperiment:
    return ImageExperiment(
        data=TfdsStream(
            name="imagenet2012", resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        encoder=ResNet18(form="standard", stem="imagenet", dtype="bfloat16"),
        scheme=scheme,
        public_pool=public_pool,
        augment=Augment(size=224, flip=True),
        optimizer=Sgd(learning_rate=0.4, weight_decay=5e-5, schedule=Cosine(warmup_epochs=5)),
        epochs=epochs,
        batch_size=1024,
        partners="batch",
        save_every=1000,
    )


def default() -> ImageExperiment:
    """InstaHide inside, k=4."""
    return inside()


def vanilla() -> ImageExperiment:
    """Nothing is hidden."""
    return _experiment(NoHiding(), epochs=90)


def mixup() -> ImageExperiment:
    """Four images mixed without masks; hides nothing."""
    return _experiment(InstaHide.mixup(k=4))


def inside() -> ImageExperiment:
    """InstaHide within the data set, k=4."""
    return _experiment(InstaHide.inside(k=4))


def cross() -> ImageExperiment:
    """InstaHide across data sets, k=6, with patches of photographs as the public pool."""
    return _experiment(InstaHide.cross(k=6), PoolFile("data/photos224.npy"))


def vit() -> ImageExperiment:
    """Inside with a ViT-B/16, optimised as the plain ViT of Beyer et al. (2022)."""
    # Warm-up of 10,000 steps; their decay of 1e-4 is not multiplied by the learning rate.
    schedule = Cosine(warmup_epochs=8)
    return replace(
        inside(),
        encoder=ViT.base(dtype="bfloat16"),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.1, schedule=schedule),
    )
