"""A made-up text task with a small random BERT: nothing to download, trained in a minute on a CPU.

    python train.py configs/synthetic_text.py
    python train.py configs/synthetic_text.py:vanilla

The sentences are no language: words that say one of two classes, mostly the right one, between
words that say nothing (`SyntheticText`). The best possible accuracy is 0.928. For a look at
TextHide and for tests; what it does to real text, configs/movie_reviews.py shows.

Variants: default (= intra), vanilla, mix, intra, inter. Measured accuracies are in docs/results.md.
"""

from typing import Any

from instahide_jax import NoHiding, TextHide
from instahide_jax.config import TextExperiment
from instahide_jax.data.text_sources import SyntheticText, TextData
from instahide_jax.encoders import Bert
from instahide_jax.optimizers import AdamW, Linear


def _experiment(scheme: NoHiding, **settings: Any) -> TextExperiment:
    return TextExperiment(
        data=TextData(
            train=SyntheticText(count=4200, seed=1),
            test=SyntheticText(count=2000, seed=2),
            validation=200,
            length=26,
            buckets=(14, 20),
        ),
        encoder=Bert(
            vocab_size=204,
            hidden=64,
            layers=2,
            heads=4,
            intermediate=128,
            positions=26,
            output="mean",
            dropout=0.0,
            attention_dropout=0.0,
        ),
        scheme=scheme,
        optimizer=AdamW(learning_rate=2e-3, schedule=Linear(warmup_epochs=1)),
        epochs=6,
        batch_size=32,
        save_every=250,
        **settings,
    )


def default() -> TextExperiment:
    """TextHide intra, k=4, m=16."""
    return intra()


def vanilla() -> TextExperiment:
    """Nothing is hidden."""
    return _experiment(NoHiding())


def mix() -> TextExperiment:
    """Four texts mixed without masks."""
    return _experiment(TextHide.intra(k=4, num_masks=0))


def intra() -> TextExperiment:
    """TextHide within the data set, k=4, 16 masks."""
    return _experiment(TextHide.intra(k=4, num_masks=16))


def inter() -> TextExperiment:
    """TextHide across data sets, k=4, 16 masks; 2,000 other sentences act as public text."""
    public = SyntheticText(count=2000, seed=3)
    return _experiment(TextHide.inter(k=4, num_masks=16), public_text=public)
