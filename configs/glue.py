"""The nine tasks of GLUE with bert-base-cased and the published recipe of TextHide.

    instahide prepare glue/sst2 --source FOLDER_OR_ZIP
    python train.py configs/glue.py:sst2_intra
    python train.py configs/glue.py:mnli_inter --batch-size 64

The source is GLUE's own archive of the task. The weights lie in the folder data/bert-base-cased, in
Hugging Face's layout: config.json, model.safetensors, and tokenizer.json or vocab.txt with
tokenizer_config.json, which says that capitals are kept.

Variants: TASK_SCHEME for cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, and vanilla, mix,
intra (k=4), inter (k=4, two public texts); default = sst2_intra. Batches of 32, length 128, AdamW
with linear decay, gradients clipped to norm 1; learning rate, epochs, masks and dropout per task
are those of the published code, which has none for WNLI: those of RTE stand in. Public texts are
the training sentences of MNLI, for MNLI itself those of QNLI. GLUE's test labels are hidden, so
`eval.py` scores GLUE's validation split; checkpoints are chosen on texts held out of training.
This project has not run them: no bert-base weights were at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass

from instahide_jax import NoHiding, TextHide
from instahide_jax.config import TextExperiment
from instahide_jax.data.glue import glue_task
from instahide_jax.data.text_sources import TextData, TfdsText
from instahide_jax.encoders import Bert, TanhHead
from instahide_jax.optimizers import AdamW


@dataclass(frozen=True)
class _Recipe:
    """What the published code sets per task."""

    learning_rate: float
    epochs: int
    masks: int
    dropout: float


_RECIPES = {
    "cola": _Recipe(1e-5, 30, 256, 0.0),
    "sst2": _Recipe(1e-5, 20, 256, 0.4),
    "mrpc": _Recipe(2e-5, 20, 256, 0.0),
    "stsb": _Recipe(2e-5, 20, 256, 0.0),
    "qqp": _Recipe(1e-5, 15, 256, 0.0),
    "mnli": _Recipe(5e-6, 15, 256, 0.4),
    "qnli": _Recipe(1e-5, 15, 256, 0.4),
    "rte": _Recipe(2e-5, 15, 16, 0.0),
    "wnli": _Recipe(2e-5, 15, 16, 0.0),
}


def _source(name: str, split: str) -> TfdsText:
    task = glue_task(name)
    return TfdsText(f"glue/{name}", split, task.text, task.second, task.label)


def _experiment(name: str, scheme: NoHiding) -> TextExperiment:
    task, recipe = glue_task(name), _RECIPES[name]
    tests = [_source(name, split) for split in task.validation]
    return TextExperiment(
        data=TextData(
            train=_source(name, "train"),
            test=tests[0],
            other_test=tests[1] if len(tests) > 1 else None,
            validation=min(2000, task.sizes["train"] // 10),
            length=128,
            buckets=(32, 64, 96),
            metrics=task.metrics,
        ),
        encoder=Bert(
            vocab_size=28_996,
            dropout=recipe.dropout,
            attention_dropout=0.1,
            folder="data/bert-base-cased",
        ),
        head=TanhHead(dropout=recipe.dropout),
        scheme=scheme,
        public_text=_source("qnli" if name == "mnli" else "mnli", "train"),
        optimizer=AdamW(learning_rate=recipe.learning_rate),
        epochs=recipe.epochs,
        batch_size=32,
    )


def _variants(name: str) -> dict[str, Callable[[], TextExperiment]]:
    masks = _RECIPES[name].masks

    def vanilla() -> TextExperiment:
        return _experiment(name, NoHiding())

    def mix() -> TextExperiment:
        return _experiment(name, TextHide.intra(k=4, num_masks=0))

    def intra() -> TextExperiment:
        return _experiment(name, TextHide.intra(k=4, num_masks=masks))

    def inter() -> TextExperiment:
        return _experiment(name, TextHide.inter(k=4, num_masks=masks))

    return {f"{name}_{f.__name__}": f for f in (vanilla, mix, intra, inter)}


for _name in _RECIPES:
    globals().update(_variants(_name))


def default() -> TextExperiment:
    """SST-2, TextHide intra."""
    return _experiment("sst2", TextHide.intra(k=4, num_masks=_RECIPES["sst2"].masks))
