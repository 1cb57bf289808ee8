"""Cases of `remedies`: what configurations, encoders and optimizers refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tiny
import tiny_text
from flax import nnx
from remedies import case, refused

from instahide_jax import InstaHide, NoHiding, TextHide
from instahide_jax.config import ImageExperiment, from_json, load_config, to_json
from instahide_jax.data.augment import Augment, centre
from instahide_jax.data.sources import DataConfig, PoolFile, TfdsStream
from instahide_jax.data.text_sources import SyntheticText, TableText, TfdsText
from instahide_jax.encoders import Bert, ConvNet, LeNet5, ResNet, ViT, WideResNet, make_model
from instahide_jax.encoders.heads import Head, TanhHead
from instahide_jax.optimizers import AdamW, Schedule, Sgd, StepDecay

Settings = dict[str, Any]


ARRAYS = tiny.labelled(16)


def follow(make: Callable[..., Any], *rows: tuple[Settings, str, Settings]) -> None:
    """Of every row: settings that are refused, a part of the message, and what it asks for."""
    for bad, message, good in rows:
        with refused(message):
            make(**bad)
        make(**good)


def changed(value: Any) -> Callable[..., Any]:
    return lambda **changes: replace(value, **changes)


@case
def bounds_of_experiments(place: Path) -> None:
    stream = TfdsStream(mean=(0.5,), std=(0.5,))
    follow(
        changed(tiny.EXPERIMENT),
        ({"encoder": "net"}, "encoder is a str; it must be a EncoderConfig", {"encoder": LeNet5()}),
        ({"epochs": 0}, "epochs is 0; it must be at least 1", {"epochs": 1}),
        ({"seed": 2**32}, "it must lie in [0, 2**32)", {"seed": 2**32 - 1}),
        ({"client_data": "x"}, "choose 'parts' or 'own'", {"client_data": "own"}),
        (
            {"clients": 3},
            "8, which 3 clients cannot share evenly",
            {"clients": 3, "batch_size": 15},
        ),
        ({"batch_size": 3}, "raise it or lower scheme.k", {"batch_size": 4}),
        (
            {"batch_size": 3},
            "raise it or lower scheme.k",
            {"batch_size": 3, "scheme": InstaHide.inside(k=3)},
        ),
        (
            {"partner_group": 3, "partners": "batch"},
            "needs a number in [4, 8]",
            {"partner_group": 4, "partners": "batch"},
        ),
        ({"partners": "x"}, "choose 'dataset' or 'batch'", {"partners": "batch"}),
        ({"device_map": "x"}, "choose 'shard_map' or 'pmap'", {"device_map": "pmap"}),
        (
            {"partner_group": 4},
            "set partners to 'batch', or leave it out",
            {"partner_group": 4, "partners": "batch"},
        ),
        ({"partner_group": 4}, "or leave it out", {"partner_group": None}),
        (
            {"scheme": InstaHide.cross(), "public_pool": None, "batch_size": 8},
            "name a pool in the config, or use InstaHide.inside",
            {"scheme": InstaHide.cross(), "public_pool": PoolFile("p.npy")},
        ),
        (
            {"scheme": InstaHide.cross(), "public_pool": None},
            "or use InstaHide.inside",
            {"scheme": InstaHide.inside(), "public_pool": None},
        ),
        (
            {"scheme": TextHide.intra()},
            "trained on with InstaHide or NoHiding: choose one",
            {"scheme": NoHiding()},
        ),
    )
    follow(
        changed(tiny_text.EXPERIMENT),
        (
            {"encoder": Bert(output="sequence")},
            "need a Bert with output 'pooled', 'cls' or 'mean'",
            {"encoder": Bert(output="cls")},
        ),
        (
            {"data": replace(tiny_text.EXPERIMENT.data, length=17)},
            "has positions for 16 tokens: lower it",
            {"data": replace(tiny_text.EXPERIMENT.data, length=16)},
        ),
        (
            {"scheme": TextHide.inter(), "public_text": None},
            "name a source in the config, or use TextHide.intra",
            {"scheme": TextHide.inter(), "public_text": SyntheticText()},
        ),
        (
            {"scheme": TextHide.inter(k=20, num_private=2)},
            "a row has 8 to choose from: raise batch_size or partner_group, or lower scheme.k",
            {"scheme": TextHide.inter(k=20, num_private=2), "batch_size": 18},
        ),
        (
            {"scheme": TextHide.inter(k=20, num_private=2)},
            "or lower scheme.k",
            {"scheme": TextHide.inter(k=10, num_private=2)},
        ),
    )
    follow(
        changed(stream),
        ({"mean": None, "std": None}, "of a streamed data set are not measured; set both", {}),
        ({"mean": None}, "give both or neither", {"mean": (0.1,)}),
    )
    follow(DataConfig, ({"mean": (0.5,)}, "give both or neither", {}))
    follow(
        changed(tiny_text.EXPERIMENT.data),
        ({"validation": 0}, "hold out at least 1 text", {"validation": 1}),
        ({"buckets": (20,)}, "must ascend between 0 and data.length=16", {"buckets": (8, 12)}),
        ({"metrics": ()}, "name at least one, such as accuracy", {"metrics": ("accuracy",)}),
    )
    follow(
        SyntheticText,
        ({"count": 0}, "count is 0; it must be at least 1", {"count": 1}),
        ({"shortest": 9, "longest": 8}, "in [1, longest=8]", {"shortest": 8, "longest": 8}),
        ({"truth": 0.4}, "it must lie in [0.5, 1]", {"truth": 0.5}),
    )
    both = {"unlabelled": True, "drop_unlabelled": True}
    follow(lambda **s: TfdsText("x", **s), (both, "leave one out", {"unlabelled": True}))
    follow(
        lambda **s: TableText("t.csv", **s),
        ({"label": None, "drop_unlabelled": True}, "leave one of the two out", {"label": None}),
    )


@case
def bounds_of_optimizers_and_augmentation(place: Path) -> None:
    inf = float("inf")
    follow(
        Sgd,
        ({"learning_rate": inf}, "it must be above 0 and finite", {"learning_rate": 0.1}),
        ({"accumulate": 0}, "it must be at least 1", {"accumulate": 1}),
        ({"clip": 0.0}, "it must be above 0 and finite, or None", {"clip": None}),
        ({"momentum": 1.0}, "it must lie in [0, 1)", {"momentum": 0.99}),
        ({"weight_decay": -1.0}, "it must be at least 0", {"weight_decay": 0.0}),
    )
    follow(
        AdamW,
        ({"b1": 1.0}, "it must lie in [0, 1)", {"b1": 0.0}),
        ({"epsilon": 0.0}, "it must be above 0", {"epsilon": 1e-9}),
        ({"weight_decay": inf}, "at least 0 and finite", {"weight_decay": 0.0}),
    )
    follow(Schedule, ({"warmup_epochs": -1}, "it must be at least 0", {"warmup_epochs": 0}))
    follow(
        StepDecay,
        (
            {"boundaries": (2, 1)},
            "must ascend and be above warmup_epochs=0",
            {"boundaries": (1, 2)},
        ),
        ({"factor": 0.0}, "it must be above 0", {"factor": 0.5}),
    )
    follow(
        Augment,
        ({"padding": -1}, "it must be at least 0", {"padding": 0}),
        ({"size": 0}, "it must be at least 1", {"size": 1}),
    )
    with refused("larger than images of (8, 8) with padding 1; lower it"):
        Augment(padding=1, size=11).output_shape((8, 8, 3))
    Augment(padding=1, size=10).output_shape((8, 8, 3))
    images = jnp.zeros((1, 8, 8, 3))
    with refused("without padding they cannot be evaluated: lower it"):
        centre(Augment(padding=1, size=9), images)
    centre(Augment(padding=1, size=8), images)


@case
def bounds_of_encoders(place: Path) -> None:
    follow(
        ConvNet,
        ({"dtype": "float16"}, "choose 'float32' or 'bfloat16'", {"dtype": "bfloat16"}),
        ({"remat": True}, "no blocks to recompute: set it to False", {"remat": False}),
        ({"widths": ()}, "at least one width of at least 1", {"widths": (4,), "strides": (1,)}),
        ({"strides": (1,)}, "one of at least 1 for each width", {"strides": (1, 1, 1)}),
    )
    follow(
        ResNet,
        ({"blocks": (0,)}, "every stage needs at least 1 block", {"blocks": (1,)}),
        ({"width": 0}, "it must be at least 1", {"width": 1}),
        ({"form": "x"}, "choose 'published' or 'standard'", {"form": "standard"}),
        ({"stem": "x"}, "choose 'cifar', 'strided' or 'imagenet'", {"stem": "strided"}),
    )
    follow(
        WideResNet,
        ({"depth": 12}, "must be 6 n + 4 with n >= 1, such as 28", {"depth": 28}),
        ({"widen": 0}, "it must be at least 1", {"widen": 1}),
        ({"dropout": 1.0}, "it must lie in [0, 1)", {"dropout": 0.5}),
    )
    follow(
        ViT,
        ({"depth": 0}, "it must be at least 1", {"depth": 1}),
        ({"num_heads": 5}, "multiple of num_heads, which is 5", {"num_heads": 5, "width": 10}),
        ({"dropout": 1.0}, "it must lie in [0, 1)", {"dropout": 0.0}),
        ({"pooling": "x"}, "choose 'cls' or 'mean'", {"pooling": "mean"}),
    )
    follow(
        Bert,
        ({"kind": "x"}, "choose 'bert' or 'roberta'", {"kind": "roberta"}),
        ({"layers": 0}, "it must be at least 1", {"layers": 1}),
        ({"heads": 5}, "must be a multiple of heads, which is 5", {"heads": 5, "hidden": 10}),
        ({"padding_idx": -1}, "it must be at least 0", {"padding_idx": 0}),
        ({"kind": "roberta", "positions": 2}, "needs more", {"kind": "roberta", "positions": 3}),
        ({"init_std": 0.0}, "it must be above 0", {"init_std": 0.02}),
        ({"output": "x"}, "choose 'pooled', 'cls', 'mean' or 'sequence'", {"output": "mean"}),
        ({"dropout": 1.0}, "it must lie in [0, 1)", {"dropout": 0.0}),
    )
    follow(Head, ({"dropout": 1.0}, "it must lie in [0, 1)", {"dropout": 0.0}))
    follow(TanhHead, ({"repeats": 0}, "it must be at least 1", {"repeats": 1}))


@case
def inputs_of_encoders(place: Path) -> None:
    def traced(config: Any, shape: tuple[int, ...], *inputs: Any) -> None:
        """Build a module and call it, without computing anything."""

        def run() -> Any:
            module = config.build(shape, nnx.Rngs(0))
            module.eval()
            return [module(given) for given in inputs]

        nnx.eval_shape(run)

    vit = ViT(patch_size=4, width=4, depth=1, num_heads=1, mlp_width=4)
    with refused("choose one that divides both sides, or resize the images"):
        traced(vit, (10, 8, 3))
    traced(replace(vit, patch_size=2), (10, 8, 3))
    traced(vit, (8, 8, 3))
    larger = jnp.zeros((1, 12, 8, 3))
    with refused("resize them, or make a model for their shape"):
        traced(vit, (8, 8, 3), larger)
    traced(vit, (8, 8, 3), larger[:, :8])
    traced(vit, (12, 8, 3), larger)
    with refused("at least 16x16, not (12, 12): resize them, or take another encoder"):
        traced(LeNet5(), (12, 12, 1))
    traced(LeNet5(), (16, 16, 1))
    bert = replace(tiny_text.EXPERIMENT.encoder, positions=4)
    with refused("give (length,)"):
        bert.example((4, 4))
    assert bert.example((4,))
    long = {name: jnp.ones((1, 5), jnp.int32) for name in ("ids", "types", "mask")}
    tokens = {name: array[:, :4] for name, array in long.items()}
    with refused("has positions for 4: truncate to that length"):
        traced(bert, (4,), long)
    with refused("all must be the same [B, L]"):
        traced(bert, (4,), tokens | {"mask": long["mask"]})
    traced(bert, (4,), tokens)
    model = make_model(bert, (4,), 2)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    with refused("it takes"):
        jax.eval_shape(lambda v: model.features(v, jnp.zeros((1, 4)), train=False), variables)
    jax.eval_shape(lambda v: model.features(v, tokens, train=False), variables)


@case
def config_files(place: Path) -> None:
    good = "from tiny import EXPERIMENT\n\ndef default():\n    return EXPERIMENT\n"
    Path("c.py").write_text(good)
    for reference, message in (
        ("cc.py", "did you mean c.py?"),
        (".", "is no file; did you mean c.py?"),
        ("c.py:defalt", "did you mean default?"),
    ):
        with refused(message):
            load_config(reference)
    assert isinstance(load_config("c.py"), ImageExperiment)
    for text, message in (
        (good.replace("default()", "default(x)"), "give defaults, or start the name of a helper"),
        (good.replace("return EXPERIMENT", "return 3"), "return an ImageExperiment or a TextExpe"),
        (good + "\n1 / 0\n", "line 6: ZeroDivisionError: division by zero; correct it, or give"),
    ):
        Path("d.py").write_text(text)
        with refused(message):
            load_config("d.py")
    Path("d.py").write_text(good.replace("default()", "default(x=1)") + "def _help(y):\n    pass\n")
    load_config("d.py")


@case
def saved_configurations(place: Path) -> None:
    saved = to_json(Sgd())
    for bad, message in (
        ({"learning_rate": 1}, "names no class; use the version of instahide-jax that wrote it"),
        (saved | {"class": "other:Sgd"}, "class Sgd is of other; if you trust that module, pass -"),
        (saved | {"rate": 1}, "use the version of instahide-jax that wrote it, or train anew"),
    ):
        with refused(message):
            from_json(bad)
    assert from_json(saved) == Sgd()
